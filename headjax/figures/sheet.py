"""The sheet that every figure is drawn on: sizes in inches, fonts, colours, legends, files.

The size of a panel follows from the number of its cells, the room for titles and legends from the measured
extent of their text. So nothing overlaps or is cut off, from 3 x 3 to 80 x 64 heads. Only matplotlib's object
interface is used: no display is needed and no state outlives a call.
"""

import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from headjax.errors import InputError
from headjax.figures.fonts import drawable
from headjax.figures.style import LOOK, PANEL_TITLE, WIDTHS, style, text_scale
from headjax.io import atomic_write

POINT = 1 / 72  # all below is in inches
GAP = 0.12  # between neighbours of any kind
LEFT, BOTTOM = 0.62, 0.5  # room for an axis's tick labels and label
CELL = 0.35  # the side of a cell, as long as the panel's long side stays within the next two
SMALLEST, LARGEST, LARGEST_OF_SEVERAL = 2.4, 5.5, 3.6
BAR = 0.13  # the width of a colour bar


def sized(width: float, height: float) -> tuple[float, float]:
    """The size of a panel, as the look asks for it."""
    return width * LOOK.get().size, height * LOOK.get().size


def titled(title: str, width: float, points: int = PANEL_TITLE) -> str:
    """A title as the look asks for it, broken into lines."""
    return wrap(LOOK.get().title.replace("{}", title), width, points)


def in_rows(n: int) -> int:
    """How many of n panels stand side by side: 3 at most or a square of them, one where a column is asked."""
    return 1 if LOOK.get().width == "column" else n if n <= 3 else math.ceil(math.sqrt(n))


def panel_size(n_x: float | int, n_y: float | int, several: bool) -> tuple[float, float]:
    """Width and height of a panel with square cells, where that leaves no side too short for its labels."""
    largest = LARGEST_OF_SEVERAL if several else LARGEST
    cell = min(max(CELL * max(n_x, n_y), SMALLEST), largest) / max(n_x, n_y)
    return sized(max(n_x * cell, SMALLEST / 2), max(n_y * cell, SMALLEST / 2))


