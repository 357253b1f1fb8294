"""Figures of a run that are drawn from its tables: the comparison with published numbers, universality."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.compare import Comparison
from experiments.config import RunConfig
from headjax import figures

TABLE_TITLES = {
    "maps_scores": "largest relation scores",
    "maps_correlations": "static and dynamic scores",
    "maps_multi_token": "the same, several tokens",
    "maps_causal": "accuracy without heads",
    "ioi_copy_scores": "copy scores",
    "ioi_direct_effects": "direct effects in IOI",
}


def draw_universality(tables: Mapping[str, Sequence[NamedTuple]], config: RunConfig) -> list[Path]:
    """The tables of the analysis `universality`."""
    files = []
    for name, figure in (
        ("category_shares", figures.category_share_figure),
        ("relations_per_head", figures.relations_per_head_figure),
        ("group_similarity", figures.group_similarity_figure),
    ):
        if rows := tables.get(f"{name}.csv"):
            files += figure(rows, Path(config.out) / "figures" / name)
    return files


def draw_comparison(rows: Sequence[Comparison], config: RunConfig) -> tuple[Path, ...]:
    """Ours against published, a panel a table and model, where a row of it was measured."""
    panels: dict[str, dict[str, list[Comparison]]] = {}
    for row in rows:
        if row.verdict != "not measured":
            panel = panels.setdefault(f"{row.model}: {TABLE_TITLES[row.table]}", {})
            panel.setdefault(f"{row.measure.replace('_', ' ')}, {row.kind}", []).append(row)
    if not panels:
        return ()
    points = {
        title: {
            label: figures.Points(
                np.array([row.published for row in chosen]),
                np.array([row.ours for row in chosen]),
                np.array([row.verdict == "agrees" for row in chosen]),
            )
            for label, chosen in measures.items()
        }
        for title, measures in panels.items()
    }
    return figures.comparison_figure(points, Path(config.out) / "figures" / "comparison")
