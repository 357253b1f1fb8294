"""SmolLM2-135M-Instruct as it comes, against what independent torch code measured of it.

$HEADJAX_REAL_MODEL is its directory in Hugging Face's format (30 layers of 9 query and 3 key/value heads,
540 MB in float32). About a minute on two cores. The numbers were measured behind a beginning-of-text
token, which this model's tokenizer does not add by itself.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SECONDS = 1800
OPTIONS = {
    "relations": "country_to_capital,name_copying",
    "analyses": "relation_scores,attention_patterns,path_patching",
    "prompts": "ioi",
    "n_prompts": "16",
    "receivers": "L23H3.q",
    "bos": "true",
}
# (relation, kind) -> the heads with the largest scores, in order, and how near their scores must be.
EXPECTED = {
    ("country_to_capital", "static"): ({"L23H4": 0.64, "L23H5": 0.53}, 0.006),
    ("name_copying", "static"): ({"L23H2": 0.85}, 0.006),
    ("name_copying", "static_suppression"): ({"L23H3": 0.90}, 0.006),
    ("repeated_tokens", "attention_induction"): ({"L18H6": 0.885, "L17H3": 0.766, "L17H4": 0.738}, 0.002),
    ("repeated_tokens", "attention_previous"): ({"L16H0": 0.88}, 0.006),
    # Its size depends on the prompts and their number (-70 % of 100 of ours): which head it is does not.
    ("ioi", "path_logits"): ({"L23H3": None}, None),
    ("ioi", "path_query"): ({"L20H0": None}, None),
}


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, float]]:
    """(relation, kind) -> head -> score, from the command line."""
    model = os.environ.get("HEADJAX_REAL_MODEL")
    if not model:
        pytest.skip("needs the directory of a real model in HEADJAX_REAL_MODEL")
    out = tmp_path_factory.mktemp("run")
    options = {**OPTIONS, "model": model, "out": str(out), "checkpoint_dir": str(out / "checkpoints")}
    command = [sys.executable, "-m", "experiments.run", "--config=relation_scores", "--noprogress"]
    command += [f"--config.{name}={value}" for name, value in options.items()]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    grids: dict[tuple[str, str], dict[str, float]] = {}
    with open(out / "scores.csv", newline="") as file:
        for row in csv.DictReader(file):
            heads = grids.setdefault((row["relation"], row["kind"]), {})
            heads[f"L{row['layer']}H{row['head']}"] = float(row["score"])
    return grids


@pytest.mark.parametrize(("relation", "kind"), EXPECTED)
def test_the_heads_that_stand_out(relation: str, kind: str, scores):
    heads = scores[relation, kind]
    expected, near = EXPECTED[relation, kind]
    assert len(heads) == 270 or kind == "path_query"
    ranked = sorted(heads, key=lambda head: -abs(heads[head]))
    assert ranked[: len(expected)] == list(expected)
    for head, score in expected.items():
        assert score is None or heads[head] == pytest.approx(score, abs=near)
    if kind == "path_logits":
        assert heads["L23H3"] < -50
