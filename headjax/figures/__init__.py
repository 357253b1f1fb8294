"""Score grids as pictures: PNG, PDF and SVG for papers.

`draw_...` functions return a matplotlib Figure, the others write it and return the paths. matplotlib, which
takes a second to import, is imported when the first of them is used, and nowhere else.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    **dict.fromkeys(("category_map", "draw_category_map"), "categories"),
    **dict.fromkeys(
        ("HEAT_AXES", "NO_MARKS", "Panel", "draw_heat_maps", "grid_panel", "plot_grids"), "heat_maps"
    ),
    **dict.fromkeys(("relation_heat_map", "score_map", "signed_map"), "heat_maps"),
    **dict.fromkeys(("circuit_overlap_map", "draw_circuit_overlap"), "circuit_overlap"),
    **dict.fromkeys(("Curve", "ablation_curves_figure", "draw_ablation_curves"), "curves"),
    **dict.fromkeys(("Line", "Points", "category_share_figure", "comparison_figure", "draw_lines"), "lines"),
    **dict.fromkeys(("group_similarity_figure", "relations_per_head_figure"), "lines"),
    **dict.fromkeys(("LOOK", "Look", "look"), "style"),
    **dict.fromkeys(("MAP_COLORS", "MORE_COLORS", "PUBLISHED_COLORS", "category_colors"), "palette"),
    "save_figure": "sheet",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'headjax.figures' has no attribute {name!r}")
    return getattr(import_module(f"headjax.figures.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
