"""Figures of the pages about models: PNG alone, small enough to be committed."""

from collections.abc import Iterable
from pathlib import Path

from experiments.pages.agreement import MEASURES, Row
from experiments.pages.agreement_text import SHOWN
from headjax import figures


def only_png(files: Iterable[Path]) -> Path:
    """Of a figure's files the PNG; the others are removed."""
    (kept,) = [file for file in files if file.suffix == ".png" or file.unlink()]
    return kept


def draw_measures(row: Row, path: Path) -> Path:
    """Heat maps of SHOWN, side by side."""
    panels = [figures.Panel(row.scores[name], MEASURES[name].title, MEASURES[name].unit) for name in SHOWN]
    return only_png(figures.signed_map(panels, path.with_suffix("")))
