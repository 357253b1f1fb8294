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

from headjax.figures.sheet import (
    BOTTOM,
    GAP,
    LEFT,
    PANEL_TITLE,
    TICK,
    Key,
    corner,
    draw_key,
    key_size,
    save_figure,
    sheet,
    sized,
    styled,
    text_size,
    titled,
    wrap,
)

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
) -> tuple[Path, ...]:
    """Writes `draw_ablation_curves` under this path, with its endings."""
    return save_figure(draw_ablation_curves(title, relation, random, controls, value_name, limits), path)


@styled
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
    width, height = sized(4.5, 3.0)
    lines = [(relation, dict(color="tab:blue", linewidth=2, zorder=3))]
    if random is not None:
        lines.append((random, dict(color="dimgray", linewidth=1.5, linestyle="--")))
    others = itertools.cycle(("tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown"))
    lines += [(curve, dict(color=next(others), linewidth=1.2)) for curve in controls]
    bands = BANDS if any(curve.low is not None for curve, _ in lines) else None
    key = Key([Line2D([], [], label=wrap(curve.label, 2.2, TICK), **style) for curve, style in lines], bands)
    key_width, key_height = key_size(key)
    height = max(height, key_height)
    title = titled(title, width)
    above = 1.5 * GAP + text_size(title, PANEL_TITLE)[1]
    figure, (axes,) = sheet(
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
    x, y = corner(axes)
    draw_key(figure, key, (x + width + GAP, y + height / 2), "center left")
    return figure
