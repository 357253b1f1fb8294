"""A relation's value against the number of heads removed."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from headjax.figures.coinciding import show_coinciding
from headjax.figures.sheet import (
    BOTTOM,
    GAP,
    LEFT,
    Beside,
    Key,
    corner,
    save_figure,
    sheet,
    sized,
    text_size,
    titled,
    wrap,
)
from headjax.figures.style import LABEL, PANEL_TITLE, TICK, styled

BAND_ALPHA = 0.2
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
    removed: str = "Heads ablated",
) -> tuple[Path, ...]:
    """Writes `draw_ablation_curves` under this path, with its endings."""
    figure = draw_ablation_curves(title, relation, random, controls, value_name, limits, removed)
    return save_figure(figure, path)


@styled
def draw_ablation_curves(
    title: str,
    relation: Curve,
    random: Curve | None = None,
    controls: Sequence[Curve] = (),
    value_name: str = "Accuracy",
    limits: tuple[float, float] | None = (0.0, 1.0),
    removed: str = "Heads ablated",
) -> Figure:
    """A relation's value against the number of heads ablated.

    `relation` is the curve where the relation's own heads are removed, `random` the mean over random draws of
    heads, whose band should contain what varies between draws; `controls` are other relations' values while
    the relation's heads are removed. The legend says what bands are, where there are any; `removed` names the
    x axis. Where curves coincide they alternate.
    """
    width, height = sized(4.5, 3.0)
    lines = [(relation, dict(color="tab:blue", linewidth=2, zorder=3))]
    if random is not None:
        lines.append((random, dict(color="dimgray", linewidth=1.5, linestyle="--")))
    others = itertools.cycle(("tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown"))
    lines += [(curve, dict(color=next(others), linewidth=1.2)) for curve in controls]
    bands = BANDS if any(curve.low is not None for curve, _ in lines) else None
    handles = [Line2D([], [], label=wrap(curve.label, 2.2, TICK), **style) for curve, style in lines]
    beside = Beside.of(Key(handles, bands))
    height = max(height, beside.least)
    removed = wrap(removed, width, LABEL)
    below = BOTTOM + (removed.count("\n") and text_size(removed, LABEL)[1])
    title = titled(title, width)
    above = 1.5 * GAP + text_size(title, PANEL_TITLE)[1]
    figure, (axes,) = sheet(
        1,
        1,
        (width, height),
        (LEFT + 2 * GAP, GAP, above, below),
        (0.0, beside.right - GAP, 0.0, beside.below),
    )
    for i, (curve, style) in enumerate(lines):
        # Controls lie upon each other: all their bands together are as dark as one.
        shade = BAND_ALPHA / max(1, len(controls)) if i >= len(lines) - len(controls) else BAND_ALPHA
        axes.plot(curve.n_heads, curve.values, **style)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(
                curve.n_heads, curve.low, curve.high, color=style["color"], alpha=shade, linewidth=0
            )
    axes.set(xlabel=removed, ylabel=value_name, title=title)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if limits is not None:
        margin = 0.02 * (limits[1] - limits[0])  # so that a line at a limit shows in full
        axes.set_ylim(limits[0] - margin, limits[1] + margin)
    axes.spines[["top", "right"]].set_visible(False)
    show_coinciding(axes)
    beside.draw(figure, corner(axes)[1] + height / 2)
    return figure
