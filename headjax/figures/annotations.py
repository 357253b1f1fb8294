"""Heads named on a heat map: each beside its cell, with a line to it, and no name upon another."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from headjax.axes import Head, by_score
from headjax.figures.sheet import POINT, text_size
from headjax.figures.style import TICK, text_scale

POINTS = TICK - 2
STEP = 0.06  # inches between places that are tried
RIM = 1.2  # points of white around a name


def strongest(strength: Float[np.ndarray, "L H"], n: int) -> list[Head]:
    """The n heads with the greatest strength, the greatest first; none without any."""
    return [head for head in by_score(strength, n) if strength[head] > 0]


def name_heads(
    axes: Axes,
    heads: Sequence[Head],
    marked: Sequence[Head],
    layer_x: bool,
    size: tuple[float, float],
    cell: tuple[float, float],
) -> None:
    """Frames the heads' cells and writes their names, into axes and with cells of these sizes (inches).

    Each name goes to the nearest place that covers no other, no head that is named or marked and, where there
    is none, to the one where it covers least.
    """
    x, y = np.meshgrid(*(np.arange(0, side, STEP) for side in size))
    corners = np.stack([x.ravel(), y.ravel()], axis=1)
    at = {head: np.array(head if layer_x else head[::-1]) for head in (*heads, *marked)}
    taken = [np.concatenate([place * cell, (place + 1) * cell]) for place in at.values()]
    for head in heads:
        place, centre = at[head], (at[head] + 0.5) * cell
        extent = np.array(text_size(str(head), POINTS)) + 2 * RIM * POINT
        boxes = np.concatenate([corners, corners + extent], axis=1)
        inside = (boxes[:, 2:] <= size).all(axis=1)
        boxes = boxes[inside] if inside.any() else boxes[:1]
        covered = np.sum([_shared(boxes, box) for box in taken], axis=0)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        distance = np.linalg.norm(middle - centre, axis=1)
        best = np.lexsort((distance, np.round(covered, 4)))[0]
        taken.append(boxes[best])
        where = middle[best] / cell - 0.5
        rim = [withStroke(linewidth=2.5, foreground="white")]
        axes.add_patch(
            Rectangle(place - 0.5, 1, 1, fill=False, edgecolor="black", linewidth=0.8, path_effects=rim)
        )
        # From the cell's side to the name, which hides the line's other end.
        start = np.clip(where, place - 0.5, place + 0.5)
        axes.plot(*zip(start, where, strict=True), color="black", linewidth=0.6, path_effects=rim)
        axes.text(
            *where,
            str(head),
            fontsize=POINTS * text_scale(),
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=2 * RIM, foreground="white")],
        )


def _shared(boxes: Float[np.ndarray, "n 4"], box: Float[np.ndarray, "4"]) -> Float[np.ndarray, " n"]:
    """The area that each box has in common with another."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    return np.prod(np.clip(high - low, 0, None), axis=1)
