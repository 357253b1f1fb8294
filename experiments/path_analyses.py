"""The analyses that patch paths: given receivers, and circuit discovery, which finds its own.

Both take the tasks of `Subject.twin_batches`, one at a time. A task that the model does not do (its logit
difference is no greater on clean prompts than on corrupted ones) has no percent: it is left out, and said.
"""

import logging
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from experiments.subject import Subject, mean_grid
from headjax.analyses.path_patching import INPUTS, PERCENT, PathPatching, Receiver, direct_effects
from headjax.analyses.path_patching import path_patching as patch
from headjax.circuits.discovery import Discovery, discover_circuit
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Remember, Track
from headjax.errors import InputError
from headjax.grid import GridSet, HeadGrid

_log = logging.getLogger(__name__)


def path_patching(subject: Subject, track: Track, remember: Remember) -> GridSet:
    """Paths to the logits, past MLPs (direct) and through them, and to the receivers, input by input."""
    receivers = tuple(map(Receiver.parse, subject.run.receivers))
    grids = []
    for task, batch, direct in _tasks(subject, track, remember):
        found = {"path_direct": direct, "path_logits": _patch(subject, batch, (), track, remember)}
        for letter, name in INPUTS.items():
            into = tuple(receiver for receiver in receivers if receiver.input == letter)
            if into:
                found[f"path_{name}"] = _patch(subject, batch, into, track, remember)
        for kind, one in found.items():
            grids.append(_grid(subject, task, kind, one.percent(), direct))
    return GridSet(tuple(grids))


def circuit_discovery(
    subject: Subject, track: Track, remember: Remember
) -> tuple[GridSet, dict[str, Discovery]]:
    """Every task's circuit, and the grids of its stages: kinds like `circuit_1_direct`, `circuit_2_query`."""
    run = subject.run
    grids, circuits = [], {}
    for task, batch, direct in _tasks(subject, track, remember):

        def measure(
            receivers: tuple[Receiver, ...], batch: PromptBatch = batch, direct: PathPatching = direct
        ) -> np.ndarray:
            return (_patch(subject, batch, receivers, track, remember) if receivers else direct).percent()

        found = discover_circuit(
            measure, n_stages=run.n_stages, share=run.top_share, min_effect=run.min_effect
        )
        circuits[task] = found
        grids += [
            _grid(subject, task, f"circuit_{stage}_{name}", percent, direct)
            for (stage, name), percent in found.effects.items()
        ]
    return GridSet(tuple(grids)), circuits


def _tasks(
    subject: Subject, track: Track, remember: Remember
) -> Iterator[tuple[str, PromptBatch, PathPatching]]:
    """(task, its prompts, its direct effects) of every task that the model does."""
    n_done = 0
    for task, batch in subject.twin_batches.items():
        direct = direct_effects(
            subject.model,
            batch,
            batch_size=subject.run.batch_size,
            track=track,
            remember=_of_task(remember, batch),
        )
        if direct.gap > 0:
            n_done += 1
            yield task, batch, direct
        else:
            _log.warning(
                "%s does not do %s, left out: logit difference %.3g on prompts, %.3g on corrupted ones",
                *(subject.display_name, task, np.mean(direct.clean), np.mean(direct.corrupted)),
            )
    if not n_done:
        raise InputError(
            f"path patching needs a task that {subject.display_name} does; it does none of "
            f"{', '.join(subject.twin_batches)}"
        )


def _patch(
    subject: Subject,
    batch: PromptBatch,
    receivers: tuple[Receiver, ...],
    track: Track,
    remember: Remember,
) -> PathPatching:
    run = subject.run
    return patch(
        subject.model,
        batch,
        receivers,
        positions=run.positions,
        batch_size=run.batch_size,
        variant_batch=run.variant_batch,
        track=track,
        remember=_of_task(remember, batch),
    )


def _of_task(remember: Remember, batch: PromptBatch) -> Remember:
    """The memory of one task: every task asks for the same names."""
    return lambda name, compute: remember(f"{batch.prompts[0].relation}, {name}", compute)


def _grid(
    subject: Subject, task: str, kind: str, percent: Float[np.ndarray, "L H B"], direct: PathPatching
) -> HeadGrid:
    return mean_grid(subject, task, kind, np.moveaxis(percent, 2, 0), PERCENT, direct.clean)
