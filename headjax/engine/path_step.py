"""The compiled part of path patching: what a sender's other output makes of the residual, and of the logits.

Three runs are told apart (Wang et al. 2022, "Interpretability in the Wild", appendix B): the clean one, which
`Prefill` holds; the *path* run, in which the sender writes what it writes on the corrupted prompt, every
other head has the output that it had in the clean run, and norms (also one after attention) and MLPs are
computed anew; and the *final* run,
in which receivers read their queries, keys or values from the path run and everything else from its own.

In the path run no head looks anywhere, so each position is on its own and a layer costs its MLP. Both runs
are the clean one below the layer where they begin, and begin there, from the stored residual. The layers
where they begin are arguments of the compiled program: one program serves a sweep over all senders.

A sender that does not exist (layer -1) changes nothing: what the others give is compared with it, and they
enter where it was (`Entries`; see variant_step.py), so that one without an effect gives the same bits.

P is 1 (the last position alone is patched, and the final run is a decode step a layer, see variant_step.py)
or S (all are).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from headjax.axes import TokenMask, Tokens
from headjax.engine.layer_sweep import LayerRun
from headjax.engine.layered_variants import Steps
from headjax.engine.mesh import DATA_AXIS, ROWS, WHOLE
from headjax.engine.metrics import logit_difference
from headjax.engine.prefill import SPECS, Prefill, prefill
from headjax.engine.variant_step import Positions, TokenIds, layer_of
from headjax.kernels import dispatch
from headjax.model import Block, Transformer


class Patch(NamedTuple):
    """What path patching starts from.

    Attributes:
      clean: the run on the prompts.
      change: z on the corrupted prompts minus z on the prompts, float32.
      answers, distractors: whose logits are compared.
    """

    clean: Prefill
    change: Float[Array, "L B P H K"]
    answers: TokenIds
    distractors: TokenIds


class Entries(NamedTuple):
    """Where runs begin: the residual before each layer of both runs where no head is patched."""

    path: Float[Array, "L1 B P D"]
    final: Float[Array, "L1 B P D"]


class Reads(NamedTuple):
    """Which heads take their query, key or value from the path run."""

    q: Bool[Array | np.ndarray, "L H"]
    k: Bool[Array | np.ndarray, "L H"]
    v: Bool[Array | np.ndarray, "L H"]


# How arguments and results are split over the copies of a model on a mesh: of `patch_prefill`; and of the
# steps, whose patch, entries, senders and results are given.
_BY_PROMPTS = Patch(SPECS, SPECS.z, ROWS, ROWS)
PREFILL_SPECS = {"prompts": ((ROWS,) * 5, (ROWS, _BY_PROMPTS)), "variants": ((WHOLE,) * 5, WHOLE)}
STEP_SPECS = {
    "prompts": (_BY_PROMPTS, SPECS.residual, WHOLE, PartitionSpec(None, DATA_AXIS)),
    # Each copy's own first sender is none, or no copy's is: all hand on the same entries.
    "variants": (WHOLE, WHOLE, ROWS, (ROWS, WHOLE)),
}


@partial(dispatch.jit, static_argnames="positions")
def patch_prefill(
    model: Transformer,
    tokens: Tokens,
    corrupted: Tokens,
    mask: TokenMask,
    answers: TokenIds,
    distractors: TokenIds,
    *,
    positions: Positions,
) -> tuple[Float[Array, " B"], Patch]:
    """Corrupted minus clean prompts' logit differences, and what patches start from.

    Of two runs of one program: of the same prompts they differ by 0 in every dtype.
    """
    clean, other = (prefill(model, ids, mask, keep=positions) for ids in (tokens, corrupted))
    of_clean, of_corrupted = (
        logit_difference(model, run.residual[-1, :, -1], answers, distractors) for run in (clean, other)
    )
    change = other.z.astype(jnp.float32) - clean.z.astype(jnp.float32)
    return of_corrupted - of_clean, Patch(clean, change, jnp.asarray(answers), jnp.asarray(distractors))


@dispatch.jit
def direct_step(
    model: Transformer,
    tokens: Tokens,
    corrupted: Tokens,
    mask: TokenMask,
    answers: TokenIds,
    distractors: TokenIds,
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, "B L H"]]:
    """The logit difference of the clean and of the corrupted prompts and, of the clean ones, with each head's
    change added to the last residual and nothing else changed."""
    arrays = (tokens, corrupted, mask, answers, distractors)
    difference, patch = patch_prefill(model, *arrays, positions="last")
    last = patch.clean.residual[-1, :, -1]

    def layer(inputs: tuple[Block, Array, Array]) -> Array:
        block, z, change = inputs
        more = jnp.einsum(
            "bhk,hkd->hbd", change, block.attn.W_O[...].astype(jnp.float32), precision=model.config.precision
        )
        more = jnp.pad(more, ((1, 0), (0, 0), (0, 0)))  # first of all a head without a change
        written = _write_change(block, z, more)
        return logit_difference(
            model, last[None] + written.astype(last.dtype), patch.answers, patch.distractors
        )

    patched = lax.map(layer, (model.blocks, patch.clean.z[:, :, -1], patch.change[:, :, -1]))
    return patched[0, 0], patched[0, 0] + difference, jnp.moveaxis(patched[:, 1:], 2, 0)


def _write_change(
    block: Block, z: Float[Array, "B H K"], more: Float[Array, "M B D"]
) -> Float[Array, "M B D"]:
    """What attention writes more where its heads' sum through W_O is `more` larger than that of z."""
    if block.config.norms == "before":
        return more
    output = block.attn.output(z[:, None])[:, 0]
    patched = block.after_attention(output[None] + more.astype(output.dtype))
    return patched - block.after_attention(output)[None]


