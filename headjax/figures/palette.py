"""Colours of head categories: of our own, which colour-blind readers tell apart, and as published."""

import itertools
from collections.abc import Iterable

from headjax.figures.style import LOOK

# Any two are at least 20 apart (CIEDE2000) in normal sight, deuteranopia, protanopia and tritanopia.
MAP_COLORS = {
    "Unclassified": "#e6e6e6",
    "Algorithmic": "#2a9af7",
    "Knowledge": "#e1c300",
    "Linguistic": "#808100",
    "Translation": "#9d154e",
    "2 categories": "#5f3ac7",
    "3 categories": "#271200",
    "4 categories": "#d8648a",
}
# As in Elhelo & Geva 2024.
PUBLISHED_COLORS = {
    "Unclassified": "tab:gray",
    "Algorithmic": "tab:blue",
    "Knowledge": "tab:orange",
    "Linguistic": "tab:green",
    "Translation": "tab:red",
    "2 categories": "tab:purple",
    "3 categories": "tab:brown",
    "4 categories": "tab:pink",
}
PALETTES = {"clear": MAP_COLORS, "published": PUBLISHED_COLORS}
MORE_COLORS = ("tab:olive", "tab:cyan", "navy", "gold", "black")  # for categories of the user's own


def category_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: the palette's that the look asks for, and for others the next of more."""
    known, more = PALETTES[LOOK.get().palette], itertools.cycle(MORE_COLORS)
    return {name: known.get(name) or next(more) for name in dict.fromkeys(names)}
