"""Figures of lines and points: comparisons, categories by depth, relations a head, groups of heads."""

import numpy as np
import pytest
from matplotlib.lines import Line2D

from headjax import figures
from headjax.errors import InputError
from headjax.figures import Points
from headjax.figures.coinciding import _stretches
from headjax.universality import CategoryShare, GroupSimilarity, RelationCount
from tests.helpers.figure_checks import assert_tidy

MODELS = ("GPT-2 xl", "Phi-2", "Pythia 12B", "Llama-3.1 70B", "A model of a user with a rather long name")
CATEGORIES = ("Algorithmic", "Knowledge", "Linguistic", "Translation", "Custom")


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Figures instead of files."""
    saved = []
    monkeypatch.setattr(
        "headjax.figures.lines.save_figure", lambda figure, path: saved.append(figure) or (path, path)
    )
    return saved


def shares(models: int, layers: int = 7) -> list[CategoryShare]:
    rng = np.random.default_rng(0)
    return [
        CategoryShare(model, layer, layer / (layers - 1), category, float(rng.random() * (i + 1) / 5))
        for i, model in enumerate(MODELS[:models])
        for category in CATEGORIES
        for layer in range(layers)
    ]


@pytest.mark.parametrize("models", [1, 2, 4, 5])
def test_category_shares_are_tidy_and_on_one_scale(models: int, drawn, tmp_path):
    figures.category_share_figure(shares(models), tmp_path / "figure")
    (figure,) = drawn
    assert_tidy(figure)
    titles = [axes.get_title().replace("\n", " ") for axes in figure.axes]
    assert titles == list(MODELS[:models])
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert figure.axes[0].get_ylim()[0] == 0
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(CATEGORIES)
    first = figure.axes[0].lines[1]
    rows = [row for row in shares(models) if (row.model, row.category) == (MODELS[0], "Knowledge")]
    np.testing.assert_allclose(first.get_ydata(), [row.share for row in rows])
    assert first.get_color() == figures.MAP_COLORS["Knowledge"]  # as on the category map


def test_relations_per_head_add_up_from_above(drawn, tmp_path):
    rows = [RelationCount("M", n, 20, heads, heads / 100) for n, heads in enumerate((60, 25, 10, 5))]
    rows += [RelationCount("N", 0, 19, 7, 1.0)]  # no head implements any
    figures.relations_per_head_figure(rows, tmp_path / "figure")
    (figure,) = drawn
    assert_tidy(figure)
    line, empty = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), [0.4, 0.15, 0.05])
    assert len(empty.get_xdata()) == 0
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["M (20 relations)", "N (19 relations)"]


def test_groups_are_tidy_and_leave_gaps_where_nothing_was_compared(drawn, tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        GroupSimilarity(model, layer, float("nan") if layer == 3 else rng.random(), 6, -0.1, 9)
        for model, layers in (("Llama-3.1 8B", 32), ("Llama-3.1 70B", 80))
        for layer in range(layers)
    ]
    figures.group_similarity_figure(rows, tmp_path / "figure")
    (figure,) = drawn
    assert_tidy(figure)
    within, across = figure.axes[0].lines
    assert np.isnan(within.get_ydata()[3])
    assert np.isfinite(across.get_ydata()).all()


@pytest.mark.parametrize("panels", [1, 2, 3])
def test_comparisons_show_every_point_and_which_differ(panels: int, drawn, tmp_path):
    rng = np.random.default_rng(0)
    points = Points(rng.random(9), rng.random(9) - 0.3, np.arange(9) % 3 > 0)
    titles = {
        f"Llama-3.1 70B: largest relation scores {i}": {"max score, plain": points} for i in range(panels)
    }
    figures.comparison_figure(titles, tmp_path / "figure")
    (figure,) = drawn
    assert_tidy(figure)
    diagonal, agree, differ = figure.axes[0].lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    np.testing.assert_array_equal(agree.get_xdata(), points.published[points.agrees])
    np.testing.assert_array_equal(differ.get_ydata(), points.ours[~points.agrees])
    assert (agree.get_marker(), differ.get_marker()) == ("o", "x")
    low, high = figure.axes[0].get_ylim()
    assert low < points.ours.min()
    assert high > 1


def test_files_are_written_and_nothing_to_draw_is_refused(tmp_path):
    files = figures.category_share_figure(shares(1), tmp_path / "figure")
    assert [file.suffix for file in files] == [".png", ".pdf"]
    assert all(file.stat().st_size > 1000 for file in files)
    with pytest.raises(InputError, match="at least one panel"):
        figures.group_similarity_figure([], tmp_path / "nothing")


@pytest.mark.parametrize("descending", [False, True])
def test_lines_that_coincide_are_drawn_in_their_own_order(descending: bool):
    """Not in that of their places in memory, which differ each time: so files have the same bytes."""
    x = np.arange(4.0)
    made = [Line2D(x, x) for _ in range(4)]
    lines = sorted(made, key=id, reverse=descending)
    heights = (1.0, 1.0, 9.0, 9.0)
    points = {line: np.column_stack([x, x + y]) for line, y in zip(lines, heights, strict=True)}
    assert [list(stretch[0]) for stretch in _stretches(points)] == [lines[:2], lines[2:]]
