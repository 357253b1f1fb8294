"""The figures to the detail: ticks, legends, titles, colours, marks; nothing overlaps or is cut off."""

import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from headjax import figures
from headjax.axes import Head
from headjax.circuits.published import CIRCUITS, find_circuit
from headjax.errors import InputError
from headjax.figures import Curve, Panel
from headjax.grid import GridSet, HeadGrid, load_npz, save_npz
from tests.helpers.figure_checks import assert_tidy
from tests.helpers.figure_grids import CATEGORIES, SIZES, model_grids, relation_panels, scores

LEGEND = figures.MAP_COLORS


# ---------------------------------------------------------------------------------------- category map


@pytest.mark.parametrize("size", SIZES)
def test_category_map_is_tidy_at_every_size(size):
    assert_tidy(figures.draw_category_map(model_grids("GPT-2 xl", *size)))


@pytest.mark.parametrize("panels", [2, 3, 4, 5])
def test_several_models_share_a_figure(panels):
    models = (
        ("GPT-2 xl", 48, 25),
        ("Phi-2", 32, 32),
        ("Pythia 12B", 36, 40),
        ("Llama-3.1 70B", 80, 64),
        ("T", 3, 3),
    )
    grids = sum((model_grids(*model) for model in models[:panels]), GridSet())
    figure = figures.draw_category_map(grids)
    assert [axes.get_title() for axes in figure.axes] == [model for model, _, _ in models[:panels]]
    corners = {tuple(np.round(axes.get_position().p0, 6)) for axes in figure.axes}
    assert len({x for x, _ in corners}) == (2 if panels < 5 else 3)  # 2 x 2 for four
    assert len({y for _, y in corners}) == (1 if panels == 2 else 2)
    assert len(figure.legends) == 1
    assert_tidy(figure)


def test_category_map_says_what_it_shows():
    figure = figures.draw_category_map(model_grids("GPT-2 xl", 48, 25))
    (axes,) = figure.axes
    assert figure.get_suptitle() == "Category Distribution Across Model Layers and Heads"
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("GPT-2 xl", "Layer", "Head")
    assert list(axes.get_xticks()) == [0, 9, 18, 27, 36, 45]
    assert list(axes.get_yticks()) == [0, 5, 10, 15, 20]
    assert axes.get_ylim() == (-0.5, 24.5)  # head 0 at the bottom
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(LEGEND)
    colors = [patch.get_facecolor() for patch in legend.get_patches()]
    assert colors == [to_rgba(color) for color in LEGEND.values()]
    assert legend.get_title().get_text() == "A score above 0.15"


def test_head_zero_can_be_at_the_top():
    (axes,) = figures.draw_category_map(model_grids("Tiny", 5, 7), origin="upper").axes
    assert axes.get_ylim() == (6.5, -0.5)
    with pytest.raises(InputError, match=r"lower or upper.*bottom"):
        figures.draw_category_map(model_grids("Tiny", 5, 7), origin="bottom")


def cell_colors(axes) -> np.ndarray:
    """The colour of every cell of a panel, [x, y, 4]."""
    (mesh,) = axes.collections
    FigureCanvasAgg(axes.figure).draw()
    values = mesh.get_array()
    return mesh.get_facecolor().reshape(*values.shape, 4).swapaxes(0, 1)


def test_each_head_has_the_colour_of_its_category_or_their_number():
    layers, heads = 5, 3
    grids = []
    for i, category in enumerate(CATEGORIES):
        values = np.zeros((layers, heads), np.float32)
        values[i, 0] = 0.5  # a head of its own
        values[4, :2] = 0.5  # all four
        values[3, 1] = 0.5 * (i < 2)
        values[2, 1] = 0.5 * (i > 0)
        grids.append(HeadGrid(values, "Tiny", f"relation_{i}", category, "static", 40))
    (axes,) = figures.draw_category_map(GridSet(tuple(grids))).axes
    expected = np.full((layers, heads), "Unclassified", dtype=object)
    expected[:4, 0] = CATEGORIES
    expected[4, :2], expected[3, 1], expected[2, 1] = "4 categories", "2 categories", "3 categories"
    want = [[to_rgba(LEGEND[name]) for name in row] for row in expected]
    np.testing.assert_allclose(cell_colors(axes), want)


def test_a_users_own_category_gets_its_own_entry():
    grids = model_grids("Tiny", 5, 3) + GridSet(
        (HeadGrid(np.ones((5, 3), np.float32), "Tiny", "mine", "Chemistry", "static", 40),)
    )
    figure = figures.draw_category_map(grids, threshold=-1.0)
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == [*LEGEND, "Chemistry", "5 categories"]
    assert_tidy(figure)


