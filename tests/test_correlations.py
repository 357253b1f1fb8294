"""Static against dynamic scores: the numbers, and the rows, text and LaTeX made from them."""

import csv
import math

import numpy as np
import pytest
import scipy.stats

from headjax.grid import GridSet, HeadGrid
from headjax.report.correlations import (
    Correlation,
    correlate,
    correlation_cells,
    correlation_table,
    correlations,
)
from headjax.report.table import Table
from headjax.stats import pearson
from tests.helpers.grids import spelled

L, H = 3, 5
TEMPLATES = ("<X> is", "No <X>")


def grid(scores: np.ndarray, kind: str, relation: str = "capitals", template: str = "", model: str = "M"):
    return HeadGrid(
        *(scores, model, relation, "Knowledge"),
        **spelled(kind),
        n_pairs=40 if "static" in kind else 24,
        name=f"Name of {relation}",
        template=template,
    )


def random_grids(relation: str = "capitals", model: str = "M") -> GridSet:
    """Static and dynamic scores, plain and suppression; dynamic ones are static ones and noise."""
    rng = np.random.default_rng(len(relation) + len(model))
    grids = []
    for ending in ("", "_suppression"):
        static = rng.random((L, H))
        grids.append(grid(static, "static" + ending, relation, model=model))
        for kind, noise in (("dynamic_no_context", 0.1), ("dynamic_context", 0.5)):
            for template in TEMPLATES:
                noisy = static + noise * rng.normal(size=(L, H))
                grids.append(grid(noisy, kind + ending, relation, template, model))
    return GridSet(tuple(grids))


def test_r_over_heads_times_templates_and_p_over_heads():
    """Against the textbook: r by its definition, p by permuting the heads."""
    rng = np.random.default_rng(0)
    static = rng.random((L, H))
    dynamic = [0.4 * static + 0.35 * rng.random((L, H)) for _ in TEMPLATES]
    x, y = np.concatenate([static.ravel()] * 2), np.concatenate([scores.ravel() for scores in dynamic])

    def r_of(x: np.ndarray, y: np.ndarray) -> float:
        x, y = x - x.mean(), y - y.mean()
        return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))

    r, p = correlate(static, dynamic)
    assert r == pytest.approx(r_of(x, y), rel=1e-6)
    assert p == pytest.approx(pearson(static, np.mean(dynamic, axis=0))[1])
    assert p < 0.01
    # Noise that is the same in all templates: a template more is no evidence more.
    noise = rng.random((L, H))
    _, p_of_noise = correlate(static, [noise] * 4)
    own = abs(r_of(static.ravel(), noise.ravel()))
    permuted = [abs(r_of(static.ravel(), rng.permutation(noise.ravel()))) for _ in range(4000)]
    assert p_of_noise == pytest.approx(np.mean(np.array(permuted) >= own), abs=0.04)


def test_p_values_of_noise_are_uniform_however_many_templates_there_are():
    """Each head has its own noise in common to all templates, as heads have."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(300):
        own = rng.normal(size=(L, H))
        found.append(
            correlate(rng.random((L, H)), [own + 0.3 * rng.normal(size=(L, H)) for _ in range(4)])[1]
        )
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01


def test_rows_are_relations_and_kinds_with_both_scores():
    grids = random_grids() + random_grids("copying") + GridSet((grid(np.ones((L, H)), "static", "lonely"),))
    rows = correlations(grids)
    assert [(row.relation, row.kind) for row in rows] == [
        ("capitals", "plain"),
        ("capitals", "suppression"),
        ("copying", "plain"),
        ("copying", "suppression"),
    ]
    row = rows[0]
    assert row[:4] == ("M", "Knowledge", "capitals", "Name of capitals")
    assert (row.n_heads, row.n_templates) == (L * H, len(TEMPLATES))
    assert (row.n_pairs_static, row.n_prompts_dynamic) == (40, 24)
    static = grids.select(relation="capitals", kind="static").grids[0].scores
    assert row.max_static == static.max()
    without = [g.scores for g in grids.select(relation="capitals", kind="dynamic_no_context")]
    assert (row.r_no_context, row.p_no_context) == correlate(static, without)
    assert 1 > row.r_no_context > row.r_context > 0
    assert row.p_no_context < row.p_context


def test_models_are_kept_apart():
    rows = correlations(random_grids() + random_grids(model="Other"))
    assert [row.model for row in rows] == ["M", "M", "Other", "Other"]
    assert rows[0].r_context != rows[2].r_context


def test_a_score_that_no_head_differs_in_has_no_correlation():
    grids = [grid(np.zeros((L, H)), "static")]
    grids += [grid(np.eye(L, H), kind) for kind in ("dynamic_context", "dynamic_no_context")]
    (row,) = correlations(GridSet(tuple(grids)))
    assert all(math.isnan(value) for value in row[9:13])
    assert "nan" not in correlation_table([row])


def test_csv_reads_back(tmp_path):
    rows = correlations(random_grids() + random_grids("copying"))
    Table("correlations", Correlation._fields, rows).write(tmp_path)
    with open(tmp_path / "correlations.csv", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["relation"] for row in read] == ["capitals", "capitals", "copying", "copying"]
    assert float(read[1]["r_context"]) == rows[1].r_context
    assert float(read[1]["p_no_context"]) == rows[1].p_no_context
    counts = [
        int(read[1][name]) for name in ("n_heads", "n_templates", "n_pairs_static", "n_prompts_dynamic")
    ]
    assert counts == [15, 2, 40, 24]


def test_tables_show_every_row():
    row = correlations(random_grids("a_b"))[0]
    row = row._replace(
        r_no_context=0.923, p_no_context=3.2e-12, r_context=-0.5, p_context=0.04, max_static=0.875
    )
    title, line = correlation_table([row]).splitlines()
    assert title.split("  ")[0] == "Category"
    assert " ".join(line.split()) == "Knowledge Name of a_b plain 15 40 24 0.92 3e-12 -0.50 0.04 0.88"
    assert correlation_table([row, row._replace(model="N")]).splitlines()[2].startswith("N ")

    rows = [row, row._replace(kind="suppression", p_context=0.0)]
    latex = Table("correlations", Correlation._fields, rows, shown=correlation_cells(rows)).latex()
    measured = r"$0.92$ & $3 \cdot 10^{-12}$ & $-0.50$ & $0.04$ & $0.88$ \\"
    assert r"Knowledge & Name of a\_b & plain & $15$ & $40$ & $24$ & " + measured in latex
    assert r"$<10^{-300}$" in latex
    assert latex.count(r"\begin{tabular}{lllrrrrrrrr}") == latex.count(r"\end{tabular}") == 1
