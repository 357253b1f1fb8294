"""Lines and points, side by side: comparisons, categories by depth, relations a head, groups."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from headjax.errors import InputError
from headjax.figures.coinciding import show_coinciding
from headjax.figures.palette import MORE_COLORS, category_colors
from headjax.figures.sheet import (
    BOTTOM,
    GAP,
    LEFT,
    Beside,
    Key,
    in_rows,
    save_figure,
    sheet,
    sized,
    tallest,
    titled,
    wrap,
)
from headjax.figures.style import PANEL_TITLE, TICK, styled
from headjax.universality import CategoryShare, GroupSimilarity, RelationCount


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


def comparison_figure(panels: Mapping[str, Mapping[str, Points]], path: str | Path) -> tuple[Path, ...]:
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


def category_share_figure(rows: Sequence[CategoryShare], path: str | Path) -> tuple[Path, ...]:
    """The share of heads with each category, by depth; a panel a model."""
    categories = dict.fromkeys(row.category for row in rows)
    colors = category_colors(categories)
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


def relations_per_head_figure(rows: Sequence[RelationCount], path: str | Path) -> tuple[Path, ...]:
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


def group_similarity_figure(rows: Sequence[GroupSimilarity], path: str | Path) -> tuple[Path, ...]:
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


@styled
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
    columns = in_rows(len(panels)) if len(panels) != 3 else in_rows(4)
    width, height = sized(3.2, 2.4) if columns > 1 else sized(4.5, 3.0)
    width = height if square else width
    entries = {line.label: line for lines in [*panels.values(), legend] for line in lines if line.label}
    key = Key([Line2D([], [], label=wrap(n, 2.2, TICK), **line.style) for n, line in entries.items()])
    beside = Beside.of(key)
    height = max(height, beside.least) if columns == 1 else height
    titles = [titled(title, width) for title in panels]
    left, above = LEFT + 2 * GAP, 1.5 * GAP + tallest(titles, PANEL_TITLE)
    figure, all_axes = sheet(
        len(panels),
        columns,
        (width, height),
        (left, GAP, above, BOTTOM),
        (0.0, beside.right, 0.0, beside.below),
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
        show_coinciding(axes)
    beside.draw(figure, figure.get_figheight() / 2)
    return figure
