"""The tables of a run: written as files and, in short, printed."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from experiments.config import RunConfig
from headjax.correlations import correlation_latex, correlation_table, correlations, save_correlations
from headjax.curve_tables import CurveRow, curve_rows, summary_row
from headjax.curve_tables import SummaryRow as CurveSummary
from headjax.grid import GridSet
from headjax.io import atomic_write, read_table
from headjax.summary import SummaryRow, category_rows, save_summary, score_rows, summary_table
from headjax.sweeps.ablation_curves import RelationCurves
from headjax.sweeps.gradient_attribution import agreement

AGREEMENT_COLUMNS = ("model", "relation", "metric", "spearman", "n_top", "missed")


def write_tables(
    grids: GridSet, skipped: list[SummaryRow], config: RunConfig
) -> tuple[list[Path], list[str]]:
    """Writes summary.csv and, where their analyses ran, correlations and gradient agreement.

    Returns the files and the texts to print.
    """
    out = Path(config.out)
    categories = category_rows(grids, config.threshold, config.count_suppression)
    rows = [*score_rows(grids, config.threshold), *skipped, *categories]
    save_summary(rows, out / "summary.csv")
    # Printed without the rows of single templates: the correlations sum those up.
    files, texts = [out / "summary.csv"], [summary_table([row for row in rows if not row.template])]

    correlated = correlations(grids)
    if correlated:
        save_correlations(correlated, out / "correlations.csv")
        files.append(out / "correlations.csv")
        texts.append(
            "Static against dynamic scores, over heads and templates\n" + correlation_table(correlated)
        )
        if config.latex:
            with atomic_write(out / "correlations.tex") as file:
                file.write(correlation_latex(correlated))
            files.append(out / "correlations.tex")

    agreements = gradient_agreements(grids)
    if agreements:
        with atomic_write(out / "gradient_agreement.csv") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(AGREEMENT_COLUMNS)
            writer.writerows(agreements)
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
        with atomic_write(file) as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([_cell(value) for value in row] for row in rows)
    return files, ["Accuracy as a relation's heads are removed\n" + curves_table(summary)]


def read_curves(path: Path) -> list[tuple[str, CurveRow]]:
    """(model, point) of every row that `write_curves` wrote to ablation_curves.csv."""
    columns = {"model": str, **CurveRow.__annotations__}
    return [(model, CurveRow(*row)) for model, *row in read_table(path, columns)]


def curves_table(rows: Sequence[tuple]) -> str:
    """The summaries as aligned text; a dash where nothing was measured."""
    lines = [
        f"{'relation':22} {'heads':>5} {'base':>5} {'removed':>8} {'random':>14} {'controls':>22}  0 from"
    ]
    for _, *fields in rows:
        row = CurveSummary(*fields)
        random = _spread(row.random, row.random_std)
        controls = f"{_number(row.control_base)} to {_spread(row.control_removed, row.control_std)}"
        lines.append(
            f"{row.relation:22} {row.n_heads:5} {row.base:5.2f} {row.removed:8.2f} {random:>14} "
            f"{controls if row.controls else '-':>22}  {'-' if row.first_zero is None else row.first_zero}"
        )
    return "\n".join(lines)


def _spread(mean: float, deviation: float) -> str:
    return "-" if math.isnan(mean) else f"{mean:.2f} +- {deviation:.2f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


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
