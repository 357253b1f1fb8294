"""Static against dynamic relation scores: do a head's weights tell what it does on prompts?

Pearson's correlation over heads times templates and the relation's maximum static score, as in the tables of
Elhelo & Geva 2024 ("MAPS", section 4.1), so that the two can be held against each other. Not so the p-value:
theirs takes each template for new heads, although the static score is the same in all of them. Here a head
counts once, with the mean of its dynamic scores over the templates. (Heads of one model are not independent
either: read a p-value as a measure of strength, not as a probability.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from headjax.grid import GridSet
from headjax.measures import SUPPRESSION
from headjax.report.table import aligned
from headjax.stats import p_text, pearson


class Correlation(NamedTuple):
    """One row of correlations.csv. NaN where one of the two scores is the same for all heads.

    Attributes:
      kind: plain or suppression.
      n_heads, n_templates: r is over heads times templates, p over heads.
      n_pairs_static: pairs behind each static score; n_prompts_dynamic: prompts behind each dynamic one, of
        one template. Where the second is smaller, the two are of different words.
    """

    model: str
    category: str
    relation: str
    name: str
    kind: str
    n_heads: int
    n_templates: int
    n_pairs_static: int
    n_prompts_dynamic: int
    r_no_context: float
    p_no_context: float
    r_context: float
    p_context: float
    max_static: float


def correlations(grids: GridSet) -> list[Correlation]:
    """A row for every model, relation and sign (plain, suppression) with static and dynamic scores.

    The static grid of a relation is compared with the dynamic grids of all its templates.
    """
    rows = []
    for model in grids.values("model"):
        for relation in grids.select(model=model).values("relation"):
            for kind, sign in (("plain", ""), ("suppression", SUPPRESSION)):
                own = grids.select(model=model, relation=relation, sign=sign)
                static = own.select(measure="static")
                context = own.select(measure="dynamic", part="context")
                no_context = own.select(measure="dynamic", part="no_context")
                if not (static and context and no_context):
                    continue
                grid = static.grids[0]
                rows.append(
                    Correlation(
                        *(model, grid.category, relation, grid.name, kind),
                        *(grid.scores.size, len(context), grid.n_pairs, min(g.n_pairs for g in context)),
                        *correlate(grid.scores, [dynamic.scores for dynamic in no_context]),
                        *correlate(grid.scores, [dynamic.scores for dynamic in context]),
                        float(np.max(grid.scores)),
                    )
                )
    return rows


def correlate(
    static: Float[np.ndarray, "L H"], dynamic: Sequence[Float[np.ndarray, "L H"]]
) -> tuple[float, float]:
    """One static grid against the dynamic ones of all templates: r of them all, p of their mean."""
    r, _ = pearson(np.tile(static.ravel(), len(dynamic)), np.ravel(dynamic))
    _, p = pearson(static, np.mean(dynamic, axis=0, dtype=np.float64))
    return r, p


_TITLES = (
    *("Category", "Relation", "Kind", "Heads", "Pairs", "Prompts"),
    *("r without context", "p", "r with context", "p", "Max static"),
)


def _cells(row: Correlation) -> tuple[str, ...]:
    """A row as shown, one cell for each of _TITLES."""
    measured = (
        *(f"{row.r_no_context:.2f}", p_text(row.p_no_context)),
        *(f"{row.r_context:.2f}", p_text(row.p_context)),
    )
    shown = ("-" if number == "nan" else number for number in measured)
    counts = map(str, (row.n_heads, row.n_pairs_static, row.n_prompts_dynamic))
    return row.category, row.name, row.kind, *counts, *shown, f"{row.max_static:.2f}"


def correlation_cells(rows: Sequence[Correlation]) -> list[tuple[str, ...]]:
    """The rows as they are shown, their titles first; the model comes first where there are several."""
    several = len({row.model for row in rows}) > 1
    lines = [("Model",) * several + _TITLES]
    return lines + [(row.model,) * several + _cells(row) for row in rows]


def correlation_table(rows: Sequence[Correlation]) -> str:
    """The rows as aligned text for a terminal."""
    lines = correlation_cells(rows)
    return aligned(lines, numbers=range(lines[0].index("Heads"), len(lines[0])))
