"""The sweeps through `experiments.run`: against torch on a trained checkpoint, and on planted heads."""

import contextlib
import csv
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import draw, planted
from experiments.config import RunConfig
from experiments.run import run
from headjax.axes import Head
from headjax.errors import InputError
from headjax.grid import load_npz
from tests.helpers import torch_oracle
from tests.helpers.runs import altered, run_config
from tests.helpers.torch_or_skip import torch
from tests.helpers.trained_prompts import COPYING, MODEL, PROMPTS


def read(config: RunConfig, name: str) -> list[dict[str, str]]:
    with open(Path(config.out) / name, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, list[Path]]:
    """Every analysis that a file of prompts allows, on a trained model."""
    tmp = tmp_path_factory.mktemp("sweeps")
    lines = [dict(zip(("prompt", "answer", "distractor"), prompt, strict=True)) for prompt in PROMPTS]
    (tmp / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp / "relations").mkdir()
    (tmp / "relations" / "copying.json").write_text(json.dumps([[word, word] for word in COPYING]))
    config = run_config(
        model=MODEL,
        relations_dir=str(tmp / "relations"),
        min_pairs=3,
        prompts=str(tmp / "prompts.jsonl"),
        analyses=(
            *("relation_scores", "dynamic_scores", "logit_attribution"),
            *("head_ablation", "gradient_attribution", "attention_patterns"),
        ),
        tables=("tex", "md"),
        out=str(tmp / "out"),
        checkpoint_dir=str(tmp / "checkpoints"),
    )
    with open(tmp / "printed.txt", "w") as printed, contextlib.redirect_stdout(printed):
        return config, run(config, progress=False)


