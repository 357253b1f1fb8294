"""What is chosen for all figures, the style that they share, and how they come to a paper's width."""

import bisect
import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import matplotlib.style
from matplotlib.figure import Figure

from headjax.errors import InputError
from headjax.figures.fonts import families

TITLE, PANEL_TITLE, LABEL, TICK = 13, 11, 10, 9  # font sizes in points
SMALLER = 0.8  # fonts of figures of a paper's width
WIDTHS = {"column": 3.5, "page": 7.2}  # inches: one column and two of most journals (89 and 183 mm)
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of panels; of two of them one is too narrow, the next too wide
N_TRIES = 8


class Look(NamedTuple):
    """What is chosen for all figures.

    Attributes:
      formats: the files that are written, of "png", "pdf" and "svg".
      size: of panels, as a factor of the usual one; text keeps its size.
      width: of the whole figure: "free", or that of one "column" or of both, a "page".
      transparent: whether the ground is left out.
      title: of panels, or above the category map's; `{}` stands for the usual one.
      colors: matplotlib's name of the colours of scores from 0 to 1.
      scale: of these colours: "fixed" to 0 to 1, or "auto", up to a panel's largest score.
      annotate: how many heads with the largest numbers are named on each heat map.
      palette: of categories: "clear" or "published".
      several: how heads of 2, 3, 4 categories are told apart besides by "color": "hatching" or "digits".
    """

    formats: tuple[str, ...] = ("png", "pdf")
    size: float = 1.0
    width: str = "free"
    transparent: bool = False
    title: str = "{}"
    colors: str = "viridis"
    scale: str = "fixed"
    annotate: int = 0
    palette: str = "clear"
    several: str = "color"


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


def text_scale() -> float:
    """By what all font sizes are multiplied."""
    return 1.0 if LOOK.get().width == "free" else SMALLER


def style() -> contextlib.AbstractContextManager:
    """The style of all figures; the user's own stays out."""
    scale = text_scale()
    chosen = {
        "font.family": list(families()),
        "font.size": TICK * scale,
        "axes.titlesize": PANEL_TITLE * scale,
        "axes.labelsize": LABEL * scale,
        "figure.titlesize": TITLE * scale,
        "legend.title_fontsize": TICK * scale,
        "axes.facecolor": "none",
        "axes.linewidth": 0.5,
        "xtick.major.width": 0.5,
        "ytick.major.width": 0.5,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "hatch.linewidth": 0.6,
        "pdf.fonttype": 42,  # TrueType, which every publisher accepts
        "savefig.dpi": 300,
        "svg.hashsalt": "headjax",  # names inside of an SVG: the same scores give the same bytes
        "text.parse_math": False,  # a name may hold a dollar sign
    }
    return matplotlib.style.context(chosen, after_reset=True)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A function that draws, in our style and of the width that the look asks for."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> Figure:
        with style():
            if (width := WIDTHS.get(LOOK.get().width)) is None:
                return draw(*arguments, **options)
            return _fit(functools.partial(draw, *arguments, **options), width)

    return drawn


def _fit(draw: Callable[[], Figure], width: float) -> Figure:
    """The figure with the largest panels that is no wider than this, and blank at its right up to it."""

    def sized(size: float) -> Figure:
        with look(size=size):
            return draw()

    drawn = functools.cache(sized)
    n_fitting = bisect.bisect_right(SIZES, width, key=lambda size: drawn(size).get_figwidth())
    if not n_fitting:
        rule = f"width {LOOK.get().width!r} is {width:g} inches"
        least = drawn(SIZES[0]).get_figwidth()
        raise InputError(f"{rule}; this figure's legend and labels alone take {least:.1f}")
    low, high = SIZES[n_fitting - 1], SIZES[min(n_fitting, len(SIZES) - 1)]
    best, most = drawn(low), drawn(high).get_figwidth()
    for _ in range(N_TRIES):
        # Width grows with size nearly in proportion, but for titles that are broken otherwise.
        least = best.get_figwidth()
        if most <= least or width - least < 0.01:
            break
        size = low + min(max((width - least) / (most - least), 0.02), 0.98) * (high - low)
        figure = sized(size)
        if figure.get_figwidth() > width:
            high, most = size, figure.get_figwidth()
        else:
            low, best = size, figure
    _widen(best, width)
    return best


def _widen(figure: Figure, width: float) -> None:
    share = figure.get_figwidth() / width
    figure.set_figwidth(width)
    for axes in figure.axes:
        x, y, w, h = axes.get_position().bounds
        axes.set_position((x * share, y, w * share, h))
