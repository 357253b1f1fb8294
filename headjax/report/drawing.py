"""What the analyses' figures have in common: which grids are drawn, where a figure goes, maps of effects."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from headjax import figures
from headjax.circuits.published import Circuit, check_fits, find_circuit
from headjax.errors import InputError
from headjax.grid import Coordinate, GridSet, HeadGrid
from headjax.io import safe_name
from headjax.measures import KV_GROUPS
from headjax.report.options import Report
from headjax.result import Result


@runtime_checkable
class Named(Protocol):
    """An analysis, as far as its figures' names go."""

    def stem(self, name: str, what: str) -> str: ...


def read_marks(entry: str) -> tuple[str | None, Circuit]:
    """An entry of the field `circuits`: the relation it is for (None: all) and the heads to mark."""
    relation, separator, source = entry.partition("=")
    return (relation, find_circuit(source)) if separator else (None, find_circuit(entry))


def check_shown(report: Report, grids: Collection[Coordinate | HeadGrid]) -> None:
    """Raises InputError for heat maps of relations without a grid, and for marks that no map would show."""
    relations = list(dict.fromkeys(grid.relation for grid in grids))
    single = list(dict.fromkeys(grid.relation for grid in grids if grid.part != KV_GROUPS))
    for relation in report.heat_maps:
        if relation not in relations:
            rule = f"heat_maps must name relations that are scored: {', '.join(relations)}"
            raise InputError(f"{rule}; got {relation!r}")
    named = [relation for relation, _ in map(read_marks, report.circuits)]
    for entry, relation in zip(report.circuits, named, strict=True):
        if named.count(relation) > 1:
            rule = "circuits must mark each relation once, all heads of it together, as L9H6 L9H9"
            raise InputError(f"{rule}; got {' and '.join(map(repr, report.circuits))}")
        if relation not in (None, *single) or not single:
            scored = ", ".join(single) or "there are none"
            rule = f"circuits must name relations whose heads are scored: {scored}"
            raise InputError(f"{rule}; got {entry!r}")
        if relation is not None and report.heat_maps and relation not in report.heat_maps:
            rule = f"circuits must name relations that are drawn (heat_maps): {', '.join(report.heat_maps)}"
            raise InputError(f"{rule}; got {entry!r}")


def check_marks(report: Report, shapes: Collection[tuple[int, ...]]) -> None:
    """Raises InputError for marks of heads that a model of these shapes [L, H] does not have."""
    for _, circuit in map(read_marks, report.circuits):
        for shape in shapes:
            check_fits(circuit, *shape)


def chosen_grids(grids: Iterable[HeadGrid], report: Report) -> list[HeadGrid]:
    """The grids to draw: of the relations asked for, of those with marks of their own, or else the two with
    the largest number in them."""
    marked = [relation for relation, _ in map(read_marks, report.circuits) if relation is not None]
    for relations in (report.heat_maps, marked):
        if asked := [grid for relation in relations for grid in grids if grid.relation == relation]:
            return asked
    return sorted(grids, key=lambda grid: -np.nanmax(np.abs(grid.scores)))[:2]


def marks_for(grid: HeadGrid, report: Report) -> Circuit | None:
    """The heads that the report wants marked on a map of this grid; groups of heads have none."""
    if grid.part == KV_GROUPS:
        return None
    return asked_marks(grid.relation, report)


def asked_marks(relation: str, report: Report) -> Circuit | None:
    """The marks the report asks for on a relation's panels: its own before those of all."""
    marks = dict(map(read_marks, report.circuits))
    return marks.get(relation) or marks.get(None)


def figure_name(grid: HeadGrid) -> str:
    """What a figure of such grids is called: the kind, and the metric."""
    return "_".join(filter(None, (grid.measure, grid.part, grid.metric, grid.sign)))


def figure_path(directory: Path, what: str, grids: Sequence[HeadGrid]) -> Path:
    """Where a figure of these grids goes: WHAT_MODEL_RELATION_..."""
    return directory / safe_name(what, grids[0].model, *(grid.relation for grid in grids))


def draw_grids(
    analysis: Named,
    name: str,
    found: Result,
    report: Report,
    directory: Path,
    by: str,
    all_of: int = 0,
) -> list[Path]:
    """The chosen grids of every model and kind (or metric, or part, as `by` says) as heat maps.

    `all_of`: as many grids of a figure, or fewer, are not chosen from but all drawn, as they were named.
    """
    files: list[Path] = []
    grids: GridSet = found.grids.select(analysis=name)
    for model in grids.values("model"):
        for value in grids.select(model=model).values(by):
            own = grids.select(**{"model": model, by: value})
            chosen = own.grids if len(own) <= all_of else chosen_grids(own, report)
            what = value if by == "kind" else figure_name(chosen[0])
            files += draw_maps(chosen, figure_path(directory, analysis.stem(name, what), chosen), report)
    return files


def draw_maps(
    grids: Sequence[HeadGrid], path: Path, report: Report, marks: Sequence[Circuit | None] = ()
) -> tuple[Path, ...]:
    """Grids side by side: scores from 0 to 1, effects blue below 0 and red above, with the marks asked for.

    `marks`: others than those the report asks for.
    """
    marks = marks or [marks_for(grid, report) for grid in grids]
    panels = [
        figures.grid_panel(grid, circuit, marked=any(marks) or bool(report.circuits))
        for grid, circuit in zip(grids, marks, strict=True)
    ]
    draw = figures.score_map if grids[0].about.is_fraction else figures.signed_map
    return draw(panels, path, report.orientation, report.origin)
