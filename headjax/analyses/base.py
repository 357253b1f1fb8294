"""What an analysis is: options, and what a run asks of it. One file each, and one line in `registry`.

    @dataclass(frozen=True, kw_only=True)
    class MyScore(Analysis):
        kind = "my_score"
        top: int = option(5, least=1)

        def check(self, study, before): return {Coordinate("my_score", p.relation.id) for p in study.pairs}
        def run(self, study, work): return Result(GridSet((study.grid(...), ...)))

Everything else has a default: it reads no prompts, cannot be planned, gives no tables but its scores, and is
drawn as a heat map; the page shows its grids and its tables.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from headjax.costs import Cost, Machine
from headjax.data.hit_rule import COPYING
from headjax.data.prompts import Prompt, PromptBatch
from headjax.engine.batches import Track, Work, untracked
from headjax.engine.clean_run import clean_metrics, clean_row
from headjax.engine.metrics import METRICS, Metrics
from headjax.engine.replacement import ABLATIONS, find_donors
from headjax.errors import InputError, shown
from headjax.grid import Coordinate, GridSet, HeadGrid
from headjax.options import Options, Words, option
from headjax.report.drawing import check_shown, draw_grids
from headjax.report.options import Report
from headjax.report.parts import Part, rows_of
from headjax.report.table import Page, Table
from headjax.result import CleanRow, Result
from headjax.study import GENERATORS, Compute, Data, Prompts, Study

# What grids there will be: name of an analysis -> its grids' coordinates.
Coordinates = Mapping[str, set[Coordinate]]

# Fields of a run that analyses read, by their dotted names (`Analysis.reads`).
RELATIONS = frozenset({"data.relations", "data.relations_dir", "data.min_pairs"})
HITS = frozenset({"data.top_k", "data.top_k_copying", "report.threshold"})
WEIGHTS = frozenset({"compute.precision"})
DEVICES = frozenset({"compute.implementation", "compute.mesh", "compute.parallel"})
FORWARD = WEIGHTS | DEVICES | {"data.bos", "data.n_prompts", "compute.dtype", "compute.batch_size"}
# Of every figure, and of heat maps.
LOOKS = frozenset(f"report.{name}" for name in ("formats", "size", "width", "transparent", "title"))
MAPS = LOOKS | {
    f"report.{name}"
    for name in ("circuits", "heat_maps", "orientation", "origin", "colors", "scale", "annotate")
}
CATEGORIES = frozenset({"report.palette"})  # of figures that show categories


@dataclass(frozen=True, kw_only=True)
class Analysis(Options):
    """Something to find out about every head of a model. Its fields are its options.

    Attributes:
      kind: what configs and results call it, unless it is given another name.
      streams: whether it can read a model layer by layer.
      reads_tables: its tables that figures are drawn from: name -> type of the rows.
      drawn_by: what has a figure of its own, "kind" or another field of grids.
    """

    kind: ClassVar[str]
    streams: ClassVar[bool] = False
    reads_tables: ClassVar[Mapping[str, type]] = {}
    drawn_by: ClassVar[str] = "kind"

    # --- before any work ------------------------------------------------------------------------------

    def reads(self, data: Data) -> frozenset[str]:
        """Which fields of a run have an effect on what it gives or how that is shown."""
        return RELATIONS | WEIGHTS | MAPS

    def stream_fault(self) -> str:
        """Why it cannot read a model layer by layer; "" where it can."""
        return "" if self.streams else f"{self.kind} reads whole models"

    def needs_model(self, study: Study) -> bool:
        """Whether it loads the whole model, which is converted for that."""
        return not study.compute.stream

    def batches(self, study: Study) -> Sequence[PromptBatch]:
        """The prompts that it reads."""
        return ()

    def clean_sets(self, study: Study) -> Sequence[tuple[str, PromptBatch]]:
        """The prompts that effects are measured on, and which they are (`CleanRow.prompts`)."""
        return ()

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        """Raises InputError for what this model cannot be asked, given what grids there will be by then.

        Gives the coordinates of its own. Reads no weights and uses no device.
        """
        return set()

    def cost(self, study: Study, machine: Machine) -> Cost | None:
        """What it costs on a machine; None where nobody has worked it out."""
        return None

    # --- at work --------------------------------------------------------------------------------------

    def run(self, study: Study, work: Work) -> Result:
        """What it finds in one model."""
        raise NotImplementedError

    # --- afterwards -----------------------------------------------------------------------------------

    def tables(self, name: str, found: Result, report: Report) -> list[Table | Page]:
        """What to write and print; `found` is of all models and analyses, `name` this one's in it."""
        return []

    def draw(self, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
        """Draws it into the directory, unless told otherwise as heat maps of its grids; gives the files."""
        return draw_grids(self, name, found, report, directory, self.drawn_by)

    def show(self, name: str, found: Result, report: Report) -> list[Part]:
        """What the page shows of it beside its grids, unless told otherwise its tables."""
        return [rows_of(table) for table in self.tables(name, found, report) if isinstance(table, Table)]

    def stem(self, name: str, what: str) -> str:
        """A file's or table's name: as it is where the analysis goes by its kind, else under its own name."""
        return what if name == self.kind else f"{name}_{what}"


@dataclass(frozen=True, kw_only=True)
class Asked(Analysis):
    """An analysis of prompts that ask for an answer.

    Attributes:
      prompts: in place of the run's own (`Data.prompts`): files, `ioi`, `colored_objects`, ids of relations.
    """

    prompts: Prompts = option(None, some=True)

    def reads(self, data: Data) -> frozenset[str]:
        named = data.prompts if self.prompts is None else self.prompts
        names = (named,) if isinstance(named, str) else named or ()
        read = FORWARD | MAPS | (frozenset() if self.prompts else {"data.prompts"})
        read |= {"compute.stream"} if self.streams else frozenset()
        asks_relations = not names or any(
            isinstance(name, str) and name not in GENERATORS and not Path(name).is_file() for name in names
        )
        return read | RELATIONS | {"data.templates"} if asks_relations else read

    def batches(self, study: Study) -> Sequence[PromptBatch]:
        return (study.task_batch(self.prompts),)

    def clean_sets(self, study: Study) -> Sequence[tuple[str, PromptBatch]]:
        return (("task", study.task_batch(self.prompts)),)

    def tasks(self, study: Study) -> tuple[str, ...]:
        """The relations, or tasks, that its prompts belong to."""
        return tuple(rows_by_relation(study.task_batch(self.prompts)))

    def effects_on(
        self, study: Study, measure: str, metrics: Iterable[str], part: str = ""
    ) -> set[Coordinate]:
        """The coordinates of a measure's effects on every task, by every metric."""
        return {
            Coordinate(measure, task, part, metric=metric) for metric in metrics for task in self.tasks(study)
        }


@dataclass(frozen=True, kw_only=True)
class Ablating(Asked):
    """An analysis that puts something in the place of heads' outputs.

    Attributes:
      replacement: what replaces a head's output: "zero", "mean" or "resample".
      mean_over: of means: "prompts" (each position its own mean) or "tokens" (one mean).
    """

    replacement: str = option("zero", choices=ABLATIONS)
    mean_over: str = option("prompts", choices=("prompts", "tokens"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean_over != "prompts" and self.replacement != "mean":
            rule = "field 'mean_over' has an effect where replacement is 'mean'"
            raise InputError(f"{rule}; got mean_over={self.mean_over!r} and replacement={self.replacement!r}")

    def check_donors(self, study: Study, positions: str) -> None:
        """Whether every prompt has somebody to be resampled from."""
        if self.replacement == "resample":
            find_donors(study.task_batch(self.prompts), positions, study.seed)

    @property
    def how(self) -> dict[str, str]:
        """The options as sweeps take them."""
        return {"ablation": self.replacement, "mean_over": self.mean_over}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Which effects on the answer are measured.

    Attributes:
      metrics: of "logprob", "logit_diff" and "accuracy"; empty means all that the prompts allow.
    """

    metrics: Words = option((), choices=METRICS)

    def metrics_of(self, batch: PromptBatch, possible: Sequence[str], what: str) -> tuple[str, ...]:
        """The metrics asked for, or all that the prompts allow. Raises InputError where none is left."""
        has_distractors = batch.distractors is not None
        if not self.metrics:
            return tuple(name for name in possible if name != "logit_diff" or has_distractors)
        if "logit_diff" in self.metrics and not has_distractors:
            raise InputError("metric 'logit_diff' needs prompts with distractors; these have none")
        chosen = tuple(name for name in self.metrics if name in possible)
        if not chosen:
            rule = f"{what}s are measured by {' or '.join(possible)}"
            raise InputError(f"{rule}; metrics are {', '.join(self.metrics)}: nothing would be measured")
        return chosen


def sweep_options(study: Study, work: Work) -> dict[str, Any]:
    """What sweeps over prompts take from a run."""
    return {"batch_size": study.compute.batch_size, "track": work.track, "remember": work.remember}


def rows_by_relation(batch: PromptBatch) -> dict[str, Int[np.ndarray, " rows"]]:
    """Relation -> the rows of its prompts, in the order of the prompts."""
    relations = np.array([prompt.relation for prompt in batch.prompts])
    return {name: np.flatnonzero(relations == name) for name in dict.fromkeys(relations.tolist())}


def effect_grids(
    study: Study,
    batch: PromptBatch,
    measure: str,
    effects: Float[np.ndarray, "B L H"],
    metric: str,
    clean: Float[np.ndarray, " B"],
    **coordinates: str,
) -> Iterable[HeadGrid]:
    """One grid a relation from values of every prompt, and the clean metric beside them."""
    for relation, rows in rows_by_relation(batch).items():
        yield study.mean_grid(relation, measure, effects[rows], metric, clean[rows], **coordinates)


def check_report(
    report: Report, analyses: Iterable[Analysis], data: Data, grids: Sequence[Coordinate | HeadGrid]
) -> None:
    """Raises InputError for what figures are asked to show and cannot, of the fields that have an effect."""
    read: frozenset[str] = frozenset().union(*(analysis.reads(data) for analysis in analyses))
    idle = {name: () for name in ("heat_maps", "circuits") if f"report.{name}" not in read}
    if grids:
        check_shown(replace(report, **idle), grids)


def hit_fields(data: Data) -> frozenset[str]:
    """Those of HITS that can have an effect: k of copying has none where no relation is copying."""
    ids = {relation if isinstance(relation, str) else relation.id for relation in data.relations}
    return HITS if not ids or ids & set(COPYING) else HITS - {"data.top_k_copying"}


def check_top_k(study: Study) -> None:
    """Raises InputError where every token of the vocabulary would be a hit."""
    for pairs in study.pairs:
        if (k := study.rule.k(pairs.relation.id)) >= study.config.vocab_size:
            rule = f"{pairs.relation.id}: a hit is within the first k tokens of more"
            raise InputError(f"{rule}; k is {k}, the model has {study.config.vocab_size} tokens")


# --- running them ---------------------------------------------------------------------------------------


def name_analyses(given: Iterable[Any]) -> dict[str, Analysis]:
    """Name -> analysis, of analyses, kinds of them, and mappings from names of their own.

    Raises InputError for a name given twice, for a kind that there is not, and for what is no analysis.
    """
    # The registry imports every analysis, which import this file.
    from headjax.analyses.registry import find_analysis

    named: dict[str, Analysis] = {}
    for one in given:
        one = find_analysis(one)() if isinstance(one, str) else one
        named_here = one if isinstance(one, Mapping) else {getattr(one, "kind", "?"): one}
        for name, analysis in named_here.items():
            if not isinstance(analysis, Analysis):
                raise InputError(f"what is run must be an analysis; got {shown(analysis)}")
            if name in named:
                rule = "every analysis of a run must have a name of its own"
                raise InputError(f"{rule} (mean=HeadAblation(...)); twice: {shown(name)}")
            named[name] = analysis
    if not named:
        raise InputError("field 'analyses' must name at least one; got none")
    return named


def check_stream(analyses: Mapping[str, Analysis], compute: Compute) -> None:
    """Raises InputError where a model is to be read layer by layer and an analysis cannot do that."""
    for name, analysis in analyses.items() if compute.stream else ():
        if fault := analysis.stream_fault():
            raise InputError(f"field 'stream' is for analyses that go by layers; {name}: {fault}")


def check_analyses(study: Study, analyses: Mapping[str, Analysis], before: Coordinates) -> Coordinates:
    """All coordinates that there will be. Raises InputError for what this model cannot be asked."""
    check_stream(analyses, study.compute)
    for name, analysis in analyses.items():
        before = {**before, name: analysis.check(study, before)}
    return before


def kinds_of(before: Coordinates) -> set[str]:
    """The kinds of grids that there will be."""
    return {grid.kind for own in before.values() for grid in own}


def run_analyses(
    study: Study, analyses: Mapping[str, Analysis], earlier: Result, track: Track = untracked
) -> Result:
    """Checks them all, then runs one after the other."""
    before: Coordinates = {
        name: {
            Coordinate(*(getattr(grid, field) for field in Coordinate._fields))
            for grid in earlier.grids.select(analysis=name, model=study.display_name)
        }
        for name in earlier.grids.values("analysis")
    }
    check_analyses(study, analyses, before)
    found = Result()
    for name, analysis in analyses.items():
        found += run_one(study, name, analysis, Work(earlier + found, track))
    return found + Result(clean=clean_rows(study, analyses, track), analyses=analyses)


def run_one(study: Study, name: str, analysis: Analysis, work: Work) -> Result:
    """What an analysis finds in one model, under its name."""
    found = analysis.run(study, work)
    grids = GridSet(tuple(replace(grid, analysis=name) for grid in found.grids))
    return replace(found, grids=grids, tables={analysis.stem(name, t): r for t, r in found.tables.items()})


def clean_batches(
    study: Study, analyses: Mapping[str, Analysis]
) -> Iterator[tuple[PromptBatch, dict[str, str]]]:
    """All prompts that effects are measured on, those that several analyses ask once; and, by relation, what
    they are called where they are new. Others of the same relation and set go by their analysis."""
    known: dict[tuple[str, str], tuple[Prompt, ...]] = {}
    for name, analysis in analyses.items():
        for which, batch in analysis.clean_sets(study):
            labels = {}
            for relation, rows in rows_by_relation(batch).items():
                own = tuple(batch.prompts[i] for i in rows)
                if known.get((relation, which)) != own:
                    labels[relation] = f"{which}, {name}" if (relation, which) in known else which
                    known[relation, labels[relation]] = own
            if labels:
                yield batch, labels


def clean_rows(study: Study, analyses: Mapping[str, Analysis], track: Track) -> tuple[CleanRow, ...]:
    """What the model does on all prompts that effects are measured on; a row for each relation and set."""
    found = []
    for batch, labels in clean_batches(study, analyses):
        how = {"batch_size": study.compute.batch_size, "track": track}
        metrics, rows = clean_metrics(study.sweep_model(), batch, **how), rows_by_relation(batch)
        for relation, label in labels.items():
            of_relation = Metrics(*(m if m is None else m[rows[relation]] for m in metrics))
            found.append(clean_row(study.display_name, relation, label, of_relation))
    return tuple(found)
