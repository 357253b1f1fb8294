"""How figures look, by choice: colours, fonts, widths, scales, names of heads, curves upon each other."""

import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.font_manager import fontManager

from headjax import figures
from headjax.circuits.published import CIRCUITS
from headjax.errors import InputError
from headjax.figures import Curve, Line, Panel, fonts
from headjax.figures.style import WIDTHS
from headjax.grid import GridSet, HeadGrid
from headjax.report.options import Report
from tests.helpers.figure_checks import assert_tidy
from tests.helpers.figure_grids import CATEGORIES, SIZES, model_grids, relation_panels, scores
from tests.helpers.vision import VISIONS, difference, seen

# --- colours ----------------------------------------------------------------------------------------------


def test_differences_of_colours_are_those_of_the_formulas_authors():
    """Pairs 1, 7, 10, 17 and 25 of the supplementary data of Sharma, Wu & Dalal 2005."""
    for one, other, expected in (
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0010), 7.1792),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ):
        assert difference(np.array(one, float), np.array(other, float)) == pytest.approx(expected, abs=1e-4)


def least_difference(colors, vision: str) -> float:
    return min(
        difference(seen(one, vision), seen(other, vision))
        for one, other in itertools.combinations(colors.values(), 2)
    )


@pytest.mark.parametrize("vision", VISIONS)
def test_everybody_tells_the_categories_apart(vision: str):
    assert len(figures.MAP_COLORS) == 8
    assert least_difference(figures.MAP_COLORS, vision) >= 20


def test_the_published_colours_are_no_such():
    assert least_difference(figures.PUBLISHED_COLORS, "deuteranopia") < 10


def test_unclassified_is_light():
    lightness = {name: seen(color, "normal")[0] for name, color in figures.MAP_COLORS.items()}
    assert lightness.pop("Unclassified") > max(lightness.values()) + 10


def test_the_published_palette_is_an_option():
    with figures.look(palette="published"):
        figure = figures.draw_category_map(model_grids("GPT-2 xl", 5, 3))
    names = ("gray", "blue", "orange", "green", "red", "purple", "brown", "pink")
    colors = [patch.get_facecolor() for patch in figure.legends[0].get_patches()]
    assert colors == [to_rgba(f"tab:{name}") for name in names]
    assert figures.category_colors(["Mine", "Knowledge"])["Knowledge"] == figures.MAP_COLORS["Knowledge"]


@pytest.mark.parametrize("size", [(7, 6), (12, 12), (48, 25)])
@pytest.mark.parametrize("several", ["hatching", "digits"])
def test_heads_of_several_categories_are_told_apart_without_colour(several: str, size):
    grids = model_grids("GPT-2 small", *size)
    with figures.look(several=several):
        figure = figures.draw_category_map(grids, threshold=0.1)
    assert_tidy(figure)
    counts = np.sum([grid.scores > np.float32(0.1) for grid in grids], axis=0)
    assert (counts > 1).any()
    (axes,), (legend,) = figure.axes, figure.legends
    entries = dict(zip(figures.MAP_COLORS, legend.get_patches(), strict=True))
    if several == "digits":
        written = {tuple(map(int, t.get_position())): int(t.get_text()) for t in axes.texts}
        assert written == {tuple(head): counts[tuple(head)] for head in np.argwhere(counts > 1).tolist()}
        assert [text.get_text() for text in legend.get_texts()][5:] == [
            f"{n}: {n} categories" for n in (2, 3, 4)
        ]
    else:
        patterns = {patch.get_hatch() for patch in axes.patches}
        assert len(axes.patches) == (counts > 1).sum()
        assert patterns == {entries[f"{n} categories"].get_hatch() for n in set(counts[counts > 1].tolist())}
        assert len({patch.get_hatch() for patch in list(entries.values())[5:]}) == 3
    assert not entries["Knowledge"].get_hatch()


# --- what a map says --------------------------------------------------------------------------------------


