"""The compiled part of every ablation: edited variants of a clean run, for the price of what they change.

A variant replaces the outputs of some heads. Below its first edited layer it is the clean run, so it enters
there, with the clean run's residual and heads' outputs: these outputs are edited, the layer is finished, the
layers above follow.

    last   only the last position is edited. Causal attention leaves all earlier positions untouched, so
           each layer above is one decode step against the clean run's key/value cache, which all share.
    all    every position is edited: the layers above run in full, but of the last layer only what the
           last position needs.

Variants and prompts together are the rows of every product. The start layer is an argument of the compiled
program, not a part of it: one program serves a sweep over all layers.

What a variant is compared with is a variant that edits nothing, never the prefill: a decode step and a
forward pass of the whole prompt round differently, in bfloat16 by hundredths of a logit. So the first batch
begins with a variant that edits nothing, and hands on what it had before every layer (`Entries`). All others
enter there, go through the same program, and one that changes nothing gives the same bits.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from headjax.engine.layered_variants import Steps
from headjax.engine.metrics import Metrics, next_token_metrics
from headjax.engine.prefill import Prefill
from headjax.kernels import dispatch
from headjax.model import Block, Transformer
from headjax.model.edits import HeadEdit, apply_edit

Positions = str  # "last" or "all": `headjax.inputs.check_options`
TokenIds = Int[Array | np.ndarray, "B"]


class VariantEdit(NamedTuple):
    """``z <- gain * z + (1 - gain) * replacement``: a gain for each variant, a replacement for all of them.

    P is 1 (positions "last") or S; axes of size 1 broadcast.
    """

    gain: Float[Array | np.ndarray, "M L H"]
    replacement: Float[Array | np.ndarray, " L #B #P #H #K"]


class Entries(NamedTuple):
    """Where variants enter, P as in the prefill: the clean run's residual before each layer, and its z."""

    residual: Float[Array, "L1 B P D"]
    z: Float[Array, "L B P H K"]


@partial(dispatch.jit, static_argnames="positions")
def variant_step(
    model: Transformer,
    clean: Prefill,
    edit: VariantEdit,
    start: Int[Array | np.ndarray, ""],
    answers: TokenIds,
    distractors: TokenIds | None,
    *,
    positions: Positions,
) -> tuple[Metrics, Entries]:
    """Metrics [M B] of variants none of which edits a layer below `start`, and where later ones enter.

    `clean` is a prefill that kept these positions. If the first variant edits nothing, the entries above
    `start` are what it had there; else they are those of `clean`.
    """
    ways = {"last": _decode, "all": _rerun}
    x, entries = ways[positions](model, clean, edit, jnp.asarray(start))
    return next_token_metrics(model, x, answers, distractors), entries


def layer_of(tree: Any, layer: Int[Array, ""]) -> Any:
    """One layer of whatever is stacked over layers."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, layer, keepdims=False), tree)


def _decode(
    model: Transformer, clean: Prefill, edit: VariantEdit, start: Int[Array, ""]
) -> tuple[Float[Array, "M B D"], Entries]:
    """The residual before the final norm where only the last position is edited."""
    M = len(edit.gain)
    entries = Entries(clean.residual, clean.z)
    x, z = (jnp.broadcast_to(part[None, :, -1], (M, *part[:, -1].shape)) for part in _at(entries, start))

    def finish(layer: Int[Array, ""], x: Float[Array, "M B D"], z: Float[Array, "M B H K"]) -> Array:
        block = layer_of(model.blocks, layer)
        return finish_edited(block, x, z, edit.gain[:, layer], edit.replacement[layer, :, -1])

    def step(below: Int[Array, ""], state: tuple[Array, Array, Entries]) -> tuple[Array, Array, Entries]:
        x, z, entries = state
        entries = _put(entries, below, x[0, :, None], z[0, :, None], edit)
        x, layer = finish(below, x, z), below + 1
        block, k, v = layer_of((model.blocks, clean.k, clean.v), layer)
        return x, decode_heads(block, x, k, v, clean.valid), entries

    last = jnp.asarray(model.config.n_layers - 1, start.dtype)
    x, z, entries = lax.fori_loop(start, last, step, (x, z, entries))
    return finish(last, x, z), _put(entries, last, x[0, :, None], z[0, :, None], edit)


def decode_heads(
    block: Block,
    x: Float[Array, "M B D"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    valid: Bool[Array, "B S"],
) -> Float[Array, "M B H K"]:
    """Every head's output at the last position of every variant: one decode step against the clean run's keys
    and values, which all share. [M B] stands where a full run has [B S]."""
    positions = jnp.broadcast_to(valid.sum(axis=1, dtype=jnp.int32)[None] - 1, x.shape[:2])
    q, own_k, own_v = block.project(x, positions)
    return block.attn.decode(q, k, v, own_k, own_v, valid)


def finish_edited(
    block: Block,
    x: Float[Array, "M B D"],
    z: Float[Array, "M B H K"],
    gain: Float[Array, "M H"],
    replacement: Float[Array, "#B #H #K"],
) -> Float[Array, "M B D"]:
    """The residual after the layer of every variant, whose heads' outputs are edited first."""
    return block.finish(x, apply_edit(z, gain[:, None], replacement[None]))


