"""The figures of a run, drawn of what it computed, or again from the files that its run.json names.

python -m experiments.draw out/demo
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, groupby
from pathlib import Path

import numpy as np

from experiments.circuits import Found, circuit_for
from experiments.config import RunConfig, config_from_json
from experiments.draw_papers import draw_comparison, draw_universality
from experiments.record import RECORD, digests, read_record, write_record
from experiments.results import Results, read_results
from headjax import figures
from headjax.analyses.path_patching import PERCENT
from headjax.circuits.discovery import DIRECT
from headjax.circuits.prediction import predictions
from headjax.circuits.published import Circuit
from headjax.errors import InputError, run_main
from headjax.grid import SUPPRESSION, GridSet, HeadGrid, measure
from headjax.io import safe_name
from headjax.report.curve_tables import CurveRow


def draw_figures(results: Results, config: RunConfig) -> list[Path]:
    """Draws what there are results for, into `config.out`/figures; returns the files written."""
    grids, found, files = results.grids, results.circuits, []
    static = grids.select(kind=("static", "static" + SUPPRESSION))
    if len(static):
        files += figures.category_map(
            static,
            Path(config.out) / "figures" / "category_map",
            threshold=config.threshold,
            count_suppression=config.count_suppression,
            origin=config.origin,
        )
    for model in grids.values("model"):
        own = grids.select(model=model)
        files += draw_relations(own.select(kind="static"), found, config)
        files += draw_dynamic(own, config)
        for kind in own.values("kind"):
            if measure(kind).helps:
                for metric in own.select(kind=kind).values("metric"):
                    files += draw_signed(own.select(kind=kind, metric=metric), config)
        files += draw_attention(own, config)
        files += draw_copy_scores(own, found, config)
    return [
        *(*files, *draw_overlaps(grids, found, config), *draw_curves(results.curves, config)),
        *draw_universality(results.universality, config),
        *draw_comparison(results.comparison, config),
    ]


def draw_relations(grids: GridSet, found: Found, config: RunConfig) -> tuple[Path, ...]:
    """Static scores of the chosen relations, with circuit heads marked."""
    chosen = chosen_grids(grids, config)
    if not chosen:
        return ()
    circuits = [circuit_for(grid.model, grid.relation, config, found) for grid in chosen]
    return figures.relation_heat_map(
        chosen,
        figure_path(config, "relations", chosen),
        circuits=[
            circuit and with_prediction(circuit, grid) for circuit, grid in zip(circuits, chosen, strict=True)
        ]
        if any(circuits) or config.circuits
        else None,
        orientation=config.orientation,
        origin=config.origin,
    )


def with_prediction(circuit: Circuit, grid: HeadGrid) -> Circuit:
    """The circuit with a legend that says how well the panel's scores predict its heads."""
    (row, *_) = predictions(GridSet((grid,)), grid.model, {"": circuit})
    measured = f"AUC {row.auc:.2f} (p = {row.p_value:.2g}), precision at {row.n_heads}: {row.precision:.2f}"
    return replace(circuit, legend=f"{circuit.legend}; {measured}")


def draw_overlaps(grids: GridSet, found: Found, config: RunConfig) -> list[Path]:
    """Every two circuits found in a model on one map: shared heads, and those of one task alone."""
    files = []
    for (model, first), (other, second) in combinations(found, 2):
        sizes = [grid.scores.shape for grid in grids.select(model=model)]
        if model == other and sizes:
            circuits = {task: [one.head for one in found[model, task]] for task in (first, second)}
            files += figures.circuit_overlap_map(
                circuits,
                sizes[0],
                Path(config.out) / "figures" / safe_name("circuit_overlap", model, first, second),
                f"{model}: components reused",
                config.orientation,
                config.origin,
            )
    return files


def draw_dynamic(grids: GridSet, config: RunConfig) -> list[Path]:
    """Of each chosen relation: the static score beside the dynamic ones, averaged over templates."""
    files = []
    for chosen in chosen_grids(grids.select(kind="static"), config):
        panels = [figures.Panel(chosen.scores, f"{chosen.name}: static", "Score")]
        for kind, title in (("dynamic_no_context", "without context"), ("dynamic_context", "with context")):
            of_templates = grids.select(kind=kind, relation=chosen.relation)
            if len(of_templates):
                mean = np.mean([grid.scores for grid in of_templates], axis=0)
                panels.append(figures.Panel(mean, f"{chosen.name}: dynamic, {title}", "Score"))
        if len(panels) > 1:
            path = figure_path(config, "dynamic", [chosen])
            files += figures.score_map(panels, path, config.orientation, config.origin)
    return files


def draw_signed(grids: GridSet, config: RunConfig) -> tuple[Path, ...]:
    """Attributions or ablation effects of the chosen relations, blue below 0 and red above."""
    kind, metric = grids.grids[0].kind, grids.grids[0].metric
    what = kind if kind.endswith(metric) else f"{kind}_{metric}"
    label, of_what = what.replace("_", " ").capitalize(), ""
    if metric == PERCENT:
        label, of_what = "Percent of the gap, clean to corrupted", f", {path_name(kind)}"
    # Tasks that the config names are all drawn.
    chosen = grids.grids if metric == PERCENT and config.prompts else chosen_grids(grids, config)
    panels = [figures.Panel(grid.scores, f"{grid.model}: {grid.name}{of_what}", label) for grid in chosen]
    path = figure_path(config, what, chosen)
    return figures.signed_map(panels, path, config.orientation, config.origin)


