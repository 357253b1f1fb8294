"""Heat maps: numbers of all heads, side by side, with circuit heads marked."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from headjax.circuits.published import Circuit, check_fits
from headjax.errors import InputError
from headjax.figures.sheet import (
    BAR,
    BOTTOM,
    GAP,
    LABEL,
    LEFT,
    LOOK,
    PANEL_TITLE,
    POINT,
    TICK,
    Key,
    add_axes,
    corner,
    draw_cells,
    draw_key,
    key_size,
    name_axes,
    panel_size,
    save_figure,
    sheet,
    styled,
    tallest,
    text_size,
    titled,
    wrap,
)
from headjax.grid import (
    SUPPRESSION,
    GridSet,
    HeadGrid,
)

HEAT_AXES = {"layer_x": ("Layer", "Head"), "head_x": ("Head", "Layer")}  # orientation -> names of x and y
MOST_TICKS = {"Layer": 12, "Head": 16}  # a heat map with more layers or heads leaves some out
MARK_COLORS = ("red", "black", "darkorange", "magenta", "saddlebrown", "dimgray", "deepskyblue")
NO_MARKS = "No circuit heads are given for this panel."


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
) -> tuple[Path, ...]:
    """Relation scores side by side, from 0 to 1, with the heads that a circuit names marked by crosses.

    `circuits` gives each grid its circuit; a panel whose circuit is None says that it has no marks. Without
    `circuits` no marks are expected and nothing is said. Grids must be of one size.
    """
    panels = []
    for grid, circuit in zip(grids, circuits or [None] * len(grids), strict=True):
        name = grid.name + " suppression" * (grid.sign == SUPPRESSION)
        note = NO_MARKS if circuits and circuit is None else ""
        panels.append(Panel(grid.scores, f"{grid.model}: {name} heads", f"{name} score", circuit, note))
    return score_map(panels, path, orientation, origin)


def score_map(
    panels: Sequence[Panel], path: str | Path, orientation: str = "layer_x", origin: str = "lower"
) -> tuple[Path, ...]:
    """Writes heat maps of scores between 0 and 1 (relation scores, attention patterns)."""
    return save_figure(draw_heat_maps(panels, False, orientation, origin), path)


def signed_map(
    panels: Sequence[Panel], path: str | Path, orientation: str = "layer_x", origin: str = "lower"
) -> tuple[Path, ...]:
    """Writes heat maps of numbers of either sign (attributions, ablation effects), white at 0."""
    return save_figure(draw_heat_maps(panels, True, orientation, origin), path)


def plot_grids(grids: GridSet, orientation: str = "layer_x", origin: str = "lower") -> Figure:
    """Grids side by side, scores from 0 to 1 and effects of either sign in their own colours.

    The figure is returned, to be shown by a notebook or saved (`.savefig`). Raises InputError for grids of
    different size, and for scores and effects in one figure.
    """
    signed = {grid.about.helps != 0 for grid in grids}
    if len(signed) != 1:
        raise InputError(
            f"one figure shows scores or effects; got {', '.join(grids.values('kind')) or 'none'}"
        )
    panels = []
    for grid in grids:
        what = " ".join(filter(None, (grid.kind.replace("_", " "), grid.template)))
        panels.append(Panel(grid.scores, f"{grid.model}: {grid.name}, {what}", grid.metric or "Score"))
    return draw_heat_maps(panels, signed.pop(), orientation, origin)


@styled
def draw_heat_maps(
    panels: Sequence[Panel], signed: bool = False, orientation: str = "layer_x", origin: str = "lower"
) -> Figure:
    """Panels side by side, four in a row, each with its colour bar; below them the legend of the marks.

    Colours are fixed to 0 to 1, or where `signed` a diverging map centred at 0, each panel to its own largest
    magnitude. NaN is light gray. `orientation` is "layer_x" (x layer, y head) or "head_x"; `origin`
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
    ticks = tuple(heat_ticks(size[name], MOST_TICKS[name]) for name in names)
    unit = UNIT_SCALE._replace(colors=LOOK.get().colors)
    scales = [_signed_scale(panel.scores) if signed else unit for panel in panels]

    columns = min(len(panels), 4)
    width, height = panel_size(*(size[name] for name in names), several=columns > 1)
    width = max(width, 0.22 * len(ticks[0]))  # room for every tick label
    height = max(height, 0.17 * len(ticks[1]))
    titles = [titled(panel.title, width) for panel in panels]
    labels = [wrap(panel.label, height, LABEL) for panel in panels]
    numbers = max(text_size(text, TICK)[0] for scale in scales for text in scale.texts)
    right = GAP + BAR + GAP + numbers + GAP + tallest(labels, LABEL) + GAP
    above = 1.5 * GAP + tallest(titles, PANEL_TITLE)
    marks = panels[0].marks
    shared = len(panels) > 1 and marks is not None and all(panel.marks == marks for panel in panels)
    room = LEFT + columns * (width + right) if shared else GAP + width + right
    keys = [_mark_key(panel, room) for panel in (panels[:1] if shared else panels)]
    foot = max(key_size(key)[1] for key in keys) + GAP
    below, bottom = (BOTTOM, foot) if shared else (BOTTOM + foot, 0.0)
    figure, all_axes = sheet(
        len(panels), columns, (width, height), (GAP, right, above, below), (LEFT - GAP, 0.0, 0.0, bottom)
    )
    for i, (panel, axes) in enumerate(zip(panels, all_axes, strict=True)):
        values = panel.scores if names[0] == "Layer" else panel.scores.T
        mesh = draw_cells(axes, np.asarray(values), scales[i].colors, scales[i].limits)
        mesh.set(edgecolor="face", linewidth=0.5)  # hides the seams that PDF viewers show between cells
        name_axes(axes, names, ticks, origin)
        if i % columns:
            axes.set(ylabel="", yticklabels=[])
        axes.set_title(titles[i])
        x, y = corner(axes)
        bar = add_axes(figure, (x + width + GAP, y, BAR, height))
        figure.colorbar(mesh, cax=bar, label=labels[i])
        bar.set_yticks(scales[i].ticks, scales[i].texts)
        if panel.marks:
            _draw_marks(axes, panel.marks, names, min(width / len(values), height / len(values[0])))
        if not shared:  # centred below the panel, or as nearly as the panel at its left allows
            center = x + max(width / 2, key_size(keys[i])[0] / 2 - GAP)
            draw_key(figure, keys[i], (center, y - BOTTOM), "upper center")
    if shared:
        draw_key(figure, keys[0], (figure.get_figwidth() / 2, foot), "upper center")
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


def heat_ticks(n: int, most: int) -> list[int]:
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


def _mark_key(panel: Panel, room: float) -> "Key | None":
    """The legend of a panel's marks in as many columns as there is room for, or the panel's note."""
    if not panel.marks:
        return Key([], wrap(panel.note, room, TICK)) if panel.note else None
    handles = [
        Line2D([], [], label=wrap(role, room - 3 * GAP, TICK), **_cross(color, 7.0))
        for role, color in _role_colors(panel.marks)
        if panel.marks.roles[role]
    ]
    title = wrap(panel.marks.legend, room, TICK)
    fitting = (Key(handles, title, columns) for columns in range(len(handles), 1, -1))
    key = next((key for key in fitting if key_size(key)[0] <= room), Key(handles, title))
    rows = math.ceil(len(handles) / key.columns)
    return key._replace(columns=math.ceil(len(handles) / rows))
