"""Ablation curves as tables: a row a point, and a relation a line."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from headjax.engine.curves import RelationCurves
from headjax.report.table import aligned
from headjax.stats import bootstrap_band, draws_band, wilson

N_FAULTS = 3  # that are printed of the reasons why a relation has no control


class CurveRow(NamedTuple):
    """One point of a curve, averaged over its prompts (and draws), with the limits of its 95 % band.

    The band of an accuracy is Wilson's interval of a share, that of a log-probability is resampled from the
    prompts (`bootstrap_band`). The random curve's contain what varies between draws (`draws_band`).

    Attributes:
      curve: "relation", "random" (the mean of the draws) or "control".
      prompts: the relation whose prompts were run.
      head: the head removed last; empty at 0 heads and for random draws.
    """

    model: str
    relation: str
    curve: str
    prompts: str
    n_heads: int
    head: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    logprob: float
    logprob_low: float
    logprob_high: float


def curve_rows(curves: RelationCurves, model: str, seed: int = 0) -> list[CurveRow]:
    """The table of one relation's curves; `seed` is that of the bands that are resampled."""
    lines = [("relation", curves.relation, [curves.own])]
    if curves.draws:
        lines.append(("random", curves.relation, list(curves.draws)))
    lines += [("control", name, [curve]) for name, curve in curves.controls.items()]
    rows = []
    for kind, prompts, draws in lines:
        accuracy, logprob = (np.stack(values) for values in zip(*draws, strict=True))  # [draws m B]
        labels = [""] * accuracy.shape[1] if kind == "random" else ["", *map(str, curves.heads)]
        points = [
            (values.mean(axis=(0, 2)), *_band(values, shares, seed))
            for values, shares in ((accuracy, True), (logprob, False))
        ]
        for n, label in enumerate(labels):
            numbers = (float(series[n]) for point in points for series in point)
            rows.append(CurveRow(model, curves.relation, kind, prompts, n, label, *numbers))
    return rows


def _band(values: Float[np.ndarray, "draws m B"], shares: bool, seed: int) -> Float[np.ndarray, "2 m"]:
    if len(values) > 1:
        return draws_band(values, shares)
    if shares:
        return wilson(values[0].mean(axis=1), values.shape[2])
    return bootstrap_band(values[0], seed)


class CurveSummary(NamedTuple):
    """A relation's curves in one line: accuracies with all of its `n_heads` heads removed, and before.

    Attributes:
      base: of the clean model; removed: without the relation's heads; both with their 95 % limits (Wilson).
      random, random_std: without random other heads, mean and standard deviation over the draws.
      control_base, control_removed, control_std: the controls' clean accuracy, and theirs without the
        relation's heads; means and standard deviation over the controls.
      first_zero: the least number of removed heads at which no prompt is answered; None: there is none.
      no_controls: where there are no controls, why: relation after relation.

    Numbers are NaN where there are no draws or no controls.
    """

    model: str
    relation: str
    n_prompts: int
    n_heads: int
    base: float
    base_low: float
    base_high: float
    removed: float
    removed_low: float
    removed_high: float
    random: float
    random_std: float
    controls: tuple[str, ...]
    control_base: float
    control_removed: float
    control_std: float
    first_zero: int | None
    no_controls: str


def summary_row(curves: RelationCurves, model: str) -> CurveSummary:
    """The summary of one relation."""
    accuracy = curves.own.accuracy.mean(axis=1)
    draws = [curve.accuracy[-1].mean() for curve in curves.draws] or [np.nan]
    first, last = ([c.accuracy[at].mean() for c in curves.controls.values()] or [np.nan] for at in (0, -1))
    numbers = (np.mean(first), np.mean(last), np.std(last))
    zeros = np.flatnonzero(accuracy == 0)
    low, high = wilson(accuracy, curves.own.accuracy.shape[1])
    faults = "; ".join(f"{other}: {fault}" for other, fault in curves.not_controls.items())
    return CurveSummary(
        model=model,
        relation=curves.relation,
        n_prompts=curves.own.accuracy.shape[1],
        n_heads=len(curves.heads),
        base=float(accuracy[0]),
        base_low=float(low[0]),
        base_high=float(high[0]),
        removed=float(accuracy[-1]),
        removed_low=float(low[-1]),
        removed_high=float(high[-1]),
        random=float(np.mean(draws)),
        random_std=float(np.std(draws)),
        controls=tuple(curves.controls),
        control_base=float(numbers[0]),
        control_removed=float(numbers[1]),
        control_std=float(numbers[2]),
        first_zero=int(zeros[0]) if len(zeros) else None,
        no_controls="" if curves.controls else faults or "no other relation",
    )


def curves_table(rows: Sequence[CurveSummary]) -> str:
    """The summaries as aligned text; a dash where nothing was measured, and why there are no controls."""
    lines = [("relation", "prompts", "heads", "base", "removed", "random", "controls", "0 from")]
    without = []
    for row in rows:
        controls = f"{row.control_base:.2f} to {_spread(row.control_removed, row.control_std)}"
        lines.append(
            (
                *(row.relation, str(row.n_prompts), str(row.n_heads)),
                f"{row.base:.2f} [{row.base_low:.2f}, {row.base_high:.2f}]",
                f"{row.removed:.2f} [{row.removed_low:.2f}, {row.removed_high:.2f}]",
                _spread(row.random, row.random_std),
                controls if row.controls else "-",
                "-" if row.first_zero is None else str(row.first_zero),
            )
        )
        if row.no_controls:
            first, more = (faults := row.no_controls.split("; "))[:N_FAULTS], len(faults) - N_FAULTS
            rest = f"; and {more} more" if more > 0 else ""
            without.append(f"{row.relation} has no control: {'; '.join(first)}{rest}")
    return "\n".join([aligned(lines, numbers=(1, 2, 7)), *without])


def _spread(mean: float, deviation: float) -> str:
    return "-" if math.isnan(mean) else f"{mean:.2f} +- {deviation:.2f}"
