"""The tables and figures of a run, from grids alone: every option and every relation has its say."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments.config import RunConfig
from experiments.draw import draw_all
from headjax import figures
from headjax.analyses import GradientAttribution
from headjax.analyses.gradient_attribution import agreement
from headjax.grid import GridSet, HeadGrid
from headjax.report.drawing import chosen_grids
from headjax.report.options import Report
from headjax.report.run_report import report_tables
from headjax.result import Result
from tests.helpers.grids import spelled
from tests.helpers.runs import altered, run_config

L, H = 4, 5


def grid(scores: np.ndarray, relation: str, kind: str, **rest) -> HeadGrid:
    named = (rest.pop("model", "M"), relation, rest.pop("category", "Any"))
    return HeadGrid(scores, *named, n_pairs=40, analysis="relation_scores", **{**spelled(kind), **rest})


def one_head(layer: int, head: int, score: float) -> np.ndarray:
    scores = np.zeros((L, H))
    scores[layer, head] = score
    return scores


@pytest.fixture
def scored() -> GridSet:
    """One head of 0.3 for a relation, one of 0.7 that suppresses another, of another category."""
    return GridSet(
        (
            grid(one_head(1, 2, 0.3), "copying", "static", category="Algorithmic"),
            grid(np.zeros((L, H)), "copying", "static_suppression", category="Algorithmic"),
            grid(np.zeros((L, H)), "capitals", "static", category="Knowledge"),
            grid(one_head(3, 4, 0.7), "capitals", "static_suppression", category="Knowledge"),
        )
    )


def config(out: Path, **fields) -> RunConfig:
    return run_config(model="any", analyses=("relation_scores", "universality"), out=str(out), **fields)


# threshold, count_suppression -> heads above it of each grid; heads of no category; of no relation
EXPECTED = {
    (0.15, True): ([1, 0, 0, 1], 18, 18),
    (0.15, False): ([1, 0, 0, 1], 19, 19),
    (0.5, True): ([0, 0, 0, 1], 19, 19),
    (0.5, False): ([0, 0, 0, 1], 20, 20),
}


@pytest.mark.parametrize(("threshold", "count_suppression"), EXPECTED)
def test_threshold_and_suppression_count_in_every_table(scored, threshold, count_suppression, tmp_path):
    asked = config(tmp_path, threshold=threshold, count_suppression=count_suppression)
    above, unclassified, unrelated = EXPECTED[threshold, count_suppression]
    for table in report_tables(Result(scored), asked.analyses, [], asked.report, 0):
        table.write(tmp_path)
    with open(tmp_path / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["heads"]) for row in rows if row["relation"]] == above
    assert [int(row["heads"]) for row in rows if row["category"] == "Unclassified"] == [unclassified]
    with open(tmp_path / "relations_per_head.csv", newline="") as file:
        assert int(next(csv.DictReader(file))["heads"]) == unrelated


def test_threshold_and_suppression_reach_the_category_map(scored, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(figures, "category_map", lambda *_, **how: asked.append(how) or ())
    monkeypatch.setattr(figures, "relation_heat_map", lambda *_, **how: ())
    plain = altered(config(tmp_path), analyses=("relation_scores",))
    for threshold, count_suppression in EXPECTED:
        how = {"threshold": threshold, "count_suppression": count_suppression}
        draw_all(Result(scored), [], altered(plain, **how))
        assert asked[-1] == how | {"origin": "lower"}


def agreements(grids: GridSet) -> list[tuple]:
    """The rows of gradient_agreement.csv."""
    names = {"gradient": "gradient_attribution", "ablation": "head_ablation"}
    named = [dataclasses.replace(g, analysis=names[g.measure]) for g in grids]
    tables = GradientAttribution().tables("gradient_attribution", Result(GridSet(tuple(named))), Report())
    return [tuple(row) for table in tables for row in table.rows]


def test_gradients_are_compared_with_ablation_of_their_own_relation_metric_and_model():
    """Every pair of grids has an agreement of its own; each row must be that of its own pair."""
    rng = np.random.default_rng(0)
    grids, expected = [], []
    for model in ("M", "N"):
        for relation in ("copying", "capitals"):
            for metric in ("logprob", "logit_diff"):
                exact = rng.normal(size=(L, H))
                estimate = exact + rng.uniform(0, 3) * rng.normal(size=(L, H))
                names = {"relation": relation, "metric": metric, "model": model}
                grids += [
                    grid(exact, kind=f"ablation_{metric}", **names),
                    grid(estimate, kind=f"gradient_{metric}", **names),
                ]
                found = agreement(np.float32(exact), np.float32(estimate))
                missed = " ".join(map(str, found.missed))
                expected.append((model, relation, metric, found.spearman, found.n_top, missed))
    grids += [grid(rng.normal(size=(L, H)), "copying", "ablation_accuracy", metric="accuracy")]
    order = [int(i) for i in rng.permutation(len(grids))]
    rows = agreements(GridSet(tuple(grids[i] for i in order)))
    assert sorted(rows) == sorted(expected)
    assert len({row[3] for row in rows}) > 4


def test_grids_of_key_value_groups_have_no_agreement():
    pair = (
        grid(np.ones((L, 1)), "copying", "ablation_logprob", metric="logprob", part="kv_groups"),
        grid(np.ones((L, H)), "copying", "gradient_logprob", metric="logprob"),
    )
    assert agreements(GridSet(pair)) == []


def test_the_printed_summary_leaves_out_single_templates(scored, tmp_path):
    """The file has them; what is printed has the correlations, which sum them up."""
    of_template = grid(one_head(0, 0, 0.4), "copying", "dynamic_context", template="The <X> is")
    found = Result(GridSet((*scored, of_template)))
    run = config(tmp_path)
    made = {table.name: table for table in report_tables(found, run.analyses, (), run.report, 0)}
    assert "The <X> is" in {row.template for row in made["summary"].rows}
    assert "Dynamic score" not in made["summary"].text
    assert "Relation score" in made["summary"].text


def test_the_two_grids_with_the_largest_numbers_are_drawn_unless_others_are_asked_for():
    sizes = {"a": 0.2, "b": -0.9, "c": 0.5, "d": np.nan}
    grids = [grid(np.array([[0.0, size]]), name, "static") for name, size in sizes.items()]
    assert [one.relation for one in chosen_grids(grids, Report())] == ["b", "c"]
    asked = chosen_grids(grids, Report(heat_maps=("d", "a", "c")))
    assert [one.relation for one in asked] == ["d", "a", "c"]
