"""Heat maps: numbers of all heads, side by side, with circuit heads marked."""

import itertools
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
from headjax.figures.annotations import name_heads, strongest
from headjax.figures.sheet import (
    BAR,
    BOTTOM,
    GAP,
    LEFT,
    POINT,
    SMALLEST,
    WIDTHS,
    Key,
    add_axes,
    corner,
    draw_cells,
    draw_key,
    fit_key,
    in_rows,
    key_size,
    name_axes,
    panel_size,
    save_figure,
    sheet,
    tallest,
    text_size,
    titled,
    wrap,
)
from headjax.figures.style import LABEL, LOOK, PANEL_TITLE, TICK, styled
from headjax.grid import GridSet, HeadGrid
from headjax.wording import grid_label, grid_title

HEAT_AXES = {"layer_x": ("Layer", "Head"), "head_x": ("Head", "Layer")}  # orientation -> names of x and y
NOISE = 8  # standard errors that have the full colour at least: of 144 heads the luckiest is 3 from 0
LEAST_SCALE = 0.1  # of scores, where colours go to the largest
WIDE_TICK, HIGH_TICK = 0.22, 0.17  # inches of a tick's label along each axis
MOST_TICKS = {"Layer": 12, "Head": 16}  # a heat map with more layers or heads leaves some out
MARK_COLORS = ("red", "black", "darkorange", "magenta", "saddlebrown", "dimgray", "deepskyblue")
NO_MARKS = "No circuit heads are given for this panel."


class Panel(NamedTuple):
    """One heat map: its numbers, its title, the colour bar's label, the heads to mark and a line below it.

    `least`: of effects, the least number that has the full colour, so that noise has not; `reason` says why.
    """

    scores: Float[Array | np.ndarray, "L H"]
    title: str
    label: str
    marks: Circuit | None = None
    note: str = ""
    least: float = 0.0
    reason: str = ""


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
        panels.append(grid_panel(grid, circuit, marked=bool(circuits)))
    return score_map(panels, path, orientation, origin)


def grid_panel(grid: HeadGrid, marks: Circuit | None = None, marked: bool = False) -> Panel:
    """A grid as a heat map that says what was measured and how.

    `marked`: whether marks are expected, and their absence is said.
    """
    noise, reason = noise_floor(grid)
    note = NO_MARKS if marked and marks is None else ""
    return Panel(grid.scores, grid_title(grid), grid_label(grid), marks, note, noise, reason)


def noise_floor(grid: HeadGrid) -> tuple[float, str]:
    """The least number that has the full colour, and why: NOISE standard errors of the largest."""
    if grid.stderr is None or not np.isfinite(grid.scores).any():
        return 0.0, ""
    error = float(grid.stderr.flat[np.nanargmax(np.abs(grid.scores))])
    return (0.0, "") if np.isnan(error) else (NOISE * error, f"{NOISE} standard errors of the largest")


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
    return draw_heat_maps([grid_panel(grid) for grid in grids], signed.pop(), orientation, origin)


@styled
def draw_heat_maps(
    panels: Sequence[Panel], signed: bool = False, orientation: str = "layer_x", origin: str = "lower"
) -> Figure:
    """Panels side by side, each with its colour bar; below them the legend of the marks.

    Colours go from 0 to 1, or as the look says to a panel's largest score, which the label then says; where
    `signed` a diverging map centred at 0, each panel to its own largest magnitude. NaN is light gray.
    `orientation` is "layer_x" (x layer, y head) or "head_x"; `origin` "lower" puts 0 of the y axis at the
    bottom. One legend serves all panels if their marks are the same.
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
    scales = [_signed_scale(panel) if signed else _score_scale(panel) for panel in panels]

    columns = in_rows(len(panels))
    width, height = panel_size(*(size[name] for name in names), several=columns > 1)
    height = max(height, SMALLEST / 2)  # of the colour bar's label
    if LOOK.get().width == "free":
        ticks = tuple(heat_ticks(size[name], MOST_TICKS[name]) for name in names)
        width = max(width, WIDE_TICK * len(ticks[0]))
        height = max(height, HIGH_TICK * len(ticks[1]))
    else:  # there is no more room than there is
        room = (int(width / WIDE_TICK), int(height / HIGH_TICK))
        most = [max(min(MOST_TICKS[name], n), 1) for name, n in zip(names, room, strict=True)]
        ticks = tuple(heat_ticks(size[name], n) for name, n in zip(names, most, strict=True))
    titles = [titled(panel.title, width) for panel in panels]
    labels = [
        wrap(f"{panel.label}{scale.said}", height, LABEL) for panel, scale in zip(panels, scales, strict=True)
    ]
    numbers = max(text_size(text, TICK)[0] for scale in scales for text in scale.texts)
    right = GAP + BAR + GAP + numbers + GAP + tallest(labels, LABEL) + GAP
    above = 1.5 * GAP + tallest(titles, PANEL_TITLE)
    marks = panels[0].marks
    shared = len(panels) > 1 and marks is not None and all(panel.marks == marks for panel in panels)
    room = LEFT + columns * (width + right) if shared else GAP + width + right
    if LOOK.get().width == "column":
        room = WIDTHS["column"] - 2 * GAP
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
        cell = (width / len(values), height / len(values[0]))
        if panel.marks:
            _draw_marks(axes, panel.marks, names, min(cell))
        if LOOK.get().annotate:
            strength = np.nan_to_num(np.abs(panel.scores) if signed else panel.scores)
            heads = strongest(strength, LOOK.get().annotate)
            marked = panel.marks.heads() if panel.marks else ()
            name_heads(axes, heads, marked, names[0] == "Layer", (width, height), cell)
        if not shared:  # centred below the panel, or as nearly as the panel at its left allows
            center = x + max(width / 2, key_size(keys[i])[0] / 2 - GAP)
            draw_key(figure, keys[i], (center, y - BOTTOM), "upper center")
    if shared:
        draw_key(figure, keys[0], (figure.get_figwidth() / 2, foot), "upper center")
    return figure


class _Scale(NamedTuple):
    """Colours, the numbers at their ends, the ticks of the colour bar, and what its label says of them."""

    colors: str
    limits: tuple[float, float]
    ticks: list[float]
    said: str = ""

    @property
    def texts(self) -> list[str]:
        return [f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in self.ticks]


def _score_scale(panel: Panel) -> _Scale:
    """From 0 to 1 or, where the look says "auto", to the largest score, and at least to LEAST_SCALE."""
    limit = 1.0
    if LOOK.get().scale == "auto":
        limit = max(_largest(panel.scores), LEAST_SCALE)
    ticks = [float(tick) for tick in MaxNLocator(5).tick_values(0, limit) if tick <= limit * (1 + 1e-6)]
    said = f" (colours from 0 to {limit:.2g})" if LOOK.get().scale == "auto" else ""
    return _Scale(LOOK.get().colors, (0.0, limit), ticks, said)


def _signed_scale(panel: Panel) -> _Scale:
    largest = _largest(panel.scores)
    limit = max(largest, panel.least) or 1.0
    said = f" (full colour: {panel.reason})" if panel.least > largest else ""
    ticks = MaxNLocator(6, symmetric=True).tick_values(-limit, limit)
    return _Scale("RdBu_r", (-limit, limit), [float(tick) for tick in ticks if abs(tick) <= limit], said)


def _largest(scores: Float[Array | np.ndarray, "L H"]) -> float:
    return float(np.max(np.abs(scores), initial=0.0, where=np.isfinite(scores)))


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
    return fit_key(Key(handles, wrap(panel.marks.legend, room, TICK)), room)