def sheet(
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
    figure = ShownFigure(figsize=(width, height))
    FigureCanvasAgg(figure)
    corners = (
        (
            outside[0] + (i % columns) * step_x + left,
            height - outside[2] - (i // columns + 1) * step_y + below,
        )
        for i in range(n)
    )
    return figure, [add_axes(figure, (*corner, *panel)) for corner in corners]


class ShownFigure(Figure):
    """A figure that a notebook shows although no display of matplotlib's is chosen."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        with style():
            self.savefig(stream, format="png", dpi=110)
        return stream.getvalue()


def add_axes(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    width, height = figure.get_size_inches()
    x, y, w, h = box
    return figure.add_axes((x / width, y / height, w / width, h / height))


def corner(axes: Axes) -> tuple[float, float]:
    return tuple(axes.get_position().p0 * axes.figure.get_size_inches())


def draw_cells(
    axes: Axes, values: np.ndarray, colors: str | Colormap, limits: tuple[float, float]
) -> QuadMesh:
    """Cell (x, y) in the colour of values[x, y], centred at (x, y)."""
    x_edges, y_edges = (np.arange(n + 1) - 0.5 for n in values.shape)
    mesh = axes.pcolormesh(x_edges, y_edges, values.T, cmap=colors, vmin=limits[0], vmax=limits[1])
    axes.set(xlim=x_edges[[0, -1]], ylim=y_edges[[0, -1]], facecolor="0.85")
    return mesh


def name_axes(axes: Axes, names: tuple[str, str], ticks: tuple[list[int], list[int]], origin: str) -> None:
    if origin not in ("lower", "upper"):
        raise InputError(f"origin must be lower or upper; got {origin!r}")
    axes.set(xlabel=names[0], ylabel=names[1], xticks=ticks[0], yticks=ticks[1])
    if origin == "upper":
        axes.invert_yaxis()


class Key(NamedTuple):
    """What a legend shows."""

    handles: list[Artist]
    title: str | None = None
    columns: int = 1


def draw_key(figure: Figure, key: Key | None, position: tuple[float, float], location: str) -> Legend | None:
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


def key_size(key: Key | None) -> tuple[float, float]:
    return (
        (0.0, 0.0) if key is None else _size(lambda figure: draw_key(figure, key, (0.0, 0.0), "lower left"))
    )


def fit_key(key: Key, room: float) -> Key:
    """The legend in as many columns as there is room for."""
    n = len(key.handles)
    fitting = (key._replace(columns=columns) for columns in range(n, 1, -1))
    key = next((key for key in fitting if key_size(key)[0] <= room), key._replace(columns=1))
    return key._replace(columns=math.ceil(n / math.ceil(n / key.columns))) if n else key


class Beside(NamedTuple):
    """A legend of the whole figure: at its right, or where the figure has a column's width, below.

    Attributes:
      right, below: the room it takes there.
      least: how high the panels at its left must be at least.
    """

    key: Key
    right: float
    below: float
    least: float

    @classmethod
    def of(cls, key: Key) -> "Beside":
        if LOOK.get().width == "column":
            key = fit_key(key, WIDTHS["column"] - 2 * GAP)
            return cls(key, GAP, key_size(key)[1] + GAP, 0.0)
        width, height = key_size(key)
        return cls(key, width + 2 * GAP, 0.0, height)

    def draw(self, figure: Figure, middle: float) -> None:
        """`middle`: of the panels, in inches from below."""
        width = WIDTHS["column"] if self.below else figure.get_figwidth()
        if self.below:
            draw_key(figure, self.key, (width / 2, GAP), "lower center")
        else:
            draw_key(figure, self.key, (width - self.right + GAP, middle), "center left")


def text_size(text: str, points: float | int) -> tuple[float, float]:
    """Width and height of a text of this font size, as the look scales it."""
    return _text_size(text, points * text_scale(), tuple(matplotlib.rcParams["font.family"]))


@functools.lru_cache(maxsize=10_000)
def _text_size(text: str, points: float, fonts: tuple[str, ...]) -> tuple[float, float]:
    return _size(lambda figure: figure.text(0, 0, text, fontsize=points, fontfamily=list(fonts)))


def tallest(texts: Sequence[str], points: int) -> float:
    return max(text_size(text, points)[1] for text in texts)


def _size(draw: Callable[[Figure], Artist]) -> tuple[float, float]:
    """Width and height of what `draw` draws, measured on a scratch figure."""
    scratch = Figure(figsize=(1, 1), dpi=100)
    extent = draw(scratch).get_window_extent(FigureCanvasAgg(scratch).get_renderer())
    return extent.width / 100, extent.height / 100


def wrap(text: str, width: float, points: int) -> str:
    """Breaks the text, in characters that can be drawn, into lines no wider than this.

    A word that is wider by itself is cut.
    """
    lines = [""]
    for word in drawable(" ".join(text.split())).split():
        longer = f"{lines[-1]} {word}".strip()
        if text_size(longer, points)[0] <= width:
            lines[-1] = longer
            continue
        while (wide := text_size(word, points)[0]) > width and len(word) > 1:
            part = max(1, int(len(word) * width / wide) - 1)
            lines.append(word[:part])
            word = word[part:]
        lines.append(word)
    return "\n".join(line for line in lines if line)


def save_figure(figure: Figure, path: str | Path) -> tuple[Path, ...]:
    """Writes `path`.png, `path`.pdf or what the look asks for, each whole or not at all.

    Raises InputError where that is impossible.
    """
    # No date: the same scores give the same bytes.
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    ground = "none" if LOOK.get().transparent else "white"
    paths = tuple(Path(f"{path}.{form}") for form in LOOK.get().formats)
    for target, form in zip(paths, LOOK.get().formats, strict=True):
        with atomic_write(target, "wb") as file, style():
            figure.savefig(file, format=form, metadata=dates.get(form), facecolor=ground)
    return paths
