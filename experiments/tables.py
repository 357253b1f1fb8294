"""The tables of a run: written as files and, in short, printed."""

import math
from collections.abc import Sequence
from pathlib import Path

from experiments.config import RunConfig
from headjax.analyses.ablation_curves import RelationCurves
from headjax.analyses.gradient_attribution import agreement
from headjax.grid import GridSet
from headjax.io import atomic_write, read_table
from headjax.report.correlations import correlation_latex, correlation_table, correlations, save_correlations
from headjax.report.curve_tables import CurveRow, curve_rows, summary_row
from headjax.report.curve_tables import SummaryRow as CurveSummary
from headjax.report.summary import (
    CleanRow,
    SummaryRow,
    aligned,
    category_rows,
    clean_table,
    save_rows,
    save_summary,
    score_rows,
    summary_table,
)

N_FAULTS = 3  # that are printed of the reasons why a relation has no control
AGREEMENT_COLUMNS = ("model", "relation", "metric", "spearman", "n_top", "missed")


def write_tables(
    grids: GridSet, clean: Sequence[CleanRow], skipped: list[SummaryRow], config: RunConfig
) -> tuple[list[Path], list[str]]:
    """Writes summary.csv and, where their analyses ran, clean.csv, correlations and gradient agreement.

    Returns the files and the texts to print.
    """
    out = Path(config.out)
    files, texts = [], []
    if clean:
        files.append(out / "clean.csv")
        save_rows(CleanRow._fields, clean, files[-1])
        texts.append("With no head touched\n" + clean_table(clean))
    categories = category_rows(grids, config.threshold, config.count_suppression)
    rows = [*score_rows(grids, config.threshold), *skipped, *categories]
    save_summary(rows, out / "summary.csv")
    # Printed without the rows of single templates: the correlations sum those up.
    files.append(out / "summary.csv")
    texts.append(summary_table([row for row in rows if not row.template]))

    correlated = correlations(grids)
    if correlated:
        save_correlations(correlated, out / "correlations.csv")
        files.append(out / "correlations.csv")
        texts.append(
            "Static against dynamic scores: r over heads and templates, p over heads\n"
            + correlation_table(correlated)
        )
        if config.latex:
            with atomic_write(out / "correlations.tex") as file:
                file.write(correlation_latex(correlated))
            files.append(out / "correlations.tex")

    agreements = gradient_agreements(grids)
    if agreements:
        save_rows(AGREEMENT_COLUMNS, agreements, out / "gradient_agreement.csv")
        files.append(out / "gradient_agreement.csv")
        texts.append("Gradient against exact ablation\n" + agreement_table(agreements))
    return files, texts


def write_curves(
    curves: Sequence[tuple[str, RelationCurves]], config: RunConfig
) -> tuple[list[Path], list[str]]:
    """Writes ablation_curves.csv and its summary, of (model, curves); the files and the text to print."""
    out = Path(config.out)
    points = [(model, *row) for model, one in curves for row in curve_rows(one, config.seed)]
    summary = [(model, *summary_row(one)) for model, one in curves]
    files = [out / "ablation_curves.csv", out / "ablation_summary.csv"]
    for file, columns, rows in (
        (files[0], ("model", *CurveRow._fields), points),
        (files[1], ("model", *CurveSummary._fields), summary),
    ):
        save_rows(columns, [[_cell(value) for value in row] for row in rows], file)
    return files, ["Accuracy as a relation's heads are removed\n" + curves_table(summary)]


def read_curves(path: Path) -> list[tuple[str, CurveRow]]:
    """(model, point) of every row that `write_curves` wrote to ablation_curves.csv."""
    columns = {"model": str, **CurveRow.__annotations__}
    return [(model, CurveRow(*row)) for model, *row in read_table(path, columns)]


def curves_table(rows: Sequence[tuple]) -> str:
    """The summaries as aligned text; a dash where nothing was measured, and why there are no controls."""
    lines = [("relation", "prompts", "heads", "base", "removed", "random", "controls", "0 from")]
    without = []
    for _, *fields in rows:
        row = CurveSummary(*fields)
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


def _cell(value: object) -> object:
    """A tuple as words in one cell."""
    return " ".join(value) if isinstance(value, tuple) else value


def gradient_agreements(grids: GridSet) -> list[tuple]:
    """Rows of AGREEMENT_COLUMNS: every gradient grid that stands beside the exact one of its metric."""
    rows = []
    for estimate in grids:
        if not estimate.kind.startswith("gradient_"):
            continue
        exact = grids.select(
            model=estimate.model, relation=estimate.relation, kind=f"ablation_{estimate.metric}"
        )
        for grid in exact:
            if grid.scores.shape == estimate.scores.shape:  # not so where key/value groups were ablated
                found = agreement(grid.scores, estimate.scores)
                missed = " ".join(map(str, found.missed))
                rows.append(
                    (
                        *(estimate.model, estimate.relation, estimate.metric),
                        found.spearman,
                        found.n_top,
                        missed,
                    )
                )
    return rows


def agreement_table(rows: list[tuple]) -> str:
    """The rows as aligned text: rank correlation, and which of the exact top heads the gradient misses."""
    lines = [f"{'relation':22} {'metric':10} {'Spearman':>8}  misses of the exact top"]
    for _, relation, metric, spearman, n_top, missed in rows:
        count = len(missed.split())
        lines.append(
            f"{relation:22} {metric:10} {spearman:8.2f}  {count} of {n_top}{': ' * bool(count)}{missed}"
        )
    return "\n".join(lines)
