"""Static against dynamic relation scores: do a head's weights tell what it does on prompts?

Pearson's correlation over heads times templates, of each relation, with its p-value and the relation's
maximum static score, as in the tables of Elhelo & Geva 2024 ("MAPS", section 4.1).
"""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats  # JAX itself needs scipy, so it is always there
from jaxtyping import Float

from headjax.grid import SUPPRESSION, GridSet
from headjax.io import atomic_write


class Correlation(NamedTuple):
    """One row of correlations.csv. NaN where one of the two scores is the same for all heads.

    `kind` is plain or suppression; `n_points` counts heads times templates.
    """

    model: str
    category: str
    relation: str
    name: str
    kind: str
    n_points: int
    r_no_context: float
    p_no_context: float
    r_context: float
    p_context: float
    max_static: float


def correlations(grids: GridSet) -> list[Correlation]:
    """A row for every model, relation and kind (plain, suppression) with static and dynamic scores.

    The static grid of a relation is compared with the dynamic grids of all its templates.
    """
    rows = []
    for model in grids.values("model"):
        for relation in grids.select(model=model).values("relation"):
            for kind, ending in (("plain", ""), ("suppression", SUPPRESSION)):
                of_relation = grids.select(model=model, relation=relation)
                static = of_relation.select(kind="static" + ending)
                context = of_relation.select(kind="dynamic_context" + ending)
                no_context = of_relation.select(kind="dynamic_no_context" + ending)
                if not (static and context and no_context):
                    continue
                grid = static.grids[0]
                rows.append(
                    Correlation(
                        *(model, grid.category, relation, grid.name, kind),
                        grid.scores.size * len(context),
                        *pearson(grid.scores, [dynamic.scores for dynamic in no_context]),
                        *pearson(grid.scores, [dynamic.scores for dynamic in context]),
                        float(np.max(grid.scores)),
                    )
                )
    return rows


def pearson(
    static: Float[np.ndarray, "L H"], dynamic: Sequence[Float[np.ndarray, "L H"]]
) -> tuple[float, float]:
    """r and two-sided p of one static grid against several dynamic ones, all heads of all of them."""
    x, y = np.tile(static.ravel(), len(dynamic)), np.ravel(dynamic)
    if np.ptp(x) == 0 or np.ptp(y) == 0 or len(x) < 3:
        return math.nan, math.nan
    result = scipy.stats.pearsonr(x.astype(np.float64), y.astype(np.float64))
    return float(result.statistic), float(result.pvalue)


def save_correlations(rows: Sequence[Correlation], path: str | Path) -> None:
    """Writes correlations.csv."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Correlation._fields)
        writer.writerows(rows)


_TITLES = ("Category", "Relation", "Kind", "r without context", "p", "r with context", "p", "Max static")


def _cells(row: Correlation) -> tuple[str, ...]:
    """A row as shown, one cell for each of _TITLES."""
    measured = (
        *(f"{row.r_no_context:.2f}", _p_value(row.p_no_context)),
        *(f"{row.r_context:.2f}", _p_value(row.p_context)),
    )
    shown = ("-" if number == "nan" else number for number in measured)
    return row.category, row.name, row.kind, *shown, f"{row.max_static:.2f}"


def _p_value(p: float) -> str:
    if p < 1e-300:
        return "<1e-300"
    return f"{p:.0e}" if p < 0.01 else f"{p:.2f}"


def correlation_table(rows: Sequence[Correlation]) -> str:
    """The rows as aligned text for a terminal; the model comes first where there are several."""
    several = len({row.model for row in rows}) > 1
    lines = [("Model",) * several + _TITLES]
    lines += [(row.model,) * several + _cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    n_texts = 3 + several
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < n_texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def correlation_latex(rows: Sequence[Correlation]) -> str:
    """The rows as a LaTeX tabular (package booktabs), one a model, each under a comment that names it."""
    tables = []
    for model in dict.fromkeys(row.model for row in rows):
        body = [" & ".join(map(_latex, _cells(row))) + r" \\" for row in rows if row.model == model]
        tables += [
            f"% {model}",
            r"\begin{tabular}{lllrrrrr}",
            r"\toprule",
            " & ".join(_TITLES) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    return "\n".join(tables) + "\n"


_LATEX_CODES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def _latex(cell: str) -> str:
    """A cell in LaTeX: numbers in mathematics, 3e-12 as a power of ten, special characters written out."""
    if power := re.fullmatch(r"(<?)(\d)e-0*(\d+)", cell):
        less, digit, exponent = power.groups()
        return rf"$<10^{{-{exponent}}}$" if less else rf"${digit} \cdot 10^{{-{exponent}}}$"
    if re.fullmatch(r"-?\d+\.\d+", cell):
        return f"${cell}$"
    return re.sub(r"[\\~^&%$#_{}]", lambda special: _LATEX_CODES[special[0]], cell)
