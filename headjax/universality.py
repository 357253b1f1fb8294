"""What models have in common, read off relation scores: where categories are, how much a head does, groups.

`category_shares`: which part of each layer's heads has a category, by depth. `relation_counts`: how many
relations a head implements. `group_similarity`: whether query heads that share a key/value head score alike.
Each gives rows for a table, and `experiments.draw` draws them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from headjax.grid import GridSet, head_categories
from headjax.measures import SUPPRESSION


class CategoryShare(NamedTuple):
    """The share of a layer's heads that have a category. `depth` goes from 0, the first layer, to 1."""

    model: str
    layer: int
    depth: float
    category: str
    share: float


class RelationCount(NamedTuple):
    """How many of a model's heads implement so many of the `n_scored` relations."""

    model: str
    n_relations: int
    n_scored: int
    heads: int
    share: float


class GroupSimilarity(NamedTuple):
    """Mean Pearson correlation of two heads of a layer: of one key/value group, and of different ones.

    NaN where no pair of heads can be compared: a head whose score is the same for all relations has none.
    """

    model: str
    layer: int
    within: float
    n_within: int
    across: float
    n_across: int


def category_shares(
    grids: GridSet, threshold: float = 0.15, count_suppression: bool = True
) -> list[CategoryShare]:
    """A row for every model, layer and category (`headjax.grid.head_categories`)."""
    rows = []
    for model in grids.select(measure="static").values("model"):
        masks = head_categories(grids.select(model=model), threshold, count_suppression)
        for category, mask in masks.items():
            for layer, share in enumerate(mask.mean(axis=1)):
                rows.append(
                    CategoryShare(model, layer, layer / max(1, len(mask) - 1), category, float(share))
                )
    return rows


def relations_per_head(
    grids: GridSet, threshold: float = 0.15, count_suppression: bool = True
) -> Float[np.ndarray, "L H"]:
    """How many relations each head of one model implements, plain or (by default) by suppression."""
    implemented: dict[str, np.ndarray] = {}
    for grid in grids.select(measure="static", sign=("", SUPPRESSION) if count_suppression else ""):
        above = grid.scores > np.float32(threshold)
        implemented[grid.relation] = implemented.get(grid.relation, False) | above
    return np.sum(list(implemented.values()), axis=0, dtype=np.float32)


def relation_counts(
    grids: GridSet, threshold: float = 0.15, count_suppression: bool = True
) -> list[RelationCount]:
    """A row for every model and number of relations, from 0 to the largest that a head has."""
    rows = []
    for model in grids.select(measure="static").values("model"):
        own = grids.select(model=model)
        per_head = relations_per_head(own, threshold, count_suppression).astype(int)
        counts = np.bincount(per_head.ravel())
        n_scored = len(own.select(measure="static").values("relation"))
        rows += [
            RelationCount(model, n, n_scored, int(heads), float(heads / per_head.size))
            for n, heads in enumerate(counts)
        ]
    return rows


def group_similarity(grids: GridSet, n_kv_heads: Mapping[str, int]) -> list[GroupSimilarity]:
    """A row for every layer of every model with grouped-query attention (1 < G < H).

    Heads are compared by their scores for all relations, plain and suppression. `n_kv_heads`: model -> G.
    """
    rows = []
    for model in grids.select(measure="static").values("model"):
        scores = np.stack([grid.scores for grid in grids.select(model=model, measure="static")])
        n_heads, n_groups = scores.shape[2], n_kv_heads[model]
        if not 1 < n_groups < n_heads:
            continue
        group = np.arange(n_heads) // (n_heads // n_groups)
        first, second = np.triu_indices(n_heads, k=1)
        same = group[first] == group[second]
        for layer in range(scores.shape[1]):
            r = head_correlations(scores[:, layer])[first, second]
            pairs = [r[where & ~np.isnan(r)] for where in (same, ~same)]
            summary = (x for one in pairs for x in (float(one.mean()) if len(one) else np.nan, len(one)))
            rows.append(GroupSimilarity(model, layer, *summary))
    return rows


def head_correlations(scores: Float[np.ndarray, "R H"]) -> Float[np.ndarray, "H H"]:
    """Pearson's r of every two heads over relations; NaN for a head that scores all of them the same."""
    centred = scores.astype(np.float64) - scores.mean(axis=0, dtype=np.float64)
    norms = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(norms > 0, norms, np.nan)
    return unit.T @ unit