def path_name(kind: str) -> str:
    """What a kind of path patching is called: "direct", "to the logits", "stage 2, to query inputs"."""
    *stage, into = kind.split("_")[1:]
    to = {DIRECT: DIRECT, "logits": "to the logits"}.get(into, f"to {into} inputs")
    return ", ".join([*(f"stage {number}" for number in stage), to])


def draw_attention(grids: GridSet, config: RunConfig) -> list[Path]:
    """Previous-token, duplicate-token and induction scores side by side, for each kind of text."""
    files = []
    kinds = [kind for kind in grids.values("kind") if kind.startswith("attention_")]
    for on in grids.select(kind=kinds).values("relation"):
        chosen = [grid for grid in grids.select(kind=kinds, relation=on) if not np.isnan(grid.scores).all()]
        names = [grid.kind.removeprefix("attention_") for grid in chosen]
        panels = [
            figures.Panel(grid.scores, f"{grid.model}: {name} ({grid.name})", f"{name.capitalize()} score")
            for grid, name in zip(chosen, names, strict=True)
        ]
        path = figure_path(config, "attention", chosen[:1])
        files += figures.score_map(panels, path, config.orientation, config.origin)
    return files


def draw_copy_scores(grids: GridSet, found: Found, config: RunConfig) -> tuple[Path, ...]:
    """Copy scores, plain and negated, beside the relation scores of name copying where there are any."""
    chosen = grids.select(kind=("copy_score", "copy_score" + SUPPRESSION))
    if not len(chosen):
        return ()
    chosen += grids.select(relation="name_copying", kind=("static", "static" + SUPPRESSION))
    titles = {"copy_score": "copy", "static": "relation"}
    panels = []
    for grid in chosen:
        negated = "negated " * grid.kind.endswith(SUPPRESSION)
        what = f"{negated}{titles[grid.kind.removesuffix(SUPPRESSION)]} score"
        marks = circuit_for(grid.model, grid.relation, config, found)
        title = f"{grid.model}: {grid.name.lower()}, {what}"
        panels.append(figures.Panel(grid.scores, title, what.capitalize(), marks))
    path = figure_path(config, "copy_score", chosen.grids[:1])
    return figures.score_map(panels, path, config.orientation, config.origin)


def draw_curves(curves: Sequence[tuple[str, CurveRow]], config: RunConfig) -> list[Path]:
    """Of every relation, or those asked for: accuracy against heads removed."""
    points = defaultdict(list)
    for model, row in curves:
        if row.relation in config.heat_maps or not config.heat_maps:
            points[model, row.relation].append(row)
    files = []
    for (model, relation), rows in points.items():
        lines = [list(line) for _, line in groupby(rows, key=lambda row: (row.curve, row.prompts))]
        of_kind = {
            kind: [_curve(line) for line in lines if line[0].curve == kind]
            for kind in ("relation", "random", "control")
        }
        if len(of_kind["relation"]) != 1:
            found = len(of_kind["relation"])
            raise InputError(f"{model}: a relation has one curve of its own; {relation} has {found}")
        files += figures.ablation_curves_figure(
            Path(config.out) / "figures" / safe_name("ablation_curves", model, relation),
            f"{model}: {relation.replace('_', ' ')}",
            *of_kind["relation"],
            random=next(iter(of_kind["random"]), None),
            controls=of_kind["control"],
        )
    return files


def _curve(line: list[CurveRow]) -> figures.Curve:
    names = {"relation": "Relation's heads removed", "random": "Random other heads removed"}
    return figures.Curve(
        names.get(line[0].curve, f"Control: {line[0].prompts.replace('_', ' ')}"),
        *(np.array([getattr(row, field) for row in line]) for field in ("n_heads", "accuracy")),
        low=np.array([row.accuracy_low for row in line]),
        high=np.array([row.accuracy_high for row in line]),
    )


def chosen_grids(grids: GridSet, config: RunConfig) -> list[HeadGrid]:
    """The grids to draw: of the relations asked for, or else the two with the largest number in them."""
    asked = [grid for relation in config.heat_maps for grid in grids.select(relation=relation)]
    return asked or sorted(grids, key=lambda grid: -np.nanmax(np.abs(grid.scores)))[:2]


def figure_path(config: RunConfig, what: str, grids: Sequence[HeadGrid]) -> Path:
    """Where a figure of these grids goes: figures/WHAT_MODEL_RELATION_..."""
    name = safe_name(what, grids[0].model, *(grid.relation for grid in grids))
    return Path(config.out) / "figures" / name


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise InputError(f"one argument is needed, the directory of a finished run; got {len(argv) - 1}")
    out = Path(argv[1])
    record = read_record(out)
    config = config_from_json(record["config"] | {"out": str(out)})
    drawn = draw_figures(read_results(out, record), config)
    # Drawn by another version, they may be other files than before.
    write_record(out, record, record["files"] | digests(out, drawn))
    print("wrote", *drawn, out / RECORD, sep="\n  ")


if __name__ == "__main__":
    run_main(main)
