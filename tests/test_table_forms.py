"""Tables in all their forms, what the summary says, and marks that cannot be drawn."""

import csv
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from headjax.circuits.published import find_circuit
from headjax.errors import InputError
from headjax.grid import GridSet, HeadGrid
from headjax.report.category_table import category_table
from headjax.report.drawing import check_shown, chosen_grids, draw_maps, marks_for
from headjax.report.options import Report
from headjax.report.run_report import report_tables
from headjax.report.summary import SummaryRow, score_rows, skipped_row, summary_text
from headjax.report.table import FORMS, Table, check_forms
from headjax.result import Result

MIXED = Table(
    "mixed",
    ("model", "head", "n_pairs", "r_value", "p_value", "best_heads"),
    [
        ("my_model & co", "L9H6", 41, 0.5, 3.2e-12, "L1H0 +2.00 +- 0.5, L0H0 -4e-03 +- 0.001"),
        ("100% | *x*", ("L1H2", "L3H4"), None, -12.25, float("nan"), ""),
    ],
)


def test_every_form_is_written_beside_the_csv(tmp_path: Path):
    forms = [form for form in FORMS if form != "parquet"]
    files = MIXED.write(tmp_path, forms)
    assert [file.name for file in files] == ["mixed.csv", "mixed.tex", "mixed.md"]
    assert MIXED.write(tmp_path) == files[:1]
    with open(files[0], newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert read[1]["head"] == "L1H2 L3H4"
    assert files[1].read_text("utf-8") == MIXED.latex()
    assert files[2].read_text("utf-8") == MIXED.markdown()
    assert set(Report.__dataclass_fields__["tables"].metadata["choices"]) == set(FORMS)


def test_latex_is_a_booktabs_tabular():
    lines = MIXED.latex().splitlines()
    assert lines[0] == r"\begin{tabular}{llrrrl}"
    assert [lines[i] for i in (1, 3, -2, -1)] == [
        *(r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"),
    ]
    assert lines[2] == r"model & head & n pairs & r value & p value & best heads \\"
    measured = r"$41$ & $0.5$ & $3.2 \cdot 10^{-12}$"
    effects = r"L1H0 $+2.00 \pm 0.5$, L0H0 $-4 \cdot 10^{-3} \pm 0.001$"
    assert lines[4] == rf"my\_model \& co & L9H6 & {measured} & {effects} \\"
    assert lines[5] == r"100\% \textbar{} *x* & L1H2 L3H4 & - & $-12.2$ & - &  \\"


def test_columns_in_which_nothing_stands_are_for_machines_alone(tmp_path: Path):
    table = Table("t", ("text", "source", "bos"), [("The <X> of", "", None), ("a|b", "", None)])
    assert table.markdown().splitlines()[0] == "| text |"
    assert r"The \textless{}X\textgreater{} of \\" in table.latex()
    assert table.write(tmp_path)[0].read_text("utf-8").splitlines()[0] == "text,source,bos"


def test_markdown_keeps_text_text():
    title, sides, first, second = MIXED.markdown().splitlines()
    assert title == "| model | head | n pairs | r value | p value | best heads |"
    assert sides == "| --- | --- | ---: | ---: | ---: | --- |"
    assert first.startswith(r"| my\_model &amp; co | L9H6 | 41 | 0.5 | 3.2e-12 | ")
    assert second == r"| 100% \| \*x\* | L1H2 L3H4 | - | -12.2 | - |  |"


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("pandas", "pyarrow")),
    reason="needs pandas and pyarrow",
)
def test_parquet_reads_back(tmp_path: Path):
    import pandas

    _, file = MIXED.write(tmp_path, ["parquet"])
    frame = pandas.read_parquet(file)
    assert list(frame.columns) == list(MIXED.columns)
    assert frame["n_pairs"].isna().tolist() == [False, True]
    assert frame["r_value"].tolist() == [0.5, -12.25]


def test_parquet_without_its_packages_is_one_clear_error(monkeypatch):
    def missing(name: str):
        raise ImportError(name)

    monkeypatch.setattr("headjax.io.import_module", missing)
    with pytest.raises(
        InputError, match=r"need pandas and pyarrow \(pip install 'headjax\[tables\]'\); .* pandas"
    ):
        check_forms(("parquet",))
    check_forms(("tex", "md"))


# --- the summary ------------------------------------------------------------------------------------------


def grid(scores, relation="country_to_capital", measure="static", **more) -> HeadGrid:
    analysis = {"static": "relation_scores", "ablation": "head_ablation"}[measure]
    return HeadGrid(
        np.array(scores), "M", relation, "Knowledge", measure, 40, **({"analysis": analysis} | more)
    )


def effects(relation: str, scores, metric: str = "logprob") -> HeadGrid:
    how = {"metric": metric, "replacement": "mean", "positions": "last", "clean": -1.0}
    return grid(scores, relation, "ablation", stderr=np.full(np.shape(scores), 0.1), **how)


