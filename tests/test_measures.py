"""A measure is one row of a table: what is said and drawn of its grids reads the row."""

from pathlib import Path

import numpy as np
import pytest

from headjax.circuits.prediction import SCORES
from headjax.grid import GridSet, HeadGrid
from headjax.measures import MEASURES, SUPPRESSION, Measure
from headjax.report.drawing import draw_maps
from headjax.report.options import Report
from headjax.report.page.data import describe_grid
from headjax.report.summary import score_rows
from headjax.wording import grid_label, grid_title, measured, unit


def grid(measure: str, **more: str) -> HeadGrid:
    scores = np.array([[0.5, 0.25], [0.0, 0.75]])
    return HeadGrid(scores, "M", "copying", "Algorithmic", measure, 40, **more)


@pytest.mark.parametrize(
    ("asked", "called", "its_unit", "title", "label"),
    [
        ({"measure": "static"}, "Relation score", "share of pairs", "M: Copying heads", "Copying score"),
        (
            {"measure": "static", "sign": SUPPRESSION},
            *("Suppression score", "share of pairs"),
            *("M: Copying suppression heads", "Copying suppression score"),
        ),
        (
            {"measure": "dynamic", "part": "no_context", "sign": SUPPRESSION, "template": "<X> is"},
            *("Dynamic suppression score without context", "share of pairs"),
            'M: Copying (template "<X> is")',
            "Dynamic suppression score without context",
        ),
        (
            {"measure": "copy_score", "sign": SUPPRESSION},
            *("Negated copy score", "share of names", "M: Copying", "Negated copy score"),
        ),
        (
            {"measure": "attention", "part": "induction"},
            *("Attention to what followed the same token", "mean attention", "M: Copying"),
            "Attention to what followed the same token",
        ),
        (
            {"measure": "gradient", "metric": "logit_diff"},
            *("Logit difference, clean minus ablated, first-order estimate", "logits", "M: Copying"),
            "Logit difference, clean minus ablated, first-order estimate",
        ),
        (
            {"measure": "path", "part": "logits"},
            *("Percent of the gap, clean to corrupted: to the logits", "% of the gap", "M: Copying"),
            "Percent of the gap, clean to corrupted: to the logits",
        ),
        (
            {"measure": "circuit", "part": "2_query"},
            *("Percent of the gap, clean to corrupted: stage 2, to query inputs", "% of the gap"),
            *("M: Copying", "Percent of the gap, clean to corrupted: stage 2, to query inputs"),
        ),
        ({"measure": "my_score", "part": "x"}, "My score, x", "", "M: Copying", "My score, x"),
    ],
)
def test_what_measures_are_called(asked: dict, called: str, its_unit: str, title: str, label: str):
    one = grid(**asked)
    assert (measured(one), unit(one), grid_title(one), grid_label(one)) == (called, its_unit, title, label)


def test_a_new_measure_is_one_row(monkeypatch, tmp_path: Path):
    row = Measure(
        "Hits {part}",
        turned="Misses {part}",
        parts={"late": "of late layers"},
        unit="share of hits",
        title="Hits of {relation}",
        is_fraction=True,
        is_share=True,
        is_relation_score=True,
    )
    monkeypatch.setitem(MEASURES, "hits", row)
    plain, turned = (grid("hits", part="late", sign=sign) for sign in ("", SUPPRESSION))
    summary, _ = score_rows(GridSet((plain, turned)), threshold=0.3)
    assert (summary.measured, summary.unit) == ("Hits of late layers", "share of hits")
    assert (summary.heads, summary.certain_heads) == (2, 2)
    assert summary.low < 0.75 < summary.high
    assert measured(turned) == grid_label(turned) == "Misses of late layers"
    assert grid_title(plain) == "M: Hits of Copying"
    assert describe_grid(plain)["share"]
    drawn = []
    monkeypatch.setattr("headjax.figures.score_map", lambda panels, *_: drawn.extend(panels) or ())
    draw_maps((plain,), tmp_path / "map", Report())
    assert [panel.label for panel in drawn] == ["Hits of late layers"]


def test_circuits_are_predicted_by_all_relation_scores():
    assert {measure for measure, _, _ in SCORES} == {"static", "dynamic"}
    assert SCORES[0] == ("static", "", "")
    assert len(set(SCORES)) == 6
