"""Which categories a head has, and for which relations: what the map shows as a number of categories."""

from typing import NamedTuple

import numpy as np

from headjax.axes import Head
from headjax.grid import GridSet, head_categories
from headjax.measures import SUPPRESSION


class HeadCategories(NamedTuple):
    """One row of head_categories.csv: a head that has any.

    Attributes:
      categories: their names, with commas between.
      relations: those it implements, by name, with a minus where by suppression alone.
    """

    model: str
    layer: int
    head: int
    n_categories: int
    categories: str
    relations: str


def category_table(
    grids: GridSet, threshold: float = 0.15, count_suppression: bool = True
) -> list[HeadCategories]:
    """A row for each head with a category, by model, layer and head."""
    rows = []
    for model in grids.select(measure="static").values("model"):
        own = grids.select(model=model, measure="static")
        masks = head_categories(own, threshold, count_suppression)
        plain, turned = own.select(sign=""), own.select(sign=SUPPRESSION if count_suppression else ())
        for place in np.argwhere(np.any(list(masks.values()), axis=0)).tolist():
            head = Head(*place)
            names = [category for category, mask in masks.items() if mask[head]]
            done = [grid.name for grid in plain if grid.scores[head] > np.float32(threshold)]
            against = [grid.name for grid in turned if grid.scores[head] > np.float32(threshold)]
            relations = [*done, *(f"-{name}" for name in against if name not in done)]
            rows.append(HeadCategories(model, *place, len(names), ", ".join(names), ", ".join(relations)))
    return rows
