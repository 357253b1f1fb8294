"""The comparison with published numbers, on made-up grids: every measure, bound, gap and tolerance."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.compare import (
    MEASURES,
    NEEDS,
    TOLERANCES,
    Comparison,
    check_comparison,
    compare,
    comparison_table,
    draw_comparison,
    is_model,
    judge,
)
from experiments.published import COMPARISONS, Published, load_direct_effects, load_published
from headjax.circuits.published import CIRCUITS
from headjax.errors import InputError
from headjax.grid import GridSet, HeadGrid
from headjax.report.curve_tables import CurveRow
from headjax.report.table import Table, read_rows
from headjax.result import Result
from tests.helpers.grids import spelled
from tests.helpers.runs import run_config

L, H = 12, 12
SUFFIX = {"plain": "", "suppression": "_suppression"}


def grid(scores, relation: str, kind: str, model: str = "GPT-2 xl", **rest) -> HeadGrid:
    return HeadGrid(scores, model, relation, "Any", **spelled(kind), n_pairs=40, **rest)


def peak(value: float, shape: tuple[int, int] = (L, H)) -> np.ndarray:
    """A grid whose largest score is this."""
    scores = np.zeros(shape)
    scores[3, 4] = value
    return scores


def published_scores(alias: str) -> dict[tuple[str, str], float]:
    return {(r.relation, r.kind): r.value for r in load_published("maps_scores") if r.model == alias}


def rows_of(found: list[Comparison], **fields) -> list[Comparison]:
    return [row for row in found if all(getattr(row, name) == value for name, value in fields.items())]


def test_largest_scores_agree_differ_or_are_not_measured():
    """All relations as published, but: one off by more than the tolerance, one a bit off, one missing."""
    ours = published_scores("gpt2-xl")
    del ours["copying", "plain"], ours["copying", "suppression"]
    ours["country_to_capital", "plain"] -= 0.019
    ours["word_to_antonym", "suppression"] += 0.3
    grids = GridSet(tuple(grid(peak(v), r, "static" + SUFFIX[k]) for (r, k), v in ours.items()))
    grids += GridSet((grid(peak(1.0), "a_relation_of_the_user", "static"),))

    found = compare(Result(grids), ["maps_scores"], published_data=True)
    assert len(found) == len(published_scores("gpt2-xl"))
    assert {row.model for row in found} == {"GPT-2 xl"}
    assert [(row.relation, row.kind) for row in rows_of(found, verdict="differs")] == [
        ("word_to_antonym", "suppression")
    ]
    missing = rows_of(found, verdict="not measured")
    assert {(row.relation, row.kind) for row in missing} == {
        ("copying", "plain"),
        ("copying", "suppression"),
    }
    assert all(math.isnan(row.ours) and math.isnan(row.difference) for row in missing)
    (capital,) = rows_of(found, relation="country_to_capital", kind="plain")
    assert (capital.published, capital.verdict) == (0.98, "agrees")
    assert capital.difference == pytest.approx(-0.019, abs=1e-6)
    # With the user's own words the tolerance is wider, but not so wide.
    wider = compare(Result(grids), ["maps_scores"])
    assert rows_of(wider, relation="word_to_antonym", kind="suppression")[0].verdict == "differs"
    assert wider[0].tolerance > found[0].tolerance


def test_correlations_come_from_static_and_dynamic_grids():
    rng = np.random.default_rng(0)
    static = rng.random((L, H))
    grids = [grid(static, "copying", "static")]
    for kind, noise in (("dynamic_no_context", 0.05), ("dynamic_context", 1.0)):
        scores = static + noise * rng.normal(size=(L, H))
        grids.append(grid(scores, "copying", kind, template="<X>"))
    grids = GridSet(tuple(grids))
    found = compare(Result(grids), ["maps_correlations", "maps_multi_token"])
    for table in ("maps_correlations", "maps_multi_token"):
        measured = [row for row in rows_of(found, table=table) if row.verdict != "not measured"]
        assert [(row.relation, row.kind, row.measure) for row in measured] == [
            ("copying", "plain", "r_no_context"),
            ("copying", "plain", "r_context"),
        ]
        for row, kind in zip(measured, ("dynamic_no_context", "dynamic_context"), strict=True):
            (dynamic,) = grids.select(kind=kind)
            expected = np.corrcoef(static.ravel(), dynamic.scores.ravel())[0, 1]
            assert row.ours == pytest.approx(expected, abs=1e-6)
    # Published 0.95 and 0.65: the first is near, the second far from what noise gives.
    assert [row.verdict for row in found if row.verdict != "not measured"][0:2] == ["agrees", "differs"]


def curve(kind: str, prompts: str, accuracy: list[float]) -> list[CurveRow]:
    return [
        CurveRow("GPT-2 xl", "country_to_capital", kind, prompts, n, "", a, a, a, 0, 0, 0)
        for n, a in enumerate(accuracy)
    ]


@pytest.mark.parametrize("length", [60, 21])
def test_accuracies_are_read_where_as_many_heads_are_gone_as_published(length: int):
    """Published: 38 heads. A shorter curve of ours is read at its end; controls are averaged."""
    own = np.linspace(0.9, 0.0, 60)[:length]
    curves = curve("relation", "country_to_capital", own.tolist())
    curves += curve("random", "country_to_capital", np.linspace(0.9, 0.6, 60)[:length].tolist())
    for control, start in (("copying", 0.8), ("name_copying", 0.6)):
        curves += curve("control", control, [start] * length)
    grids = GridSet((grid(peak(1.0), "country_to_capital", "static"),))
    found = rows_of(
        compare(Result(grids, {"ablation_curves": tuple(curves)}), ["maps_causal"]),
        relation="country_to_capital",
    )
    ours = {row.measure: row for row in found}
    assert set(ours) == set(TOLERANCES["maps_causal"])
    assert ours["base"].ours == pytest.approx(0.9)
    assert ours["relation_removed"].ours == pytest.approx(own[min(38, length - 1)])
    assert ours["control_base"].ours == ours["control_removed"].ours == pytest.approx(0.7)
    # Published 0.83 +- 0.07: two standard deviations are added.
    assert ours["random_removed"].tolerance == pytest.approx(TOLERANCES["maps_causal"]["base"][1] + 0.14)
    others = compare(Result(grids, {"ablation_curves": tuple(curves)}), ["maps_causal"])
    assert {row.verdict for row in others if row.relation != "country_to_capital"} == {"not measured"}


def test_copy_scores_of_the_circuit_and_of_all_heads():
    plain, negated = np.full((L, H), 0.1), np.full((L, H), 0.12)
    for head in CIRCUITS["ioi"].roles["Name movers"]:
        plain[head] = 1.0
    plain[9, 6] = 0.93  # below the bound, but within the tolerance of it
    negated[10, 7], negated[11, 10] = 1.0, 0.5
    grids = GridSet(
        (
            grid(plain, "ioi_names", "copy_score", "GPT-2 small"),
            grid(negated, "ioi_names", "copy_score_suppression", "GPT-2 small"),
        )
    )
    found = {(row.kind, row.measure): row for row in compare(Result(grids), ["ioi_copy_scores"])}
    assert found["plain", "least_circuit_head"].ours == pytest.approx(0.93)
    assert found["plain", "mean_head"].ours == pytest.approx(plain.mean(), abs=1e-6)
    assert found["suppression", "mean_circuit_head"].ours == pytest.approx(0.75)
    assert {key: row.verdict for key, row in found.items()} == {
        ("plain", "least_circuit_head"): "agrees",
        ("plain", "mean_head"): "agrees",
        ("suppression", "mean_circuit_head"): "differs",
        ("suppression", "mean_head"): "agrees",
    }


def test_direct_effects_are_compared_by_rank():
    effects = load_direct_effects()["gpt2"]

    def verdict(scores: np.ndarray) -> Comparison:
        attribution = grid(scores, "ioi", "logit_attribution", "GPT-2 small", metric="logit")
        difference = grid(-scores, "ioi", "logit_attribution", "GPT-2 small", metric="logit_diff")
        (row,) = compare(Result(GridSet((attribution, difference))), ["ioi_direct_effects"])
        return row

    assert verdict(3 * effects).ours == pytest.approx(1)
    assert verdict(3 * effects).verdict == "agrees"
    assert verdict(-effects).verdict == "differs"


def test_another_models_checkpoint_under_a_published_name_is_refused():
    """A directory called gpt2 with fewer layers."""
    small = np.zeros((3, 7))
    attribution = grid(small, "ioi", "logit_attribution", "gpt2", metric="logit")
    with pytest.raises(InputError, match=r"gpt2 has \(layers, heads\) \(12, 12\); gpt2 has \(3, 7\)"):
        compare(Result(GridSet((attribution,))), ["ioi_direct_effects"])
    with pytest.raises(InputError, match="L8H6 and 14 more"):
        compare(Result(GridSet((grid(small, "ioi_names", "copy_score", "gpt2"),))), ["ioi_copy_scores"])


@pytest.mark.parametrize(
    ("bound", "ours", "verdict"),
    [
        *(("", 0.52, "agrees"), ("", 0.48, "agrees"), ("", 0.5201, "differs"), ("", 0.47, "differs")),
        *((">", 0.99, "agrees"), (">", 0.481, "agrees"), (">", 0.47, "differs")),
        *(("<", 0.0, "agrees"), ("<", 0.519, "agrees"), ("<", 0.53, "differs")),
        ("", math.nan, "not measured"),
    ],
)
def test_a_verdict_by_tolerance_and_bound(bound: str, ours: float, verdict: str):
    row = judge("maps_scores", "M", Published("gpt2", "copying", "plain", "m", 0.5, bound), ours, 0.02)
    assert row.verdict == verdict


def test_models_go_by_their_alias_display_name_or_directory():
    assert is_model("llama-3.1-8b", "Llama-3.1 8B")
    assert is_model("gpt2-xl", "gpt2-xl")
    assert is_model("pythia-12b", "Pythia 12B")
    assert not is_model("llama-3.1-8b", "Llama-3.1 8B Instruct")
    assert not is_model("gpt2", "GPT-2 xl")
    two = GridSet(tuple(grid(peak(0.5), "copying", "static", model) for model in ("GPT-2 xl", "Pythia 12B")))
    found = compare(Result(two), ["maps_scores"])
    assert len(rows_of(found, model="Pythia 12B")) == len(published_scores("pythia-12b"))


def test_tolerances_are_those_that_are_promised():
    """Stated a second time: with the published data, and with words of our own."""
    r, accuracy, share = (0.03, 0.15), (0.15, 0.25), (0.05, 0.05)
    curves = ("base", "relation_removed", "random_removed", "control_base", "control_removed")
    assert {
        "maps_scores": {"max_score": (0.02, 0.2)},
        "maps_correlations": {"r_no_context": r, "r_context": r},
        "maps_multi_token": {"r_no_context": (0.15, 0.2), "r_context": (0.15, 0.2)},
        "maps_causal": dict.fromkeys(curves, accuracy),
        "ioi_copy_scores": dict.fromkeys(("least_circuit_head", "mean_circuit_head", "mean_head"), share),
        "ioi_direct_effects": {"rank_correlation": (0.3, 0.3)},
    } == TOLERANCES


def test_every_table_has_its_measures_tolerances_and_needs():
    assert set(MEASURES) == set(TOLERANCES) == set(NEEDS) == set(COMPARISONS)
    for table, measures in TOLERANCES.items():
        if table != "ioi_direct_effects":
            assert set(measures) <= {row.measure for row in load_published(table)}
        assert all(0 < exact <= own for exact, own in measures.values())


def test_the_file_the_text_and_the_figure(tmp_path: Path):
    config = run_config(model="gpt2-xl", compare=("maps_scores",), out=str(tmp_path))
    ours = published_scores("gpt2-xl")
    ours["copying", "plain"] = 0.99
    del ours["name_copying", "plain"]
    grids = GridSet(tuple(grid(peak(v), r, "static" + SUFFIX[k]) for (r, k), v in ours.items()))
    expected = compare(Result(grids), config.compare)
    text = comparison_table(expected)
    (file,) = Table("comparison", Comparison._fields, expected).write(tmp_path)
    read = list(read_rows(file, Comparison))
    assert [row[:6] + row[10:] for row in read] == [row[:6] + row[10:] for row in expected]
    np.testing.assert_array_equal([row[6:10] for row in read], [row[6:10] for row in expected])
    with open(file, newline="") as opened:
        assert next(csv.reader(opened)) == list(Comparison._fields)
    n = len(expected)
    assert f"GPT-2 xl against the published maps_scores: {n - 2} agrees, 1 differs, 1 not measured" in text
    assert "nan" not in text
    assert comparison_table(read) == text
    assert {path.suffix for path in draw_comparison(read, tmp_path)} == {".png", ".pdf"}


def test_nothing_measured_draws_nothing(tmp_path: Path):
    config = run_config(model="gpt2-xl", compare=("maps_scores",), out=str(tmp_path))
    rows = compare(Result(GridSet((grid(peak(1.0), "mine", "static"),))), config.compare)
    assert {row.verdict for row in rows} == {"not measured"}
    assert draw_comparison(rows, tmp_path) == ()


@pytest.mark.parametrize(
    ("changes", "models", "message"),
    [
        ({"compare": ("maps_scores",)}, ["Phi-2"], "maps_scores has gpt2-xl, .*; the run has Phi-2"),
        ({"compare": ("maps_causal",)}, ["GPT-2 xl"], "needs the analysis ablation_curves"),
        (
            {"compare": ("maps_multi_token",), "analyses": ("relation_scores", "dynamic_scores")},
            ["GPT-2 xl"],
            "needs multi_token=True",
        ),
    ],
)
def test_a_table_that_does_not_fit_the_run_is_refused(changes: dict, models: list[str], message: str):
    with pytest.raises(InputError, match=message):
        check_comparison(run_config(model="any", **changes), models)


def test_an_unknown_table_is_refused_by_the_config():
    with pytest.raises(InputError, match="field 'compare' must be one of maps_scores"):
        run_config(model="gpt2", compare=("maps",))
