"""Score grids in a few rows: the best heads of each relation, what was skipped, heads by category count."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headjax.grid import GridSet, HeadGrid, category_count_name, category_counts, head_categories
from headjax.io import atomic_write
from headjax.sweeps.path_patching import PERCENT


class SummaryRow(NamedTuple):
    """One row of summary.csv. `heads` counts the heads above the threshold, or in that many categories."""

    model: str
    relation: str = ""
    category: str = ""
    kind: str = ""
    template: str = ""
    metric: str = ""
    n_pairs: int | str = ""
    maximum: str = ""
    heads: int | str = ""
    best_heads: str = ""
    skipped: str = ""


def skipped_row(model: str, relation: str, category: str, reason: str) -> SummaryRow:
    """The row of a relation that was left out for this model, and why."""
    return SummaryRow(model, relation, category, skipped=reason)


def score_rows(grids: GridSet, threshold: float = 0.15, k: int = 3) -> list[SummaryRow]:
    """One row per grid: its k best heads (`L16H2 0.93`), its maximum, the number of heads above threshold."""
    return [
        SummaryRow(
            grid.model,
            grid.relation,
            grid.category,
            grid.kind,
            grid.template,
            grid.metric,
            grid.n_pairs,
            str(np.max(grid.scores)),
            int(np.sum(grid.scores > np.float32(threshold))),
            ", ".join(f"{head} {grid.scores[head]:.2f}" for head, _ in _first_by_help(grid).top(k)),
        )
        for grid in grids
    ]


def _first_by_help(grid: HeadGrid) -> HeadGrid:
    """The grid as it is, or turned where heads that help are below 0."""
    return replace(grid, scores=-grid.scores) if grid.metric == PERCENT else grid


def category_rows(
    grids: GridSet, threshold: float = 0.15, count_suppression: bool = True, kind: str = "static"
) -> list[SummaryRow]:
    """One row per model and number of categories, 0 to 4: how many heads have that many."""
    return [
        SummaryRow(model, category=category_count_name(n), kind=kind, heads=heads)
        for model in grids.select(kind=kind).values("model")
        for n, heads in enumerate(
            category_counts(head_categories(grids.select(model=model), threshold, count_suppression, kind))
        )
    ]


def save_summary(rows: Sequence[SummaryRow], path: str | Path) -> None:
    """Writes summary.csv."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SummaryRow._fields)
        writer.writerows(rows)


def summary_table(rows: Sequence[SummaryRow]) -> str:
    """The rows as aligned text for a terminal; a column that is empty, or the same all along, is left out."""
    columns = []
    for field in SummaryRow._fields:
        cells = [getattr(row, field) for row in rows]
        if set(cells) == {""} or (len(set(cells)) == 1 and len(rows) > 1):
            continue
        texts = [f"{float(cell):.2f}" if field == "maximum" and cell else str(cell) for cell in cells]
        texts.insert(0, field.replace("_", " "))
        width = max(map(len, texts))
        numbers = field in ("n_pairs", "maximum", "heads")
        columns.append([text.rjust(width) if numbers else text.ljust(width) for text in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))