def test_what_was_asked_is_listed_token_by_token_and_said(trained):
    config, files = trained
    out, vocabulary = Path(config.out), json.loads((Path(config.model) / "tokenizer.json").read_text())
    assert {out / "prompts.csv", out / "pairs.csv"} <= set(files)
    with open(out / "prompts.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    asked = [row for row in rows if row["relation"] == "prompts"]
    assert [(row["text"], row["answer"], row["distractor"]) for row in asked] == list(PROMPTS)
    for row in asked:
        assert int(row["answer_id"]) == vocabulary["model"]["vocab"][row["answer"]]
        assert (row["answer_token"], row["bos"]) == (row["answer"], "")
    assert len(rows) == len(PROMPTS) + 4 * 4  # and of dynamic scores four templates of four words
    with open(out / "pairs.csv", newline="") as file:
        assert [row["source"] for row in csv.DictReader(file)] == list(COPYING)
    printed = (out.parent / "printed.txt").read_text()
    assert "trained-llama: prompts begin with" in printed


def test_clean_values_are_those_of_head_ablation(demo: RunConfig):
    """In every relation, up to rounding. And they are what the curves begin with."""
    grids = load_npz(Path(demo.out) / "scores.npz")
    curves = {row["relation"]: row for row in read(demo, "ablation_summary.csv")}
    rows = read(demo, "clean.csv")
    assert [row["relation"] for row in rows] == list(demo.data.relations)
    for row in rows:
        for metric in ("accuracy", "logprob"):
            (grid,) = grids.select(relation=row["relation"], kind=f"ablation_{metric}")
            assert float(row[metric]) == pytest.approx(grid.clean, abs=1e-5)
        assert float(row["accuracy"]) == float(curves[row["relation"]]["base"])
        assert row["logit_diff"] == row["logit_diff_stderr"] == ""
        assert 0 < float(row["accuracy_low"]) < 1


def test_every_kind_of_grid_is_there(trained):
    config, _ = trained
    grids = load_npz(Path(config.out) / "scores.npz")
    assert set(grids.values("kind")) == {
        *("static", "static_suppression", "logit_attribution"),
        *("dynamic_context", "dynamic_context_suppression"),
        *("dynamic_no_context", "dynamic_no_context_suppression"),
        *("ablation_logprob", "ablation_logit_diff", "ablation_accuracy"),
        *("gradient_logprob", "gradient_logit_diff"),
        *("attention_previous", "attention_duplicate", "attention_induction"),
    }
    assert len(grids.select(kind="dynamic_context").values("template")) == 4
    (effect,) = grids.select(kind="ablation_logprob")
    assert effect.samples.shape == (len(PROMPTS), 3, 4)
    np.testing.assert_allclose(effect.samples.mean(axis=0), effect.scores, atol=1e-6)
    spread = effect.samples.std(axis=0, ddof=1) / len(PROMPTS) ** 0.5
    np.testing.assert_allclose(effect.stderr, spread, rtol=1e-4)
    with open(Path(config.out) / "scores.csv", newline="") as file:
        assert {row["kind"] for row in csv.DictReader(file)} == set(grids.values("kind"))


def test_ablation_equals_torch_with_hooks(trained):
    """Log-probability and logit difference lost, for every head and prompt: within 1e-4."""
    config, _ = trained
    grids = load_npz(Path(config.out) / "scores.npz")
    theirs = torch_oracle.load_directory(Path(MODEL))
    vocabulary = json.loads((Path(config.model) / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizer = torch_oracle.load_tokenizer(config.model)
    rows = [tokenizer(text).input_ids for text, _, _ in PROMPTS]
    length = max(map(len, rows))
    tokens = np.array([[0] * (length - len(row)) + row for row in rows])
    mask = np.arange(length)[None, :] >= np.array([[length - len(row)] for row in rows])
    answers, distractors = np.array([[vocabulary[word] for word in prompt[1:]] for prompt in PROMPTS]).T
    each = np.arange(len(PROMPTS))

    def measure(edit: torch_oracle.Edit | None = None) -> dict[str, np.ndarray]:
        logits = torch_oracle.run(theirs, tokens, mask, edit)[0][:, -1]
        logprobs = torch.tensor(logits).log_softmax(1).numpy()
        difference = logits[each, answers] - logits[each, distractors]
        return {"logprob": logprobs[each, answers], "logit_diff": difference}

    clean = measure()
    (row,) = read(config, "clean.csv")
    assert (row["relation"], row["prompts"], int(row["n_prompts"])) == ("prompts", "task", len(PROMPTS))
    for metric, values in clean.items():
        expected = values.mean(), values.std(ddof=1) / len(PROMPTS) ** 0.5
        found = float(row[metric]), float(row[f"{metric}_stderr"])
        np.testing.assert_allclose(found, expected, atol=1e-4)
        of_metric = [grid for grid in grids if grid.metric == metric]
        assert {grid.kind for grid in of_metric} >= {f"ablation_{metric}", f"gradient_{metric}"}
        for grid in of_metric:
            np.testing.assert_allclose((grid.clean, grid.clean_stderr), expected, atol=1e-4)
    logits = torch_oracle.run(theirs, tokens, mask)[0][:, -1]
    (attribution,) = grids.select(kind="logit_attribution", metric="logit")
    np.testing.assert_allclose(attribution.clean, logits[each, answers].mean(), atol=1e-4)
    right = (logits[each, answers] >= logits.max(axis=1)).mean()
    (accuracy,) = grids.select(kind="ablation_accuracy")
    assert (float(row["accuracy"]), accuracy.clean) == pytest.approx((right, right))
    for layer in range(3):
        for head in range(4):

            def zero(at: int, z: torch.Tensor, layer: int = layer, head: int = head) -> torch.Tensor:
                if at == layer:
                    z[:, -1, head] = 0
                return z

            for metric, ablated in measure(zero).items():
                (grid,) = grids.select(kind=f"ablation_{metric}")
                np.testing.assert_allclose(
                    grid.samples[:, layer, head], clean[metric] - ablated, atol=1e-4, rtol=0
                )


def test_tables_and_figures_of_sweeps(trained):
    config, files = trained
    out = Path(config.out)
    names = {file.relative_to(out).as_posix() for file in files}
    assert {"correlations.csv", "correlations.tex", "gradient_agreement.csv", "run.json"} <= names
    for figure in (
        "dynamic_trained-llama_copying",
        "ablation_logprob_trained-llama_prompts",
        "ablation_logit_diff_trained-llama_prompts",
        "logit_attribution_logit_diff_trained-llama_prompts",
        "gradient_logprob_trained-llama_prompts",
        "attention_trained-llama_repeated_tokens",
    ):
        assert f"figures/{figure}.png" in names
    rows = read(config, "gradient_agreement.csv")
    assert {row["metric"] for row in rows} == {"logprob", "logit_diff"}
    assert all(float(row["spearman"]) > 0.5 for row in rows)
    described = json.loads((out / "run.json").read_text())
    assert described["implementations"]["head_attention"]
    assert described["implementations"]["variant_decode"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"analyses": ("ablation_curves",)}, "rank_by is 'static', grids there are: none"),
        ({"prompts": "/nowhere.jsonl"}, "/nowhere.jsonl"),
        ({"prompts": None, "metrics": ("logit_diff",), "analyses": ("head_ablation",)}, "distractors"),
        ({"templates": ("no slot",), "analyses": ("dynamic_scores",)}, "<X>"),
        ({"bos": True, "templates": ("<X> " * 999,), "analyses": ("dynamic_scores",)}, "1 to 64 tokens"),
    ],
)
def test_input_at_fault_is_refused(trained, changes: dict, message: str, tmp_path: Path):
    config, _ = trained
    with pytest.raises(InputError, match=message):
        run(altered(config, out=str(tmp_path / "out"), **changes), progress=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Three relations of the demonstration through the analyses that should find them."""
    tmp = tmp_path_factory.mktemp("planted")
    config = run_config(
        model="planted",
        relations=("country_to_capital", "name_copying", "year_to_following"),
        analyses=("relation_scores", "dynamic_scores", "head_ablation", "ablation_curves"),
        n_prompts=8,
        max_heads=8,
        n_random_draws=3,
        out=str(tmp / "out"),
        checkpoint_dir=str(tmp / "checkpoints"),
    )
    run(config, progress=False)
    return config


def planted_heads(config: RunConfig, relation: str, kind: str = "static") -> set[Head]:
    record = planted.read_record(Path(config.checkpoint_dir) / "planted")["planted"]
    return {Head(e["layer"], e["head"]) for e in record if (e["relation"], e["kind"]) == (relation, kind)}


def test_static_dynamic_and_ablation_find_the_planted_heads(demo: RunConfig):
    grids = load_npz(Path(demo.out) / "scores.npz")
    for relation in demo.data.relations:
        heads = planted_heads(demo, relation)
        for kind in ("static", "dynamic_context", "dynamic_no_context", "ablation_logprob"):
            for grid in grids.select(relation=relation, kind=kind):
                found = {head for head, _ in grid.top(len(heads))}
                assert found == heads, (relation, kind, grid.template)


def test_removing_the_planted_heads_removes_their_relation_and_nothing_else(demo: RunConfig):
    with open(Path(demo.out) / "ablation_summary.csv", newline="") as file:
        rows = {row["relation"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(demo.data.relations)
    for relation, row in rows.items():
        assert float(row["base"]) == 1
        assert float(row["removed"]) == 0
        assert int(row["first_zero"]) <= len(planted_heads(demo, relation))
        assert float(row["random"]) > 0.9
        assert float(row["control_removed"]) > 0.9


def test_curves_are_drawn_again_from_their_table(demo: RunConfig):
    figure = Path(demo.out) / "figures" / "ablation_curves_planted_name_copying.png"
    before = figure.read_bytes()
    figure.unlink()
    draw.main(["draw", demo.out])
    assert figure.read_bytes() == before
