"""Ablation curves as an analysis: what is left of a task as its heads are removed, best first.

The sweep and its definitions are in headjax/engine/curves.py.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from headjax import costs, figures
from headjax.analyses.base import LOOKS, MAPS, Ablating, Coordinates, sweep_options
from headjax.costs import Cost, Machine
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Work
from headjax.engine.curves import HEAD_CAPS, MOST_HEADS, ablation_curves
from headjax.errors import InputError, shown
from headjax.grid import Coordinate, GridSet, sentence
from headjax.io import safe_name
from headjax.measures import KV_GROUPS
from headjax.options import option
from headjax.report.curve_tables import CurveRow, CurveSummary, curve_rows, curves_table, summary_row
from headjax.report.options import Report
from headjax.report.parts import Chart, Curves, Line, Part, rows_of
from headjax.report.table import Page, Table
from headjax.result import Result
from headjax.study import Data, Study
from headjax.wording import REPLACEMENTS, measured

N_CONTROLS = 5  # the default of `engine.curves.ablation_curves`


@dataclass(frozen=True, kw_only=True)
class AblationCurves(Ablating):
    """What is left of every relation's accuracy as its heads are removed, ranked by grids made before.

    Attributes:
      rank_by: the kind of grid that ranks heads (the mean over templates; of several metrics the last), or,
        where several analyses give that kind, NAME:KIND.
      max_heads: how many heads are removed at most; None: by the model's number of heads.
      n_random_draws: how often as many other heads are drawn and removed.
    """

    kind = "ablation_curves"
    streams = True
    reads_tables = {"ablation_curves": CurveRow}  # noqa: RUF012
    rank_by: str = "static"
    max_heads: int | None = option(None, least=1)
    n_random_draws: int = option(5, least=1, most=10_000)

    def reads(self, data: Data) -> frozenset[str]:
        read = super().reads(data) | {"compute.variant_batch", "report.heat_maps"}
        return read - (MAPS - LOOKS - {"report.heat_maps"})

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        self.check_donors(study, "last")
        spelled = _rank_names(before)
        ranked = spelled.get(self.rank_by)
        if not ranked:
            plain = {name for name in spelled if ":" not in name}
            names = plain | {name for name in spelled if name.rpartition(":")[2] not in plain}
            raise InputError(
                f"ablation_curves rank heads by grids of an analysis that runs before them; rank_by is "
                f"{shown(self.rank_by)}, grids there are: {', '.join(sorted(names)) or 'none'}"
            )
        for task in self.tasks(study):
            if task not in ranked:
                found = f"{self.rank_by!r} has {', '.join(sorted(ranked))}"
                rule = "ablation_curves need a grid of every task that ranks heads"
                raise InputError(f"{rule}; {found}, not {task}")
        return set()

    def cost(self, study: Study, machine: Machine) -> Cost:
        """At most: as many heads as may be removed, the first of them in layer 0, all controls found."""
        c, batch = study.config, study.task_batch(self.prompts)
        rows = Counter(prompt.relation for prompt in batch.prompts)
        n_heads = c.n_layers * c.n_heads
        cap = self.max_heads or next((cap for n, cap in HEAD_CAPS if n_heads < n), MOST_HEADS)
        own = min(cap, n_heads) * (1 + self.n_random_draws)
        cost = costs.replacement(study, machine, batch, "last", **self.how)
        # The relation's own curve with its random draws, then its heads on other relations' prompts.
        for n_variants in filter(None, (own, min(cap, n_heads) * min(N_CONTROLS, len(rows) - 1))):
            how = ("last", tuple(rows.values()), 1 + own)
            cost += costs.variants(study, machine, batch, np.zeros(n_variants, int), *how)
        return cost

    def run(self, study: Study, work: Work) -> Result:
        batch: PromptBatch = study.task_batch(self.prompts)
        curves = ablation_curves(
            study.sweep_model(),
            batch,
            rankings(self._ranking(work.earlier.grids.select(model=study.display_name))),
            **self.how,
            max_heads=self.max_heads,
            n_random_draws=self.n_random_draws,
            variant_batch=study.compute.variant_batch,
            seed=study.seed,
            **sweep_options(study, work),
        )
        model, seed = study.display_name, study.seed
        rows = tuple(row for one in curves for row in curve_rows(one, model, seed))
        summary = tuple(summary_row(one, model) for one in curves)
        return Result(tables={"ablation_curves": rows, "ablation_summary": summary})

    def _ranking(self, grids: GridSet) -> GridSet:
        name, _, kind = self.rank_by.rpartition(":")
        return grids.select(kind=kind, analysis=name) if name else grids.select(kind=kind)

    def tables(self, name: str, found: Result, report: Report) -> list[Table | Page]:
        rows, summary = (
            found.tables.get(self.stem(name, what), ()) for what in ("ablation_curves", "ablation_summary")
        )
        text = "Accuracy as a relation's heads are removed\n"
        return [
            Table(self.stem(name, "ablation_curves"), CurveRow._fields, rows),
            Table(
                self.stem(name, "ablation_summary"),
                CurveSummary._fields,
                summary,
                text + curves_table(summary),
            ),
        ]

    def show(self, name: str, found: Result, report: Report) -> list[Part]:
        """Every relation's curves, and in a line each where they end."""
        of_relation = defaultdict(list)
        for row in found.tables.get(self.stem(name, "ablation_curves"), ()):
            of_relation[row.model, row.relation].append(row)
        several = len({model for model, _ in of_relation}) > 1
        names = {grid.relation: grid.name for grid in found.grids}
        charts = tuple(
            Chart(
                f"{model}: " * several + names.get(relation, sentence(relation)),
                tuple(
                    _line(list(line), names)
                    for _, line in groupby(rows, lambda row: (row.curve, row.prompts))
                ),
            )
            for (model, relation), rows in of_relation.items()
        )
        _, summary = self.tables(name, found, report)
        note = "What is left as heads are removed, best first; bands are 95 % limits."
        curves = Curves("Ablation curves", "heads removed", "accuracy", charts, note)
        return [*([curves] if charts else []), rows_of(summary)]

    def draw(self, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
        """Of every relation, or those asked for: accuracy against heads removed."""
        points = defaultdict(list)
        for row in found.tables.get(self.stem(name, "ablation_curves"), ()):
            if row.relation in report.heat_maps or not report.heat_maps:
                points[row.model, row.relation].append(row)
        files = []
        names = {grid.relation: grid.name for grid in found.grids}
        how = f"{REPLACEMENTS[self.replacement]} at the last position"
        ranking = self._ranking(found.grids).grids[:1]
        ranked = "".join(f", ranked by {measured(grid).lower()}" for grid in ranking)
        removed = f"Heads ablated{ranked} ({how})"
        for (model, relation), rows in points.items():
            lines = [list(line) for _, line in groupby(rows, key=lambda row: (row.curve, row.prompts))]
            of_kind = {
                kind: [_curve(line, names) for line in lines if line[0].curve == kind]
                for kind in ("relation", "random", "control")
            }
            if len(of_kind["relation"]) != 1:
                n = len(of_kind["relation"])
                raise InputError(f"{model}: a relation has one curve of its own; {relation} has {n}")
            files += figures.ablation_curves_figure(
                directory / safe_name(self.stem(name, "ablation_curves"), model, relation),
                f"{model}: {names.get(relation, sentence(relation))}",
                *of_kind["relation"],
                random=next(iter(of_kind["random"]), None),
                controls=of_kind["control"],
                removed=removed,
            )
        return files


def _rank_names(before: Coordinates) -> dict[str, set[str]]:
    """What `rank_by` may say -> the relations whose heads that ranks: NAME:KIND, and KIND while one analysis
    alone gives such grids. Effects of groups of heads rank no single ones."""
    by_kind: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, own in before.items():
        for grid in own:
            if grid.part != KV_GROUPS:
                by_kind[grid.kind][name].add(grid.relation)
    spelled = {}
    for kind, givers in by_kind.items():
        spelled |= {f"{name}:{kind}": relations for name, relations in givers.items()}
        if len(givers) == 1:
            (spelled[kind],) = givers.values()
    return spelled


NAMES = {"relation": "Relation's heads removed", "random": "Random other heads removed"}


def _named(line: list[CurveRow], names: Mapping[str, str]) -> str:
    control = line[0].prompts
    return NAMES.get(line[0].curve, f"Control: {names.get(control, sentence(control))}")


def _line(line: list[CurveRow], names: Mapping[str, str]) -> Line:
    """A curve of the page."""
    role = {"relation": "main", "random": "reference"}.get(line[0].curve, "control")
    columns = zip(
        *((row.n_heads, row.accuracy, row.accuracy_low, row.accuracy_high) for row in line), strict=True
    )
    return Line(_named(line, names), role, *map(tuple, columns))


def _curve(line: list[CurveRow], names: Mapping[str, str]) -> Any:
    return figures.Curve(
        _named(line, names),
        *(np.array([getattr(row, field) for row in line]) for field in ("n_heads", "accuracy")),
        low=np.array([row.accuracy_low for row in line]),
        high=np.array([row.accuracy_high for row in line]),
    )


def rankings(grids: GridSet) -> dict[str, Float[np.ndarray, "L H"]]:
    """Relation -> what ranks its heads, of the grids of one kind: their mean over templates; of several
    metrics the last ("logit_diff")."""
    by_relation = {relation: grids.select(relation=relation) for relation in grids.values("relation")}
    return {
        relation: np.mean([grid.scores for grid in own.select(metric=own.values("metric")[-1])], axis=0)
        for relation, own in by_relation.items()
    }