@dispatch.jit
def logits_step(
    model: Transformer,
    patch: Patch,
    entries: Entries,
    senders: Int[Array | np.ndarray, "M 2"],
    start: Int[Array | np.ndarray, ""],
) -> tuple[Float[Array, "M B"], Entries]:
    """The logit difference at the end of the path run, and where later runs begin.

    `start`: no sender is below this layer, but for one of layer -1, which is none.
    """
    senders, start = jnp.asarray(senders), jnp.asarray(start)
    path_layer = _path_run(model, patch, senders)

    def layer(at: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, entered = state
        return path_layer(at, x), _put(entered, at, x, senders)

    state = _enter(entries.path, start, len(senders)), entries.path
    path, entered = lax.fori_loop(start, jnp.asarray(model.config.n_layers, start.dtype), layer, state)
    values = logit_difference(model, path[:, :, -1], patch.answers, patch.distractors)
    return values, entries._replace(path=entered)


@dispatch.jit
def receivers_step(
    model: Transformer,
    patch: Patch,
    entries: Entries,
    senders: Int[Array | np.ndarray, "M 2"],
    reads: Reads,
    start: Int[Array | np.ndarray, ""],
    first: Int[Array | np.ndarray, ""],
    last: Int[Array | np.ndarray, ""],
) -> tuple[Float[Array, "M B"], Entries]:
    """The logit difference at the end of the final run, and where later runs begin.

    start: the lowest sender's layer, not counting one that is none; first: of the receivers above that, the
    lowest one's; last: the highest receiver's.
    """
    senders, start, first, last = (jnp.asarray(value) for value in (senders, start, first, last))
    reads = jax.tree.map(jnp.asarray, reads)
    path_layer = _path_run(model, patch, senders)

    def layer(at: Int[Array, ""], x: Array, path: Array | None, queries: slice = slice(None)) -> Array:
        block, cache, own = layer_of((model.blocks, (patch.clean.k, patch.clean.v), reads), at)
        run = (patch.clean.positions, patch.clean.valid)
        return _final_layer(block, cache, *run, x, path, own, queries)

    def both(at: Int[Array, ""], state: tuple[Array, Array, Entries]) -> tuple[Array, Array, Entries]:
        x, path, entries = state
        entries = Entries(_put(entries.path, at, path, senders), _put(entries.final, at, x, senders))
        final = lax.cond(  # below the first receiver the final run is the clean one
            at < first, lambda: _enter(entries.final, at + 1, len(senders)), lambda: layer(at, x, path)
        )
        return final, path_layer(at, path), entries

    def final_only(at: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, entered = state
        return layer(at, x, None), _put(entered, at, x, senders)

    # Above the last receiver nobody reads the path run. Of the top layer only the last position is needed.
    top = jnp.asarray(model.config.n_layers - 1, start.dtype)
    x, path = (_enter(part, start, len(senders)) for part in (entries.final, entries.path))
    x, path, entries = lax.fori_loop(start, jnp.minimum(last + 1, top), both, (x, path, entries))
    x, final = lax.fori_loop(last + 1, top, final_only, (x, entries.final))
    path_entries, final = (_put(part, top, own, senders) for part, own in ((entries.path, path), (final, x)))
    x = layer(top, x, path, slice(-1, None))
    values = logit_difference(model, x[:, :, -1], patch.answers, patch.distractors)
    return values, Entries(path_entries, final)


def _path_run(
    model: Transformer, patch: Patch, senders: Int[Array, "M 2"]
) -> Callable[[Int[Array, ""], Float[Array, "M B P D"]], Float[Array, "M B P D"]]:
    """The path run's step: (layer, the residual before it) -> the residual after it."""
    at, head = senders.T
    # What each sender writes more than in the clean run, through its W_O.
    written = jnp.einsum(
        "mbpk,mkd->mbpd",
        patch.change[at, :, :, head],
        model.blocks.attn.W_O[...][at, head].astype(jnp.float32),
        precision=model.config.precision,
    )

    def step(layer: Int[Array, ""], x: Float[Array, "M B P D"]) -> Float[Array, "M B P D"]:
        block, z = layer_of((model.blocks, patch.clean.z), layer)
        more = jnp.where((at == layer)[:, None, None, None], written, 0).astype(x.dtype)
        return _path_layer(block, x, z, more)

    return step


def _path_layer(
    block: Block, x: Float[Array, "M B P D"], z: Float[Array, "B P H K"], more: Float[Array, "M B P D"]
) -> Float[Array, "M B P D"]:
    """The residual after a layer of the path run, in which senders write so much more than the clean run."""
    return block.add(x, block.after_attention(block.attn.output(z)[None] + more))


def _enter(residual: Float[Array, "L1 B P D"], layer: Int[Array, ""], n: int) -> Float[Array, "n B P D"]:
    """The residual before a layer below which n runs change nothing."""
    x = layer_of(residual, layer)
    return jnp.broadcast_to(x[None], (n, *x.shape))


def _put(
    residual: Float[Array, "L1 B P D"],
    layer: Int[Array, ""],
    x: Float[Array, "M B P D"],
    senders: Int[Array, "M 2"],
) -> Float[Array, "L1 B P D"]:
    """The residuals with the first run's before this layer, if its sender is none."""
    return residual.at[layer].set(jnp.where(senders[0, 0] < 0, x[0], residual[layer]))


def _final_layer(
    block: Block,
    cache: tuple[Float[Array, "B S G K"], Float[Array, "B S G K"]],
    positions: Int[Array, "B S"],
    valid: Bool[Array, "B S"],
    x: Float[Array, "M B P D"],
    path: Float[Array, "M B P D"] | None,
    reads: Reads,
    queries: slice = slice(None),
) -> Float[Array, "M B Q D"]:
    """The residual after a layer of the final run, at the positions of the queries.

    `cache` are the clean run's keys and values of the layer, `reads` which of its heads are receivers. A
    receiver's key and value are its own: where heads share them, the others see what the final run gives.
    """
    M, B, P, _ = x.shape
    positions = jnp.tile(positions[:, -P:], (M, 1))
    q, k, v = _project(block, x, positions)
    if path is not None:
        share = block.config.n_heads // block.config.n_kv_heads
        k, v, *cache = (jnp.repeat(part, share, axis=2) for part in (k, v, *cache))
        other_q, other_k, other_v = _project(block, path, positions)
        others = (other_q, jnp.repeat(other_k, share, axis=2), jnp.repeat(other_v, share, axis=2))
        q, k, v = (
            jnp.where(read[None, None, :, None], other, own)
            for read, other, own in zip(reads, others, (q, k, v), strict=True)
        )
    if P == 1:
        q, k, v = (part.reshape(M, B, *part.shape[2:]) for part in (q, k, v))
        z = block.attn.decode(q, *cache, k, v, valid)
        z = z.reshape(M * B, 1, *z.shape[2:])
    else:
        z = block.attn.attend(q[:, queries], k, v, jnp.tile(valid, (M, 1)))
    x = x[:, :, queries]
    return block.add(x, block.write(z).reshape(x.shape))


def _project(
    block: Block, x: Float[Array, "M B P D"], positions: Int[Array, "MB P"]
) -> tuple[Float[Array, "MB P H K"], Float[Array, "MB P G K"], Float[Array, "MB P G K"]]:
    """Queries, keys and values, with variants and prompts together as rows."""
    return block.project(x.reshape(*positions.shape, x.shape[-1]), positions)


# --- of a model that is read layer by layer, at the last position -----------------------------------------


class PathLayer(NamedTuple):
    """What senders are told of the clean and the corrupted run of B prompts in one layer.

    Attributes:
      z, change: of the last position, the clean run's output of every head, and how much the corrupted run's
        differs from it, float32.
      k, v, valid: the clean run's keys and values; after: its last residual after the layer.
      given: what the sweep says of the layer: None, or of receivers (`Receiving`).
    """

    z: Float[Array, "B H K"]
    change: Float[Array, "B H K"]
    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G K"]
    valid: Bool[Array, "B S"]
    after: Float[Array, "B D"]
    given: Any


class Receiving(NamedTuple):
    """Which heads of a layer are receivers, and where it is: 0 below all layers that have some, 1 among them,
    2 above."""

    reads: Reads
    place: Int[Array | np.ndarray, ""]


class Runs(NamedTuple):
    """The last residual of the path run and of the final run."""

    path: Float[Array | np.ndarray, "*M B D"]
    final: Float[Array | np.ndarray, "*M B D"]


def _clean_pair(_block: Block, ran: LayerRun, given: Any) -> PathLayer:
    B = len(ran.z) // 2
    z, other = ran.z[:B, -1], ran.z[B:, -1]
    change = other.astype(jnp.float32) - z.astype(jnp.float32)
    return PathLayer(z, change, ran.k[:B], ran.v[:B], ran.valid[:B], ran.after[:B, -1], given)


def _more(block: Block, told: PathLayer, heads: Int[Array, " M"]) -> Float[Array, "M B D"]:
    """What each sender writes more than in the clean run, before a norm; -1: it is not in this layer."""
    more = jnp.einsum(
        "mbk,mkd->mbd",
        jnp.moveaxis(told.change[:, heads], 1, 0),
        block.attn.W_O[...][heads].astype(jnp.float32),
        precision=block.config.precision,
    )
    return jnp.where((heads >= 0)[:, None, None], more, 0)


def _move_to_logits(
    block: Block, told: PathLayer, x: Float[Array, "M B D"], heads: Int[Array, " M"]
) -> Float[Array, "M B D"]:
    more = _more(block, told, heads).astype(x.dtype)
    return _path_layer(block, x[:, :, None], told.z[:, None], more[:, :, None])[:, :, 0]


def _move_to_receivers(block: Block, told: PathLayer, runs: Runs, heads: Int[Array, " M"]) -> Runs:
    reads, place = told.given
    positions = jnp.broadcast_to(told.valid.sum(axis=1, dtype=jnp.int32)[:, None] - 1, told.valid.shape)

    def final(path: Float[Array, "M B 1 D"] | None) -> Float[Array, "M B D"]:
        run = ((told.k, told.v), positions, told.valid, runs.final[:, :, None])
        return _final_layer(block, *run, path, reads)[:, :, 0]

    def path() -> Float[Array, "M B D"]:
        return _move_to_logits(block, told, runs.path, heads)

    return lax.switch(
        place,
        (
            # Below all receivers the final run is the clean one; above them nobody reads the path run.
            lambda: Runs(path(), jnp.broadcast_to(told.after[None], runs.final.shape)),
            lambda: Runs(path(), final(runs.path[:, :, None])),
            lambda: Runs(runs.path, final(None)),
        ),
    )


def _move_direct(
    block: Block, told: PathLayer, _: Float[Array, "M B D"], heads: Int[Array, " M"]
) -> Float[Array, "M B D"]:
    return _write_change(block, told.z, _more(block, told, heads)).astype(jnp.float32)


def _gap(
    outer: Transformer, last: Float[Array, "R D"], answers: TokenIds, distractors: TokenIds
) -> Float[Array, " B"]:
    """The corrupted prompts' logit difference minus the clean ones'."""
    B = len(answers)
    clean, corrupted = (logit_difference(outer, x, answers, distractors) for x in (last[:B], last[B:]))
    return corrupted - clean


def _difference(
    outer: Transformer, _last: Float[Array, "R D"], x: Float[Array, "M B D"], *asked: TokenIds
) -> Float[Array, "M B"]:
    return logit_difference(outer, x, *asked)


# Asked of each sender: its head where it is in the layer, else -1. The runs are the clean and the corrupted.
LAYERED_LOGITS = Steps(lambda last: last, _clean_pair, _move_to_logits, _difference, _gap)
LAYERED_RECEIVERS = Steps(
    begin=lambda last: Runs(last, last),
    clean=_clean_pair,
    move=_move_to_receivers,
    finish=lambda outer, last, runs, *asked: _difference(outer, last, runs.final, *asked),
    ends=_gap,
)
LAYERED_DIRECT = Steps(
    begin=lambda last: np.zeros(last.shape, np.float32),
    clean=_clean_pair,
    move=_move_direct,
    finish=lambda outer, last, written, *asked: logit_difference(
        outer, last[None, : written.shape[1]] + written.astype(last.dtype), *asked
    ),
    ends=_gap,
    moves_on=False,
)
