"""The map of head categories over one or several models."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from headjax.errors import InputError
from headjax.figures.sheet import (
    BOTTOM,
    GAP,
    LEFT,
    MAP_COLORS,
    MORE_COLORS,
    PANEL_TITLE,
    POINT,
    TITLE,
    Key,
    draw_cells,
    draw_key,
    key_size,
    name_axes,
    panel_size,
    save_figure,
    sheet,
    styled,
    tallest,
    text_size,
    titled,
    wrap,
)
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
    colors = _map_colors(maps)
    key = Key([Patch(color=color, label=name) for name, color in colors.items()])
    key_width, key_height = key_size(key)

    # All panels have one size, that of a typical model, and the legend stands at their right.
    columns = math.ceil(math.sqrt(len(models)))
    width, height = panel_size(*np.exp(np.log(shapes).mean(axis=0)), several=columns > 1)
    height = max(height, key_height)
    names = [wrap(model, width, PANEL_TITLE) for model in models]
    title = titled(MAP_TITLE, columns * (LEFT + width) + key_width, TITLE)
    header = GAP + text_size(title, TITLE)[1]
    above = 1.5 * GAP + tallest(names, PANEL_TITLE)
    figure, panels = sheet(
        len(models),
        columns,
        (width, height),
        around=(LEFT, 2 * GAP, above, BOTTOM),
        outside=(0.0, key_width + GAP, header, 0.0),
    )
    figure.suptitle(title, y=1 - GAP / figure.get_figheight())
    for axes, name, masks in zip(panels, names, maps, strict=True):
        values = _color_indices(masks, list(colors))
        mesh = draw_cells(axes, values, ListedColormap(list(colors.values())), (-0.5, len(colors) - 0.5))
        cell = min(width / len(values), height / len(values[0]))
        mesh.set(edgecolor="white", linewidth=min(0.06 * cell / POINT, 1.5))
        name_axes(axes, ("Layer", "Head"), (_map_ticks(len(values)), _map_ticks(len(values[0]))), origin)
        axes.set_title(name)
    middle = (figure.get_figheight() - header - above + BOTTOM) / 2
    draw_key(figure, key, (figure.get_figwidth() - GAP - key_width, middle), "center left")
    return figure


def _map_colors(maps: Sequence[Mapping[str, np.ndarray]]) -> dict[str, str]:
    """The legend's eight entries, then what the user's own categories add to them."""
    most = max(len(category_counts(masks)) for masks in maps)
    names = [*MAP_COLORS, *(category for masks in maps for category in masks)]
    names += [category_count_name(n) for n in range(5, most)]
    more = itertools.cycle(MORE_COLORS)
    return {name: MAP_COLORS.get(name) or next(more) for name in dict.fromkeys(names)}


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