def test_a_map_needs_static_scores():
    dynamic = HeadGrid(np.ones((5, 3)), "Tiny", "mine", "Knowledge", "dynamic", 40, "context")
    with pytest.raises(InputError, match=r"static scores; got dynamic_context"):
        figures.draw_category_map(GridSet((dynamic,)))


# ------------------------------------------------------------------------------------------- heat maps


@pytest.mark.parametrize("size", SIZES)
def test_heat_maps_are_tidy_at_every_size(size):
    marks = find_circuit([f"{layer}.0" for layer in range(size[0])])
    panels = relation_panels("GPT-2 medium", *size, marks)
    panels[1] = panels[1]._replace(marks=None)
    assert_tidy(figures.draw_heat_maps(panels))
    assert_tidy(figures.draw_heat_maps(panels[:1], orientation="head_x"))
    assert_tidy(figures.draw_heat_maps(panels, signed=True, orientation="head_x"))


@pytest.mark.parametrize(("name", "size"), [("ioi", (12, 12)), ("circuit_reuse", (24, 16))])
def test_published_marks_are_tidy_below_one_two_and_many_panels(name, size):
    panels = relation_panels("GPT-2 small", *size, CIRCUITS[name])
    other = panels[1]._replace(marks=find_circuit("1.1"))
    for shown in (panels[:1], panels, [panels[0], other], [*panels * 2, other]):
        assert_tidy(figures.draw_heat_maps(shown))


def test_long_names_are_wrapped_and_signs_are_not_mathematics():
    name = "a_very_long_directory_name_without_a_space/checkpoint-100000 $alpha$ of _my own_"
    marks = find_circuit("1.1 2.2")
    marks = type(marks)("", "", f"Found in {name}", {name: marks.heads(), "_hidden": marks.heads()[:1]})
    panel = Panel(scores(3, 3), f"{name}: Copying heads", f"{name} score", marks)
    assert_tidy(figures.draw_heat_maps([panel]))
    assert_tidy(figures.draw_heat_maps([panel, panel]))
    assert_tidy(figures.draw_category_map(model_grids(name, 3, 3)))


