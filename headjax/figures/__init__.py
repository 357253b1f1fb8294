"""Score grids as pictures: PNG and PDF for papers. The only file that imports matplotlib.

Figures are laid out in inches: the size of a panel follows from the number of its cells, the room for titles
and legends from the measured extent of their text. So nothing overlaps or is cut off, from 3 x 3 to 80 x 64
heads. `draw_...` functions return a matplotlib Figure, the others write it and return the paths. Only
matplotlib's object interface is used: no display is needed and no state outlives a call.
"""

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from headjax.axes import Head
from headjax.circuits.published import Circuit, check_fits
from headjax.errors import InputError
from headjax.grid import (
    SUPPRESSION,
    GridSet,
    HeadGrid,
    category_count_name,
    category_counts,
    head_categories,
    measure,
)
from headjax.io import atomic_write
from headjax.report.universality import CategoryShare, GroupSimilarity, RelationCount

HEAT_AXES = {"layer_x": ("Layer", "Head"), "head_x": ("Head", "Layer")}  # orientation -> names of x and y
MOST_TICKS = {"Layer": 12, "Head": 16}  # a heat map with more layers or heads leaves some out
MAP_TITLE = "Category Distribution Across Model Layers and Heads"
MAP_COLORS = {
    "Unclassified": "tab:gray",
    "Algorithmic": "tab:blue",
    "Knowledge": "tab:orange",
    "Linguistic": "tab:green",
    "Translation": "tab:red",
    "2 categories": "tab:purple",
    "3 categories": "tab:brown",
    "4 categories": "tab:pink",
}
MORE_COLORS = ("tab:olive", "tab:cyan", "navy", "gold", "black")  # for categories of the user's own
MARK_COLORS = ("red", "black", "darkorange", "magenta", "saddlebrown", "dimgray", "deepskyblue")
NO_MARKS = "No circuit heads are given for this panel."

TITLE, PANEL_TITLE, LABEL, TICK = 13, 11, 10, 9  # font sizes in points; all else below is in inches
POINT = 1 / 72
GAP = 0.12  # between neighbours of any kind
LEFT, BOTTOM = 0.62, 0.5  # room for an axis's tick labels and label
CELL = 0.35  # the side of a cell, as long as the panel's long side stays within the next two
SMALLEST, LARGEST, LARGEST_OF_SEVERAL = 2.4, 5.5, 3.6
BAR = 0.13  # the width of a colour bar

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": TICK,
    "axes.titlesize": PANEL_TITLE,
    "axes.labelsize": LABEL,
    "figure.titlesize": TITLE,
    "legend.title_fontsize": TICK,
    "pdf.fonttype": 42,  # TrueType, which every publisher accepts
    "savefig.dpi": 300,
    "text.parse_math": False,  # a name may hold a dollar sign
}
_styled = matplotlib.style.context(STYLE, after_reset=True)  # a decorator; the user's own style stays out


# ---------------------------------------------------------------------------------------- category map


def category_map(
    grids: GridSet,
    path: str | Path,
    threshold: float = 0.15,
    count_suppression: bool = True,
    kind: str = "static",
    origin: str = "lower",
) -> tuple[Path, Path]:
    """Writes `draw_category_map` as `path`.png and `path`.pdf."""
    return save_figure(draw_category_map(grids, threshold, count_suppression, kind, origin), path)