def effect(scores, **more) -> HeadGrid:
    how = {"metric": "logprob", "replacement": "mean", "positions": "last", "n_pairs": 40} | more
    return HeadGrid(np.array(scores), "GPT-2 small", "country_to_capital", "Knowledge", "ablation", **how)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("how", "title", "label"),
    [
        ({}, "heads set to their mean, last position", "Log-probability"),
        (
            {"metric": "logit_diff", "replacement": "resample", "positions": "all"},
            *("heads resampled, all positions", "Logit difference"),
        ),
        (
            {"metric": "accuracy", "replacement": "zero", "part": "kv_groups"},
            *("heads of a key/value group together, heads set to zero, last position", "Accuracy"),
        ),
    ],
)
def test_a_map_says_what_was_done_and_no_id(how: dict[str, str], title: str, label: str):
    panel, bar = figures.plot_grids(GridSet((effect(np.ones((3, 3)), **how),))).axes
    assert words(panel.get_title()) == f"GPT-2 small: Country to capital ({title})"
    assert words(bar.get_ylabel()) == f"{label}, clean minus ablated"


@pytest.mark.parametrize(
    ("coordinates", "said"),
    [
        (("static", "", ""), "Country to capital score"),
        (("static", "", "suppression"), "Country to capital suppression score"),
        (("dynamic", "context", ""), "Dynamic score with context"),
        (("copy_score", "", "suppression"), "Negated copy score"),
        (("logit_attribution", "", ""), "Logit difference that a head writes"),
        (("gradient", "", ""), "Logit difference, clean minus ablated, first-order estimate"),
        (("attention", "induction", ""), "Attention to what followed the same token"),
        (("path", "query", ""), "Percent of the gap, clean to corrupted: to query inputs"),
        (("circuit", "2_query", ""), "Percent of the gap, clean to corrupted: stage 2, to query inputs"),
        (("my_score", "some_part", ""), "My score, some part"),
    ],
)
def test_every_measure_has_words(coordinates, said: str):
    measure, part, sign = coordinates
    metric = "logit_diff" if measure in ("logit_attribution", "gradient") else ""
    template = "The <X> is" if measure == "dynamic" else ""
    grid = effect(
        np.ones((3, 3)), part=part, sign=sign, metric=metric, template=template, replacement="", positions=""
    )
    object.__setattr__(grid, "measure", measure)
    panel, bar = figures.plot_grids(GridSet((grid,))).axes
    assert words(bar.get_ylabel()) == said
    assert ('(template "The <X> is")' in words(panel.get_title())) == bool(template)


def limits(figure) -> list[tuple[float, float]]:
    return [axes.collections[0].get_clim() for axes in figure.axes if axes.get_title()]


def test_scores_have_one_scale_unless_another_is_asked_for_and_said():
    panels = [Panel(np.full((3, 3), value, np.float32), "T", "Score") for value in (0.4, 0.02)]
    usual = figures.draw_heat_maps(panels)
    assert limits(usual) == [(0, 1), (0, 1)]
    assert [axes.get_ylabel() for axes in usual.axes[2:]] == ["Score", "Score"]
    with figures.look(scale="auto"):
        figure = figures.draw_heat_maps(panels)
    np.testing.assert_allclose(limits(figure), [(0, 0.4), (0, 0.1)], rtol=1e-6)  # 0.02 is not made bright
    labels = [words(axes.get_ylabel()) for axes in figure.axes[2:]]
    assert labels == ["Score (colours from 0 to 0.4)", "Score (colours from 0 to 0.1)"]


def test_noise_has_no_full_colour():
    rng = np.random.default_rng(0)
    error = np.full((12, 12), 0.02)
    noise = rng.normal(0, 0.02, (12, 12))
    real = noise.copy()
    real[3, 4] = -1.0
    grids = GridSet((effect(noise, stderr=error), effect(real, stderr=error), effect(noise)))
    figure = figures.plot_grids(grids)
    largest = np.abs(np.float32(noise)).max()
    np.testing.assert_allclose(limits(figure), [(-0.16, 0.16), (-1, 1), (-largest, largest)], rtol=1e-5)
    said = [words(axes.get_ylabel()).partition(" (")[2] for axes in figure.axes[3:]]
    assert said == ["full colour: 8 standard errors of the largest)", "", ""]
    mesh = figure.axes[0].collections[0]
    FigureCanvasAgg(figure).draw()
    strongest = mesh.get_facecolor()[:, :3].min(axis=1).min()
    assert strongest > 0.25  # the darkest blue of the map has 0.02 red


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", ["free", "column", "page"])
def test_the_strongest_heads_are_named(size, width: str):
    panels = relation_panels("GPT-2 small", *size)
    n = min(4, size[0] * size[1])
    for orientation in ("layer_x", "head_x"):
        with figures.look(annotate=n, width=width):
            figure = figures.draw_heat_maps(panels, orientation=orientation)
        for panel, axes in zip(panels, figure.axes, strict=False):
            best = HeadGrid(panel.scores, "M", "r", "Any", "static", 1).top(n)
            assert {text.get_text() for text in axes.texts} == {str(head) for head, _ in best}
    if size != (48, 1) and width == "free":
        assert_tidy(figure)


