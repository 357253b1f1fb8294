"""Do static scores, dynamic scores and ablation point at the same heads? One row a relation."""

from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

from headjax.axes import by_score
from headjax.grid import GridSet, HeadGrid

SIGNIFICANT = 0.05
N_TOP = 3
VERDICTS = AGREES, UNCLEAR, CONTRADICTS = "agrees", "unclear", "contradicts"


class Compared(NamedTuple):
    """A measure that is compared: its letter in tables, its grids, and title and unit of its picture."""

    letter: str
    measure: str
    part: str = ""
    metric: str = ""
    title: str = ""
    unit: str = ""


MEASURES = {  # dynamic scores are means over their templates
    "static": Compared("S", "static", title="Static score", unit="Share of pairs"),
    "dynamic without context": Compared("D0", "dynamic", "no_context"),
    "dynamic with context": Compared(
        "D", "dynamic", "context", title="Dynamic score, with context", unit="Share of prompts"
    ),
    "attribution": Compared(
        *("A", "logit_attribution", "", "logit"), title="Direct logit attribution", unit="Logit"
    ),
    "gradient": Compared("G", "gradient", "", "logprob"),
    "ablation": Compared(*("X", "ablation", "", "logprob"), title="Lost by ablation", unit="Log-probability"),
}
COMPARED = (
    ("static", "dynamic without context"),
    ("static", "dynamic with context"),
    ("static", "attribution"),
    ("static", "ablation"),
    ("dynamic with context", "ablation"),
    ("attribution", "ablation"),
    ("gradient", "ablation"),
)


class Row(NamedTuple):
    """What the measures of one relation say.

    Attributes:
      relation: its static grid, for its names.
      scores: measure -> [L H].
      rho: (measure, measure) of COMPARED -> Spearman's correlation over heads; NaN where one is constant.
      p: two-sided p-value of each.
      verdict: of static against ablation: AGREES (significant and positive), CONTRADICTS (significant and
        negative) or UNCLEAR.
      best_is_needed: whether the head of the highest static score, if any is above 0, is among the N_TOP of
        ablation.
    """

    relation: HeadGrid
    scores: dict[str, Float[np.ndarray, "L H"]]
    rho: dict[tuple[str, str], float]
    p: dict[tuple[str, str], float]
    verdict: str
    best_is_needed: bool


def agreement_rows(grids: GridSet) -> list[Row]:
    """A row for every relation that has a grid of every measure."""
    rows = []
    for relation in grids.select(measure="static", sign=""):
        own = grids.select(model=relation.model, relation=relation.relation, sign="")
        found = {
            name: own.select(measure=one.measure, part=one.part, metric=one.metric)
            for name, one in MEASURES.items()
        }
        if not all(map(len, found.values())):
            continue
        scores = {name: np.mean([grid.scores for grid in of], axis=0) for name, of in found.items()}
        tests = {pair: spearman(*(scores[name] for name in pair)) for pair in COMPARED}
        rho, p = tests["static", "ablation"]
        (best,) = by_score(scores["static"], 1)
        needed = by_score(scores["ablation"], N_TOP)
        rows.append(
            Row(
                relation,
                scores,
                {pair: rho for pair, (rho, _) in tests.items()},
                {pair: p for pair, (_, p) in tests.items()},
                (AGREES if rho > 0 else CONTRADICTS) if p < SIGNIFICANT else UNCLEAR,
                bool(best in needed and scores["static"][best] > 0),
            )
        )
    return rows


def spearman(a: Float[np.ndarray, "L H"], b: Float[np.ndarray, "L H"]) -> tuple[float, float]:
    """Spearman's correlation over all heads and its two-sided p; NaN where one is the same for all."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan, np.nan
    result = scipy.stats.spearmanr(a, b, axis=None)
    return float(result.statistic), float(result.pvalue)