@_styled
def draw_category_map(
    grids: GridSet,
    threshold: float = 0.15,
    count_suppression: bool = True,
    kind: str = "static",
    origin: str = "lower",
) -> Figure:
    """One panel per model, each head coloured by its one category or by how many it has.

    The classification is `headjax.grid.head_categories`. `origin` "lower" puts head 0 at the bottom, "upper"
    at the top. Raises InputError if there are no scores of this kind.
    """
    models = grids.select(kind=kind).values("model")
    if not models:
        raise InputError(
            f"a category map needs {kind} scores; got {', '.join(grids.values('kind')) or 'none'}"
        )
    maps = [head_categories(grids.select(model=m), threshold, count_suppression, kind) for m in models]
    shapes = np.array([next(iter(masks.values())).shape for masks in maps])
    colors = _map_colors(maps)
    key = _Key([Patch(color=color, label=name) for name, color in colors.items()])
    key_width, key_height = _key_size(key)

    # All panels have one size, that of a typical model, and the legend stands at their right.
    columns = math.ceil(math.sqrt(len(models)))
    width, height = _panel_size(*np.exp(np.log(shapes).mean(axis=0)), several=columns > 1)
    height = max(height, key_height)
    names = [_wrap(model, width, PANEL_TITLE) for model in models]
    title = _wrap(MAP_TITLE, columns * (LEFT + width) + key_width, TITLE)
    header = GAP + _text_size(title, TITLE)[1]
    above = 1.5 * GAP + _tallest(names, PANEL_TITLE)
    figure, panels = _sheet(
        len(models),
        columns,
        (width, height),
        around=(LEFT, 2 * GAP, above, BOTTOM),
        outside=(0.0, key_width + GAP, header, 0.0),
    )
    figure.suptitle(title, y=1 - GAP / figure.get_figheight())
    for axes, name, masks in zip(panels, names, maps, strict=True):
        values = _color_indices(masks, list(colors))
        mesh = _draw_cells(axes, values, ListedColormap(list(colors.values())), (-0.5, len(colors) - 0.5))
        cell = min(width / len(values), height / len(values[0]))
        mesh.set(edgecolor="white", linewidth=min(0.06 * cell / POINT, 1.5))
        _name_axes(axes, ("Layer", "Head"), (_map_ticks(len(values)), _map_ticks(len(values[0]))), origin)
        axes.set_title(name)
    middle = (figure.get_figheight() - header - above + BOTTOM) / 2
    _draw_key(figure, key, (figure.get_figwidth() - GAP - key_width, middle), "center left")
    return figure


def _map_colors(maps: Sequence[Mapping[str, np.ndarray]]) -> dict[str, str]:
    """The legend's eight entries, then what the user's own categories add to them."""
    most = max(len(category_counts(masks)) for masks in maps)
    names = [*MAP_COLORS, *(category for masks in maps for category in masks)]
    names += [category_count_name(n) for n in range(5, most)]
    more = itertools.cycle(MORE_COLORS)
    return {name: MAP_COLORS.get(name) or next(more) for name in dict.fromkeys(names)}


def _color_indices(masks: Mapping[str, Bool[np.ndarray, "L H"]], names: list[str]) -> Int[np.ndarray, "L H"]:
    """For each head the position of its legend entry."""
    count = np.sum(list(masks.values()), axis=0)
    index = np.zeros(count.shape, int)
    for category, mask in masks.items():
        index[mask & (count == 1)] = names.index(category)
    for n in range(2, count.max() + 1):
        index[count == n] = names.index(category_count_name(n))
    return index