def test_effects_are_named_by_size_and_nothings_are_not():
    values = np.zeros((5, 4))
    values[1, 2], values[3, 3], values[0, 0] = -0.5, 0.2, np.nan
    with figures.look(annotate=3):
        figure = figures.draw_heat_maps([Panel(values, "T", "Effect")], signed=True)
    assert [text.get_text() for text in figure.axes[0].texts] == ["L1H2", "L3H3"]


def test_names_cover_no_marks():
    with figures.look(annotate=8):
        figure = figures.draw_heat_maps(
            relation_panels("GPT-2 medium", 24, 16, CIRCUITS["circuit_reuse"])[:1]
        )
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.axes[0]
    marks = axes.transData.transform([tuple(head) for head in CIRCUITS["circuit_reuse"].heads()])
    for text in axes.texts:
        box = text.get_window_extent(renderer)
        assert not any(box.contains(*mark) for mark in marks), text.get_text()


# --- panels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (9, 3), (10, 4)])
def test_four_panels_are_a_square(n: int, columns: int):
    panel = relation_panels("Tiny", 5, 3)[0]
    figure = figures.draw_heat_maps([panel] * n)
    assert len({round(axes.get_position().x0, 4) for axes in figure.axes[:n]}) == columns


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", WIDTHS)
def test_figures_have_a_papers_width_exactly(size, width: str):
    panels = relation_panels("GPT-2 medium", *size, None)
    curve = Curve("Relation's heads removed", np.arange(4), np.linspace(1, 0, 4))
    lines = {"M": [Line("A", np.arange(3), np.arange(3), {"color": "red"})]}
    noisy = effect(scores(*size) - 0.1, stderr=np.full(size, 0.3))
    with figures.look(width=width):
        drawn = [
            figures.draw_category_map(model_grids("GPT-2 xl", *size)),
            figures.draw_heat_maps(panels),
            figures.plot_grids(GridSet((noisy, noisy))),
            figures.draw_circuit_overlap({"One": [], "Two": []}, size, "Tiny"),
            figures.draw_ablation_curves("Tiny", curve, controls=[curve._replace(label="Control: another")]),
            figures.draw_lines(lines, ("x", "y")),
        ]
    for figure in drawn:
        assert figure.get_figwidth() == pytest.approx(WIDTHS[width], abs=1e-6)
        assert_tidy(figure)
        sizes = {text.get_fontsize() for axes in figure.axes for text in axes.get_xticklabels()}
        assert max(sizes) <= 7.5


def test_what_cannot_be_made_so_narrow_is_said():
    panel = Panel(scores(3, 3), "T", " ".join(["a very long label"] * 40))
    with (
        figures.look(width="column"),
        pytest.raises(InputError, match=r"width 'column' is 3.5 inches; this fig"),
    ):
        figures.draw_heat_maps([panel])
    with pytest.raises(
        InputError, match=r"'size' has an effect where width is free; got size=2 and width='page'"
    ):
        Report(size=2, width="page")


def test_spines_are_thin_and_the_font_has_metrics_for_print():
    axes = figures.draw_heat_maps(relation_panels("Tiny", 5, 3)).axes[0]
    assert {spine.get_linewidth() for spine in axes.spines.values()} == {0.5}
    first, *_, last = axes.title.get_fontfamily()
    known = {font.name for font in fontManager.ttflist}
    assert last == "DejaVu Sans"
    assert first == next((name for name in fonts.PRINT if name in known), last)


def test_the_ground_can_be_left_out(tmp_path: Path):
    def corner(transparent: bool) -> np.ndarray:
        with figures.look(transparent=transparent, formats=("png", "svg", "pdf")):
            png, *_ = figures.score_map(relation_panels("Tiny", 3, 3)[:1], tmp_path / str(transparent))
        return matplotlib.image.imread(png)[2, 2]

    assert corner(False).tolist() == [1, 1, 1, 1]
    assert corner(True)[3] == 0


