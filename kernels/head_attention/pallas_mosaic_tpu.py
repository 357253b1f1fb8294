"""`head_attention` for TPU: one pass over blocks of keys with an online softmax, S x T never in memory.

Tiles are held transposed: scores are [keys, queries], outputs [K, queries]. What belongs to a query
(running maximum, sum, gain, log-sum-exp) is then a row along the lanes; reductions over keys run down the
sublanes, where they are cheap; and a head dim of 24, 64 or 80 fills sublanes, of which a tile has 8, and
not lanes, of which it has 128.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Float, Int

from .. import platform, tpu
from ..head_attention.gradient import Masks, Static, Tensors, differentiable
from ..head_attention.scores import MASKED, scores_of

BLOCK = 512  # queries and keys of one tile


class Layout(NamedTuple):
    """One operand as the kernel sees it: its array and the block of it that one grid step holds."""

    array: Array
    spec: pl.BlockSpec


def head_attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    *,
    scale: float,
    soft_cap: float | None,
    window: Int[Array, ""] | None,
    valid: Bool[Array, "B T"] | None,
    gain: Float[Array, "#B #S H"] | None,
    replacement: Float[Array, "#B #S #H #K"] | None,
    precision: str | None,
) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H"]]:
    """See `kernels.head_attention.api.head_attention`."""
    tpu.check(precision, q, k, v)
    tensors, masks = Tensors(q, k, v, gain, replacement), Masks(valid, window)
    return _differentiable(tensors, masks, Static(scale, soft_cap, precision))


def vmem_bytes(block_q: int, block_k: int, K: int, itemsize: int) -> int:
    """On-chip memory of one grid step: two buffers of every operand, the scratch, and the tile's values."""
    tile = tpu.tile_bytes
    operands = (
        tile(K, block_q, itemsize)  # q
        + tile(block_k, K, itemsize)  # k
        + tile(K, block_k, itemsize)  # v
        + tile(block_k, 1, 4)  # valid
        + 2 * tile(1, block_q, 4)  # gain, lse
        + 2 * tile(K, block_q, itemsize)  # replacement, z
    )
    scratch = 2 * tile(1, block_q, 4) + tile(K, block_q, 4)
    values = 4 * tile(block_k, block_q, 4) + 2 * tile(K, block_q, 4)  # scores, mask, weights, casts
    return 2 * operands + scratch + values


