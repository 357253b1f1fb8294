"""The backward pass of `head_attention`, for implementations that jax cannot differentiate itself.

Scores are formed again from the log-sum-exp, one block of keys at a time, so that nothing of size
S x T is held (Dao et al. 2022, "FlashAttention", appendix B.4). In plain jax.numpy, for every platform.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from ..head_attention.scores import allowed_keys, scores_of
from ..head_attention.xla import edit

BLOCK = 512  # keys at once


class Tensors(NamedTuple):
    """The arguments that have a gradient."""

    q: Float[Array, "B S H K"]
    k: Float[Array, "B T G K"]
    v: Float[Array, "B T G K"]
    gain: Float[Array, "#B #S H"] | None
    replacement: Float[Array, "#B #S #H #K"] | None


class Masks(NamedTuple):
    """The arguments that have none."""

    valid: Bool[Array, "B T"] | None
    window: Int[Array, ""] | None


class Static(NamedTuple):
    """The arguments whose values a program is compiled for."""

    scale: float
    soft_cap: float | None
    precision: str | None


def differentiable(attend: Callable) -> Callable:
    """Gives ``attend(tensors, masks, static) -> (z, lse)`` a gradient in `tensors`."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def op(tensors: Tensors, masks: Masks, static: Static):
        return attend(tensors, masks, static)

    def forward(tensors: Tensors, masks: Masks, static: Static):
        # The output as it was before the edit is what d/d gain needs: here the edit is not fused.
        z, lse = attend(tensors._replace(gain=None, replacement=None), masks, static)
        edited = edit(z.astype(jnp.float32), tensors.gain, tensors.replacement).astype(z.dtype)
        return (edited, lse), (tensors, masks, z, lse)

    def backward(static: Static, saved, cotangents):
        tensors, masks, z, lse = saved
        dz, dlse = cotangents
        dz, dgain, dreplacement = _through_edit(tensors, z, dz.astype(jnp.float32))
        dq, dk, dv = _through_attention(tensors, masks, z, lse, dz, dlse, static)
        grads = Tensors(dq, dk, dv, dgain, dreplacement)
        grads = jax.tree.map(lambda grad, x: grad.astype(x.dtype), grads, tensors)
        return grads, None

    op.defvjp(forward, backward)
    return op


def _through_edit(tensors: Tensors, z: Array, dz: Array) -> tuple[Array, Array | None, Array | None]:
    """Cotangents of z before the edit, of the gain and of the replacement."""
    if tensors.gain is None:
        return dz, None, None
    inputs = (z.astype(jnp.float32), tensors.gain, tensors.replacement)
    return jax.vjp(edit, *inputs)[1](dz)


def _through_attention(
    tensors: Tensors, masks: Masks, z: Array, lse: Array, dz: Array, dlse: Array, static: Static
) -> tuple[Array, Array, Array]:
    """Cotangents of q, k and v, in float32."""
    q, k, v = tensors.q, tensors.k, tensors.v
    B, S, H, K = q.shape
    T, G = k.shape[1:3]
    valid = jnp.ones((B, T), bool) if masks.valid is None else masks.valid
    k, v = (jnp.where(valid[:, :, None, None], x, 0) for x in (k, v))
    block = min(BLOCK, T)
    n_blocks = -(-T // block)

    def grouped(x: Array) -> Array:
        return x.astype(jnp.float32).reshape(B, S, G, H // G, -1)

    def blocks(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, n_blocks * block - T)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(B, n_blocks, block, *x.shape[2:]), 1, 0)

    def product(equation: str, x: Array, y: Array) -> Array:
        return jnp.einsum(equation, x.astype(jnp.float32), y.astype(jnp.float32), precision=static.precision)

    q, dz = grouped(q), grouped(dz)
    rows = jnp.transpose(grouped(lse), (0, 2, 3, 1, 4))  # [B G R S 1], as the scores below
    delta = jnp.sum(dz * grouped(z), axis=-1, keepdims=True) - grouped(dlse)
    delta = jnp.transpose(delta, (0, 2, 3, 1, 4))

    def step(dq: Array, block_of: tuple) -> tuple[Array, tuple[Array, Array]]:
        start, k, v, valid = block_of
        keys, queries = (jnp.arange(*ends, dtype=jnp.int32) for ends in ((0, block), (T - S, T)))
        keys += start
        allowed = allowed_keys(keys, queries, valid, masks.window)[:, :, None]  # every head alike
        scores, through_scores = jax.vjp(
            lambda products: scores_of(products, static.scale, static.soft_cap),
            product("bsgrk,btgk->bgrst", q, k),
        )
        pattern = jnp.where(allowed, jnp.exp(scores - rows), 0)
        (dproducts,) = through_scores(pattern * (product("bsgrk,btgk->bgrst", dz, v) - delta))
        dk = product("bgrst,bsgrk->btgk", dproducts, q)
        dv = product("bgrst,bsgrk->btgk", pattern, dz)
        return dq + product("bgrst,btgk->bsgrk", dproducts, k), (dk, dv)

    starts = jnp.arange(n_blocks, dtype=jnp.int32) * block
    dq, (dk, dv) = lax.scan(step, jnp.zeros_like(q), (starts, blocks(k), blocks(v), blocks(valid)))
    dk, dv = (jnp.moveaxis(x, 0, 1).reshape(B, n_blocks * block, G, K)[:, :T] for x in (dk, dv))
    return dq.reshape(B, S, H, K), dk, dv
