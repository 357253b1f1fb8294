"""Path patching and circuit discovery through `experiments.run`: the demo's planted circuits, and a file."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import draw, planted
from experiments.config import RunConfig
from experiments.run import run
from headjax.axes import Head
from headjax.circuits.published import read_circuit
from headjax.circuits.tables import CircuitRow, circuit_for, with_prediction
from headjax.data.prompts import load_tokenizer, select_pairs
from headjax.data.relations import load_relations
from headjax.errors import InputError
from headjax.grid import load_npz
from headjax.report.table import read_rows
from headjax.result import Result
from headjax.study import Data, Study
from headjax.zoo import Source
from tests.helpers.models import GPT2
from tests.helpers.runs import altered, run_config
from tests.helpers.trained_prompts import COPYING, MODEL

TASKS = ("country_to_capital", "name_copying")
HELP, WORK_AGAINST = (f"Stage 1, direct: {does} logit difference" for does in ("raises", "lowers"))


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, list[Path]]:
    tmp = tmp_path_factory.mktemp("circuits")
    config = run_config(
        model="planted",
        relations=TASKS,
        prompts=TASKS,
        analyses=("relation_scores", "circuit_discovery"),
        n_prompts=5,
        top_share=0.05,  # 8 heads; the planted ones are 5 and 4
        heat_maps=TASKS,
        out=str(tmp / "out"),
        checkpoint_dir=str(tmp / "checkpoints"),
    )
    return config, run(config, progress=False)


def planted_heads(config: RunConfig, relation: str, kind: str) -> set[Head]:
    record = planted.read_record(Path(config.checkpoint_dir) / "planted")["planted"]
    return {Head(e["layer"], e["head"]) for e in record if (e["relation"], e["kind"]) == (relation, kind)}


def test_discovery_finds_the_planted_circuits_and_no_other_head(demo):
    """Heads that carry a relation raise the logit difference, those that suppress it lower it."""
    config, _ = demo
    for task in TASKS:
        roles = read_circuit(Path(config.out) / "circuits" / f"planted_{task}.json").roles
        expected = {
            HELP: planted_heads(config, task, "static"),
            WORK_AGAINST: planted_heads(config, task, "static_suppression"),
        }
        assert {role: set(heads) for role, heads in roles.items()} == {
            role: heads for role, heads in expected.items() if heads
        }
        (direct,) = load_npz(Path(config.out) / "scores.npz").select(kind="circuit_1_direct", relation=task)
        # With all of them patched the answer is the twin's: together they are the task.
        assert -130 < sum(direct.scores[head] for heads in roles.values() for head in heads) < -70
        assert direct.metric == "percent_of_gap"


def test_tables_say_what_was_found_shared_and_predicted(demo):
    config, _ = demo
    out = Path(config.out)
    rows = read(out / "circuits.csv")
    assert {(row["model"], row["stage"], row["input"]) for row in rows} == {("planted", "1", "direct")}
    assert all((float(row["effect"]) < 0) == (row["role"] == HELP) for row in rows)
    grids = load_npz(out / "scores.npz").select(kind="circuit_1_direct")
    for row in rows:
        (grid,) = grids.select(relation=row["task"])
        head = Head.parse(row["head"])
        assert int(row["n_prompts"]) == len(grid.samples) == grid.n_pairs
        assert float(row["effect"]) == pytest.approx(grid.scores[head], abs=1e-4)
        assert float(row["stderr"]) == pytest.approx(grid.stderr[head], abs=1e-4)
        assert (
            abs(float(row["effect"])) - 2 * float(row["stderr"])
            >= config.analyses["circuit_discovery"].min_effect
        )
    (shared,) = read(out / "circuit_overlap.csv")
    capital, names = (
        planted_heads(config, task, "static") | planted_heads(config, task, "static_suppression")
        for task in TASKS
    )
    assert int(shared["n_shared"]) == len(capital & names)
    assert (int(shared["n_first"]), int(shared["n_second"])) == (len(capital), len(names))
    found = {
        (row["circuit"], row["role"], row["relation"], row["kind"]): row
        for row in read(out / "circuit_prediction.csv")
    }
    for task in TASKS:
        row = found[f"found: {task}", HELP, task, "static"]
        assert (float(row["auc"]), float(row["precision"])) == (1, 1)
        assert float(row["p_value"]) < 0.001
        other = found[f"found: {task}", HELP, TASKS[task == TASKS[0]], "static"]
        assert float(other["auc"]) < 0.9
    row = found["found: country_to_capital", WORK_AGAINST, "country_to_capital", "static_suppression"]
    assert float(row["auc"]) == 1


def test_the_heads_that_help_most_are_listed_as_best(demo):
    """In path patching they are below 0: planted carriers are best, planted suppressors oppose."""
    config, _ = demo
    rows = [row for row in read(Path(config.out) / "summary.csv") if row["kind"] == "circuit_1_direct"]
    assert [row["relation"] for row in rows] == list(TASKS)
    for row in rows:
        best, opposing = (
            {Head.parse(label.split()[0]) for label in row[column].split(", ") if label}
            for column in ("best_heads", "opposing_heads")
        )
        assert best <= planted_heads(config, row["relation"], "static")
        assert len(best) == 3
        suppressors = planted_heads(config, row["relation"], "static_suppression")
        assert opposing & suppressors or not suppressors
        assert not opposing & planted_heads(config, row["relation"], "static")
        assert row["heads"] == ""
        assert float(row["maximum"]) < 0


def test_clean_and_corrupted_prompts_stand_beside_the_paths(demo):
    config, _ = demo
    rows = {(row["relation"], row["prompts"]): row for row in read(Path(config.out) / "clean.csv")}
    assert set(rows) == {(task, prompts) for task in TASKS for prompts in ("task", "corrupted")}
    for task in TASKS:
        (grid,) = load_npz(Path(config.out) / "scores.npz").select(kind="circuit_1_direct", relation=task)
        own, corrupted = rows[task, "task"], rows[task, "corrupted"]
        assert float(own["logit_diff"]) == pytest.approx(grid.clean, rel=1e-5)
        assert float(own["logit_diff_stderr"]) == pytest.approx(grid.clean_stderr, rel=1e-4)
        # Planted: the answer is known, and to the twin it is the wrong one.
        assert (float(own["accuracy"]), float(corrupted["accuracy"])) == (1, 0)
        assert float(own["logit_diff"]) > 0 > float(corrupted["logit_diff"])
    described = json.loads((Path(config.out) / "run.json").read_text())["clean"]
    assert [(row["relation"], row["prompts"]) for row in described] == list(rows)
    for row in described:
        written = rows[row["relation"], row["prompts"]]
        assert {name: str(value) for name, value in row.items()} == written


def test_figures_show_the_circuits_and_are_drawn_again_without_the_model(demo):
    config, files = demo
    figures = Path(config.out) / "figures"
    names = (
        "relations_planted_country_to_capital_name_copying.png",
        "circuit_overlap_planted_country_to_capital_name_copying.png",
        "circuit_1_direct_percent_of_gap_planted_country_to_capital_name_copying.png",
    )
    before = {}
    for name in names:
        assert figures / name in files
        before[name] = (figures / name).read_bytes()
        (figures / name).unlink()
    draw.main(["draw", config.out])
    assert {name: (figures / name).read_bytes() for name in names} == before
    chosen = load_npz(Path(config.out) / "scores.npz").select(kind="static").grids
    found = Result(tables={"circuits": read_rows(Path(config.out) / "circuits.csv", CircuitRow)})
    marks = circuit_for("planted", "name_copying", config.report, found)
    legend = with_prediction(marks, chosen[1]).legend
    assert legend.startswith("Found by path patching (name copying); AUC 1.00 (p = ")


def test_every_prompt_set_has_partners_and_several_can_be_named(shared_data):
    names = ("ioi", "colored_objects", "country_to_capital")
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "gpt2")
    model = dataclasses.replace(GPT2, vocab_size=50257, max_positions=128)
    pairs, _ = select_pairs(tokenizer, load_relations(("country_to_capital",)), model.vocab_size)
    source = Source(Path(), "any", None)
    study = Study(source, "Any", model, tokenizer, pairs, (), Data(prompts=names, n_prompts=4))
    assert tuple(study.twin_batches()) == names
    for batch in (*study.twin_batches().values(), study.task_batch()):
        assert (batch.answers != batch.distractors).all()
        assert (batch.tokens != batch.corrupted).any(axis=1).all()
        assert not (batch.tokens != batch.corrupted)[~batch.mask].any()
    assert [prompt.relation for prompt in study.task_batch().prompts[::4]] == list(names)
    assert list(study.twin_batches("country_to_capital")) == ["country_to_capital"]
    all_of_them = dataclasses.replace(study, data=Data(n_prompts=4))
    assert list(all_of_them.twin_batches()) == ["country_to_capital"]
    assert all_of_them.task_batch().corrupted is None


PROMPTS = (
    ("The capital of France is", "Paris", "Madrid", "France", "Spain"),
    ("In Germany people speak", "German", "Spanish", "Germany", "Chile"),
    ("Say it twice: moon,", "moon", "hand", "moon", "hand"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    tmp = tmp_path_factory.mktemp("paths")
    lines = [
        {"prompt": text, "answer": answer, "distractor": other, "corrupted": text.replace(word, instead)}
        for text, answer, other, word, instead in PROMPTS
    ]
    (tmp / "names.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp / "relations").mkdir()
    (tmp / "relations" / "copying.json").write_text(json.dumps([[w, w] for w in COPYING]))
    return run_config(
        model=MODEL,
        relations_dir=str(tmp / "relations"),
        min_pairs=3,
        prompts=str(tmp / "names.jsonl"),
        analyses=("path_patching",),
        receivers=("L2H1.q", "2.2.q", "L1H0.v"),
        positions="all",
        out=str(tmp / "out"),
        checkpoint_dir=str(tmp / "checkpoints"),
    )


def test_path_patching_writes_a_grid_for_the_logits_and_for_each_kind_of_input(trained, caplog):
    run(trained, progress=False)
    grids = load_npz(Path(trained.out) / "scores.npz")
    assert grids.values("kind") == ("path_direct", "path_logits", "path_query", "path_value")
    for grid in grids:
        assert (grid.relation, grid.n_pairs, grid.scores.shape) == ("names", len(PROMPTS), (3, 4))
        np.testing.assert_allclose(grid.samples.mean(axis=0), grid.scores, atol=1e-3)
    query, value = (grids.select(kind=kind).grids[0].scores for kind in ("path_query", "path_value"))
    assert np.abs(query[:2]).max() > 0.01
    assert np.abs(value[:1]).max() > 0.01
    assert not query[2:].any()
    assert not value[1:].any()
    names = {path.name for path in (Path(trained.out) / "figures").iterdir()}
    assert "path_query_percent_of_gap_trained-llama_names.png" in names


def test_input_at_fault_is_refused(trained, tmp_path, caplog):
    """Prompts without partners, receivers that are none, and a task done the wrong way round."""
    fields = [json.loads(line) for line in Path(trained.data.prompts).read_text().splitlines()]

    def refused(message: str, lines: list[dict], **changes) -> None:
        (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, lines)))
        changes |= {"prompts": str(tmp_path / "other.jsonl"), "out": str(tmp_path / "out")}
        with pytest.raises(InputError, match=message):
            run(altered(trained, **changes), progress=False)

    refused(
        "has no corrupted",
        [{key: line[key] for key in ("prompt", "answer", "distractor")} for line in fields],
    )
    refused("like L9H6.q; got 'L2H1'", fields, receivers=("L2H1",))
    refused("3 layers of 4 heads; got L3H1", fields, receivers=("L3H1.q",))
    swapped = [line | {"answer": line["distractor"], "distractor": line["answer"]} for line in fields]
    refused("trained-llama does; it does none of other", swapped)
    assert "does not do other, left out: logit difference -" in caplog.text
