"""Grids of random scores for figures, at the sizes that models have and at odd ones."""

import numpy as np

from headjax import figures
from headjax.figures import Panel
from headjax.grid import GridSet, HeadGrid

SIZES = [(3, 3), (12, 12), (24, 16), (48, 25), (80, 64), (48, 1), (2, 40)]
CATEGORIES = ("Algorithmic", "Knowledge", "Linguistic", "Translation")


def scores(layers: int, heads: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(0.2, 2, size=(layers, heads)).astype(np.float32)


def model_grids(model: str, layers: int, heads: int) -> GridSet:
    return GridSet(
        tuple(
            HeadGrid(scores(layers, heads, i), model, f"relation_{i}", category, "static", 40)
            for i, category in enumerate(CATEGORIES)
        )
    )


def relation_panels(model: str, layers: int, heads: int, marks=None) -> list[Panel]:
    names = ("Name copying", "Country to capital")
    return [
        Panel(scores(layers, heads, i), f"{model}: {name} heads", f"{name} score", marks, figures.NO_MARKS)
        for i, name in enumerate(names)
    ]
