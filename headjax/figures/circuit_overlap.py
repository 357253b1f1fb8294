"""Two circuits on the heads of one model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from headjax.axes import Head
from headjax.figures.heat_maps import HEAT_AXES, MOST_TICKS, heat_ticks
from headjax.figures.sheet import (
    BOTTOM,
    GAP,
    LEFT,
    POINT,
    Beside,
    Key,
    corner,
    draw_cells,
    name_axes,
    panel_size,
    save_figure,
    sheet,
    text_size,
    titled,
    wrap,
)
from headjax.figures.style import PANEL_TITLE, TICK, styled

# Of heads of no circuit, both, the first, the second.
OVERLAP_COLORS = ("0.92", "#440154", "#2c8fbd", "#f5a623")


def circuit_overlap_map(
    circuits: Mapping[str, Sequence[Head]],
    shape: tuple[int, int],
    path: str | Path,
    title: str,
    orientation: str = "layer_x",
    origin: str = "lower",
) -> tuple[Path, ...]:
    """Writes `draw_circuit_overlap` under this path, with its endings."""
    return save_figure(draw_circuit_overlap(circuits, shape, title, orientation, origin), path)


@styled
def draw_circuit_overlap(
    circuits: Mapping[str, Sequence[Head]],
    shape: tuple[int, int],
    title: str,
    orientation: str = "layer_x",
    origin: str = "lower",
) -> Figure:
    """Two circuits, name -> heads, on the heads of a model of this shape (L, H): shared, or of one alone.

    The legend counts them.
    """
    names = list(circuits)
    shown = np.zeros(shape, int)
    for i, heads in enumerate(circuits.values()):
        for head in heads:
            shown[head] = 1 if shown[head] else 2 + i
    labels = ("", "both", *(f"{name} only" for name in names))
    axis_names = HEAT_AXES[orientation]
    size = dict(zip(("Layer", "Head"), shape, strict=True))
    width, height = panel_size(*(size[name] for name in axis_names), several=False)
    beside = Beside.of(
        Key(
            [
                Patch(color=OVERLAP_COLORS[i], label=wrap(f"{labels[i]}: {np.sum(shown == i)}", 2.2, TICK))
                for i in (1, 2, 3)
            ],
            "Heads in the circuits of",
        )
    )
    height = max(height, beside.least)
    title = titled(title, width)
    above = 1.5 * GAP + text_size(title, PANEL_TITLE)[1]
    figure, (axes,) = sheet(
        1, 1, (width, height), (LEFT, GAP, above, BOTTOM), (0.0, beside.right - GAP, 0.0, beside.below)
    )
    values = shown if axis_names[0] == "Layer" else shown.T
    mesh = draw_cells(axes, values, ListedColormap(OVERLAP_COLORS), (-0.5, 3.5))
    mesh.set(edgecolor="white", linewidth=min(0.06 * width / len(values) / POINT, 1.5))
    ticks = tuple(heat_ticks(size[name], MOST_TICKS[name]) for name in axis_names)
    name_axes(axes, axis_names, ticks, origin)
    axes.set_title(title)
    beside.draw(figure, corner(axes)[1] + height / 2)
    return figure
