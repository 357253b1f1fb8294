"""Circuit discovery as an analysis: path patching that finds its own receivers, back from the logits.

How a stage chooses its heads is in headjax/circuits/discovery.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import ClassVar

from headjax import figures
from headjax.analyses.base import Coordinates
from headjax.analyses.path_patching import INPUTS, Patched, PatchedPaths, Receiver
from headjax.axes import Head
from headjax.circuits.discovery import DIRECT, discover_circuit
from headjax.circuits.tables import CircuitRow, circuit_tables, heads_by_task
from headjax.costs import Cost, Machine
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Work
from headjax.errors import InputError
from headjax.grid import Coordinate, GridSet, sentence
from headjax.io import safe_name
from headjax.options import option
from headjax.report.options import Report
from headjax.report.parts import Edge, Graph, Node, Part
from headjax.report.table import Page, Table
from headjax.result import Result
from headjax.study import Study


@dataclass(frozen=True, kw_only=True)
class CircuitDiscovery(Patched):
    """Every task's circuit, and the grids of its stages: parts `1_direct`, `2_query` and so on.

    Attributes:
      n_stages: how many steps it goes back from the logits.
      top_share: it takes the heads with the largest effects at each, this share of all heads,
      min_effect: if these are two standard errors beyond so many percent.
    """

    kind: ClassVar[str] = "circuit_discovery"
    measure: ClassVar[str] = "circuit"
    reads_tables: ClassVar = {"circuits": CircuitRow}
    n_stages: int = option(2, least=1, most=100)
    top_share: float = option(0.02, least=1e-6, most=1)
    min_effect: float = option(1.0, least=0, most=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions == "all" and self.n_stages == 1:
            raise InputError("field 'positions' has an effect where n_stages is above 1; got positions='all'")

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        # Which grids later stages have depends on what the first one finds.
        return {self.coordinate(task, f"1_{DIRECT}") for task in self.tasks(study)}

    def cost(self, study: Study, machine: Machine) -> Cost:
        """At most: at every later stage receivers of all inputs, in every layer that can have one."""
        layers = tuple(range(1, study.config.n_layers))
        stages = (self.n_stages - 1) * len(INPUTS) if layers else 0
        return self.paths_cost(study, machine, [(self.positions, layers)] * stages)

    def run(self, study: Study, work: Work) -> Result:
        def measure(batch: PromptBatch, direct: PatchedPaths, receivers: tuple[Receiver, ...]):
            return (self.patch(study, work, batch, receivers) if receivers else direct).percent()

        grids, rows = [], []
        for task, batch, direct in self.done_tasks(study, work):
            found = discover_circuit(
                partial(measure, batch, direct),
                n_stages=self.n_stages,
                share=self.top_share,
                min_effect=self.min_effect,
            )
            rows += [
                CircuitRow(study.display_name, task, one.role, one.stage, one.input, str(one.head), *one[3:])
                for one in found.heads
            ]
            grids += [
                self.percent_grid(study, task, f"{stage}_{name}", percent, direct)
                for (stage, name), percent in found.effects.items()
            ]
        return Result(GridSet(tuple(grids)), {"circuits": tuple(rows)})

    def tables(self, name: str, found: Result, report: Report) -> list[Table | Page]:
        rows = found.tables.get(self.stem(name, "circuits"), ())
        return circuit_tables(rows, found.grids.select(analysis=name), self.stem(name, ""))

    def show(self, name: str, found: Result, report: Report) -> list[Part]:
        """Every circuit as a picture, then the tables."""
        rows = found.tables.get(self.stem(name, "circuits"), ())
        tasks = dict.fromkeys((row.model, row.task) for row in rows)
        graphs = [
            circuit_graph(model, task, [row for row in rows if (row.model, row.task) == (model, task)])
            for model, task in tasks
        ]
        return [*graphs, *super().show(name, found, report)]

    def draw(self, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
        """The stages' effects, and every two circuits of a model on one map."""
        files = super().draw(name, found, report, directory)
        circuits = heads_by_task(found.tables.get(self.stem(name, "circuits"), ()))
        names = {grid.relation: grid.name for grid in found.grids}
        for (model, first), (other, second) in combinations(circuits, 2):
            if model == other:
                heads = {
                    names.get(task, sentence(task)): [one.head for one in circuits[model, task]]
                    for task in (first, second)
                }
                files += figures.circuit_overlap_map(
                    heads,
                    found.grids.select(model=model).grids[0].scores.shape,
                    directory / safe_name(self.stem(name, "circuit_overlap"), model, first, second),
                    f"{model}: heads of circuits found by path patching",
                    report.orientation,
                    report.origin,
                )
        return files


def circuit_graph(model: str, task: str, rows: Sequence[CircuitRow]) -> Graph:
    """One circuit: a head of the first stage acts on the logits, one of a later stage on the heads above it
    that the stage before found, all at once."""
    nodes = tuple(Node(row.head, row.role, row.effect, row.stderr) for row in rows)
    edges = []
    for row in rows:
        layer = Head.parse(row.head).layer
        receivers = [one.head for one in rows if one.stage == row.stage - 1]
        ends = [head for head in receivers if Head.parse(head).layer > layer] if row.stage > 1 else [""]
        edges += [Edge(row.head, end, row.input, row.effect, row.stage > 1) for end in ends]
    note = (
        "Effects are percents of the gap between clean and corrupted logit difference; below 0 the head "
        "helps. A dashed path was measured into all heads that the stage before found, at once."
    )
    return Graph(f"Circuit of {task.replace('_', ' ')}, {model}", nodes, tuple(edges), note)
