"""Sweeps over a model that is read layer by layer, for models larger than memory.

One pass over the layers, as a wavefront: while a layer is on the device, the clean run of all prompts passes
through it (`headjax.sweeps.visits`), and with it whatever the sweep wants of this layer. Of an ablation these
are the rows, one for each variant and prompt, of all variants that started below; they decode against the
keys and values that the clean run has just made, which no other layer needs. Then the layer's own variants
start. Between layers the rows are kept by the host.

Definitions and results are those of `head_ablation`, `dynamic_scores` and `logit_attribution`, which hold the
whole model; so are the arguments.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.edits import apply_edit
from headjax.errors import InputError
from headjax.layered import LayeredModel
from headjax.metrics import next_token_metrics
from headjax.model import Block
from headjax.prompts import PromptBatch
from headjax.scores import Stage, screening_stages
from headjax.sweeps.batches import Track, prompt_chunks, untracked
from headjax.sweeps.dynamic_scores import DynamicScores, check_sources, layer_hits, share_of_hits
from headjax.sweeps.head_ablation import HeadAblation
from headjax.sweeps.logit_attribution import (
    LayerParts,
    LogitAttribution,
    asked_distractors,
    check_finite,
    layer_parts,
    read_out,
    scale_parts,
)
from headjax.sweeps.replacement import ABLATIONS, find_donors, relation_groups
from headjax.sweeps.variant_step import Positions
from headjax.sweeps.variants import ENOUGH_ROWS
from headjax.sweeps.visits import CleanLayer, visit_layers
from kernels import dispatch
from kernels.variant_decode import variant_decode

# --- head ablation ------------------------------------------------------------------------------------


def head_ablation(
    model: LayeredModel,
    prompts: PromptBatch,
    *,
    ablation: str = "zero",
    positions: Positions = "last",
    mean_over: Literal["prompts", "tokens"] = "prompts",
    kv_groups: bool = False,
    batch_size: int = 64,
    variant_batch: int | None = None,
    seed: int = 0,
    track: Track = untracked,
) -> HeadAblation:
    """Ablates every head alone at the last position, on every prompt.

    The replacements are found in the same pass: a mean over z of this layer, or the z of donors that run
    beside the prompts.

    Raises InputError for other positions, for a mean over tokens and for logits that are NaN.
    """
    if positions != "last" or (ablation == "mean" and mean_over != "prompts"):
        raise InputError(
            f"a streamed ablation is of the last position, means over prompts; got {positions}, {mean_over}"
        )
    if ablation not in ABLATIONS:
        raise InputError(f"field 'ablation' must be one of {', '.join(ABLATIONS)}; got {ablation!r}")
    config, n_prompts = model.config, len(prompts.tokens)
    n_units = config.n_kv_heads if kv_groups else config.n_heads
    gain = 1 - np.repeat(np.eye(n_units, dtype=np.float32), config.n_heads // n_units, axis=1)
    chunks = prompt_chunks(n_prompts, batch_size)
    B, M = len(chunks[0]), config.n_layers * n_units
    size = min(M, variant_batch or n_units * -(-ENOUGH_ROWS[jax.default_backend()] // (n_units * B)))

    runs = [(prompts.tokens[rows], prompts.mask[rows]) for rows in chunks]
    if ablation == "resample":
        donors = find_donors(prompts, positions, seed)
        runs = [
            tuple(np.concatenate([own, other[rows]]) for own, other in zip(run, donors, strict=True))
            for run, rows in zip(runs, chunks, strict=True)
        ]
    label, last, fronts = f"streamed head ablation ({ablation})", [], []
    for layer, block, clean in visit_layers(model, runs, track, label):
        if ablation == "mean":
            clean = list(clean)
            means = _relation_means(np.concatenate([run.z for run in clean])[:n_prompts], prompts)
        last = []
        for i, run in enumerate(clean):
            own = jax.tree.map(lambda values: values[:B], run)
            replaced = {
                "zero": lambda: np.zeros((1, 1, 1), np.float32),
                "mean": lambda i=i: means[chunks[i]],  # noqa: B023
                "resample": lambda run=run: run.z[B:],
            }[ablation]()
            if layer == 0:
                fronts.append(np.zeros((M, *own.before.shape), own.before.dtype))
            valid = prompts.mask[chunks[i]]
            _move_front(block, own, fronts[i], layer * n_units, size, valid)
            started = slice(layer * n_units, (layer + 1) * n_units)
            fronts[i][started] = _start(block, own.before, own.z, gain, replaced)
            last.append(own.after)
        del block, clean, run, own
    columns = []
    for rows, x, front in zip(chunks, last, fronts, strict=True):
        answers = (prompts.answers[rows], None if prompts.distractors is None else prompts.distractors[rows])
        parts = [_metrics(model.outer, x[None], *answers)]
        parts += [_metrics(model.outer, front[i : i + size], *answers) for i in range(0, M, size)]
        columns.append(jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(parts)))
    metrics = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1)[:, :n_prompts], *columns)
    bad = np.isnan(metrics.logprob).any(axis=0)
    if bad.any():
        raise InputError(f"logits must be numbers; {prompts.prompts[int(bad.argmax())].name} gives NaN")
    ablated = jax.tree.map(lambda values: values[1:].reshape(config.n_layers, n_units, -1), metrics)
    return HeadAblation(jax.tree.map(lambda values: values[0], metrics), ablated)


_metrics = dispatch.jit(next_token_metrics)


def _relation_means(z: Float[np.ndarray, "B H K"], prompts: PromptBatch) -> Float[np.ndarray, "B H K"]:
    """For every prompt the mean over those of its relation."""
    group = relation_groups(prompts)
    means = [z[group == one].mean(axis=0, dtype=np.float64) for one in range(group.max() + 1)]
    return np.stack(means).astype(np.float32)[group]


def _move_front(
    block: Block,
    clean: CleanLayer,
    front: Float[np.ndarray, "M B D"],
    n_started: int,
    size: int,
    valid: Bool[np.ndarray, "B S"],
) -> None:
    """Takes the first rows of the front through the layer, `size` variants at a time."""
    for first in range(0, n_started, size):
        stop = min(first + size, n_started)
        start = min(first, len(front) - size)  # so that all batches have one size; what is extra is dropped
        moved = np.asarray(_decode(block, front[start : start + size], clean.k, clean.v, valid))
        front[first:stop] = moved[first - start : stop - start]


@dispatch.jit
def _start(
    block: Block,
    x: Float[Array, "B D"],
    z: Float[Array, "B H K"],
    gain: Float[Array, "M H"],
    replacement: Float[Array, "#B #H #K"],
) -> Float[Array, "M B D"]:
    """The residual after the layer in which a variant edits heads."""
    edit = jax.vmap(lambda gain: apply_edit(z[:, None], gain[None, None], replacement[:, None]))
    return jax.vmap(lambda z: block.finish(x[:, None], z)[:, 0])(edit(gain))


@dispatch.jit
def _decode(
    block: Block,
    x: Float[Array, "M B D"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    valid: Bool[Array, "B S"],
) -> Float[Array, "M B D"]:
    """One decode step of every variant through a layer that it does not edit."""
    # [M B] stands where a full run has [B S].
    positions = jnp.broadcast_to(valid.sum(axis=1)[None] - 1, x.shape[:2])
    q, k_new, v_new = block.attn.project(block.ln1(x), positions)
    how = {"precision": block.config.precision, "implementation": block.config.implementation}
    z = variant_decode(q, k, v, k_new, v_new, valid=valid, **how)
    return block.finish(x, z)


# --- dynamic scores -----------------------------------------------------------------------------------


def dynamic_scores(
    model: LayeredModel,
    prompts: PromptBatch,
    top_k: Int[np.ndarray, " B"],
    *,
    batch_size: int = 64,
    seed: int = 0,
    track: Track = untracked,
) -> DynamicScores:
    """Dynamic scores of every head, all four kinds from one pass over the layers.

    Raises InputError for a prompt without a source and for head outputs that are not finite.
    """
    check_sources(prompts)
    stages = screening_stages(model.outer.unembed_rows, prompts.answers, seed=seed)
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
    metric: Literal["logit", "logit_diff"] = "logit",
    batch_size: int = 64,
    track: Track = untracked,
) -> LogitAttribution:
    """Parts of the answer's logit at the last position, or of answer minus distractor ("logit_diff").

    The final norm is linear but for its scale, one number a prompt: the parts are taken as the layers pass,
    and scaled when the last one has.

    Raises InputError for "logit_diff" of prompts without distractors and for logits that are not finite.
    """
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
