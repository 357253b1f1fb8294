"""Do the scores agree? The answer in words and tables, made from numbers: for every page about a model."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from experiments.pages.agreement import COMPARED, MEASURES, N_TOP, SIGNIFICANT, VERDICTS, Row
from headjax.axes import by_score
from headjax.data.hit_rule import HitRule

# What removing a relation's heads says of them, by what it does to other relations.
OWN_HEADS = "So the heads are **mostly the relations' own**."
SHARED_HEADS = (
    "So static scores find heads that are needed, but not heads of one relation: **movers that relations "
    "share**."
)
SHOWN = ("static", "dynamic with context", "attribution", "ablation")  # in figures, left to right


def agreement_section(
    rows: Sequence[Row],
    targets: Mapping[str, Sequence[str]],
    curves: Mapping[str, Mapping[str, str]],
    rule: HitRule,
    threshold: float,
) -> list[str]:
    """The section; relation -> its pairs' targets, and its row of ablation_summary.csv."""
    ids = [row.relation.relation for row in rows]
    constants = [constant_score(targets[one], rule.k(one)) for one in ids]
    lines = []
    for row, constant in zip(rows, constants, strict=True):
        lines.append(
            [
                row.relation.name,
                f"{float(curves[row.relation.relation]['base']):.2f}",
                f"{row.scores['static'].max():.2f}",
                f"{constant:.2f}",
                *(starred(row.rho[pair], row.p[pair]) for pair in COMPARED),
                "yes" if row.best_is_needed else "no",
                row.verdict,
            ]
        )
    needed = sum(row.best_is_needed for row in rows)
    means = [f"{mean_rho(rows, pair):.2f}" for pair in COMPARED]
    lines.append(["**mean**", "", "", "", *means, f"{needed} of {len(rows)}", ""])
    columns = [
        *("relation", "accuracy", "best S", "constant"),
        *(f"{MEASURES[a].letter}~{MEASURES[b].letter}" for a, b in COMPARED),
        *("best S needed", "S and X"),
    ]
    return [
        "## Do the scores agree?",
        "",
        *verdict(rows),
        *specificity(rows, constants, curves, threshold),
        "",
        *table(columns, lines),
        "",
        "**S** static score, **D0** and **D** dynamic score without and with context (mean of templates), "
        "**A** direct logit attribution, **G** gradient, **X** log-probability lost by ablating the head at "
        "the last position. Columns with ~ are Spearman's correlation over all heads; * is p < "
        f"{SIGNIFICANT}, two-sided and uncorrected, - where one of the two is the same for every head. A hit "
        f"is a rank within k = {rule.top_k} (copying: {rule.top_k_copying}). *constant*: the static score of "
        "a head that writes the same k words whatever it reads; a best S not above it says little. "
        "*accuracy*: on task prompts, no head removed. *best S needed*: the head of the best S is one of the "
        f"first {N_TOP} by X.",
        "",
    ]


def verdict(rows: Sequence[Row]) -> list[str]:
    """How often the measures agree."""
    lines = []
    for what in VERDICTS:
        names = [row.relation.name for row in rows if row.verdict == what]
        named = f": {', '.join(names)}" if names else ""
        lines.append(f"- Static scores and ablation: **{what}** for {len(names)} of {len(rows)}{named}.")
    for pair in COMPARED:
        found = sum(row.p[pair] < SIGNIFICANT and row.rho[pair] > 0 for row in rows)
        lines.append(
            f"- {pair[0].capitalize()} against {pair[1]}: mean correlation {mean_rho(rows, pair):.2f}, "
            f"positive and significant for {found} of {len(rows)}."
        )
    return lines


def specificity(
    rows: Sequence[Row], constants: Sequence[float], curves: Mapping[str, Mapping[str, str]], threshold: float
) -> list[str]:
    """Whether relations have heads of their own, by their static scores and by what removing them breaks."""
    best = [row.scores["static"].max() for row in rows]
    first = Counter(top_heads(row.scores["ablation"]).split()[0] for row in rows)
    named = ", ".join(f"{head} for {count}" for head, count in first.most_common())
    above = sum(score > threshold for score in best)
    informative = sum(score > constant for score, constant in zip(best, constants, strict=True))
    own = mean_change(curves, "base", "removed")
    random, control = (
        mean_change(curves, "base", "random"),
        mean_change(curves, "control_base", "control_removed"),
    )
    if np.isnan(control).any():
        of_controls = "no relation has control relations."
    else:
        shared = control[0] - control[1] > (own[0] - own[1]) / 2
        of_controls = (
            f"the same heads on prompts of control relations: {control[0]:.2f} to {control[1]:.2f}. "
            + (SHARED_HEADS if shared else OWN_HEADS)
        )
    return [
        f"- The head that ablation needs most: {named} of {len(rows)} relations.",
        f"- The best static score is above the threshold {threshold:g} for {above} of {len(rows)}, above "
        f"*constant* for {informative}.",
        f"- Accuracy when a relation's best heads by static score are removed, mean over relations: "
        f"{own[0]:.2f} to {own[1]:.2f}; as many random heads: {random[0]:.2f} to {random[1]:.2f}; "
        + of_controls,
    ]


def mean_change(curves: Mapping[str, Mapping[str, str]], before: str, after: str) -> tuple[float, float]:
    """Means of two columns over the relations that have both."""
    both = np.array([[float(row[before]), float(row[after])] for row in curves.values()])
    known = both[~np.isnan(both).any(axis=1)]
    return tuple(known.mean(axis=0).tolist()) if len(known) else (np.nan, np.nan)


def heads_section(rows: Sequence[Row]) -> list[str]:
    lines = [[row.relation.name, *(top_heads(row.scores[name]) for name in SHOWN)] for row in rows]
    return [
        "## Which heads",
        "",
        f"The first {N_TOP} heads of each measure above 0.",
        "",
        *table(["relation", *(MEASURES[name].title for name in SHOWN)], lines),
        "",
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]


def mean_rho(rows: Sequence[Row], pair: tuple[str, str]) -> float:
    """Over the relations that have one."""
    known = [row.rho[pair] for row in rows if not np.isnan(row.rho[pair])]
    return float(np.mean(known)) if known else np.nan


def starred(rho: float, p: float) -> str:
    return "-" if np.isnan(rho) else f"{rho:.2f}" + "*" * (p < SIGNIFICANT)


def top_heads(scores: Float[np.ndarray, "L H"]) -> str:
    """`L2H3 0.81, ...`; those above 0 only."""
    best = [head for head in by_score(scores, N_TOP) if scores[head] > 0]
    return ", ".join(f"{head} {scores[head]:.2f}" for head in best) or "none"


def constant_score(targets: Sequence[str], k: int) -> float:
    """The share of targets that are among the k most frequent ones."""
    return sum(count for _, count in Counter(targets).most_common(k)) / len(targets)
