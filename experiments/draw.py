"""The figures of a run, drawn while it runs or again from its scores.npz, without the model.

python -m experiments.draw out/demo
"""

import json
from collections.abc import Sequence
from pathlib import Path

from experiments.config import RunConfig, config_from_json
from headjax import figures
from headjax.circuits import Circuit, find_circuit
from headjax.errors import InputError, run_main
from headjax.grid import GridSet, HeadGrid, load_npz


def draw_figures(grids: GridSet, config: RunConfig) -> list[Path]:
    """Draws what there are grids for, into `config.out`/figures; returns the files written."""
    directory = Path(config.out) / "figures"
    files: list[Path] = []
    static = grids.select(kind=("static", "static_suppression"))
    if len(static):
        files += figures.category_map(
            static,
            directory / "category_map",
            threshold=config.threshold,
            count_suppression=config.count_suppression,
            origin=config.origin,
        )
    for model in static.values("model"):
        panels = heat_map_panels(static.select(model=model, kind="static"), config)
        circuits = [circuit_for(grid.relation, config) for grid in panels]
        name = "_".join(["relations", file_name(model), *(grid.relation for grid in panels)])
        files += figures.relation_heat_map(
            panels,
            directory / name,
            circuits=circuits if config.circuits else None,
            orientation=config.orientation,
            origin=config.origin,
        )
    return files


def heat_map_panels(grids: GridSet, config: RunConfig) -> list[HeadGrid]:
    """The grids of one model to draw: the relations asked for, or the two with the highest score."""
    if not config.heat_maps:
        return sorted(grids, key=lambda grid: -grid.scores.max())[:2]
    by_relation = {grid.relation: grid for grid in grids}
    return [by_relation[relation] for relation in config.heat_maps if relation in by_relation]


def read_marks(entry: str) -> tuple[str | None, Circuit]:
    """An entry of the field `circuits`: the relation it is for (None: all) and the heads to mark."""
    relation, separator, source = entry.partition("=")
    return (relation, find_circuit(source)) if separator else (None, find_circuit(entry))


def circuit_for(relation: str, config: RunConfig) -> Circuit | None:
    """The marks on one relation's panel; None where the config has none for it."""
    marks = [read_marks(entry) for entry in config.circuits]
    return next((circuit for named, circuit in marks if named in (None, relation)), None)


def file_name(model: str) -> str:
    """A model's display name as part of a file name."""
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in model)


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise InputError(f"one argument is needed, the directory of a finished run; got {len(argv) - 1}")
    directory = Path(argv[1])
    try:
        described = json.loads((directory / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{directory} must be the directory of a finished run; {error}") from error
    config = config_from_json(described["config"] | {"out": str(directory)})
    print("wrote", *draw_figures(load_npz(directory / "scores.npz"), config), sep="\n  ")


if __name__ == "__main__":
    run_main(main)