def test_the_summary_says_of_every_measure_what_applies():
    grids = GridSet(
        (
            grid([[0.5, 0.1], [0.0, 0.2]]),
            grid(np.zeros((2, 2)), "copying"),
            effects("country_to_capital", [[1.5, -0.2], [0.0, 0.3]]),
            effects("copying", [[0.1, 0.2], [np.nan, 0.0]]),
            effects("copying", np.zeros((2, 2)), "accuracy"),
        )
    )
    rows = [*score_rows(grids), skipped_row("M", "small", "Any", "2 of 9 pairs")]
    static, zero, logprob, _, nothing, skipped = rows
    assert (static.analysis, static.measured, static.unit) == (
        "relation_scores",
        "Relation score",
        "share of pairs",
    )
    assert (logprob.measured, logprob.unit) == ("Log-probability, clean minus ablated", "nats")
    assert (logprob.replacement, logprob.positions) == ("mean", "last")
    assert logprob.opposing_heads == "L0H1 -0.20 +- 0.1"
    # 0 is nobody's best.
    for row in (zero, nothing):
        assert (row.maximum, row.low, row.high, row.best_heads) == ("", "", "", "")
    assert (zero.heads, nothing.heads) == (0, "")
    text = summary_text([*rows, skipped], 0.15)
    blocks = text.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [
        "Relation score in share of pairs (relation_scores); heads: above 0.15",
        "Log-probability, clean minus ablated in nats (head_ablation, mean, last)",
        "Accuracy, clean minus ablated in share of prompts (head_ablation, mean, last)",
        "Skipped",
    ]
    assert blocks[0].splitlines()[-1] == "Of no head: copying"
    assert blocks[2].splitlines()[1:] == ["Of no head: copying"]
    assert blocks[3].splitlines()[1:] == ["small: 2 of 9 pairs", "small: 2 of 9 pairs"][:1]
    assert "threshold" not in blocks[1]
    assert "heads  " not in blocks[1].splitlines()[1].replace("best heads", "").replace("opposing heads", "")
    assert not re.search(r"\bnan\b|\b0\.00\b", text)


def test_clean_values_are_on_top():
    rows = Result(GridSet((grid([[0.5, 0.1]]),)), clean=(clean_row(),))
    first, second, *_ = report_tables(rows, {}, [], Report(), 0)
    assert (first.name, second.name) == ("clean", "summary")
    assert first.text.startswith("With no head touched")
    assert "\\pm" in first.latex()


def clean_row():
    from headjax.result import CleanRow

    return CleanRow("M", "copying", "task", 40, 0.5, 0.4, 0.6, -1.0, 0.1, None, None)


def test_which_categories_a_head_has_is_a_table():
    grids = GridSet(
        (
            grid([[0.5, 0.0]], name="Country to capital"),
            grid([[0.0, 0.9]], sign="suppression", name="Country to capital"),
            HeadGrid(np.array([[0.3, 0.0]]), "M", "copying", "Algorithmic", "static", 40),
        )
    )
    assert [tuple(row) for row in category_table(grids)] == [
        ("M", 0, 0, 2, "Knowledge, Algorithmic", "Country to capital, Copying"),
        ("M", 0, 1, 1, "Knowledge", "-Country to capital"),
    ]
    assert len(category_table(grids, count_suppression=False)) == 1
    assert len(category_table(grids, threshold=0.4)) == 2
    assert category_table(grids, threshold=0.95) == []
    assert SummaryRow._fields[0] == "model"


# --- marks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"circuits": ("nobody=L0H1",)}, r"whose heads are scored: copying, capitals; got 'nobody=L0H1'"),
        (
            {"circuits": ("copying=L0H1",), "heat_maps": ("capitals",)},
            r"relations that are drawn \(heat_maps\): capitals; got 'copying=L0H1'",
        ),
        ({"heat_maps": ("nobody",)}, r"relations that are scored: copying, capitals, groups; got 'nobody'"),
        ({"circuits": ("groups=L0H1",)}, r"whose heads are scored: copying, capitals; got 'groups=L0H1'"),
    ],
)
def test_what_is_asked_for_and_cannot_be_drawn_is_refused(fields, message: str):
    grids = [grid([[0.5]], "copying"), grid([[0.9]], "capitals"), grid([[0.1]], "groups", part="kv_groups")]
    with pytest.raises(InputError, match=message):
        check_shown(Report(**fields), grids)
    check_shown(Report(circuits=("copying=L0H1", "L0H0")), grids)
    with pytest.raises(InputError, match="there are none"):
        check_shown(Report(circuits=("L0H0",)), grids[2:])


def test_marks_are_drawn_on_every_map_of_their_relation(tmp_path: Path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "headjax.figures.heat_maps.save_figure", lambda figure, path: drawn.append(figure) or ()
    )
    grids = [effects(name, [[size, -1.0], [0.1, 0.0]]) for name, size in (("a", 9.0), ("b", 5.0), ("c", 0.5))]
    report = Report(circuits=("c=L1H1",))
    chosen = chosen_grids(grids, report)
    assert [one.relation for one in chosen] == ["c"]  # although its numbers are small
    draw_maps(chosen, tmp_path / "map", report)
    (line,) = drawn[0].axes[0].lines
    assert [tuple(point) for point in line.get_xydata()] == [(1, 1)]
    assert marks_for(grids[0], report) is None
    assert marks_for(grids[0], Report(circuits=("L0H1",))) == find_circuit("L0H1")
    groups = effects("c", [[0.5], [0.1]])
    object.__setattr__(groups, "part", "kv_groups")
    assert marks_for(groups, Report(circuits=("L0H1",))) is None
