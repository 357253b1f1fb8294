"""Runs that never load nor convert their model: the numbers of those that do."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.config import RunConfig
from experiments.run import run
from headjax.errors import InputError
from headjax.grid import GridSet, load_npz
from tests.helpers.runs import altered, run_config
from tests.helpers.trained_prompts import COPYING, MODEL, PROMPTS

STREAMED = (
    *("relation_scores", "dynamic_scores", "logit_attribution", "head_ablation", "attention_patterns"),
    *("salient_operations", "gradient_attribution"),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    tmp = tmp_path_factory.mktemp("stream")
    lines = [dict(zip(("prompt", "answer", "distractor"), prompt, strict=True)) for prompt in PROMPTS]
    (tmp / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp / "relations").mkdir()
    pairs = [[word, word] for word in COPYING]
    (tmp / "relations" / "copying.json").write_text(json.dumps(pairs))
    return run_config(
        model=MODEL,
        relations_dir=str(tmp / "relations"),
        min_pairs=3,
        prompts=str(tmp / "prompts.jsonl"),
        templates=("A <X> is a",),
        analyses=STREAMED,
        out=str(tmp / "held"),
        checkpoint_dir=str(tmp / "checkpoints"),
    )


def results(config: RunConfig) -> tuple[GridSet, dict]:
    run(config, progress=False)
    out = Path(config.out)
    (model,) = json.loads((out / "run.json").read_text())["models"]
    return load_npz(out / "scores.npz"), model["source"]


def test_a_streamed_run_finds_what_the_other_finds_and_converts_nothing(config, tmp_path):
    streaming = altered(
        config, stream=True, out=str(tmp_path / "streamed"), checkpoint_dir=str(tmp_path / "none")
    )
    ours, source = results(streaming)
    assert not (tmp_path / "none").exists()
    weights = source["files"]["model.safetensors"]
    assert set(weights) == {"header_sha256", "size", "mtime_ns"}  # its body was not read for a digest
    assert set(source["files"]["tokenizer.json"]) == {"sha256", "size", "mtime_ns"}

    expected, source = results(config)
    assert Path(config.checkpoint_dir).is_dir()
    assert len(ours) == len(expected) > 10
    for one, other in zip(ours, expected, strict=True):
        assert (one.kind, one.relation, one.metric) == (other.kind, other.relation, other.metric)
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=1e-5)
        assert (one.clean is None) == (not one.about.helps)
        assert one.clean == pytest.approx(other.clean, abs=1e-5)
        assert one.clean_stderr == pytest.approx(other.clean_stderr, abs=1e-5)
    (held,), (streamed,) = (
        json.loads((Path(out) / "run.json").read_text())["clean"] for out in (config.out, streaming.out)
    )
    assert held == {
        name: value if isinstance(value, str) else pytest.approx(value, abs=1e-5)
        for name, value in streamed.items()
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "analyses": ("relation_scores", "gradient_attribution"),
                "positions": "all",
                "replacement": "mean",
            },
            "'stream' is for .*; gradient_attribution: at all positions it needs replacement 'zero'",
        ),
        (
            {"analyses": ("head_ablation",), "positions": "all"},
            "'stream' is for .*; head_ablation: needs positions 'last'",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        run_config(model="gpt2", stream=True, **changes)
