"""The circuits of a run: found ones as files, what they share, and how well scores predict their heads.

`circuits.csv` holds every head found; from it the figures are drawn again without the model. `circuits/`
holds the same as marks, one JSON file a model and task, for the field `circuits` of other runs.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.config import RunConfig
from headjax import zoo
from headjax.axes import Head
from headjax.circuits.discovery import Discovery, FoundHead, found_circuit, overlap
from headjax.circuits.prediction import ALL_ROLES, Prediction, predictions
from headjax.circuits.published import CIRCUITS, Circuit, find_circuit, write_circuit
from headjax.grid import GridSet
from headjax.io import read_table, safe_name
from headjax.report.summary import save_rows
from headjax.stats import p_text

# The relation on whose panel a task's circuit is marked, where the task is not a relation itself.
RELATION_OF_TASK = {"ioi": "name_copying", "colored_objects": "copying"}
OVERLAP_COLUMNS = (
    *("model", "first", "second", "n_first", "n_second", "n_shared", "jaccard", "p_value"),
    *("shared", "only_first", "only_second"),
)

# (model, task) -> the heads found.
Found = Mapping[tuple[str, str], Sequence[FoundHead]]


class CircuitRow(NamedTuple):
    """One row of circuits.csv: a head, the stage and input it was found at, its effect in percent."""

    model: str
    task: str
    role: str
    stage: int
    input: str
    head: str
    effect: float
    stderr: float
    n_prompts: int


def write_circuits(
    circuits: Mapping[tuple[str, str], Discovery], n_heads: Mapping[str, int], config: RunConfig
) -> tuple[list[Path], list[str]]:
    """Writes circuits.csv, circuits/ and circuit_overlap.csv; the files, and the texts to print.

    n_heads: of each model, all layers together.
    """
    out = Path(config.out)
    found = {key: discovery.heads for key, discovery in circuits.items()}
    rows = [
        CircuitRow(model, task, one.role, one.stage, one.input, str(one.head), *one[3:])
        for (model, task), heads in found.items()
        for one in heads
    ]
    files = [_write(out / "circuits.csv", CircuitRow._fields, rows)]
    for (model, task), heads in found.items():
        if heads:
            files.append(out / "circuits" / f"{safe_name(model, task)}.json")
            write_circuit(found_circuit(heads, model, task), files[-1])
    lines = [
        f"{model}, {task}: {role}: "
        + ", ".join(f"{row.head} {row.effect:+.1f} +- {row.stderr:.1f} %" for row in of_role)
        for (model, task, role), of_role in itertools.groupby(rows, key=lambda row: row[:3])
    ]
    texts = ["Circuits found by path patching\n" + "\n".join(lines or ["none"])]

    shared = overlap_rows(found, n_heads)
    if shared:
        files.append(_write(out / "circuit_overlap.csv", OVERLAP_COLUMNS, shared))
        texts.append(
            "Heads that two circuits share\n"
            + "\n".join(
                f"{row[0]}: {row[1]} ({row[3]} heads) and {row[2]} ({row[4]}): {row[5]} shared, "
                f"p = {p_text(row[7])}{': ' * bool(row[8])}{row[8]}"
                for row in shared
            )
        )
    return files, texts


def read_circuits(path: Path) -> Found:
    """What `write_circuits` wrote to circuits.csv."""
    found: dict[tuple[str, str], list[FoundHead]] = {}
    columns = CircuitRow.__annotations__ | {"head": Head.parse}
    for row in (CircuitRow(*row) for row in read_table(path, columns)):
        one = FoundHead(row.head, row.stage, row.input, row.effect, row.stderr, row.n_prompts)
        found.setdefault((row.model, row.task), []).append(one)
    return found


def overlap_rows(found: Found, n_heads: Mapping[str, int]) -> list[tuple]:
    """Rows of OVERLAP_COLUMNS: every two circuits of a model."""
    rows = []
    for (model, first), (other, second) in itertools.combinations(found, 2):
        if model == other:
            one, two = ([head.head for head in found[model, task]] for task in (first, second))
            both = overlap(one, two, n_heads[model])
            counts = (len(one), len(two), len(both.shared), both.jaccard, both.p_value)
            heads = (" ".join(map(str, part)) for part in both[:3])
            rows.append((model, first, second, *counts, *heads))
    return rows


def known_circuits(model: str, config: RunConfig, found: Found) -> dict[str, Circuit]:
    """All circuits of a model by name: published ones, the config's marks, and those found."""
    published = {
        name: circuit for name, circuit in CIRCUITS.items() if zoo.display_name(circuit.model) == model
    }
    given = {entry: read_marks(entry)[1] for entry in config.circuits}
    given = {entry: circuit for entry, circuit in given.items() if circuit not in published.values()}
    own = {
        f"found: {task}": found_circuit(heads, model, task)
        for (of_model, task), heads in found.items()
        if of_model == model and heads
    }
    return published | given | own


def write_predictions(grids: GridSet, found: Found, config: RunConfig) -> tuple[list[Path], list[str]]:
    """Writes circuit_prediction.csv where there are circuits and scores; the files and the text to print."""
    rows = [
        row
        for model in grids.values("model")
        for row in predictions(grids, model, known_circuits(model, config, found), config.seed)
    ]
    if not rows:
        return [], []
    file = _write(Path(config.out) / "circuit_prediction.csv", Prediction._fields, rows)
    return [file], ["How well scores predict circuits, the best three each\n" + prediction_table(rows)]


def prediction_table(rows: Sequence[Prediction], n: int = 3) -> str:
    """The n scores with the greatest AUC for each whole circuit, as aligned text."""
    whole = [row for row in rows if row.role == ALL_ROLES and row.auc == row.auc]
    lines = [
        f"{'circuit':28} {'heads':>5}  {'relation':22} {'score':30} {'AUC':>5} {'precision':>9} {'p':>7}"
    ]
    for _, of_circuit in itertools.groupby(whole, key=lambda row: (row.model, row.circuit)):
        for row in sorted(of_circuit, key=lambda row: -row.auc)[:n]:
            lines.append(
                f"{row.circuit:28} {row.n_heads:5}  {row.relation:22} {row.kind:30} {row.auc:5.2f} "
                f"{row.precision:9.2f} {p_text(row.p_value):>7}"
            )
    return "\n".join(lines)


def read_marks(entry: str) -> tuple[str | None, Circuit]:
    """An entry of the field `circuits`: the relation it is for (None: all) and the heads to mark."""
    relation, separator, source = entry.partition("=")
    return (relation, find_circuit(source)) if separator else (None, find_circuit(entry))


def circuit_for(model: str, relation: str, config: RunConfig, found: Found) -> Circuit | None:
    """The marks on one relation's panel: the config's or, without any for it, those of a circuit found."""
    marks = [circuit for named, circuit in map(read_marks, config.circuits) if named in (None, relation)]
    marks += [
        found_circuit(heads, model, task)
        for (of_model, task), heads in found.items()
        if of_model == model and heads and RELATION_OF_TASK.get(task, task) == relation
    ]
    return next(iter(marks), None)


def _write(path: Path, columns: Sequence[str], rows: Sequence[tuple]) -> Path:
    save_rows(columns, rows, path)
    return path
