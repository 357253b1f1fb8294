"""Ablation curves as tables: a row a point, and a relation a line."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from headjax.sweeps.ablation_curves import Curve, RelationCurves

N_BOOTSTRAP = 1000


class CurveRow(NamedTuple):
    """One point of a curve, averaged over its prompts (and draws), with the limits of its 95 % band.

    Attributes:
      curve: "relation", "random" (the mean of the draws) or "control".
      prompts: the relation whose prompts were run.
      head: the head removed last; empty at 0 heads and for random draws.
    """

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


def curve_rows(curves: RelationCurves, seed: int = 0) -> list[CurveRow]:
    """The table of one relation's curves. Bands are of the mean over prompts; see `bootstrap_band`."""
    lines = [("relation", curves.relation, curves.own)]
    if curves.draws:
        mean = Curve(*(np.mean(parts, axis=0) for parts in zip(*curves.draws, strict=True)))
        lines.append(("random", curves.relation, mean))
    lines += [("control", name, curve) for name, curve in curves.controls.items()]
    rows = []
    for kind, prompts, curve in lines:
        labels = [""] * len(curve.accuracy) if kind == "random" else ["", *map(str, curves.heads)]
        points = [(values.mean(axis=1), *bootstrap_band(values, seed)) for values in curve]
        for n, label in enumerate(labels):
            numbers = (float(series[n]) for point in points for series in point)
            rows.append(CurveRow(curves.relation, kind, prompts, n, label, *numbers))
    return rows


def bootstrap_band(
    values: Float[np.ndarray, "m B"], seed: int = 0, level: float = 0.95
) -> Float[np.ndarray, "2 m"]:
    """Limits of the mean over B prompts, by resampling the prompts (the percentile bootstrap, Efron 1979)."""
    n_prompts = values.shape[1]
    counts = np.random.default_rng(seed).multinomial(n_prompts, [1 / n_prompts] * n_prompts, N_BOOTSTRAP)
    means = values.astype(np.float64) @ (counts / n_prompts).T
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=1)


class SummaryRow(NamedTuple):
    """A relation's curves in one line: accuracies with all of its `n_heads` heads removed, and before.

    Attributes:
      base: of the clean model; removed: without the relation's heads.
      random, random_std: without random other heads, mean and standard deviation over the draws.
      control_base, control_removed, control_std: the controls' clean accuracy, and theirs without the
        relation's heads; means and standard deviation over the controls.
      first_zero: the least number of removed heads at which no prompt is answered; None: there is none.

    Numbers are NaN where there are no draws or no controls.
    """

    relation: str
    n_prompts: int
    n_heads: int
    base: float
    removed: float
    random: float
    random_std: float
    controls: tuple[str, ...]
    control_base: float
    control_removed: float
    control_std: float
    first_zero: int | None


def summary_row(curves: RelationCurves) -> SummaryRow:
    """The summary of one relation."""
    accuracy = curves.own.accuracy.mean(axis=1)
    draws = [curve.accuracy[-1].mean() for curve in curves.draws] or [np.nan]
    first, last = ([c.accuracy[at].mean() for c in curves.controls.values()] or [np.nan] for at in (0, -1))
    numbers = (np.mean(first), np.mean(last), np.std(last))
    zeros = np.flatnonzero(accuracy == 0)
    return SummaryRow(
        relation=curves.relation,
        n_prompts=curves.own.accuracy.shape[1],
        n_heads=len(curves.heads),
        base=float(accuracy[0]),
        removed=float(accuracy[-1]),
        random=float(np.mean(draws)),
        random_std=float(np.std(draws)),
        controls=tuple(curves.controls),
        control_base=float(numbers[0]),
        control_removed=float(numbers[1]),
        control_std=float(numbers[2]),
        first_zero=int(zeros[0]) if len(zeros) else None,
    )
