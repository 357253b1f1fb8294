"""Sweeps over a model that is read layer by layer, for models larger than memory.

One pass over the layers, as a wavefront: while a layer is on the device, the clean run of all prompts passes
through it (`headjax.engine.visits`), and with it whatever the sweep wants of this layer. Of an ablation these
are the rows, one for each variant and prompt, of all variants that started below; they decode against the
keys and values that the clean run has just made, which no other layer needs. With them, in the same program,
go the layer's own variants. Between layers the rows are kept by the host. The first row's variant edits
nothing: all others are compared with it, and start where it is (see variant_step.py).

Definitions and results are those of `head_ablation`, `dynamic_scores` and `logit_attribution`, which hold the
whole model; so are the arguments.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.analyses.dynamic_scores import DynamicScores, check_sources, layer_hits, share_of_hits
from headjax.analyses.head_ablation import HeadAblation, single_gains
from headjax.analyses.logit_attribution import (
    LayerParts,
    LogitAttribution,
    asked_distractors,
    check_finite,
    layer_parts,
    read_out,
    scale_parts,
)
from headjax.data.prompts import PromptBatch
from headjax.engine.batches import Track, check_prompts, prompt_chunks, untracked
from headjax.engine.hits import Stage, screening_stages
from headjax.engine.metrics import Metrics, next_token_metrics
from headjax.engine.replacement import ABLATIONS, find_donors, relation_groups
from headjax.engine.variant_step import Positions
from headjax.engine.variants import ENOUGH_ROWS
from headjax.engine.visits import CleanLayer, visit_layers
from headjax.errors import InputError
from headjax.model import Block
from headjax.model.edits import apply_edit
from headjax.parameters.layered import LayeredModel
from kernels import dispatch
from kernels.variant_decode import variant_decode

# --- head ablation ------------------------------------------------------------------------------------


def head_ablation(
    model: LayeredModel,
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
) -> HeadAblation:
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
    return HeadAblation(jax.tree.map(lambda values: values[0], metrics), ablated)


_metrics = dispatch.jit(next_token_metrics)


def clean_metrics(
    model: LayeredModel, prompts: PromptBatch, *, batch_size: int = 64, track: Track = untracked
) -> Metrics:
    """Metrics [B] of the clean run: a pass over the layers of its own."""
    chunks, last = prompt_chunks(len(prompts.tokens), batch_size), []
    runs = [(prompts.tokens[rows], prompts.mask[rows]) for rows in chunks]
    for _, block, clean in visit_layers(model, runs, track, "streamed clean run"):
        last = [run.after for run in clean]
        del block, clean
    parts = []
    for rows, x in zip(chunks, last, strict=True):
        distractors = None if prompts.distractors is None else prompts.distractors[rows]
        parts.append(jax.device_get(_metrics(model.outer, x, prompts.answers[rows], distractors)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(prompts.tokens)], *parts)


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
    q, k_new, v_new = block.attn.project(block.ln1(x), positions)
    how = {"precision": block.config.precision, "implementation": block.config.implementation}
    z = variant_decode(q, k, v, k_new, v_new, valid=valid, **how)
    return block.finish(x, apply_edit(z, gain[:, None], replacement[None]))


# --- dynamic scores -----------------------------------------------------------------------------------


def dynamic_scores(
    model: LayeredModel,
    prompts: PromptBatch,
    top_k: Any,
    *,
    batch_size: int = 64,
    seed: int = 0,
    vocab_size: int | None = None,
    track: Track = untracked,
) -> DynamicScores:
    """Dynamic scores of every head, all four kinds from one pass over the layers.

    Raises InputError for a prompt without a source and for head outputs that are not finite.
    """
    prompts = check_prompts(prompts, model.config, batch_size=batch_size)
    top_k = check_sources(prompts, top_k)
    stages = screening_stages(model.outer.unembed_rows, prompts.answers, seed=seed, vocab_size=vocab_size)
    chunks = prompt_chunks(len(prompts.tokens), batch_size)
    runs = [(prompts.tokens[rows], prompts.mask[rows]) for rows in chunks]
    hits, finite = [], np.ones(len(prompts.tokens), bool)
    for _, block, clean in visit_layers(model, runs, track, "streamed dynamic scores"):
        of_layer = []
        for rows, run in zip(chunks, clean, strict=True):
            own = tuple(stage._replace(target=stage.target[rows]) for stage in stages)
            found, good = _head_hits(block, run, own, prompts.sources[rows], top_k[rows])
            of_layer.append(np.asarray(found))
            finite[rows] &= np.asarray(good)
        hits.append(np.concatenate(of_layer)[: len(prompts.tokens)])
        del block, clean, run
    return share_of_hits(np.stack(hits, axis=1), finite, prompts)


@dispatch.jit
def _head_hits(
    block: Block,
    run: CleanLayer,
    stages: tuple[Stage, ...],
    sources: Int[Array, " B"],
    top_k: Int[Array, " B"],
) -> tuple[Bool[Array, "B H 4"], Bool[Array, " B"]]:
    """Hits of the kinds in KINDS, and whether the numbers behind them were finite."""
    values = run.v[jnp.arange(len(sources)), sources]
    stages = tuple(stage._replace(target=jnp.tile(stage.target, 2)) for stage in stages)
    hits, finite = layer_hits(block.config, run.z, values, block.attn.W_O[...], stages, top_k)
    return hits, finite & jnp.isfinite(run.after).all(axis=1)


# --- direct logit attribution -------------------------------------------------------------------------


def logit_attribution(
    model: LayeredModel,
    prompts: PromptBatch,
    *,
    metric: str = "logit",
    batch_size: int = 64,
    track: Track = untracked,
) -> LogitAttribution:
    """Parts of the answer's logit at the last position, or of answer minus distractor ("logit_diff").

    The final norm is linear but for its scale, one number a prompt: the parts are taken as the layers pass,
    and scaled when the last one has.

    Raises InputError for "logit_diff" of prompts without distractors and for logits that are not finite.
    """
    prompts = check_prompts(prompts, model.config, batch_size=batch_size)
    distractors = asked_distractors(prompts, metric)
    chunks = prompt_chunks(len(prompts.tokens), batch_size)
    runs = [(prompts.tokens[rows], prompts.mask[rows]) for rows in chunks]
    asked = [
        _read_out(model.outer, prompts.answers[rows], None if distractors is None else distractors[rows])
        for rows in chunks
    ]
    parts, first, last = [], [], []
    for layer, block, clean in visit_layers(model, runs, track, "streamed logit attribution"):
        of_layer, last = [], []
        for one, run in zip(asked, clean, strict=True):
            if layer == 0:
                first.append(run.before)
            of_layer.append(_layer_parts(block, run, one.direction))
            last.append(run.after)
        parts.append(of_layer)
        del block, clean, run
    columns = []
    for i, one in enumerate(asked):
        of_layers = jax.tree.map(lambda *each: jnp.stack(each, axis=1), *(layer[i] for layer in parts))
        columns.append(jax.device_get(_scale_parts(model.outer, one, first[i], of_layers, last[i])))
    result = jax.tree.map(lambda *each: np.concatenate(each)[: len(prompts.tokens)], *columns)
    return check_finite(result, prompts)


_read_out, _scale_parts = dispatch.jit(read_out), dispatch.jit(scale_parts)


@dispatch.jit
def _layer_parts(block: Block, run: CleanLayer, direction: Float[Array, "B D"]) -> LayerParts:
    attention = block.attn
    weights = attention.W_O[...], attention.b_O[...]
    return layer_parts(run.z, run.before, run.after, *weights, direction, block.config.precision)
