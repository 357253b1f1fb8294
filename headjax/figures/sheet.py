"""The sheet that every figure is drawn on: sizes in inches, fonts, colours, legends, files.

The size of a panel follows from the number of its cells, the room for titles and legends from the measured
extent of their text. So nothing overlaps or is cut off, from 3 x 3 to 80 x 64 heads. Only matplotlib's object
interface is used: no display is needed and no state outlives a call.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from headjax.errors import InputError
from headjax.io import atomic_write

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
    "svg.hashsalt": "headjax",  # names inside of an SVG: the same scores give the same bytes
    "text.parse_math": False,  # a name may hold a dollar sign
}
styled = matplotlib.style.context(STYLE, after_reset=True)  # a decorator; the user's own style stays out


class Look(NamedTuple):
    """What is chosen for all figures.

    Attributes:
      formats: the files that are written, of "png", "pdf" and "svg".
      size: of panels, as a factor of the usual one; text keeps its size.
      title: of panels, or above the category map's; `{}` stands for the usual one.
      colors: matplotlib's name of the colours of scores from 0 to 1.
    """

    formats: tuple[str, ...] = ("png", "pdf")
    size: float = 1.0
    title: str = "{}"
    colors: str = "viridis"


# Of the figures that are being drawn. All of them obey it, so it is no argument of each.
USUAL = Look()
LOOK: ContextVar[Look] = ContextVar("look", default=USUAL)


@contextlib.contextmanager
def look(**chosen: Any) -> Iterator[None]:
    """Figures drawn inside look as chosen: fields of `Look`."""
    token = LOOK.set(LOOK.get()._replace(**chosen))
    try:
        yield
    finally:
        LOOK.reset(token)


def sized(width: float, height: float) -> tuple[float, float]:
    """The size of a panel, as the look asks for it."""
    return width * LOOK.get().size, height * LOOK.get().size


def titled(title: str, width: float, points: int = PANEL_TITLE) -> str:
    """A title as the look asks for it, broken into lines."""
    return wrap(LOOK.get().title.replace("{}", title), width, points)


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
        with matplotlib.style.context(STYLE, after_reset=True):
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


def text_size(text: str, points: int) -> tuple[float, float]:
    return _size(lambda figure: figure.text(0, 0, text, fontsize=points))


def tallest(texts: Sequence[str], points: int) -> float:
    return max(text_size(text, points)[1] for text in texts)


def _size(draw: Callable[[Figure], Artist]) -> tuple[float, float]:
    """Width and height of what `draw` draws, measured on a scratch figure."""
    scratch = Figure(figsize=(1, 1), dpi=100)
    extent = draw(scratch).get_window_extent(FigureCanvasAgg(scratch).get_renderer())
    return extent.width / 100, extent.height / 100


def wrap(text: str, width: float, points: int) -> str:
    """Breaks the text into lines no wider than this; a word that is wider by itself is cut."""
    lines = [""]
    for word in text.split():
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


@styled
def save_figure(figure: Figure, path: str | Path) -> tuple[Path, ...]:
    """Writes `path`.png, `path`.pdf or what the look asks for, each whole or not at all.

    Raises InputError where that is impossible.
    """
    # No date: the same scores give the same bytes.
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    paths = tuple(Path(f"{path}.{form}") for form in LOOK.get().formats)
    for target, form in zip(paths, LOOK.get().formats, strict=True):
        with atomic_write(target, "wb") as file:
            figure.savefig(file, format=form, metadata=dates.get(form))
    return paths
