"""What the analyses' figures have in common: which grids are drawn, where a figure goes, maps of effects."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from headjax import figures
from headjax.grid import GridSet, HeadGrid
from headjax.io import safe_name
from headjax.report.options import Report
from headjax.result import Result


@runtime_checkable
class Named(Protocol):
    """An analysis, as far as its figures' names go."""

    def stem(self, name: str, what: str) -> str: ...


def chosen_grids(grids: Iterable[HeadGrid], report: Report) -> list[HeadGrid]:
    """The grids to draw: of the relations asked for, or else the two with the largest number in them."""
    asked = [grid for relation in report.heat_maps for grid in grids if grid.relation == relation]
    return asked or sorted(grids, key=lambda grid: -np.nanmax(np.abs(grid.scores)))[:2]


def figure_name(grid: HeadGrid) -> str:
    """What a figure of such grids is called: the kind, and the metric."""
    return "_".join(filter(None, (grid.measure, grid.part, grid.metric, grid.sign)))


def figure_path(directory: Path, what: str, grids: Sequence[HeadGrid]) -> Path:
    """Where a figure of these grids goes: WHAT_MODEL_RELATION_..."""
    return directory / safe_name(what, grids[0].model, *(grid.relation for grid in grids))


def draw_effects(analysis: Named, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
    """Attributions or ablation effects of the chosen relations, one figure a model and metric."""
    files, grids = [], found.grids.select(analysis=name)
    for model in grids.values("model"):
        for metric in grids.select(model=model).values("metric"):
            chosen = chosen_grids(grids.select(model=model, metric=metric), report)
            what = figure_name(chosen[0])
            path = figure_path(directory, analysis.stem(name, what), chosen)
            files += signed_map(chosen, what.replace("_", " ").capitalize(), "", path, report)
    return files


def signed_map(
    grids: Sequence[HeadGrid], label: str, of_what: str, path: Path, report: Report
) -> tuple[Path, ...]:
    """Maps of effects side by side, blue below 0 and red above."""
    panels = [figures.Panel(grid.scores, f"{grid.model}: {grid.name}{of_what}", label) for grid in grids]
    return figures.signed_map(panels, path, report.orientation, report.origin)


def draw_grids(analysis: Named, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
    """The chosen grids of every model and kind as heat maps: scores from 0 to 1, effects of either sign."""
    files: list[Path] = []
    grids: GridSet = found.grids.select(analysis=name)
    for model in grids.values("model"):
        for kind in grids.select(model=model).values("kind"):
            chosen = chosen_grids(grids.select(model=model, kind=kind), report)
            path = figure_path(directory, analysis.stem(name, kind), chosen)
            label = kind.replace("_", " ").capitalize()
            if chosen[0].about.is_share:
                panels = [figures.Panel(grid.scores, f"{grid.model}: {grid.name}", label) for grid in chosen]
                files += figures.score_map(panels, path, report.orientation, report.origin)
            else:
                files += signed_map(chosen, label, "", path, report)
    return files
