"""All tables of a run, in the order in which they are printed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from headjax import figures
from headjax.analyses.base import Analysis, check_report
from headjax.circuits.tables import prediction_tables
from headjax.measures import KV_GROUPS
from headjax.report.drawing import check_marks
from headjax.report.options import Report
from headjax.report.prompt_tables import prompt_tables
from headjax.report.summary import (
    SummaryRow,
    category_rows,
    clean_cells,
    clean_table,
    score_rows,
    skipped_row,
    summary_cells,
    summary_text,
)
from headjax.report.table import Page, Table
from headjax.result import CleanRow, Result
from headjax.study import Data, Study


def report_tables(
    found: Result, analyses: Mapping[str, Analysis], studies: Sequence[Study], report: Report, seed: int
) -> list[Table | Page]:
    """What the model does without any edit, the best heads, each analysis' own, prompts, predictions."""
    made: list[Table | Page] = []
    if found.clean:
        text = "With no head touched\n" + clean_table(found.clean)
        made.append(Table("clean", CleanRow._fields, found.clean, text, clean_cells(found.clean)))
    skipped = [
        skipped_row(study.display_name, relation.id, relation.category, reason)
        for study in studies
        for relation, reason in study.skipped
    ]
    categories = category_rows(found.grids, report.threshold, report.count_suppression)
    rows = [*score_rows(found.grids, report.threshold), *skipped, *categories]
    # Printed without the rows of single templates: the correlations sum those up.
    text = summary_text([row for row in rows if not row.template], report.threshold)
    made.append(Table("summary", SummaryRow._fields, rows, text, summary_cells(rows)))
    for name, analysis in analyses.items():
        made += analysis.tables(name, found, report)
    made += prompt_tables(studies, analyses.values())
    return [*made, *prediction_tables(found, report, seed)]


def draw_report(
    found: Result, analyses: Mapping[str, Analysis], report: Report, directory: Path
) -> list[Path]:
    """The figures of all analyses, as the report asks. Raises InputError for what cannot be shown."""
    check_report(report, analyses.values(), Data(), found.grids.grids)
    check_marks(report, {grid.scores.shape for grid in found.grids if grid.part != KV_GROUPS})
    files: list[Path] = []
    with figures.look(**{name: getattr(report, name) for name in figures.Look._fields}):
        for name, analysis in analyses.items():
            files += analysis.draw(name, found, report, directory)
    return files