class LayerCache(NamedTuple):
    """What variants are told of the clean run in one layer, where they go through it one by one."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G K"]
    valid: Bool[Array, "B S"]
    replacement: Float[Array, "#B #H #K"]


def _move(
    block: Block, cache: LayerCache, x: Float[Array, "M B D"], gain: Float[Array, "M H"]
) -> Float[Array, "M B D"]:
    z = decode_heads(block, x, cache.k, cache.v, cache.valid)
    return finish_edited(block, x, z, gain, cache.replacement)


# The same for a model that is read layer by layer, at the last position; asked of each variant: its gains.
LAYERED = Steps(
    begin=lambda last: last,
    clean=lambda block, ran, replacement: LayerCache(ran.k, ran.v, ran.valid, replacement),
    move=_move,
    finish=lambda outer, last, x, *asked: next_token_metrics(outer, x, *asked),
)


def _rerun(
    model: Transformer, clean: Prefill, edit: VariantEdit, start: Int[Array, ""]
) -> tuple[Float[Array, "M B D"], Entries]:
    """The residual before the final norm at the last position where every position is edited."""
    M, B = len(edit.gain), len(clean.valid)
    positions, valid = (jnp.tile(rows, (M, 1)) for rows in (clean.positions, clean.valid))
    whole, ending = slice(None), slice(-1, None)

    def edit_of(layer: Int[Array, ""], queries: slice) -> HeadEdit:
        """What is done in the layer at the positions of the queries; [M B] are the prompts here."""
        gain = jnp.repeat(edit.gain[:, layer], B, axis=0)[:, None]
        replacement = edit.replacement[layer]
        replacement = replacement[:, queries] if replacement.shape[1] > 1 else replacement
        return HeadEdit(gain, jnp.tile(replacement, (M if len(replacement) > 1 else 1, 1, 1, 1)))

    def step(
        below: Int[Array, ""], state: tuple[Array, Array, Entries], queries: slice
    ) -> tuple[Array, Array, Entries]:
        """From a layer's residual and edited z to those of the next one, there for these queries."""
        x, z, entries = state
        entries = _put(entries, below, x[:B], z[:B], edit)
        x, layer = layer_of(model.blocks, below).finish(x, z), below + 1
        block: Block = layer_of(model.blocks, layer)
        q, k, v = block.project(x, positions)
        z = block.attn.attend(q[:, queries], k, v, valid, edit_of(layer, queries))
        return x[:, queries], z, entries

    entries = Entries(clean.residual, clean.z)
    x, z = (jnp.tile(part, (M, *[1] * (part.ndim - 1))) for part in _at(entries, start))
    state = x, apply_edit(z, *edit_of(start, whole)), entries
    last = jnp.asarray(model.config.n_layers - 1, start.dtype)
    state = lax.fori_loop(start, last - 1, lambda layer, state: step(layer, state, whole), state)
    x, z, entries = lax.cond(
        start < last,
        lambda state: step(last - 1, state, ending),
        lambda state: (state[0][:, ending], state[1][:, ending], state[2]),
        state,
    )
    entries = _put(entries, last, x[:B], z[:B], edit)
    return layer_of(model.blocks, last).finish(x, z).reshape(M, B, -1), entries


def _at(entries: Entries, layer: Int[Array, ""]) -> tuple[Float[Array, "B P D"], Float[Array, "B P H K"]]:
    """What variants that enter at a layer have there."""
    return layer_of(tuple(entries), layer)


def _put(
    entries: Entries,
    layer: Int[Array, ""],
    residual: Float[Array, "B Q D"],
    z: Float[Array, "B Q H K"],
    edit: VariantEdit,
) -> Entries:
    """The entries with what the first variant has at the last Q positions, if it edits nothing.

    Only ever from what a loop carries: what is computed anew for the sake of being stored may round
    differently from what is computed on.
    """
    Q, edits_nothing = z.shape[1], (edit.gain[0] == 1).all()
    new = (
        old.at[layer, :, -Q:].set(jnp.where(edits_nothing, own, old[layer, :, -Q:]))
        for old, own in zip(entries, (residual, z), strict=True)
    )
    return Entries(*new)
