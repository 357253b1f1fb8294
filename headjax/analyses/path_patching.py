"""Path patching: how much of the answer comes from a head along chosen paths, and along no other.

A head (the sender) is given the output z that it has on a corrupted prompt, and only some of its readers may
notice: the logits, or the query, key or value input of chosen heads (the receivers). Paths from sender to
reader run through the residual stream and, where said, through MLPs, never through another head; what comes
after the receivers is computed as usual. Wang et al. 2022, "Interpretability in the Wild", section 3 and
appendix B; the metric, and the choice whether MLPs are held fixed, are Merullo et al. 2024's, "Circuit
Component Reuse Across Tasks in Transformer Language Models".

    direct_effects                 to the logits, with MLPs as in the clean run: no forward pass a head
    path_patching                  to the logits, through MLPs too (the "direct effect" of Wang et al.)
    path_patching(receivers=...)   to the receivers, through MLPs too

Where a norm follows attention, what a head writes depends on the others: it is what attention writes with the
sender's output exchanged, the others' as they are and the norm computed anew, on every path.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float, Int

from headjax import costs
from headjax.analyses.base import Asked, Coordinates
from headjax.axes import Head
from headjax.config import ModelConfig
from headjax.costs import Cost, Machine
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track, Work, check_prompts, compute_anew, map_prompts, untracked
from headjax.engine.layered_variants import Given, Steps, sweep_layers
from headjax.engine.mesh import WHOLE, model_mesh, spread
from headjax.engine.path_step import (
    LAYERED_DIRECT,
    LAYERED_LOGITS,
    LAYERED_RECEIVERS,
    PREFILL_SPECS,
    STEP_SPECS,
    Entries,
    Patch,
    Reads,
    Receiving,
    direct_step,
    logits_step,
    patch_prefill,
    receivers_step,
)
from headjax.engine.variant_step import Positions
from headjax.engine.variants import Split, check_streamed, sweep_variants
from headjax.errors import InputError
from headjax.grid import Coordinate, GridSet, HeadGrid
from headjax.model import Transformer
from headjax.model.edits import check_head
from headjax.options import Words, option
from headjax.parameters.layered import LayeredModel
from headjax.report.drawing import draw_grids
from headjax.report.options import Report
from headjax.result import Result
from headjax.study import Data, Study

MOST_TASKS = 4  # that a figure has in a row
_log = logging.getLogger(__name__)

INPUTS = {"q": "query", "k": "key", "v": "value"}
PERCENT = "percent_of_gap"  # what a grid calls the metric of `PatchedPaths.percent`


class Receiver(NamedTuple):
    """One input of one head, written ``L9H6.q``."""

    head: Head
    input: Literal["q", "k", "v"]

    def __str__(self) -> str:
        return f"{self.head}.{self.input}"

    @classmethod
    def parse(cls, label: str) -> "Receiver":
        """Reads ``L9H6.q``, ``9.6.q`` or ``(9, 6).q``. Raises InputError for anything else."""
        head, _, letter = label.rpartition(".")
        if letter not in INPUTS:
            raise InputError(f"a receiver is a head and its input q, k or v, like L9H6.q; got {label!r}")
        return cls(Head.parse(head), letter)


class PatchedPaths(NamedTuple):
    """Logit differences, answer minus distractor: of both kinds of prompt and with each sender patched.

    Attributes:
      clean, corrupted: [B]; corrupted prompts are asked for the same two tokens. The clean run is that of
        a sender that changes nothing: another one without an effect gives the same bits, in every dtype.
      patched: [L H B], the clean prompt with this sender's paths patched.
    """

    clean: Float[np.ndarray, " B"]
    corrupted: Float[np.ndarray, " B"]
    patched: Float[np.ndarray, "L H B"]

    @property
    def gap(self) -> float:
        """Clean minus corrupted, over all prompts: what there is to explain."""
        return float(np.mean(self.clean - self.corrupted))

    def percent(self) -> Float[np.ndarray, "L H B"]:
        """-100 times the share of the way from clean to corrupted that a patch goes; its mean is the grid.

        -100: as if the whole prompt were corrupted; 0: the paths do not matter; above 0: patching them
        helps. Every prompt's change is divided by the gap of all, as a single prompt's may be near 0.
        Raises InputError where the gap is not above 0: such a model does not do the task.
        """
        if not self.gap > 0:
            raise InputError(
                "path patching needs prompts whose logit difference is greater than their corrupted partners'"
                f" on average; here it is greater by {self.gap:.3g}"
            )
        return 100 * (self.patched - self.clean) / np.float32(self.gap)


def direct_effects(
    model: Transformer | LayeredModel,
    prompts: PromptBatch,
    *,
    batch_size: int = 64,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> PatchedPaths:
    """Every head's effect on the logits by what it writes at the last position, and by nothing that follows.

    The head's change is added to the last residual, whose norm is computed anew; other heads and all MLPs
    stay as they are.

    Raises InputError for prompts without distractors or corrupted partners, and for logits that are not
    finite.
    """
    prompts = check_prompts(prompts, model.config, batch_size=batch_size)
    if isinstance(model, LayeredModel):
        how = {"batch_size": batch_size, "variant_batch": None, "track": track, "remember": remember}
        return _layer_by_layer(LAYERED_DIRECT, model, prompts, (), "direct effects", how)
    arrays = _arrays(prompts)
    found = map_prompts(direct_step, model, arrays, batch_size, track, "direct effects", remember)
    return _finite(prompts, *(np.moveaxis(part, 0, -1) for part in found))


def path_patching(
    model: Transformer | LayeredModel,
    prompts: PromptBatch,
    receivers: tuple[Receiver, ...] = (),
    *,
    positions: Positions = "last",
    batch_size: int = 64,
    variant_batch: int | None = None,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> PatchedPaths:
    """Every head's effect along its paths to the receivers, or with none to the logits.

    All receivers are patched together, as in the paper; a sender that none of them is above has no effect.

    Args:
      positions: where the senders' outputs are the corrupted ones; "last" or "all".
      batch_size: prompts that are run at once; variant_batch: senders, None chooses by the free memory.

    Raises InputError as `direct_effects` does, and for receivers that the model does not have or that no
    head can send to.
    """
    prompts = check_prompts(
        prompts, model.config, positions=positions, batch_size=batch_size, variant_batch=variant_batch
    )
    if isinstance(model, LayeredModel):
        check_streamed(positions)
        how = {"batch_size": batch_size, "variant_batch": variant_batch, "track": track, "remember": remember}
        steps = LAYERED_RECEIVERS if receivers else LAYERED_LOGITS
        return _layer_by_layer(steps, model, prompts, receivers, _paths_name(receivers), how)
    arrays, config, mesh = _arrays(prompts), model.config, model_mesh(model)
    reads, layers = _reads(receivers, config)
    top = max(layers, default=config.n_layers)
    senders = _senders(config, top)
    start = np.maximum(senders[:, 0], 0)

    def prepare(rows: Int[np.ndarray, " rows"], split: Split) -> tuple[Array, tuple[Patch, Entries]]:
        run = spread(patch_prefill, mesh, *PREFILL_SPECS[split], positions=positions)
        difference, patch = run(model, *(array[rows] for array in arrays))
        return difference, (patch, Entries(patch.clean.residual, patch.clean.residual))

    def step(
        shared: tuple[Patch, Entries], variants: Int[np.ndarray, " size"], split: Split
    ) -> tuple[Array, tuple[Patch, Entries]]:
        *specs, out = STEP_SPECS[split]
        lowest = start[variants].min()
        if not receivers:
            run = spread(logits_step, mesh, (*specs, WHOLE), out)
            values, entries = run(model, *shared, senders[variants], lowest)
        else:
            first = min(layer for layer in layers if layer > lowest)
            run = spread(receivers_step, mesh, (*specs, *[WHOLE] * 4), out)
            layers_at = (lowest, np.int32(first), np.int32(top))
            values, entries = run(model, *shared, senders[variants], reads, *layers_at)
        return values, (shared[0], entries)

    difference, (clean, *found) = sweep_variants(
        *(model, start, prompts.tokens.shape, prepare, step),
        positions=positions,
        batch_size=batch_size,
        variant_batch=variant_batch,
        streams=2,
        track=track,
        remember=remember,
        label=_paths_name(receivers),
    )
    return _patched(prompts, config, difference, clean, found)


def _layer_by_layer(
    steps: Steps,
    model: LayeredModel,
    prompts: PromptBatch,
    receivers: tuple[Receiver, ...],
    label: str,
    how: dict[str, Any],
) -> PatchedPaths:
    """The same of a model that is read layer by layer, at the last position."""
    config = model.config
    tokens, corrupted, mask, *asked = _arrays(prompts)
    reads, layers = _reads(receivers, config)
    senders = _senders(config, max(layers, default=config.n_layers))

    def in_layer(layer: int, _rows: Int[np.ndarray, " rows"]) -> Receiving | None:
        if not receivers:
            return None
        place = 0 if layer < layers[0] else 1 if layer <= layers[-1] else 2
        return Receiving(Reads(*(read[layer] for read in reads)), np.int32(place))

    def of_variants(layer: int, variants: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        return np.where(senders[variants, 0] == layer, senders[variants, 1], -1).astype(np.int32)

    start = np.maximum(senders[:, 0], 0)
    given = Given((tokens, corrupted), mask, tuple(asked), start, in_layer, of_variants)
    difference, (clean, *found) = sweep_layers(steps, model, given, label=label, **how)
    return _patched(prompts, config, difference, clean, found)


def _paths_name(receivers: tuple[Receiver, ...]) -> str:
    return f"paths to {', '.join(map(str, receivers)) or 'logits'}"


def _senders(config: ModelConfig, top: int) -> Int[np.ndarray, "M 2"]:
    """(layer, head) of all heads below a layer; the first one is none."""
    heads = [(layer, head) for layer in range(top) for head in range(config.n_heads)]
    return np.array([(-1, 0), *heads], np.int32)


def _patched(
    prompts: PromptBatch,
    config: ModelConfig,
    difference: Float[np.ndarray, " B"],
    clean: Float[np.ndarray, " B"],
    found: Sequence[Float[np.ndarray, " B"]],
) -> PatchedPaths:
    """Of the senders that there are; heads above all receivers change nothing."""
    patched = np.tile(clean, (config.n_layers * config.n_heads, 1))
    patched[: len(found)] = found
    return _finite(prompts, clean, clean + difference, patched.reshape(config.n_layers, config.n_heads, -1))


def _reads(receivers: tuple[Receiver, ...], config: ModelConfig) -> tuple[Reads, list[int]]:
    """Which heads read what from the path run, and the layers that have such a head, the lowest first.

    Raises InputError where no head is below any of them.
    """
    reads = {letter: np.zeros((config.n_layers, config.n_heads), bool) for letter in INPUTS}
    for receiver in receivers:
        reads[receiver.input][check_head(receiver.head, config)] = True
    if receivers and all(receiver.head.layer == 0 for receiver in receivers):
        rule = "a receiver must be above layer 0, so that a head can send to it"
        raise InputError(f"{rule}; got {receivers[0]}")
    return Reads(**reads), sorted({receiver.head.layer for receiver in receivers})


def _arrays(prompts: PromptBatch) -> tuple[np.ndarray, ...]:
    """What path patching takes of the prompts, if they have it."""
    for field in ("distractors", "corrupted"):
        if getattr(prompts, field) is None:
            rule = "path patching needs prompts with distractors and corrupted partners"
            raise InputError(f"{rule}; {prompts.prompts[0].name} has no {field.removesuffix('s')}")
    return prompts.tokens, prompts.corrupted, prompts.mask, prompts.answers, prompts.distractors


def _finite(
    prompts: PromptBatch,
    clean: Float[np.ndarray, " B"],
    corrupted: Float[np.ndarray, " B"],
    patched: Float[np.ndarray, "L H B"],
) -> PatchedPaths:
    finite = np.isfinite(clean) & np.isfinite(corrupted) & np.isfinite(patched).all(axis=(0, 1))
    if not finite.all():
        name = prompts.prompts[int(np.argmin(finite))].name
        raise InputError(f"logits must be finite numbers; {name} gives NaN or infinity")
    return PatchedPaths(clean, corrupted, patched)


@dataclass(frozen=True, kw_only=True)
class Patched(Asked):
    """An analysis that patches paths, of one task after the other.

    A task that the model does not do (its logit difference is no greater on clean prompts than on corrupted
    ones) has no percent: it is left out, and said.

    Attributes:
      measure: of its grids.
      positions: where the senders' outputs are the corrupted ones; "last" or "all".
    """

    measure: ClassVar[str] = "path"
    streams = True
    positions: str = option("last", choices=("last", "all"))

    def reads(self, data: Data) -> frozenset[str]:
        return super().reads(data) | {"compute.variant_batch"}

    def stream_fault(self) -> str:
        return "" if self.positions == "last" else f"needs positions 'last'; got {self.positions!r}"

    def batches(self, study: Study) -> Sequence[PromptBatch]:
        return tuple(study.twin_batches(self.prompts).values())

    def clean_sets(self, study: Study) -> Sequence[tuple[str, PromptBatch]]:
        # Prompts that are named all have partners: they are the task's own.
        name = "task" if study.prompt_sets(self.prompts) else "with_partners"
        sets = []
        for batch in self.batches(study):
            sets.append((name, batch))
            if batch.corrupted is not None:
                sets.append(("corrupted", replace(batch, tokens=batch.corrupted)))
        return sets

    def tasks(self, study: Study) -> tuple[str, ...]:
        """Those of its prompts. Raises InputError for prompts without distractors and corrupted partners."""
        for batch in self.batches(study):
            _arrays(batch)
        return tuple(study.twin_batches(self.prompts))

    def done_tasks(self, study: Study, work: Work) -> Iterator[tuple[str, PromptBatch, PatchedPaths]]:
        """(task, its prompts, its direct effects) of every task that the model does."""
        n_done, model = 0, study.sweep_model()
        how = {"batch_size": study.compute.batch_size, "track": work.track}
        for task, batch in study.twin_batches(self.prompts).items():
            direct = direct_effects(model, batch, **how, remember=_of_task(work.remember, task))
            if direct.gap > 0:
                n_done += 1
                yield task, batch, direct
            else:
                _log.warning(
                    "%s does not do %s, left out: logit difference %.3g on prompts, %.3g on corrupted ones",
                    *(study.display_name, task, np.mean(direct.clean), np.mean(direct.corrupted)),
                )
        if not n_done:
            tasks = ", ".join(study.twin_batches(self.prompts))
            raise InputError(
                f"path patching needs a task that {study.display_name} does; it does none of {tasks}"
            )

    def patch(
        self, study: Study, work: Work, batch: PromptBatch, receivers: tuple[Receiver, ...]
    ) -> PatchedPaths:
        """Every head's effect along its paths to the receivers, or with none to the logits."""
        return path_patching(
            study.sweep_model(),
            batch,
            receivers,
            positions=self.positions,
            batch_size=study.compute.batch_size,
            variant_batch=study.compute.variant_batch,
            track=work.track,
            remember=_of_task(work.remember, batch.prompts[0].relation),
        )

    def paths_cost(self, study: Study, machine: Machine, into: Sequence[tuple[str, tuple[int, ...]]]) -> Cost:
        """Of direct effects, and of paths into receivers by positions and layers, of every task."""
        cost = costs.NOTHING
        for batch in self.batches(study):
            cost += costs.mapped(study, machine, direct_step, *_arrays(batch))
            for positions, layers in into:
                cost += costs.paths(study, machine, batch, positions, layers)
        return cost

    def coordinate(self, task: str, part: str) -> Coordinate:
        """Of the grid of some paths of a task."""
        return Coordinate(self.measure, task, part, metric=PERCENT)

    def percent_grid(
        self, study: Study, task: str, part: str, percent: Float[np.ndarray, "L H B"], direct: PatchedPaths
    ) -> HeadGrid:
        """A grid of percents of the gap."""
        samples = np.moveaxis(percent, 2, 0)
        where = {"part": part, "positions": self.positions}
        return study.mean_grid(task, self.measure, samples, PERCENT, direct.clean, **where)

    def draw(self, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
        return draw_grids(self, name, found, report, directory, by="part", all_of=MOST_TASKS)


@dataclass(frozen=True, kw_only=True)
class PathPatching(Patched):
    """Paths to the logits, past MLPs (direct) and through them, and to the receivers, input by input.

    Attributes:
      receivers: inputs of heads into which paths are patched, like `L9H6.q`; those with the same letter (q, k
        or v) together.
    """

    kind = "path_patching"
    receivers: Words = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for receiver in map(Receiver.parse, self.receivers):
            if receiver.input in "kv" and self.positions == "last":
                rule = "keys and values of earlier positions change only with positions='all'"
                raise InputError(f"{rule}; got the receiver {receiver} and positions='last'")
        if self.positions == "all" and not self.receivers:
            # Paths to the logits end at the last position, and no head moves anything there.
            raise InputError("field 'positions' has an effect where there are receivers; got positions='all'")

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        receivers = tuple(map(Receiver.parse, self.receivers))
        for receiver in receivers:
            check_head(receiver.head, study.config)
        parts = ["direct", "logits"]
        for letter, name in INPUTS.items():
            into = [receiver for receiver in receivers if receiver.input == letter]
            if into and all(receiver.head.layer == 0 for receiver in into):
                rule = "a receiver must be above layer 0, so that a head can send to it"
                raise InputError(f"{rule}; got {into[0]}")
            parts += [name] * bool(into)
        return {self.coordinate(task, part) for part in parts for task in self.tasks(study)}

    def cost(self, study: Study, machine: Machine) -> Cost:
        receivers = tuple(map(Receiver.parse, self.receivers))
        by_input = [tuple(one.head.layer for one in receivers if one.input == letter) for letter in INPUTS]
        into = [(self.positions, layers) for layers in by_input if layers]
        return self.paths_cost(study, machine, [(self.positions, ()), *into])

    def run(self, study: Study, work: Work) -> Result:
        receivers = tuple(map(Receiver.parse, self.receivers))
        grids = []
        for task, batch, direct in self.done_tasks(study, work):
            found = {"direct": direct, "logits": self.patch(study, work, batch, ())}
            for letter, name in INPUTS.items():
                into = tuple(receiver for receiver in receivers if receiver.input == letter)
                if into:
                    found[name] = self.patch(study, work, batch, into)
            for part, one in found.items():
                grids.append(self.percent_grid(study, task, part, one.percent(), direct))
        return Result(GridSet(tuple(grids)))


def _of_task(remember: Remember, task: str) -> Remember:
    """The memory of one task: every task asks for the same names."""
    return lambda name, compute: remember(f"{task}, {name}", compute)
