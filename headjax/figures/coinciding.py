"""Curves that lie upon each other: drawn in turn, a dash of each, so that none is hidden."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby, pairwise

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

NEAR = 1.0  # points; lines that are closer hide each other
DASH = 4.0  # points

# Of several lines, where in each of them a segment begins: line -> index of its first point.
Place = Mapping[Line2D, int]


def show_coinciding(axes: Axes) -> None:
    """Draws dashes of each line in turn over the stretches where several lines of the axes coincide.

    To be called when the limits of the axes are set.
    """
    lines = [line for line in axes.lines if line.get_linestyle() != "None"]
    points = {
        line: axes.transData.transform(np.column_stack(line.get_data())) * 72 / axes.figure.dpi
        for line in lines
    }
    for stretch in _stretches(points):
        group = list(stretch[0])
        width = max(line.get_linewidth() for line in group)
        for i, line in enumerate(group):
            part = slice(stretch[0][line], stretch[-1][line] + 2)
            # In units of the line's width, as matplotlib counts dashes.
            on, off = DASH / width, (len(group) - 1) * DASH / width
            axes.add_collection(
                LineCollection(
                    [np.column_stack(line.get_data())[part]],
                    colors=[line.get_color()],
                    linewidths=width,
                    linestyles=[(-i * on, (on, off))],
                    capstyle="butt",
                    zorder=4,
                ),
                autolim=False,
            )


def _stretches(points: Mapping[Line2D, Float[np.ndarray, "n 2"]]) -> Iterator[list[Place]]:
    """Stretches of segments, one after the other, in which the same lines coincide."""
    at = defaultdict(list)
    for line, own in points.items():
        for i, (start, end) in enumerate(pairwise(own)):
            if np.isfinite([start, end]).all():
                at[round(start[0], 1), round(end[0], 1)].append((start[1], end[1], line, i))
    groups: list[Place] = []
    for _, segments in sorted(at.items()):
        rest = segments
        while rest:
            (y, end, *_), *_ = rest
            near = [one for one in rest if abs(one[0] - y) < NEAR and abs(one[1] - end) < NEAR]
            rest = [one for one in rest if one not in near]
            if len(near) > 1:
                groups.append({line: i for _, _, line, i in near})
    place = {line: i for i, line in enumerate(points)}  # the same in every drawing, for the same bytes
    groups.sort(key=lambda group: [place[line] for line in group])
    for _, of_same in groupby(groups, key=lambda group: [place[line] for line in group]):
        stretch: list[Place] = []
        for group in of_same:
            if stretch and any(group[line] != stretch[-1][line] + 1 for line in group):
                yield stretch
                stretch = []
            stretch.append(group)
        yield stretch
