"""The map of head categories over one or several models."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from headjax.errors import InputError
from headjax.figures.palette import MAP_COLORS, category_colors
from headjax.figures.sheet import (
    BOTTOM,
    GAP,
    LEFT,
    POINT,
    Beside,
    Key,
    draw_cells,
    in_rows,
    name_axes,
    panel_size,
    save_figure,
    sheet,
    tallest,
    text_size,
    titled,
    wrap,
)
from headjax.figures.style import LOOK, PANEL_TITLE, TICK, TITLE, styled, text_scale
from headjax.grid import (
    GridSet,
    category_count_name,
    category_counts,
    head_categories,
)

MAP_TITLE = "Category Distribution Across Model Layers and Heads"


def category_map(
    grids: GridSet,
    path: str | Path,
    threshold: float = 0.15,
    count_suppression: bool = True,
    origin: str = "lower",
) -> tuple[Path, ...]:
    """Writes `draw_category_map` under this path, with its endings."""
    return save_figure(draw_category_map(grids, threshold, count_suppression, origin), path)


@styled
def draw_category_map(
    grids: GridSet,
    threshold: float = 0.15,
    count_suppression: bool = True,
    origin: str = "lower",
) -> Figure:
    """One panel per model, each head coloured by its one category or by how many it has.

    The classification is `headjax.grid.head_categories`. `origin` "lower" puts head 0 at the bottom, "upper"
    at the top. Raises InputError if there are no static scores.
    """
    models = grids.select(measure="static").values("model")
    if not models:
        raise InputError(
            f"a category map needs static scores; got {', '.join(grids.values('kind')) or 'none'}"
        )
    maps = [head_categories(grids.select(model=m), threshold, count_suppression) for m in models]
    shapes = np.array([next(iter(masks.values())).shape for masks in maps])
    names = _entries(maps)
    colors = category_colors(names)
    patterns = {name: _HATCHES[i % len(_HATCHES)] for i, name in enumerate(filter(_is_count, names))}
    hatches = patterns if LOOK.get().several == "hatching" else {}
    digits = {name: f"{name.split()[0]}: " if LOOK.get().several == "digits" else "" for name in patterns}
    beside = Beside.of(
        Key(
            [
                Patch(
                    facecolor=color,
                    edgecolor=_ink(color) if name in hatches else color,
                    linewidth=0,
                    hatch=hatches.get(name),
                    label=digits.get(name, "") + wrap(name, 2.2, TICK),
                )
                for name, color in colors.items()
            ],
            f"A score above {threshold:g}",
        )
    )

    # All panels have one size, that of a typical model.
    columns = in_rows(len(models)) if len(models) != 3 else in_rows(4)
    width, height = panel_size(*np.exp(np.log(shapes).mean(axis=0)), several=columns > 1)
    height = max(height, beside.least)
    titles = [wrap(model, width, PANEL_TITLE) for model in models]
    title = titled(MAP_TITLE, columns * (LEFT + width) + beside.right - 2 * GAP, TITLE)
    header = GAP + text_size(title, TITLE)[1]
    above = 1.5 * GAP + tallest(titles, PANEL_TITLE)
    figure, panels = sheet(
        len(models),
        columns,
        (width, height),
        around=(LEFT, 2 * GAP, above, BOTTOM),
        outside=(0.0, beside.right - GAP, header, beside.below),
    )
    figure.suptitle(title, y=1 - GAP / figure.get_figheight())
    for axes, name, masks in zip(panels, titles, maps, strict=True):
        values = _color_indices(masks, names)
        mesh = draw_cells(axes, values, ListedColormap(list(colors.values())), (-0.5, len(colors) - 0.5))
        cell = min(width / len(values), height / len(values[0]))
        mesh.set(edgecolor="white", linewidth=min(0.06 * cell / POINT, 1.5))
        for entry in patterns:
            heads = np.argwhere(values == names.index(entry))
            if entry in hatches:
                _hatch(axes, heads, hatches[entry], _ink(colors[entry]))
            elif digits[entry]:
                _write(axes, heads, entry.split()[0], _ink(colors[entry]), cell)
        name_axes(axes, ("Layer", "Head"), (_map_ticks(len(values)), _map_ticks(len(values[0]))), origin)
        axes.set_title(name)
    beside.draw(figure, (figure.get_figheight() - header - above + BOTTOM) / 2)
    return figure


# Of 2, 3, 4 categories, and of more from the start again.
_HATCHES = ("////", "xxxx", "....")


def _is_count(name: str) -> bool:
    return name in {category_count_name(n) for n in range(2, 100)}


def _ink(color: str) -> str:
    """Black or white, whichever stands out from a colour more."""
    return "black" if np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)) > 0.45 else "white"


def _hatch(axes: Axes, heads: Int[np.ndarray, "n 2"], pattern: str, color: str) -> None:
    for x, y in heads:
        corner = (x - 0.46, y - 0.46)
        axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, hatch=pattern, edgecolor=color, linewidth=0))


def _write(axes: Axes, heads: Int[np.ndarray, "n 2"], text: str, color: str, cell: float) -> None:
    points = min(TICK * text_scale(), 0.75 * cell / POINT)
    for x, y in heads:
        axes.text(x, y, text, color=color, fontsize=points, ha="center", va="center_baseline")


def _entries(maps: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """The legend's eight entries, then what the user's own categories add to them."""
    most = max(len(category_counts(masks)) for masks in maps)
    names = [*MAP_COLORS, *(category for masks in maps for category in masks)]
    return list(dict.fromkeys([*names, *(category_count_name(n) for n in range(5, most))]))


def _color_indices(masks: Mapping[str, Bool[np.ndarray, "L H"]], names: list[str]) -> Int[np.ndarray, "L H"]:
    """For each head the position of its legend entry."""
    count = np.sum(list(masks.values()), axis=0)
    index = np.zeros(count.shape, int)
    for category, mask in masks.items():
        index[mask & (count == 1)] = names.index(category)
    for n in range(2, count.max() + 1):
        index[count == n] = names.index(category_count_name(n))
    return index


def _map_ticks(n: int) -> list[int]:
    return list(range(0, n, max(1, n // 5)))
