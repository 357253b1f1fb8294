"""The circuits of a run: found ones as tables and marks, what they share, how well scores predict them."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from headjax import zoo
from headjax.axes import Head
from headjax.circuits.discovery import FoundHead, found_circuit, overlap
from headjax.circuits.prediction import ALL_ROLES, Prediction, predictions
from headjax.circuits.published import CIRCUITS, Circuit, circuit_text
from headjax.grid import GridSet, HeadGrid
from headjax.io import safe_name
from headjax.report.drawing import asked_marks, read_marks
from headjax.report.options import Report
from headjax.report.table import Page, Table
from headjax.result import Result
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


def circuit_tables(rows: Sequence[CircuitRow], grids: GridSet, prefix: str = "") -> list[Table | Page]:
    """circuits.csv, the circuits as marks in circuits/, and circuit_overlap.csv where two share a model.

    `grids` tell how many heads each model has; `prefix` comes before the names.
    """
    lines = [
        f"{model}, {task}: {role}: "
        + ", ".join(f"{row.head} {row.effect:+.1f} +- {row.stderr:.1f} %" for row in of_role)
        for (model, task, role), of_role in itertools.groupby(rows, key=lambda row: row[:3])
    ]
    text = "Circuits found by path patching\n" + "\n".join(lines or ["none"])
    found = heads_by_task(rows)
    made: list[Table | Page] = [Table(f"{prefix}circuits", CircuitRow._fields, rows, text)]
    for (model, task), heads in found.items():
        name = f"circuits/{prefix}{safe_name(model, task)}.json"
        made.append(Page(name, circuit_text(found_circuit(heads, model, task))))
    n_heads = {model: grids.select(model=model).grids[0].scores.size for model in grids.values("model")}
    if shared := overlap_rows(found, n_heads):
        lines = [
            f"{row[0]}: {row[1]} ({row[3]} heads) and {row[2]} ({row[4]}): {row[5]} shared, "
            f"p = {p_text(row[7])}{': ' * bool(row[8])}{row[8]}"
            for row in shared
        ]
        text = "Heads that two circuits share\n" + "\n".join(lines)
        made.append(Table(f"{prefix}circuit_overlap", OVERLAP_COLUMNS, shared, text))
    return made


def heads_by_task(rows: Iterable[CircuitRow]) -> Found:
    """The heads of every circuit again."""
    found: dict[tuple[str, str], list[FoundHead]] = {}
    for row in rows:
        one = FoundHead(Head.parse(row.head), row.stage, row.input, row.effect, row.stderr, row.n_prompts)
        found.setdefault((row.model, row.task), []).append(one)
    return found


def found_circuits(found: Result) -> Found:
    """The circuits that a run found, of whatever analysis."""
    rows = (row for table in found.tables.values() for row in table)
    return heads_by_task(row for row in rows if isinstance(row, CircuitRow))


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


def known_circuits(model: str, report: Report, found: Found) -> dict[str, Circuit]:
    """All circuits of a model by name: published ones, the report's marks, and those found."""
    published = {
        name: circuit for name, circuit in CIRCUITS.items() if zoo.display_name(circuit.model) == model
    }
    given = {entry: read_marks(entry)[1] for entry in report.circuits}
    given = {entry: circuit for entry, circuit in given.items() if circuit not in published.values()}
    own = {
        f"found: {task}": found_circuit(heads, model, task)
        for (of_model, task), heads in found.items()
        if of_model == model
    }
    return published | given | own


def prediction_tables(found: Result, report: Report, seed: int) -> list[Table]:
    """circuit_prediction.csv, where there are circuits and scores."""
    circuits = found_circuits(found)
    rows = [
        row
        for model in found.grids.values("model")
        for row in predictions(found.grids, model, known_circuits(model, report, circuits), seed)
    ]
    text = "How well scores predict circuits, the best three each\n"
    name = "circuit_prediction"
    return [Table(name, Prediction._fields, rows, text + prediction_table(rows))] if rows else []


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


def circuit_for(model: str, relation: str, report: Report, found: Result) -> Circuit | None:
    """The marks on one relation's panel: the report's or, without any for it, those of a circuit found."""
    if (asked := asked_marks(relation, report)) is not None:
        return asked
    marks = (
        found_circuit(heads, model, task)
        for (of_model, task), heads in found_circuits(found).items()
        if of_model == model and RELATION_OF_TASK.get(task, task) == relation
    )
    return next(marks, None)


def with_prediction(circuit: Circuit, grid: HeadGrid) -> Circuit:
    """The circuit with a legend that says how well the panel's scores predict its heads."""
    (row, *_) = predictions(GridSet((grid,)), grid.model, {"": circuit})
    measured = f"AUC {row.auc:.2f} (p = {row.p_value:.2g}), precision at {row.n_heads}: {row.precision:.2f}"
    return replace(circuit, legend=f"{circuit.legend}; {measured}")