def _map_ticks(n: int) -> list[int]:
    return list(range(0, n, max(1, n // 5)))


# ------------------------------------------------------------------------------------------- heat maps


class Panel(NamedTuple):
    """One heat map: its numbers, its title, the colour bar's label, the heads to mark and a line below it."""

    scores: Float[Array | np.ndarray, "L H"]
    title: str
    label: str
    marks: Circuit | None = None
    note: str = ""


def relation_heat_map(
    grids: Sequence[HeadGrid],
    path: str | Path,
    circuits: Sequence[Circuit | None] | None = None,
    orientation: str = "layer_x",
    origin: str = "lower",
) -> tuple[Path, Path]:
    """Relation scores side by side, from 0 to 1, with the heads that a circuit names marked by crosses.

    `circuits` gives each grid its circuit; a panel whose circuit is None says that it has no marks. Without
    `circuits` no marks are expected and nothing is said. Grids must be of one size.
    """
    panels = []
    for grid, circuit in zip(grids, circuits or [None] * len(grids), strict=True):
        name = grid.name + " suppression" * grid.kind.endswith(SUPPRESSION)
        note = NO_MARKS if circuits and circuit is None else ""
        panels.append(Panel(grid.scores, f"{grid.model}: {name} heads", f"{name} score", circuit, note))
    return score_map(panels, path, orientation, origin)


def score_map(
    panels: Sequence[Panel], path: str | Path, orientation: str = "layer_x", origin: str = "lower"
) -> tuple[Path, Path]:
    """Writes heat maps of scores between 0 and 1 (relation scores, attention patterns)."""
    return save_figure(draw_heat_maps(panels, False, orientation, origin), path)


def signed_map(
    panels: Sequence[Panel], path: str | Path, orientation: str = "layer_x", origin: str = "lower"
) -> tuple[Path, Path]:
    """Writes heat maps of numbers of either sign (attributions, ablation effects), white at 0."""
    return save_figure(draw_heat_maps(panels, True, orientation, origin), path)


def plot_grids(grids: GridSet, orientation: str = "layer_x", origin: str = "lower") -> Figure:
    """Grids side by side, scores from 0 to 1 and effects of either sign in their own colours.

    The figure is returned, to be shown by a notebook or saved (`.savefig`). Raises InputError for grids of
    different size, and for scores and effects in one figure.
    """
    signed = {measure(grid.kind).helps != 0 for grid in grids}
    if len(signed) != 1:
        raise InputError(
            f"one figure shows scores or effects; got {', '.join(grids.values('kind')) or 'none'}"
        )
    panels = []
    for grid in grids:
        what = " ".join(filter(None, (grid.kind.replace("_", " "), grid.template)))
        panels.append(Panel(grid.scores, f"{grid.model}: {grid.name}, {what}", grid.metric or "Score"))
    return draw_heat_maps(panels, signed.pop(), orientation, origin)


@_styled
def draw_heat_maps(
    panels: Sequence[Panel], signed: bool = False, orientation: str = "layer_x", origin: str = "lower"
) -> Figure:
    """Panels side by side, four in a row, each with its colour bar; below them the legend of the marks.

    Colours are viridis fixed to 0 to 1, or where `signed` a diverging map centred at 0, each panel to its own
    largest magnitude. NaN is light gray. `orientation` is "layer_x" (x layer, y head) or "head_x"; `origin`
    "lower" puts 0 of the y axis at the bottom. One legend serves all panels if their marks are the same.
    Raises InputError for panels of different size and for marks outside the grid.
    """
    shapes = {np.shape(panel.scores) for panel in panels}
    if len(shapes) != 1:
        raise InputError(f"heat maps in one figure share their axes: one model size; got {sorted(shapes)}")
    if orientation not in HEAT_AXES:
        raise InputError(f"orientation must be one of {', '.join(HEAT_AXES)}; got {orientation!r}")
    size = dict(zip(("Layer", "Head"), shapes.pop(), strict=True))
    for panel in panels:
        if panel.marks:
            check_fits(panel.marks, size["Layer"], size["Head"])
    names = HEAT_AXES[orientation]
    ticks = tuple(_heat_ticks(size[name], MOST_TICKS[name]) for name in names)
    scales = [_signed_scale(panel.scores) if signed else UNIT_SCALE for panel in panels]

    columns = min(len(panels), 4)
    width, height = _panel_size(*(size[name] for name in names), several=columns > 1)
    width = max(width, 0.22 * len(ticks[0]))  # room for every tick label
    height = max(height, 0.17 * len(ticks[1]))
    titles = [_wrap(panel.title, width, PANEL_TITLE) for panel in panels]
    labels = [_wrap(panel.label, height, LABEL) for panel in panels]
    numbers = max(_text_size(text, TICK)[0] for scale in scales for text in scale.texts)
    right = GAP + BAR + GAP + numbers + GAP + _tallest(labels, LABEL) + GAP
    above = 1.5 * GAP + _tallest(titles, PANEL_TITLE)
    marks = panels[0].marks
    shared = len(panels) > 1 and marks is not None and all(panel.marks == marks for panel in panels)
    room = LEFT + columns * (width + right) if shared else GAP + width + right
    keys = [_mark_key(panel, room) for panel in (panels[:1] if shared else panels)]
    foot = max(_key_size(key)[1] for key in keys) + GAP
    below, bottom = (BOTTOM, foot) if shared else (BOTTOM + foot, 0.0)
    figure, all_axes = _sheet(
        len(panels), columns, (width, height), (GAP, right, above, below), (LEFT - GAP, 0.0, 0.0, bottom)
    )
    for i, (panel, axes) in enumerate(zip(panels, all_axes, strict=True)):
        values = panel.scores if names[0] == "Layer" else panel.scores.T
        mesh = _draw_cells(axes, np.asarray(values), scales[i].colors, scales[i].limits)
        mesh.set(edgecolor="face", linewidth=0.5)  # hides the seams that PDF viewers show between cells
        _name_axes(axes, names, ticks, origin)
        if i % columns:
            axes.set(ylabel="", yticklabels=[])
        axes.set_title(titles[i])
        x, y = _corner(axes)
        bar = _add_axes(figure, (x + width + GAP, y, BAR, height))
        figure.colorbar(mesh, cax=bar, label=labels[i])
        bar.set_yticks(scales[i].ticks, scales[i].texts)
        if panel.marks:
            _draw_marks(axes, panel.marks, names, min(width / len(values), height / len(values[0])))
        if not shared:  # centred below the panel, or as nearly as the panel at its left allows
            center = x + max(width / 2, _key_size(keys[i])[0] / 2 - GAP)
            _draw_key(figure, keys[i], (center, y - BOTTOM), "upper center")
    if shared:
        _draw_key(figure, keys[0], (figure.get_figwidth() / 2, foot), "upper center")
    return figure


class _Scale(NamedTuple):
    """Colours, the two numbers at their ends, and the ticks of the colour bar."""

    colors: str
    limits: tuple[float, float]
    ticks: list[float]

    @property
    def texts(self) -> list[str]:
        return [f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in self.ticks]


UNIT_SCALE = _Scale("viridis", (0.0, 1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


def _signed_scale(scores: Float[Array | np.ndarray, "L H"]) -> _Scale:
    largest = float(np.max(np.abs(scores), initial=0.0, where=np.isfinite(scores))) or 1.0
    ticks = MaxNLocator(6, symmetric=True).tick_values(-largest, largest)
    return _Scale("RdBu_r", (-largest, largest), [float(tick) for tick in ticks if abs(tick) <= largest])


def _heat_ticks(n: int, most: int) -> list[int]:
    step = next(
        step for step in itertools.chain((1, 2, 4, 5, 8, 10), itertools.count(15, 5)) if n <= step * most
    )
    return list(range(0, n, step))


def _cross(color: str, size: float) -> dict:
    """How a mark is drawn: in its role's colour, with a white rim so that it shows on dark cells too."""
    rim = withStroke(linewidth=size / 2, foreground="white")
    return dict(
        linestyle="none",
        marker="x",
        color=color,
        markersize=size,
        markeredgewidth=size / 5,
        path_effects=[rim],
    )


def _role_colors(circuit: Circuit) -> list[tuple[str, str]]:
    return list(zip(circuit.roles, itertools.cycle(MARK_COLORS), strict=False))


def _draw_marks(axes: Axes, circuit: Circuit, names: tuple[str, str], cell: float) -> None:
    size = min(max(0.6 * cell / POINT, 3.5), 9.0)
    for role, color in _role_colors(circuit):
        xy = [head if names[0] == "Layer" else head[::-1] for head in circuit.roles[role]]
        if xy:
            axes.plot(*zip(*xy, strict=True), **_cross(color, size), clip_on=False)


def _mark_key(panel: Panel, room: float) -> "_Key | None":
    """The legend of a panel's marks in as many columns as there is room for, or the panel's note."""
    if not panel.marks:
        return _Key([], _wrap(panel.note, room, TICK)) if panel.note else None
    handles = [
        Line2D([], [], label=_wrap(role, room - 3 * GAP, TICK), **_cross(color, 7.0))
        for role, color in _role_colors(panel.marks)
        if panel.marks.roles[role]
    ]
    title = _wrap(panel.marks.legend, room, TICK)
    fitting = (_Key(handles, title, columns) for columns in range(len(handles), 1, -1))
    key = next((key for key in fitting if _key_size(key)[0] <= room), _Key(handles, title))
    rows = math.ceil(len(handles) / key.columns)
    return key._replace(columns=math.ceil(len(handles) / rows))


# ------------------------------------------------------------------------------------- circuit overlap

# Of heads of no circuit, both, the first, the second.
OVERLAP_COLORS = ("0.92", "tab:purple", "tab:blue", "tab:orange")


def circuit_overlap_map(
    circuits: Mapping[str, Sequence[Head]],
    shape: tuple[int, int],
    path: str | Path,
    title: str,
    orientation: str = "layer_x",
    origin: str = "lower",
) -> tuple[Path, Path]:
    """Writes `draw_circuit_overlap` as `path`.png and `path`.pdf."""
    return save_figure(draw_circuit_overlap(circuits, shape, title, orientation, origin), path)


@_styled
def draw_circuit_overlap(
    circuits: Mapping[str, Sequence[Head]],
    shape: tuple[int, int],
    title: str,
    orientation: str = "layer_x",
    origin: str = "lower",
) -> Figure:
    """Two circuits, task -> heads, on the heads of a model of this shape (L, H): shared, or of one alone.

    The legend counts them.
    """
    names = [task.replace("_", " ") for task in circuits]
    shown = np.zeros(shape, int)
    for i, heads in enumerate(circuits.values()):
        for head in heads:
            shown[head] = 1 if shown[head] else 2 + i
    labels = ("", "both", *(f"{name} only" for name in names))
    axis_names = HEAT_AXES[orientation]
    size = dict(zip(("Layer", "Head"), shape, strict=True))
    width, height = _panel_size(*(size[name] for name in axis_names), several=False)
    key = _Key(
        [
            Patch(color=OVERLAP_COLORS[i], label=_wrap(f"{labels[i]}: {np.sum(shown == i)}", 2.2, TICK))
            for i in (1, 2, 3)
        ],
        "Heads in the circuits of",
    )
    key_width, key_height = _key_size(key)
    height = max(height, key_height)
    title = _wrap(title, width, PANEL_TITLE)
    above = 1.5 * GAP + _text_size(title, PANEL_TITLE)[1]
    figure, (axes,) = _sheet(
        1, 1, (width, height), (LEFT, GAP, above, BOTTOM), (0.0, key_width + GAP, 0.0, 0.0)
    )
    values = shown if axis_names[0] == "Layer" else shown.T
    mesh = _draw_cells(axes, values, ListedColormap(OVERLAP_COLORS), (-0.5, 3.5))
    mesh.set(edgecolor="white", linewidth=min(0.06 * width / len(values) / POINT, 1.5))
    ticks = tuple(_heat_ticks(size[name], MOST_TICKS[name]) for name in axis_names)
    _name_axes(axes, axis_names, ticks, origin)
    axes.set_title(title)
    x, y = _corner(axes)
    _draw_key(figure, key, (x + width + GAP, y + height / 2), "center left")
    return figure


# ------------------------------------------------------------------------------------- ablation curves


BANDS = "Means and their 95 % limits"  # the title of the legend


class Curve(NamedTuple):
    """A line: its name, numbers of heads, the value at each, and its band's limits (95 %) if it has one."""

    label: str
    n_heads: Int[Array | np.ndarray, " M"]
    values: Float[Array | np.ndarray, " M"]
    low: Float[Array | np.ndarray, " M"] | None = None
    high: Float[Array | np.ndarray, " M"] | None = None


def ablation_curves_figure(
    path: str | Path,
    title: str,
    relation: Curve,
    random: Curve | None = None,
    controls: Sequence[Curve] = (),
    value_name: str = "Accuracy",
    limits: tuple[float, float] | None = (0.0, 1.0),
) -> tuple[Path, Path]:
    """Writes `draw_ablation_curves` as `path`.png and `path`.pdf."""
    return save_figure(draw_ablation_curves(title, relation, random, controls, value_name, limits), path)


@_styled
def draw_ablation_curves(
    title: str,
    relation: Curve,
    random: Curve | None = None,
    controls: Sequence[Curve] = (),
    value_name: str = "Accuracy",
    limits: tuple[float, float] | None = (0.0, 1.0),
) -> Figure:
    """A relation's value against the number of heads ablated.

    `relation` is the curve where the relation's own heads are removed, `random` the mean over random draws of
    heads, whose band should contain what varies between draws; `controls` are other relations' values while
    the relation's heads are removed. The legend says what bands are, where there are any.
    """
    width, height = 4.5, 3.0
    lines = [(relation, dict(color="tab:blue", linewidth=2, zorder=3))]
    if random is not None:
        lines.append((random, dict(color="dimgray", linewidth=1.5, linestyle="--")))
    others = itertools.cycle(("tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown"))
    lines += [(curve, dict(color=next(others), linewidth=1.2)) for curve in controls]
    bands = BANDS if any(curve.low is not None for curve, _ in lines) else None
    key = _Key(
        [Line2D([], [], label=_wrap(curve.label, 2.2, TICK), **style) for curve, style in lines], bands
    )
    key_width, key_height = _key_size(key)
    height = max(height, key_height)
    title = _wrap(title, width, PANEL_TITLE)
    above = 1.5 * GAP + _text_size(title, PANEL_TITLE)[1]
    figure, (axes,) = _sheet(
        1, 1, (width, height), (LEFT + 2 * GAP, GAP, above, BOTTOM), (0.0, key_width + GAP, 0.0, 0.0)
    )
    for curve, style in lines:
        axes.plot(curve.n_heads, curve.values, **style)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(
                curve.n_heads, curve.low, curve.high, color=style["color"], alpha=0.2, linewidth=0
            )
    axes.set(xlabel="Heads ablated", ylabel=value_name, title=title)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if limits is not None:
        margin = 0.02 * (limits[1] - limits[0])  # so that a line at a limit shows in full
        axes.set_ylim(limits[0] - margin, limits[1] + margin)
    axes.spines[["top", "right"]].set_visible(False)
    x, y = _corner(axes)
    _draw_key(figure, key, (x + width + GAP, y + height / 2), "center left")
    return figure


# ----------------------------------------------------------------------- lines and points, side by side


class Line(NamedTuple):
    """Points, joined unless `style` (matplotlib's) says otherwise. Without a label it has no legend entry."""

    label: str
    x: Float[Array | np.ndarray, " M"]
    y: Float[Array | np.ndarray, " M"]
    style: Mapping[str, object]


class Points(NamedTuple):
    """Published numbers, ours, and whether each pair agrees."""

    published: Float[np.ndarray, " M"]
    ours: Float[np.ndarray, " M"]
    agrees: Bool[np.ndarray, " M"]


LINE_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", *MORE_COLORS)


def comparison_figure(panels: Mapping[str, Mapping[str, Points]], path: str | Path) -> tuple[Path, Path]:
    """Ours against published, a panel a title and a colour a measure; on the diagonal both are the same."""
    drawn = {}
    for title, measures in panels.items():
        ends = [end for p in measures.values() for end in (*p.published, *p.ours)] + [0.0, 1.0]
        line = np.array([min(ends), max(ends)], np.float64)
        drawn[title] = [Line("", line, line, dict(color="0.7", linewidth=1, zorder=1))]
        for (label, points), color in zip(measures.items(), itertools.cycle(LINE_COLORS), strict=False):
            dots = dict(linestyle="none", color=color, markersize=5, alpha=0.8)
            for kept, marker, name in ((points.agrees, "o", label), (~points.agrees, "x", "")):
                drawn[title].append(
                    Line(name, points.published[kept], points.ours[kept], dots | {"marker": marker})
                )
    differs = dict(linestyle="none", marker="x", color="black", markersize=5)
    legend = [Line("differs by more than the tolerance", *np.empty((2, 0)), differs)]
    figure = draw_lines(drawn, ("Published", "Ours"), square=True, legend=legend)
    return save_figure(figure, path)


def category_share_figure(rows: Sequence[CategoryShare], path: str | Path) -> tuple[Path, Path]:
    """The share of heads with each category, by depth; a panel a model."""
    categories = dict.fromkeys(row.category for row in rows)
    more = itertools.cycle(MORE_COLORS)
    colors = {category: MAP_COLORS.get(category) or next(more) for category in categories}
    panels = {}
    for model in dict.fromkeys(row.model for row in rows):
        lines = [[row for row in rows if (row.model, row.category) == (model, c)] for c in categories]
        panels[model] = [
            Line(
                line[0].category,
                np.array([row.depth for row in line]),
                np.array([row.share for row in line]),
                dict(color=colors[line[0].category], linewidth=1.5),
            )
            for line in lines
            if line
        ]
    figure = draw_lines(
        panels, ("Depth (0: first layer, 1: last)", "Share of the layer's heads"), least_y=0.0
    )
    return save_figure(figure, path)


def relations_per_head_figure(rows: Sequence[RelationCount], path: str | Path) -> tuple[Path, Path]:
    """The share of heads that implement at least so many relations; a line a model."""
    lines = []
    models = dict.fromkeys(row.model for row in rows)
    for model, color in zip(models, itertools.cycle(LINE_COLORS), strict=False):
        own = [row for row in rows if row.model == model]
        shares = np.cumsum([row.share for row in own][::-1])[::-1]
        label = f"{model} ({own[0].n_scored} relations)"
        numbers = np.array([row.n_relations for row in own], np.float64)
        lines.append(Line(label, numbers[1:], shares[1:], dict(color=color, marker="o", markersize=4)))
    names = ("Relations", "Share of heads with at least as many")
    return save_figure(draw_lines({"Relations a head implements": lines}, names, least_y=0.0), path)


def group_similarity_figure(rows: Sequence[GroupSimilarity], path: str | Path) -> tuple[Path, Path]:
    """How alike two heads of a layer score, of one key/value group and of different ones; a panel a model."""
    panels = {}
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        layers = np.array([row.layer for row in own], np.float64)
        panels[model] = [
            Line(
                label,
                layers,
                np.array([getattr(row, field) for row in own]),
                dict(color=color, linewidth=1.5, marker="o", markersize=3),
            )
            for field, label, color in (
                ("within", "Same key/value head", "tab:blue"),
                ("across", "Different ones", "dimgray"),
            )
        ]
    return save_figure(draw_lines(panels, ("Layer", "Mean correlation of two heads")), path)


@_styled
def draw_lines(
    panels: Mapping[str, Sequence[Line]],
    names: tuple[str, str],
    least_y: float | None = None,
    square: bool = False,
    legend: Sequence[Line] = (),
) -> Figure:
    """Panels of lines by their titles, with one legend at the right of them all.

    `names` are those of x and y. `legend` are more entries. Raises InputError if there is no panel.
    """
    if not panels:
        raise InputError("a figure of lines needs at least one panel; got none")
    columns = math.ceil(math.sqrt(len(panels)))
    width, height = (3.2, 2.4) if columns > 1 else (4.5, 3.0)
    width = height if square else width
    entries = {line.label: line for lines in [*panels.values(), legend] for line in lines if line.label}
    key = _Key([Line2D([], [], label=_wrap(n, 2.2, TICK), **line.style) for n, line in entries.items()])
    key_width, key_height = _key_size(key)
    height = max(height, key_height) if columns == 1 else height
    titles = [_wrap(title, width, PANEL_TITLE) for title in panels]
    left, above = LEFT + 2 * GAP, 1.5 * GAP + _tallest(titles, PANEL_TITLE)
    figure, all_axes = _sheet(
        len(panels),
        columns,
        (width, height),
        (left, GAP, above, BOTTOM),
        (0.0, key_width + 2 * GAP, 0.0, 0.0),
    )
    for axes, title, lines in zip(all_axes, titles, panels.values(), strict=True):
        for line in lines:
            axes.plot(line.x, line.y, **line.style)
        axes.set(xlabel=names[0], ylabel=names[1], title=title)
        axes.margins(0.04)
        if least_y is not None:
            axes.set_ylim(bottom=least_y)
        if all(np.all(np.mod(line.x, 1) == 0) for line in lines):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    limits = [axes.get_ylim() for axes in all_axes]
    for axes in all_axes:  # one scale, so that panels can be compared
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    position = (figure.get_figwidth() - GAP - key_width, figure.get_figheight() / 2)
    _draw_key(figure, key, position, "center left")
    return figure


# ------------------------------------------------------------------------------------ layout, in inches


def _panel_size(n_x: float | int, n_y: float | int, several: bool) -> tuple[float, float]:
    """Width and height of a panel with square cells, where that leaves no side too short for its labels."""
    largest = LARGEST_OF_SEVERAL if several else LARGEST
    cell = min(max(CELL * max(n_x, n_y), SMALLEST), largest) / max(n_x, n_y)
    return max(n_x * cell, SMALLEST / 2), max(n_y * cell, SMALLEST / 2)


def _sheet(
    n: int,
    columns: int,
    panel: tuple[float, float],
    around: tuple[float, float, float, float],
    outside: tuple[float, float, float, float],
) -> tuple[Figure, list[Axes]]:
    """A figure with n panels of one size in rows. `around` is the room at each panel's left, right, top and
    bottom, `outside` more room at the figure's edges."""
    left, right, above, below = around
    step_x, step_y = left + panel[0] + right, above + panel[1] + below
    width = outside[0] + columns * step_x + outside[1]
    height = outside[2] + math.ceil(n / columns) * step_y + outside[3]
    figure = _ShownFigure(figsize=(width, height))
    FigureCanvasAgg(figure)
    corners = (
        (
            outside[0] + (i % columns) * step_x + left,
            height - outside[2] - (i // columns + 1) * step_y + below,
        )
        for i in range(n)
    )
    return figure, [_add_axes(figure, (*corner, *panel)) for corner in corners]


class _ShownFigure(Figure):
    """A figure that a notebook shows although no display of matplotlib's is chosen."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        with matplotlib.style.context(STYLE, after_reset=True):
            self.savefig(stream, format="png", dpi=110)
        return stream.getvalue()


def _add_axes(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    width, height = figure.get_size_inches()
    x, y, w, h = box
    return figure.add_axes((x / width, y / height, w / width, h / height))


def _corner(axes: Axes) -> tuple[float, float]:
    return tuple(axes.get_position().p0 * axes.figure.get_size_inches())


def _draw_cells(
    axes: Axes, values: np.ndarray, colors: str | Colormap, limits: tuple[float, float]
) -> QuadMesh:
    """Cell (x, y) in the colour of values[x, y], centred at (x, y)."""
    x_edges, y_edges = (np.arange(n + 1) - 0.5 for n in values.shape)
    mesh = axes.pcolormesh(x_edges, y_edges, values.T, cmap=colors, vmin=limits[0], vmax=limits[1])
    axes.set(xlim=x_edges[[0, -1]], ylim=y_edges[[0, -1]], facecolor="0.85")
    return mesh


def _name_axes(axes: Axes, names: tuple[str, str], ticks: tuple[list[int], list[int]], origin: str) -> None:
    if origin not in ("lower", "upper"):
        raise InputError(f"origin must be lower or upper; got {origin!r}")
    axes.set(xlabel=names[0], ylabel=names[1], xticks=ticks[0], yticks=ticks[1])
    if origin == "upper":
        axes.invert_yaxis()


class _Key(NamedTuple):
    """What a legend shows."""

    handles: list[Artist]
    title: str | None = None
    columns: int = 1


def _draw_key(
    figure: Figure, key: _Key | None, position: tuple[float, float], location: str
) -> Legend | None:
    """Puts the legend's `location` ("upper center", ...) at a position in inches."""
    if key is None:
        return None
    return figure.legend(
        handles=key.handles,
        title=key.title,
        ncols=key.columns,
        loc=location,
        bbox_to_anchor=position,
        bbox_transform=figure.dpi_scale_trans,
        borderaxespad=0,
        borderpad=0.2,
        handlelength=1.4,
        columnspacing=1.2,
        frameon=False,
    )


def _key_size(key: _Key | None) -> tuple[float, float]:
    return (
        (0.0, 0.0) if key is None else _size(lambda figure: _draw_key(figure, key, (0.0, 0.0), "lower left"))
    )


def _text_size(text: str, points: int) -> tuple[float, float]:
    return _size(lambda figure: figure.text(0, 0, text, fontsize=points))


def _tallest(texts: Sequence[str], points: int) -> float:
    return max(_text_size(text, points)[1] for text in texts)


def _size(draw: Callable[[Figure], Artist]) -> tuple[float, float]:
    """Width and height of what `draw` draws, measured on a scratch figure."""
    scratch = Figure(figsize=(1, 1), dpi=100)
    extent = draw(scratch).get_window_extent(FigureCanvasAgg(scratch).get_renderer())
    return extent.width / 100, extent.height / 100


def _wrap(text: str, width: float, points: int) -> str:
    """Breaks the text into lines no wider than this; a word that is wider by itself is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _text_size(longer, points)[0] <= width:
            lines[-1] = longer
            continue
        while (wide := _text_size(word, points)[0]) > width and len(word) > 1:
            part = max(1, int(len(word) * width / wide) - 1)
            lines.append(word[:part])
            word = word[part:]
        lines.append(word)
    return "\n".join(line for line in lines if line)


@_styled
def save_figure(figure: Figure, path: str | Path) -> tuple[Path, Path]:
    """Writes `path`.png and `path`.pdf, whole or not at all. Raises InputError where that is impossible."""
    paths = (Path(f"{path}.png"), Path(f"{path}.pdf"))
    for target in paths:
        with atomic_write(target, "wb") as file:
            # No date in the PDF: the same scores give the same bytes.
            metadata = {"CreationDate": None} if target.suffix == ".pdf" else None
            figure.savefig(file, format=target.suffix[1:], metadata=metadata)
    return paths
