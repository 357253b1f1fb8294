"""Head ablation: what the answer loses when one head, or one group of heads, is replaced.

A head is the slice of z *before* the output projection. Zeroing a slice of what comes after it is no head
ablation, because W_O mixes all heads into every coordinate.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from headjax import costs
from headjax.analyses.base import Ablating, Coordinates, Measured, effect_grids
from headjax.config import ModelConfig
from headjax.costs import Cost, Machine
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import (
    Remember,
    Track,
    Work,
    check_prompts,
    compute_anew,
    prompt_chunks,
    untracked,
)
from headjax.engine.metrics import METRICS, Metrics, next_token_metrics
from headjax.engine.replacement import ABLATIONS, find_donors, find_replacement, relation_groups
from headjax.engine.variant_step import Positions
from headjax.engine.variants import ENOUGH_ROWS, run_variants
from headjax.engine.visits import visit_layers
from headjax.errors import InputError
from headjax.grid import KV_GROUPS, Coordinate, GridSet, HeadGrid
from headjax.kernels import dispatch
from headjax.model import Block, Transformer
from headjax.model.edits import apply_edit
from headjax.options import option
from headjax.parameters.layered import LayeredModel
from headjax.report.drawing import draw_effects
from headjax.report.options import Report
from headjax.result import Result
from headjax.study import Data, Study


class AblationMetrics(NamedTuple):
    """Metrics of the clean run, each [B], and with each unit ablated alone, each [L U B].

    The units U are the query heads H, or the key/value heads G with all query heads that read them. All
    are variants of one program, the clean run too: a unit without an effect has the same bits.
    """

    clean: Metrics
    ablated: Metrics

    def effect(self, metric: str) -> Float[np.ndarray, "L U B"]:
        """Clean minus ablated of each prompt: positive where the unit helps.

        Raises InputError for an unknown metric and for "logit_diff" of prompts without distractors.
        """
        if metric not in METRICS:
            raise InputError(f"field 'metrics' must be of {', '.join(METRICS)}; got {metric!r}")
        clean, ablated = getattr(self.clean, metric), getattr(self.ablated, metric)
        if clean is None:
            raise InputError("metric 'logit_diff' needs prompts with distractors; these have none")
        return clean - ablated


def head_ablation(
    model: Transformer | LayeredModel,
    prompts: PromptBatch,
    *,
    ablation: str = "zero",
    positions: Positions = "last",
    mean_over: str = "prompts",
    kv_groups: bool = False,
    batch_size: int = 64,
    variant_batch: int | None = None,
    seed: int = 0,
    track: Track = untracked,
    remember: Remember = compute_anew,
) -> AblationMetrics:
    """Ablates every head of the model alone, on every prompt.

    Args:
      ablation, mean_over, seed: what replaces a head's output; see `find_replacement`.
      positions: where it is replaced.
      kv_groups: ablate all query heads of a key/value head together.
      batch_size: prompts that are run at once; variant_batch: heads, None chooses by the free memory.

    A model that is read layer by layer is ablated at the last position; means over prompts and resampled
    outputs are found as its layers pass.

    Raises InputError as `check_prompts`, `find_replacement` and `run_variants` do, and for what cannot be
    done layer by layer.
    """
    how = {"positions": positions, "mean_over": mean_over}
    if isinstance(model, LayeredModel):
        options = {"ablation": ablation, "kv_groups": kv_groups, "batch_size": batch_size, "seed": seed}
        return _layer_by_layer(model, prompts, **options, **how, variant_batch=variant_batch, track=track)
    prompts = check_prompts(prompts, model.config, **how, batch_size=batch_size, variant_batch=variant_batch)
    L, n_units = model.config.n_layers, model.config.n_kv_heads if kv_groups else model.config.n_heads
    replacement = find_replacement(
        model,
        prompts,
        ablation,
        **how,
        batch_size=batch_size,
        seed=seed,
    )
    runs = run_variants(
        model,
        prompts,
        single_gains(model.config, n_units),
        replacement,
        positions=positions,
        batch_size=batch_size,
        variant_batch=variant_batch,
        track=track,
        remember=remember,
        label=f"head ablation ({ablation}, {positions})",
    )
    grid = jax.tree.map(lambda values: values.reshape(L, n_units, -1), runs.edited)
    return AblationMetrics(runs.clean, grid)


def single_gains(config: ModelConfig, n_units: int) -> Float[np.ndarray, "M L H"]:
    """One variant for each layer and unit, in that order: H / n_units neighbouring heads at gain 0."""
    units = np.repeat(np.eye(n_units, dtype=np.float32), config.n_heads // n_units, axis=1)
    layers = np.eye(config.n_layers, dtype=np.float32)
    ablated = layers[:, None, :, None] * units[None, :, None, :]
    return 1 - ablated.reshape(-1, config.n_layers, config.n_heads)


def _layer_by_layer(
    model: LayeredModel,
    prompts: PromptBatch,
    *,
    ablation: str,
    positions: Positions,
    mean_over: str,
    kv_groups: bool,
    batch_size: int,
    variant_batch: int | None,
    seed: int,
    track: Track,
) -> AblationMetrics:
    """Ablates every head alone at the last position, on every prompt.

    The replacements are found in the same pass: a mean over z of this layer, or the z of donors that run
    beside the prompts.

    Raises InputError as `check_prompts` does, for other positions, for a mean over tokens and for logits that
    are NaN.
    """
    how = {"positions": positions, "mean_over": mean_over, "variant_batch": variant_batch}
    prompts = check_prompts(prompts, model.config, **how, batch_size=batch_size)
    if positions != "last" or (ablation == "mean" and mean_over != "prompts"):
        raise InputError(
            f"a streamed ablation is of the last position, means over prompts; got {positions}, {mean_over}"
        )
    if ablation not in ABLATIONS:
        raise InputError(f"field 'ablation' must be one of {', '.join(ABLATIONS)}; got {ablation!r}")
    config, n_prompts = model.config, len(prompts.tokens)
    n_units = config.n_kv_heads if kv_groups else config.n_heads
    gain = single_gains(config, n_units)
    gain = np.concatenate([np.ones_like(gain[:1]), gain])
    chunks = prompt_chunks(n_prompts, batch_size)
    B, M = len(chunks[0]), 1 + config.n_layers * n_units
    size = min(M, variant_batch or 1 + n_units * -(-ENOUGH_ROWS[jax.default_backend()] // (n_units * B)))

    runs = [(prompts.tokens[rows], prompts.mask[rows]) for rows in chunks]
    if ablation == "resample":
        donors = find_donors(prompts, positions, seed)
        runs = [
            tuple(np.concatenate([own, other[rows]]) for own, other in zip(run, donors, strict=True))
            for run, rows in zip(runs, chunks, strict=True)
        ]
    label, fronts = f"streamed head ablation ({ablation})", []
    for layer, block, clean in visit_layers(model, runs, track, label):
        if ablation == "mean":
            clean = list(clean)
            means = _relation_means(np.concatenate([run.z for run in clean])[:n_prompts], prompts)
        for i, run in enumerate(clean):
            own = jax.tree.map(lambda values: values[:B], run)
            replaced = {
                "zero": lambda: np.zeros((1, 1, 1), np.float32),
                "mean": lambda i=i: means[chunks[i]],  # noqa: B023
                "resample": lambda run=run: run.z[B:],
            }[ablation]()
            if layer == 0:
                fronts.append(np.repeat(np.asarray(own.before)[None], M, axis=0))
            front, new = fronts[i], slice(1 + layer * n_units, 1 + (layer + 1) * n_units)
            front[new] = front[0]
            step = partial(_pass_layer, block, own.k, own.v, prompts.mask[chunks[i]], replaced)
            for rows, moved in _by_size(step, new.stop, size, front, gain[:, layer]):
                front[rows] = moved
        del block, clean, run, own
    columns = []
    for rows, front in zip(chunks, fronts, strict=True):
        answers = (prompts.answers[rows], None if prompts.distractors is None else prompts.distractors[rows])
        parts = _by_size(lambda x: _metrics(model.outer, x, *answers), M, size, front)  # noqa: B023
        columns.append(jax.tree.map(lambda *parts: np.concatenate(parts), *(part for _, part in parts)))
    metrics = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1)[:, :n_prompts], *columns)
    bad = np.isnan(metrics.logprob).any(axis=0)
    if bad.any():
        raise InputError(f"logits must be numbers; {prompts.prompts[int(bad.argmax())].name} gives NaN")
    ablated = jax.tree.map(lambda values: values[1:].reshape(config.n_layers, n_units, -1), metrics)
    return AblationMetrics(jax.tree.map(lambda values: values[0], metrics), ablated)


_metrics = dispatch.jit(next_token_metrics)


def _relation_means(z: Float[np.ndarray, "B H K"], prompts: PromptBatch) -> Float[np.ndarray, "B H K"]:
    """For every prompt the mean over those of its relation."""
    group = relation_groups(prompts)
    means = [z[group == one].mean(axis=0, dtype=np.float64) for one in range(group.max() + 1)]
    return np.stack(means).astype(np.float32)[group]


def _by_size(step: Callable[..., Any], n: int, size: int, *arrays: np.ndarray) -> Iterator[tuple[slice, Any]]:
    """``step`` of the first n rows of the arrays, always `size` of them at a time: equal rows stay equal."""
    for first in range(0, n, size):
        stop = min(first + size, n)
        rows = np.resize(np.arange(first, stop), size)  # the last ones are filled up
        values = jax.device_get(step(*(array[rows] for array in arrays)))
        yield slice(first, stop), jax.tree.map(lambda values: values[: stop - first], values)  # noqa: B023


@dispatch.jit
def _pass_layer(
    block: Block,
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    valid: Bool[Array, "B S"],
    replacement: Float[Array, "#B #H #K"],
    x: Float[Array, "M B D"],
    gain: Float[Array, "M H"],
) -> Float[Array, "M B D"]:
    """One decode step of every variant through a layer, where those whose gain is not 1 edit it."""
    # [M B] stands where a full run has [B S].
    positions = jnp.broadcast_to(valid.sum(axis=1)[None] - 1, x.shape[:2])
    q, k_new, v_new = block.project(x, positions)
    z = block.attn.decode(q, k, v, k_new, v_new, valid)
    return block.finish(x, apply_edit(z, gain[:, None], replacement[None]))


@dataclass(frozen=True, kw_only=True)
class HeadAblation(Measured, Ablating):
    """What the answer loses without each head: clean minus ablated, of every metric.

    Attributes:
      positions: where heads are ablated, "last" or "all".
      kv_groups: ablate the query heads of a key/value head together.
    """

    kind = "head_ablation"
    streams = True
    positions: str = option("last", choices=("last", "all"))
    kv_groups: bool = False

    def reads(self, data: Data) -> frozenset[str]:
        return super().reads(data) | {"compute.stream", "compute.variant_batch"}

    def stream_fault(self) -> str:
        if self.positions != "last":
            return f"needs positions 'last'; got {self.positions!r}"
        return "needs means over 'prompts'; got mean_over='tokens'" if self.mean_over == "tokens" else ""

    def check(self, study: Study, before: Coordinates) -> set[Coordinate]:
        self.check_donors(study, self.positions)
        metrics = self.metrics_of(study.task_batch(self.prompts), METRICS, "ablation")
        return {
            Coordinate("ablation", task, self._part(study), metric=metric)
            for metric in metrics
            for task in self.tasks(study)
        }

    def _part(self, study: Study) -> str:
        return KV_GROUPS if self.kv_groups and study.config.n_kv_heads < study.config.n_heads else ""

    def cost(self, study: Study, machine: Machine) -> Cost:
        c, batch = study.config, study.task_batch(self.prompts)
        start = np.repeat(np.arange(c.n_layers), c.n_kv_heads if self.kv_groups else c.n_heads)
        sweep = costs.ablated_variants(study, machine, batch.tokens, start, self.positions)
        replaced = costs.chunked(study, batch.tokens, machine.copies)
        return sweep + costs.replacement(c, replaced, self.replacement, self.positions, self.mean_over)

    def run(self, study: Study, work: Work) -> Result:
        batch = study.task_batch(self.prompts)
        result = head_ablation(
            study.sweep_model(),
            batch,
            **self.how,
            positions=self.positions,
            kv_groups=self.kv_groups,
            batch_size=study.compute.batch_size,
            variant_batch=study.compute.variant_batch,
            seed=study.seed,
            track=work.track,
            remember=work.remember,
        )
        where = {"replacement": self.replacement, "positions": self.positions, "part": self._part(study)}
        grids: list[HeadGrid] = []
        for metric in self.metrics_of(batch, METRICS, "ablation"):
            effects, clean = np.moveaxis(result.effect(metric), 2, 0), getattr(result.clean, metric)
            grids += effect_grids(study, batch, "ablation", effects, metric, clean, **where)
        return Result(GridSet(tuple(grids)))

    def draw(self, name: str, found: Result, report: Report, directory: Path) -> list[Path]:
        return draw_effects(self, name, found, report, directory)
