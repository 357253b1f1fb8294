"""What a run found beside what was published: rows with a verdict each.

A config names published tables in its field `compare`. Every published number of the run's models becomes a
row: it `agrees` where ours is within the tolerance, else it `differs`; it is `not measured` where the run
has no number for it (a relation that was skipped, or not asked for). Tolerances are of two kinds. With
`relations_dir`, which is then taken to hold the publication's own data, what is left is rounding to two
digits, arithmetic, and a pair or two of some 50 to 300 at the edge of the first k. With our own word lists
the two are different samples of a relation: the difference of two shares over 100 pairs has a standard error
of up to 0.07, and the words are others. `TOLERANCES` gives both for each measure.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.config import RunConfig
from experiments.published import DIRECT_EFFECTS, Published, load_direct_effects, load_published
from headjax import figures
from headjax.circuits.published import CIRCUITS, check_fits
from headjax.errors import InputError
from headjax.grid import GridSet
from headjax.measures import SUPPRESSION
from headjax.report.correlations import correlations
from headjax.report.curve_tables import CurveRow
from headjax.result import Result
from headjax.zoo import MODELS

# Table -> measure -> tolerance with the published data, and with our own. What is not named is not compared.
TOLERANCES: dict[str, dict[str, tuple[float, float]]] = {
    # Rounding is 0.005; one pair of 60 at the edge of the first k is 0.017. Own words: three standard errors.
    "maps_scores": {"max_score": (0.02, 0.2)},
    # Correlations over thousands of heads and templates move less than the scores behind them.
    "maps_correlations": {"r_no_context": (0.03, 0.15), "r_context": (0.03, 0.15)},
    # Published: sources of several tokens when no space stands before them; ours: with the space, and single
    # ones too. So the sources differ even with the published data.
    "maps_multi_token": {"r_no_context": (0.15, 0.2), "r_context": (0.15, 0.2)},
    # Task prompts are in our own words, so accuracies differ even with the published data; where a standard
    # deviation over random draws or controls was published, two of them are added.
    "maps_causal": dict.fromkeys(
        ("base", "relation_removed", "random_removed", "control_base", "control_removed"), (0.15, 0.25)
    ),
    # 60 names: a share of 0.95 has a standard error of 0.03.
    "ioi_copy_scores": dict.fromkeys(("least_circuit_head", "mean_circuit_head", "mean_head"), (0.05, 0.05)),
    # Means over about 100 prompts of other wording: the order of heads, 1 being the same order.
    DIRECT_EFFECTS: {"rank_correlation": (0.3, 0.3)},
}
NEEDS = {
    "maps_scores": ("relation_scores",),
    "maps_correlations": ("relation_scores", "dynamic_scores"),
    "maps_multi_token": ("relation_scores", "dynamic_scores"),
    "maps_causal": ("ablation_curves",),
    "ioi_copy_scores": ("copy_score",),
    DIRECT_EFFECTS: ("logit_attribution",),
}
Measured = dict[tuple[str, str, str], float]  # (relation, kind, measure) -> ours


class Comparison(NamedTuple):
    """One row of comparison.csv. `model` is the display name; `bound` is ">" or "<" where only that is known.

    `difference` is ours minus published; it and `ours` are NaN where there is nothing to compare.
    """

    table: str
    model: str
    relation: str
    kind: str
    measure: str
    bound: str
    published: float
    ours: float
    difference: float
    tolerance: float
    verdict: str


def compare(found: Result, tables: Sequence[str], published_data: bool = False) -> list[Comparison]:
    """Every published number of the tables for the models that there are grids of.

    `published_data`: whether relations were the publication's own word lists; chooses the tolerance.
    """
    rows = []
    curves = [row for table in found.tables.values() for row in table if isinstance(row, CurveRow)]
    for model in found.grids.values("model"):
        own = found.grids.select(model=model)
        own_curves = [point for point in curves if point.model == model]
        for table in tables:
            published = [row for row in published_rows(table) if is_model(row.model, model)]
            spread = {row[1:4]: row.value for row in published if row.measure.endswith("_std")}
            measured = MEASURES[table](own, own_curves, published)
            for row in published:
                if row.measure not in TOLERANCES[table]:
                    continue
                tolerance = TOLERANCES[table][row.measure][0 if published_data else 1]
                tolerance += 2 * spread.get((row.relation, row.kind, f"{row.measure}_std"), 0.0)
                rows.append(judge(table, model, row, measured.get(row[1:4], math.nan), tolerance))
    return rows


def judge(table: str, model: str, published: Published, ours: float, tolerance: float) -> Comparison:
    """One row: a bound is kept if ours is beyond it, or on the wrong side by the tolerance at most."""
    difference = ours - published.value
    # Both sides come with a few decimals: 0.9 - 0.88 is 0.02, not more.
    off = round({">": -difference, "<": difference}.get(published.bound, abs(difference)), 6)
    verdict = "not measured" if math.isnan(ours) else "agrees" if off <= tolerance else "differs"
    return Comparison(
        *(table, model, published.relation, published.kind, published.measure, published.bound),
        *(published.value, ours, difference, tolerance, verdict),
    )


def published_rows(table: str) -> list[Published]:
    """The published numbers of a table; for direct effects, what a grid in the same order would give."""
    if table == DIRECT_EFFECTS:
        return [Published(model, "ioi", "plain", "rank_correlation", 1.0) for model in load_direct_effects()]
    return load_published(table)


def is_model(alias: str, shown: str) -> bool:
    """Whether a display name, or the name of a local directory, is that of the alias."""
    return shown.lower() in {alias, MODELS[alias].display.lower(), MODELS[alias].id.split("/")[1].lower()}


SIGNS = {"": "plain", SUPPRESSION: "suppression"}  # what the published tables call them


# --- ours, by table: (grids of one model, its curves, the published rows) -> numbers --------------------


def _max_scores(grids: GridSet, curves: list[CurveRow], published: list[Published]) -> Measured:
    return {
        (grid.relation, SIGNS[grid.sign], "max_score"): float(grid.scores.max())
        for grid in grids.select(measure="static")
    }


def _correlations(grids: GridSet, curves: list[CurveRow], published: list[Published]) -> Measured:
    return {
        (row.relation, row.kind, measure): getattr(row, measure)
        for row in correlations(grids)
        for measure in ("r_no_context", "r_context")
    }


def _accuracies(grids: GridSet, curves: list[CurveRow], published: list[Published]) -> Measured:
    """Accuracies at the published number of removed heads, or at our largest where that is smaller."""
    measured = {}
    for row in published:
        if row.measure == "heads_removed":
            for curve, names in {
                "relation": ("base", "relation_removed"),
                "random": (None, "random_removed"),
                "control": ("control_base", "control_removed"),
            }.items():
                points = [p for p in curves if (p.relation, p.curve) == (row.relation, curve)]
                last = min(row.value, max((p.n_heads for p in points), default=0))
                for name, n_heads in zip(names, (0, last), strict=True):
                    at = [p.accuracy for p in points if p.n_heads == n_heads]
                    if name and at:
                        measured[row.relation, "plain", name] = float(np.mean(at))
    return measured


def _copy_scores(grids: GridSet, curves: list[CurveRow], published: list[Published]) -> Measured:
    measured = {}
    roles = {"": "Name movers", SUPPRESSION: "Negative name movers"}
    for grid in grids.select(measure="copy_score"):
        check_fits(CIRCUITS["ioi"], *grid.scores.shape)
        named = [float(grid.scores[head]) for head in CIRCUITS["ioi"].roles[roles[grid.sign]]]
        kind = SIGNS[grid.sign]
        measured[grid.relation, kind, "least_circuit_head"] = min(named)
        measured[grid.relation, kind, "mean_circuit_head"] = float(np.mean(named))
        measured[grid.relation, kind, "mean_head"] = float(grid.scores.mean())
    return measured


def _direct_effects(grids: GridSet, curves: list[CurveRow], published: list[Published]) -> Measured:
    import scipy.stats  # it takes a second, so only when it is needed

    effects = load_direct_effects()
    for grid in grids:
        check_comparison_size((DIRECT_EFFECTS,), grid.model, grid.scores.shape)
    return {
        (grid.relation, "plain", "rank_correlation"): float(
            scipy.stats.spearmanr(effects[row.model].ravel(), grid.scores.ravel()).statistic
        )
        for row in published
        for grid in grids.select(measure="logit_attribution", metric="logit", relation="ioi")
    }


MEASURES: Mapping[str, Callable[[GridSet, list[CurveRow], list[Published]], Measured]] = {
    "maps_scores": _max_scores,
    "maps_correlations": _correlations,
    "maps_multi_token": _correlations,
    "maps_causal": _accuracies,
    "ioi_copy_scores": _copy_scores,
    DIRECT_EFFECTS: _direct_effects,
}


# --- a run's comparison ---------------------------------------------------------------------------------


def check_comparison(config: RunConfig, models: Sequence[str]) -> None:
    """Says before the work starts that a table has nothing to say about this run. Raises InputError."""
    kinds = {analysis.kind: analysis for analysis in config.analyses.values()}
    for table in config.compare:
        known = list(dict.fromkeys(row.model for row in published_rows(table)))
        if not any(is_model(alias, shown) for alias in known for shown in models):
            raise InputError(f"compare: {table} has {', '.join(known)}; the run has {', '.join(models)}")
        for kind in NEEDS[table]:
            if kind not in kinds:
                raise InputError(f"compare: {table} needs the analysis {kind}; got {', '.join(kinds)}")
        if table in ("maps_correlations", "maps_multi_token"):
            asked, needed = kinds["dynamic_scores"].multi_token, table == "maps_multi_token"
            if asked != needed:
                raise InputError(f"compare: {table} needs multi_token={needed}; got {asked}")


def check_comparison_size(tables: Sequence[str], model: str, shape: tuple[int, int]) -> None:
    """Raises InputError where a table names heads, and the model [layers, heads] has others than its own."""
    if "ioi_copy_scores" in tables and any(
        is_model(row.model, model) for row in published_rows("ioi_copy_scores")
    ):
        check_fits(CIRCUITS["ioi"], *shape)
    for alias, effects in load_direct_effects().items() if DIRECT_EFFECTS in tables else ():
        if is_model(alias, model) and effects.shape != shape:
            sizes = f"{effects.shape}; {model} has {shape}"
            raise InputError(f"compare: {alias} has (layers, heads) {sizes}")


# --- as a table and a figure ----------------------------------------------------------------------------

VERDICTS = ("agrees", "differs", "not measured")
TABLE_TITLES = {
    "maps_scores": "largest relation scores",
    "maps_correlations": "static and dynamic scores",
    "maps_multi_token": "the same, several tokens",
    "maps_causal": "accuracy without heads",
    "ioi_copy_scores": "copy scores",
    "ioi_direct_effects": "direct effects in IOI",
}


def comparison_table(rows: Sequence[Comparison]) -> str:
    """The rows as aligned text, a block a table and model, and how many of them agree."""
    lines = []
    for table, model in dict.fromkeys(row[:2] for row in rows):
        block = [row for row in rows if row[:2] == (table, model)]
        counts = {verdict: sum(row.verdict == verdict for row in block) for verdict in VERDICTS}
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        lines.append(f"{model} against the published {table}: {said}")
        lines.append(
            f"  {'relation':22} {'kind':11} {'measure':18} {'published':>9} {'ours':>6} {'diff.':>6}  verdict"
        )
        for row in block:
            ours, difference = (
                "-" if math.isnan(value) else format(value, spec)
                for value, spec in ((row.ours, ".2f"), (row.difference, "+.2f"))
            )
            lines.append(
                f"  {row.relation:22} {row.kind:11} {row.measure:18} {f'{row.bound}{row.published:.2f}':>9} "
                f"{ours:>6} {difference:>6}  {row.verdict} (+-{row.tolerance:.2f})"
            )
    return "\n".join(lines)


def draw_comparison(rows: Sequence[Comparison], directory: Path) -> tuple[Path, ...]:
    """Ours against published, a panel a table and model, where a row of it was measured."""
    panels: dict[str, dict[str, list[Comparison]]] = {}
    for row in rows:
        if row.verdict != "not measured":
            panel = panels.setdefault(f"{row.model}: {TABLE_TITLES[row.table]}", {})
            panel.setdefault(f"{row.measure.replace('_', ' ')}, {row.kind}", []).append(row)
    if not panels:
        return ()
    points = {
        title: {
            label: figures.Points(
                np.array([row.published for row in chosen]),
                np.array([row.ours for row in chosen]),
                np.array([row.verdict == "agrees" for row in chosen]),
            )
            for label, chosen in measures.items()
        }
        for title, measures in panels.items()
    }
    return figures.comparison_figure(points, directory / "comparison")
