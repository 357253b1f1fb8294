"""Figures of the pages about models: PNG alone, small enough to be committed."""

from collections.abc import Iterable
from pathlib import Path

from experiments.pages.agreement import MEASURES, Row
from experiments.pages.agreement_text import SHOWN
from headjax import figures
from headjax.measures import about


def only_png(files: Iterable[Path]) -> Path:
    """Of a figure's files the PNG; the others are removed."""
    (kept,) = [file for file in files if file.suffix == ".png" or file.unlink()]
    return kept


def draw_measures(row: Row, path: Path, least_share: float = 0.0) -> Path:
    """Heat maps of SHOWN, side by side; no share below `least_share` has the full colour."""
    panels = []
    for name in SHOWN:
        one = MEASURES[name]
        least = least_share if about(one.measure).is_share else 0.0
        panel = figures.Panel(row.scores[name], one.title, one.unit, least=least, reason="the threshold")
        panels.append(panel)
    return only_png(figures.signed_map(panels, path.with_suffix("")))
