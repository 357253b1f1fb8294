"""The compiled part of every ablation: edited variants of a clean run, for the price of what they change.

A variant replaces the outputs of some heads. Below its first edited layer it is the clean run, so it starts
there, from the residual and the heads' outputs that the prefill stored: these outputs are edited, the layer
is finished, the layers above follow.

    last   only the last position is edited. Causal attention leaves all earlier positions untouched, so
           each layer above is one decode step against the clean run's key/value cache, which all share.
    all    every position is edited: the layers above run in full, but of the last layer only what the
           last position needs.

Variants and prompts together are the rows of every product. The start layer is an argument of the compiled
program, not a part of it: one program serves a sweep over all layers.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from headjax.axes import Residual, TokenMask, Tokens
from headjax.edits import HeadEdit, apply_edit
from headjax.metrics import Metrics, next_token_metrics
from headjax.model import Block, Transformer
from headjax.sweeps.prefill import Prefill, prefill
from kernels import dispatch
from kernels.variant_decode import variant_decode

Positions = Literal["last", "all"]
TokenIds = Int[Array | np.ndarray, "B"]


class VariantEdit(NamedTuple):
    """``z <- gain * z + (1 - gain) * replacement``: a gain for each variant, a replacement for all of them.

    P is 1 (positions "last") or S; axes of size 1 broadcast.
    """

    gain: Float[Array | np.ndarray, "M L H"]
    replacement: Float[Array | np.ndarray, " L #B #P #H #K"]


@partial(dispatch.jit, static_argnames="positions")
def clean_step(
    model: Transformer,
    tokens: Tokens,
    mask: TokenMask,
    answers: TokenIds,
    distractors: TokenIds | None,
    *,
    positions: Positions,
) -> tuple[Prefill, Metrics]:
    """The clean run that variants start from, and its metrics [B]."""
    clean = prefill(model, tokens, mask, keep=positions)
    return clean, next_token_metrics(model, clean.residual[-1, :, -1], answers, distractors)


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
) -> Metrics:
    """Metrics [M B] of variants none of which edits a layer below `start`.

    `clean` is a prefill that kept these positions.
    """
    ways = {"last": _decode, "all": _rerun}
    x = ways[positions](model, clean, edit, jnp.asarray(start))
    return next_token_metrics(model, x, answers, distractors)


def layer_of(tree: Any, layer: Int[Array, ""]) -> Any:
    """One layer of whatever is stacked over layers."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, layer, keepdims=False), tree)


def _enter(
    model: Transformer, clean: Prefill, edit: VariantEdit, start: Int[Array, ""]
) -> Float[Array, "M B P D"]:
    """The residual after the start layer, from what the clean run had before it and its heads' outputs."""
    block, x, z, replacement = layer_of((model.blocks, clean.residual, clean.z, edit.replacement), start)
    finish = jax.vmap(lambda gain: block.finish(x, apply_edit(z, gain[None, None], replacement)))
    return finish(edit.gain[:, start])


def _decode(
    model: Transformer, clean: Prefill, edit: VariantEdit, start: Int[Array, ""]
) -> Float[Array, "M B D"]:
    """The residual before the final norm where only the last position is edited."""
    x = _enter(model, clean, edit, start)[:, :, -1]
    config = model.config
    positions = jnp.broadcast_to(clean.positions[None, :, -1], x.shape[:2])

    def step(layer: Int[Array, ""], x: Float[Array, "M B D"]) -> Float[Array, "M B D"]:
        # [M B] stands where a full run has [B S].
        block, cache_k, cache_v = layer_of((model.blocks, clean.k, clean.v), layer)
        q, k, v = block.attn.project(block.ln1(x), positions)
        z = variant_decode(
            *(q, cache_k, cache_v, k, v),
            valid=clean.valid,
            precision=config.precision,
            implementation=config.implementation,
        )
        gain, replacement = edit.gain[:, layer], edit.replacement[layer, :, -1]
        return block.finish(x, apply_edit(z, gain[:, None], replacement[None]))

    return lax.fori_loop(start + 1, config.n_layers, step, x)


def _rerun(
    model: Transformer, clean: Prefill, edit: VariantEdit, start: Int[Array, ""]
) -> Float[Array, "M B D"]:
    """The residual before the final norm at the last position where every position is edited."""
    x = _enter(model, clean, edit, start)
    M, B = x.shape[:2]
    positions, valid = (jnp.tile(rows, (M, 1)) for rows in (clean.positions, clean.valid))

    def run_layer(layer: Int[Array, ""], x: Residual, queries: slice) -> Float[Array, "B P D"]:
        """The residual after the layer at the positions of the queries; [M B] are the prompts here."""
        block: Block = layer_of(model.blocks, layer)
        q, k, v = block.attn.project(block.ln1(x), positions)
        gain = jnp.repeat(edit.gain[:, layer], B, axis=0)[:, None]
        replacement = edit.replacement[layer]
        replacement = replacement[:, queries] if replacement.shape[1] > 1 else replacement
        replacement = jnp.tile(replacement, (M if len(replacement) > 1 else 1, 1, 1, 1))
        z = block.attn.attend(q[:, queries], k, v, valid, HeadEdit(gain, replacement))
        return block.finish(x[:, queries], z)

    last = jnp.asarray(model.config.n_layers - 1, start.dtype)
    x = x.reshape(M * B, *x.shape[2:])
    x = lax.fori_loop(start + 1, last, lambda layer, x: run_layer(layer, x, slice(None)), x)
    x = lax.cond(start < last, lambda x: run_layer(last, x, slice(-1, None)), lambda x: x[:, -1:], x)
    return x.reshape(M, B, -1)