@platform.narrow
def attend(
    tensors: Tensors, masks: Masks, static: Static, causal: bool = True
) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H"]]:
    """The kernel. Without causality every query stands at the last cached position, and S may exceed T."""
    q, k, v = tensors.q, tensors.k, tensors.v
    B, S, H, K = q.shape
    T, G = k.shape[1:3]
    block_q, block_k = min(BLOCK, S), min(BLOCK, T)
    used = vmem_bytes(block_q, block_k, K, q.dtype.itemsize)
    tpu.check_vmem(used, f"K={K}")
    n_q, n_k = pl.cdiv(S, block_q), pl.cdiv(T, block_k)

    # The window is prefetched, since which blocks of keys are read, and in how many steps, depends on it.
    scalars = () if masks.window is None else (masks.window.reshape(1),)
    n_steps = n_k
    if masks.window is not None:
        seen = jnp.minimum(masks.window, T) + (block_q - 1 if causal else 0)  # keys, by a block of queries
        n_steps = jnp.minimum(lax.div(seen + block_k - 2, jnp.int32(block_k)) + 1, n_k)

    def first_block(i, *window):
        """The first block of keys that a block of queries may attend to."""
        if not window:
            return 0
        first_query = T - S + i * block_q if causal else T - 1
        return lax.div(jnp.maximum(first_query - window[0][0] + 1, 0), jnp.int32(block_k))

    def last_block(i):
        """The last one."""
        if not causal:
            return n_k - 1
        last_query = T - S + (i + 1) * block_q - 1
        return jnp.minimum(lax.div(last_query, jnp.int32(block_k)), n_k - 1)

    def key_block(i, j, *window):
        """What is read in step j; after the last block keep it, read nothing."""
        return jnp.minimum(first_block(i, *window) + j, last_block(i))

    def group(h):
        return lax.div(h, jnp.int32(H // G))

    def per_query(x: Array) -> Layout:
        """x [#B #H rows #S]: the block of this head's queries, whole where an axis has size 1."""
        sizes = [int(axis > 1) for axis in x.shape]
        index = lambda b, h, i, j, *_: (b * sizes[0], h * sizes[1], 0, i * sizes[3])  # noqa: E731
        return Layout(x, pl.BlockSpec((None, None, x.shape[2], block_q if sizes[3] else 1), index))

    operands = {
        "q": per_query(jnp.transpose(q, (0, 2, 3, 1))),
        "k": Layout(
            jnp.swapaxes(k, 1, 2),
            pl.BlockSpec(
                (None, None, block_k, K),
                lambda b, h, i, j, *window: (b, group(h), key_block(i, j, *window), 0),
            ),
        ),
        "v": Layout(
            _values(v, masks.valid, n_k * block_k),
            pl.BlockSpec(
                (None, None, K, block_k),
                lambda b, h, i, j, *window: (b, group(h), 0, key_block(i, j, *window)),
            ),
        ),
    }
    if masks.valid is not None:
        column = masks.valid.astype(jnp.int32)[:, :, None]
        spec = pl.BlockSpec((None, block_k, 1), lambda b, h, i, j, *window: (b, key_block(i, j, *window), 0))
        operands["valid"] = Layout(column, spec)
    if tensors.gain is not None:
        operands["gain"] = per_query(jnp.swapaxes(tensors.gain, 1, 2)[:, :, None].astype(jnp.float32))
        operands["replacement"] = per_query(jnp.transpose(tensors.replacement, (0, 2, 3, 1)))

    def kernel(*refs):
        window, refs = refs[: len(scalars)], refs[len(scalars) :]
        inputs = dict(zip(operands, refs, strict=False))
        z_ref, lse_ref, top_ref, total_ref, sum_ref = refs[len(operands) :]
        i, j = pl.program_id(2), pl.program_id(3)
        block = first_block(i, *window) + j

        @pl.when(j == 0)
        def _start():
            top_ref[...] = jnp.full_like(top_ref, MASKED)
            total_ref[...] = jnp.zeros_like(total_ref)
            sum_ref[...] = jnp.zeros_like(sum_ref)

        @pl.when(block <= last_block(i))
        def _add_block():
            products = tpu.dot(inputs["k"][...], inputs["q"][...], static.precision)
            scores = scores_of(products, static.scale, static.soft_cap)
            key = block * block_k + lax.broadcasted_iota(jnp.int32, scores.shape, 0)
            query = T - 1
            if causal:
                query = T - S + i * block_q + lax.broadcasted_iota(jnp.int32, scores.shape, 1)
            allowed = key <= query  # keys past the end of the cache lie ahead of every query
            if window:
                allowed &= key > query - window[0][0]
            if "valid" in inputs:
                allowed &= inputs["valid"][...] != 0
            scores = jnp.where(allowed, scores, MASKED)
            top = jnp.maximum(top_ref[...], scores.max(axis=0, keepdims=True))
            weights = jnp.where(allowed, jnp.exp(scores - top), 0)
            shrink = jnp.exp(top_ref[...] - top)
            values = inputs["v"][...]
            top_ref[...] = top
            total_ref[...] = shrink * total_ref[...] + weights.sum(axis=0, keepdims=True)
            added = tpu.dot(values, weights.astype(values.dtype), static.precision)
            sum_ref[...] = shrink * sum_ref[...] + added

        @pl.when(j == pl.num_programs(3) - 1)
        def _finish():
            total = total_ref[...]
            divisor = jnp.where(total == 0, 1, total)
            z = sum_ref[...] / divisor
            if "gain" in inputs:
                g = inputs["gain"][...]
                z = g * z + (1 - g) * inputs["replacement"][...].astype(jnp.float32)
            z_ref[...] = z.astype(z_ref.dtype)
            lse_ref[...] = jnp.where(total == 0, -jnp.inf, top_ref[...] + jnp.log(divisor))

    z, lse = pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct((B, H, K, S), q.dtype),
            jax.ShapeDtypeStruct((B, H, 1, S), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(B, H, n_q, n_steps),
            in_specs=[operand.spec for operand in operands.values()],
            out_specs=(
                pl.BlockSpec((None, None, K, block_q), lambda b, h, i, j, *_: (b, h, 0, i)),
                pl.BlockSpec((None, None, 1, block_q), lambda b, h, i, j, *_: (b, h, 0, i)),
            ),
            scratch_shapes=[
                pltpu.VMEM((1, block_q), jnp.float32),
                pltpu.VMEM((1, block_q), jnp.float32),
                pltpu.VMEM((K, block_q), jnp.float32),
            ],
        ),
        name="head_attention",
        **tpu.settings(("parallel", "parallel", "parallel", "arbitrary"), used),
    )(*scalars, *(operand.array for operand in operands.values()))
    return jnp.transpose(z, (0, 3, 1, 2)), jnp.transpose(lse[:, :, 0], (0, 2, 1))


def _values(v: Float[Array, "B T G K"], valid: Bool[Array, "B T"] | None, padded: int) -> Array:
    """[B G K T]; zero where nothing may be read, since a weight of zero times a NaN would be a NaN."""
    if valid is not None:
        v = jnp.where(valid[:, :, None, None], v, 0)
    v = jnp.transpose(v, (0, 2, 3, 1))
    return jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, padded - v.shape[3])))


_differentiable = differentiable(attend)