@pytest.mark.parametrize(
    ("layers", "heads", "x", "y"),
    [
        (12, 12, range(12), range(12)),
        (24, 16, range(0, 24, 2), range(16)),
        (48, 25, range(0, 48, 4), range(0, 25, 2)),
        (80, 64, range(0, 80, 8), range(0, 64, 4)),
    ],
)
def test_heat_map_ticks(layers, heads, x, y):
    axes = figures.draw_heat_maps(relation_panels("M", layers, heads)).axes[0]
    assert (list(axes.get_xticks()), list(axes.get_yticks())) == (list(x), list(y))
    axes = figures.draw_heat_maps(relation_panels("M", layers, heads), orientation="head_x").axes[0]
    assert (list(axes.get_xticks()), list(axes.get_yticks())) == (list(y), list(x))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Head", "Layer")


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The figures that would have been written."""
    kept = []
    monkeypatch.setattr(
        "headjax.figures.heat_maps.save_figure", lambda figure, path: kept.append(figure) or (path, path)
    )
    return kept


def test_relation_heat_map_says_what_it_shows(drawn, tmp_path):
    grids = [
        HeadGrid(scores(24, 16), "GPT-2 medium", "name_copying", "Algorithmic", "static", 40),
        HeadGrid(
            *(scores(24, 16), "GPT-2 medium", "country_to_capital", "Knowledge", "static", 40),
            sign="suppression",
        ),
    ]
    figures.relation_heat_map(grids, tmp_path / "map", [CIRCUITS["circuit_reuse"], None])
    (figure,) = drawn
    left, right, left_bar, right_bar = figure.axes
    assert left.get_title() == "GPT-2 medium: Name copying heads"
    assert left_bar.get_ylabel() == "Name copying score"
    assert right.get_title().replace("\n", " ") == "GPT-2 medium: Country to capital suppression heads"
    assert right_bar.get_ylabel() == "Country to capital suppression score"
    assert (left.get_xlabel(), left.get_ylabel()) == ("Layer", "Head")
    assert not right.get_ylabel()  # shared
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    for axes in (left, right):
        assert axes.collections[0].get_cmap().name == "viridis"
        assert axes.collections[0].get_clim() == (0, 1)
    titles = [legend.get_title().get_text() for legend in figure.legends]
    assert titles == ["'Circuits Components Reused' classifications", figures.NO_MARKS]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(
        CIRCUITS["circuit_reuse"].roles
    )
    assert not right.lines


def test_without_expected_marks_nothing_is_said_of_them(drawn, tmp_path):
    grid = HeadGrid(scores(5, 3), "Tiny", "copying", "Algorithmic", "static", 40)
    figures.relation_heat_map([grid], tmp_path / "map")
    assert drawn[0].legends == []


@pytest.mark.parametrize("orientation", ["layer_x", "head_x"])
def test_cells_and_marks_are_where_their_heads_are(orientation):
    values = scores(12, 13)
    axes = figures.draw_heat_maps([Panel(values, "T", "S", CIRCUITS["ioi"])], False, orientation).axes[0]
    expected = matplotlib.colormaps["viridis"](values)
    got = cell_colors(axes)
    np.testing.assert_allclose(got if orientation == "layer_x" else got.swapaxes(0, 1), expected)
    assert len(axes.lines) == len(CIRCUITS["ioi"].roles)
    for line, heads in zip(axes.lines, CIRCUITS["ioi"].roles.values(), strict=True):
        assert line.get_marker() == "x"
        points = [tuple(point) for point in line.get_xydata()]
        assert points == [tuple(head) if orientation == "layer_x" else tuple(head[::-1]) for head in heads]


def test_marks_show_on_dark_and_on_light_cells():
    for value in (0.0, 0.5, 1.0):
        panel = Panel(np.full((12, 12), value, np.float32), "T", "S", CIRCUITS["ioi"])
        figure = figures.draw_heat_maps([panel])
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = np.asarray(canvas.buffer_rgba())[..., :3] / 255
        axes = figure.axes[0]
        background = np.array(matplotlib.colormaps["viridis"](value)[:3])
        for line in axes.lines:
            x, y = axes.transData.transform(line.get_xydata()[0])
            row, column = image.shape[0] - int(y), int(x)
            patch = image[row - 8 : row + 8, column - 8 : column + 8]
            assert np.abs(patch - background).max(axis=-1).max() > 0.45


def test_a_shared_circuit_has_one_legend():
    figure = figures.draw_heat_maps(relation_panels("GPT-2 small", 12, 12, CIRCUITS["ioi"]))
    assert len(figure.legends) == 1


def test_signed_maps_are_centred_at_zero():
    values = np.zeros((5, 3), np.float32)
    values[1, 2], values[0, 0], values[2, 2] = -0.03, 0.01, np.nan
    figure = figures.draw_heat_maps([Panel(values, "T", "Effect"), Panel(values * 0, "T", "Effect")], True)
    low, high = figure.axes[0].collections[0].get_clim()
    assert (low, high) == (-np.float32(0.03), np.float32(0.03))
    assert figure.axes[1].collections[0].get_clim() == (-1, 1)  # nothing but zeros
    colors = cell_colors(figure.axes[0])
    red, _, blue, _ = colors[0, 0]
    assert red > blue  # positive is red
    np.testing.assert_allclose(colors[3, 0][:3], 0.97, atol=0.01)  # zero is white


def test_heat_maps_refuse_what_does_not_fit():
    with pytest.raises(InputError, match=r"one model size; got \[\(3, 3\), \(5, 8\)\]"):
        figures.draw_heat_maps(relation_panels("A", 3, 3) + relation_panels("B", 5, 8))
    with pytest.raises(InputError, match=r"inside the model.*L8H6 and 14 more"):
        figures.draw_heat_maps(relation_panels("A", 3, 3, CIRCUITS["ioi"]))
    with pytest.raises(InputError, match=r"layer_x, head_x; got 'diagonal'"):
        figures.draw_heat_maps(relation_panels("A", 3, 3), orientation="diagonal")


# ------------------------------------------------------------------------------- curves, files, state


@pytest.mark.parametrize("limits", [(0.0, 1.0), None])
def test_ablation_curves_are_tidy_and_complete(limits):
    heads = np.arange(31)
    falling = np.linspace(0.9, 0, 31, dtype=np.float32)
    random = Curve("Random heads (95 % band)", heads, falling * 0 + 0.9, falling * 0 + 0.85, falling * 0 + 1)
    controls = [Curve(f"Control: relation number {i}", heads[: 5 + i], falling[: 5 + i]) for i in range(5)]
    value = "Accuracy" if limits else "Log-probability"
    if limits is None:
        falling = -100 * falling
    figure = figures.draw_ablation_curves(
        "GPT-2 medium: Country to capital",
        Curve("Country to capital heads", heads, falling),
        random,
        controls,
        value,
        limits,
    )
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Heads ablated", value)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), falling)
    assert len(axes.lines) == 7
    assert len([one for one in axes.collections if not isinstance(one, LineCollection)]) == 1  # the band
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries[:2] == ["Country to capital heads", "Random heads (95 % band)"]
    assert len(entries) == 7
    assert_tidy(figure)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("orientation", ["layer_x", "head_x"])
def test_circuit_overlap_counts_and_colours_the_heads(size, orientation):
    layers, heads = size
    last = Head(layers - 1, heads - 1)
    circuits = {"Country to capital": [Head(0, 0), last], "a task with a long name": [last, Head(1, 0)]}
    figure = figures.draw_circuit_overlap(circuits, size, "GPT-2 medium: components reused", orientation)
    entries = [" ".join(text.get_text().split()) for text in figure.legends[0].get_texts()]
    assert entries == ["both: 1", "Country to capital only: 1", "a task with a long name only: 1"]
    (mesh,) = figure.axes[0].collections
    cells = np.asarray(mesh.get_array()).reshape((heads, layers) if orientation == "layer_x" else size)
    shown = cells.T if orientation == "layer_x" else cells
    assert [shown[0, 0], shown[last], shown[1, 0], (shown > 0).sum()] == [2, 1, 3, 3]
    handles = figure.legends[0].get_patches()
    for value, handle in zip((1, 2, 3), handles, strict=True):
        assert handle.get_facecolor() == mesh.cmap(mesh.norm(value))
    assert_tidy(figure)


def test_figures_are_drawn_again_from_scores_npz(tmp_path):
    grids = model_grids("Tiny v1.5", 5, 3)
    first = figures.category_map(grids, tmp_path / "figures" / "category_map-v1.5")
    assert [path.name for path in first] == ["category_map-v1.5.png", "category_map-v1.5.pdf"]
    save_npz(grids, tmp_path / "scores.npz")
    again = figures.category_map(load_npz(tmp_path / "scores.npz"), tmp_path / "again")
    for before, after in zip(first, again, strict=True):
        assert before.read_bytes() == after.read_bytes()
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert first[1].read_bytes().startswith(b"%PDF")


def test_every_figure_function_writes_both_files(tmp_path):
    panel = Panel(scores(3, 5), "Tiny: induction", "Induction score")
    curve = Curve("Heads", np.arange(3), np.zeros(3, np.float32))
    for paths in (
        figures.score_map([panel], tmp_path / "score"),
        figures.signed_map([panel], tmp_path / "signed"),
        figures.ablation_curves_figure(tmp_path / "curves", "Tiny", curve),
        figures.circuit_overlap_map({"one": [], "two": [Head(0, 1)]}, (3, 5), tmp_path / "overlap", "Tiny"),
        figures.relation_heat_map(model_grids("Tiny", 3, 5).grids[:1], tmp_path / "relation", [None]),
    ):
        assert all(path.stat().st_size > 1000 for path in paths)
    assert len(os.listdir(tmp_path)) == 10


def test_a_disk_that_refuses_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"map\.png must be writable"):
        figures.category_map(model_grids("Tiny", 3, 3), tmp_path / "file" / "map")
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full, a device that is always full")
    real_open = open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, *args, **kwargs: real_open(
            "/dev/full" if str(path).endswith(".tmp") else path, *args, **kwargs
        ),
    )
    with pytest.raises(InputError, match=r"map\.png must be writable; No space left on device"):
        figures.category_map(model_grids("Tiny", 3, 3), tmp_path / "map")
    assert os.listdir(tmp_path) == ["file"]


def test_the_users_style_stays_out_and_stays_as_it_is():
    plain = figures.draw_category_map(model_grids("Tiny", 3, 3))
    with matplotlib.rc_context({"axes.titlesize": 40, "figure.facecolor": "black", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        styled = figures.draw_category_map(model_grids("Tiny", 3, 3))
        assert dict(matplotlib.rcParams) == before
    assert styled.axes[0].title.get_fontsize() == plain.axes[0].title.get_fontsize()
    assert styled.get_facecolor() == plain.get_facecolor()


def test_no_display_and_no_pyplot():
    code = "import sys, headjax.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    environment = {**os.environ, "DISPLAY": "", "MPLBACKEND": "Agg"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