def test_a_grid_gives_the_figure_that_a_notebook_shows():
    grid = HeadGrid(scores(5, 3), "Tiny", "copying", "Algorithmic", "static", 40)
    figure = grid.plot()
    assert isinstance(figure, matplotlib.figure.Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.axes[0].set_title("changed")
    assert "changed" in [axes.get_title() for axes in figure.axes]
    with figures.look(width="column"):
        assert grid.plot().get_figwidth() == pytest.approx(3.5)


# --- names in any script ----------------------------------------------------------------------------------

NAMES = ("国の首都", "العربية", "столица страны", "हिन्दी", "ภาษาไทย", "🦜 parrot", "a\u200db\x07c")


@pytest.mark.parametrize("name", NAMES)
def test_names_in_any_script_are_drawn_or_spelled(name: str, tmp_path: Path):
    """Warnings are errors here, and matplotlib warns of a character that no font has."""
    grids = GridSet((HeadGrid(scores(5, 3), name, "own", name, "static", 40, name=name),))
    figures.category_map(grids, tmp_path / "map")
    figures.relation_heat_map(list(grids), tmp_path / "heat")
    curve = Curve(name, np.arange(3), np.zeros(3))
    figures.ablation_curves_figure(tmp_path / "curves", name, curve, removed=name)
    assert len(list(tmp_path.iterdir())) == 6


def test_what_no_font_has_is_a_clear_word(monkeypatch):
    monkeypatch.setattr(fonts, "_other_fonts", lambda: ())
    assert fonts.drawable("Oslo, Zürich, Αθήνα") == "Oslo, Zürich, Αθήνα"
    assert fonts.drawable("国 of 国の首都です") == "[CJK 56FD] of [CJK 56FD 306E 9996 90FD ...]"
    assert fonts.drawable("a\u200d\x07b") == "ab"


def test_another_font_is_used_where_it_has_the_characters(monkeypatch):
    """STIX stands for a font that a machine happens to have."""
    monkeypatch.setattr(fonts, "_other_fonts", lambda: ("STIXGeneral",))
    lacking = next(
        chr(c) for c in sorted(fonts._characters("STIXGeneral")) if c not in fonts._covered(fonts.families())
    )
    figure = figures.draw_heat_maps([Panel(scores(3, 3), f"M: {lacking}", "Score")])
    assert lacking in figure.axes[0].get_title()
    assert "STIXGeneral" in figure.axes[0].title.get_fontfamily()
    FigureCanvasAgg(figure).draw()
    assert "STIXGeneral" not in matplotlib.rcParams["font.family"]


# --- curves -----------------------------------------------------------------------------------------------


def rendered_colors(figure) -> set[str]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3].reshape(-1, 3)
    return {color for color in ("tab:orange", "tab:green", "tab:blue") if _share(image, color) > 20}


def _share(image: np.ndarray, color: str) -> int:
    return int((np.abs(image / 255 - to_rgb(color)).max(axis=1) < 0.1).sum())


def test_curves_upon_each_other_all_show():
    heads, values = np.arange(20), np.linspace(0.9, 0.1, 20)
    own = Curve("Own", heads, values)
    same = [Curve("A", heads[:12], values[:12]), Curve("B", heads, values)]
    figure = figures.draw_ablation_curves("T", own, controls=same)
    figure.legends[0].remove()
    assert rendered_colors(figure) == {"tab:orange", "tab:green", "tab:blue"}
    dashes = [one for one in figure.axes[0].collections if isinstance(one, LineCollection)]
    assert sorted(len(one.get_segments()[0]) for one in dashes) == [9, 9, 12, 12, 12]
    apart = figures.draw_ablation_curves("T", own, controls=[Curve("A", heads, values - 0.1)])
    assert not [one for one in apart.axes[0].collections if isinstance(one, LineCollection)]


def test_options_of_looks_are_the_reports():
    fields = set(Report.__dataclass_fields__)
    assert set(figures.Look._fields) <= fields
    usual = Report()
    assert figures.Look() == figures.Look(**{name: getattr(usual, name) for name in figures.Look._fields})
    assert not [name for name in fields if not re.search(rf"^      {name}: ", Report.__doc__, re.MULTILINE)]


def test_colours_of_categories_are_the_same_in_all_figures():
    assert set(figures.MAP_COLORS) >= set(CATEGORIES)
