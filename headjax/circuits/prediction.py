"""How well head scores tell which heads a circuit has: area under the ROC curve and precision.

A circuit's heads are the positives, all other heads of the model the negatives, and a score ranks them.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from headjax.circuits.published import Circuit
from headjax.grid import Coordinate, GridSet
from headjax.measures import MEASURES, SUPPRESSION

SCORES = tuple(  # measure, part and sign of what may find a circuit's heads
    (measure, part, sign)
    for measure, about in MEASURES.items()
    if about.is_relation_score
    for part in about.parts or ("",)
    for sign in ("", SUPPRESSION)
)
ALL_ROLES = "all"


class Prediction(NamedTuple):
    """How well one score finds the heads of a circuit, or of one role in it.

    Attributes:
      n_heads: of the circuit, or role.
      auc: the probability that the score of a circuit's head is greater than that of another head, a tie
        counting half; NaN where the circuit has no head of the model or all of them.
      p_value: the share of random sets of as many heads whose AUC is as great, by permutation; the circuit
        itself is one of them, so it is never 0.
      precision: the share of circuit heads among the `n_heads` heads with the highest scores.
    """

    model: str
    circuit: str
    role: str
    relation: str
    kind: str
    n_heads: int
    auc: float
    p_value: float
    precision: float


def predictions(
    grids: GridSet, model: str, circuits: Mapping[str, Circuit], seed: int = 0
) -> list[Prediction]:
    """A row for every circuit, role, relation and static or dynamic score; templates averaged."""
    rows = []
    for measure, part, sign in SCORES:
        own = grids.select(model=model, measure=measure, part=part, sign=sign)
        for relation in own.values("relation"):
            scores = np.mean([grid.scores for grid in own.select(relation=relation)], axis=0)
            kind = Coordinate(measure, relation, part, sign).kind
            for name, circuit in circuits.items():
                for role, heads in {ALL_ROLES: circuit.heads(), **circuit.roles}.items():
                    inside = np.zeros(scores.shape, bool)
                    inside[tuple(np.array(heads, int).reshape(-1, 2).T)] = True
                    rows.append(
                        Prediction(
                            *(model, name, role, relation, kind, len(heads)),
                            *area_under_curve(scores, inside, seed=seed),
                            precision_at(scores, inside, len(heads)),
                        )
                    )
    order = {name: i for i, name in enumerate(circuits)}
    return sorted(rows, key=lambda row: order[row.circuit])


def area_under_curve(
    scores: Float[np.ndarray, "L H"],
    inside: Bool[np.ndarray, "L H"],
    *,
    n_draws: int = 9999,
    seed: int = 0,
) -> tuple[float, float]:
    """Area under the ROC curve, and its one-sided permutation p-value, which is never below 1/(n_draws + 1).

    NaN, both, where there is nothing to tell apart.
    """
    import scipy.stats  # it takes a second, so only when it is needed

    n_inside, n = int(inside.sum()), inside.size
    if n_inside in (0, n):
        return np.nan, np.nan
    # Ranks are multiples of a half, so sums of them are exact and equal ones compare as equal.
    ranks = scipy.stats.rankdata(scores, axis=None)
    own = ranks[inside.ravel()].sum()
    auc = (own / n_inside - (n_inside + 1) / 2) / (n - n_inside)
    drawn = ranks[_random_sets(n, n_inside, n_draws, seed)].sum(axis=1)
    return float(auc), float((1 + (drawn >= own).sum()) / (n_draws + 1))


@functools.lru_cache(maxsize=64)  # all scores of one circuit are compared with the same sets
def _random_sets(n: int, size: int, n_draws: int, seed: int) -> Int[np.ndarray, "n_draws size"]:
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(n, size, replace=False, shuffle=False) for _ in range(n_draws)])


def precision_at(scores: Float[np.ndarray, "L H"], inside: Bool[np.ndarray, "L H"], k: int) -> float:
    """The share of heads inside among the k of the highest scores, expected where ties leave the k open.

    NaN for k = 0.
    """
    if k == 0:
        return np.nan
    limit = np.sort(scores, axis=None)[-k]
    above, equal = scores > limit, scores == limit
    open_places = (k - above.sum()) / equal.sum()
    return float(((above & inside).sum() + open_places * (equal & inside).sum()) / k)
