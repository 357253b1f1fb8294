"""Universality as an analysis: what models have in common, read off relation scores that ran before.

The tables are defined in headjax/universality.py.
"""

from dataclasses import dataclass
from pathlib import Path

from headjax import figures
from headjax.analyses.base import CATEGORIES, LOOKS, Analysis, Coordinates, kinds_of
from headjax.costs import NOTHING, Cost, Machine
from headjax.engine.batches import Work
from headjax.errors import InputError
from headjax.grid import Coordinate
from headjax.report.options import Report
from headjax.report.table import Page, Table
from headjax.result import Result
from headjax.study import Data, Study
from headjax.universality import (
    CategoryShare,
    GroupSimilarity,
    RelationCount,
    category_shares,
    group_similarity,
    relation_counts,
)


@dataclass(frozen=True, kw_only=True)
class Universality(Analysis):
    """Where categories are, how many relations a head implements, and heads of one key/value head."""

    kind = "universality"
    reads_tables = {"group_similarity": GroupSimilarity}  # noqa: RUF012

    def reads(self, data: Data) -> frozenset[str]:
        return LOOKS | CATEGORIES | {"report.threshold", "report.count_suppression"}

    def needs_model(self, study: Study) -> bool:
        return False

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        if "static" not in kinds_of(before):
            found = ", ".join(sorted(kinds_of(before))) or "none"
            raise InputError(f"universality needs relation_scores before it; grids there are: {found}")
        return set()

    def cost(self, study: Study, machine: Machine) -> Cost:
        return NOTHING

    def run(self, study: Study, work: Work) -> Result:
        own = work.earlier.grids.select(model=study.display_name)
        rows = group_similarity(own, {study.display_name: study.config.n_kv_heads})
        return Result(tables={"group_similarity": tuple(rows)})

    def tables(self, name: str, found: Result, report: Report) -> list[Table | Page]:
        """The share of every layer's heads with each category, relations a head implements, groups."""
        asked = (report.threshold, report.count_suppression)
        shares, counts = category_shares(found.grids, *asked), relation_counts(found.grids, *asked)
        groups = found.tables.get(self.stem(name, "group_similarity"), ())
        lines = ["Relations a head implements: share of the heads"]
        for model in dict.fromkeys(row.model for row in counts):
            of_model = [f"{row.n_relations} {row.share:.0%}" for row in counts if row.model == model]
            lines.append(f"  {model}: " + ", ".join(of_model))
        made = [
            Table(self.stem(name, "category_shares"), CategoryShare._fields, shares),
            Table(self.stem(name, "relations_per_head"), RelationCount._fields, counts, "\n".join(lines)),
            Table(self.stem(name, "group_similarity"), GroupSimilarity._fields, groups),
        ]
        return [table for table in made if table.rows]

    def draw(self, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
        drawers = {
            self.stem(name, "category_shares"): figures.category_share_figure,
            self.stem(name, "relations_per_head"): figures.relations_per_head_figure,
            self.stem(name, "group_similarity"): figures.group_similarity_figure,
        }
        files = []
        for table in self.tables(name, found, report):
            files += drawers[table.name](table.rows, directory / table.name)
        return files
