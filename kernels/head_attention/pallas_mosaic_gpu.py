"""`head_attention` for Hopper GPUs: a warpgroup holds 64 queries of a head and walks over blocks of keys.

Keys and values are copied ahead into shared memory by the tensor memory accelerator; scores and outputs
live in registers as the results of warpgroup products; S x T is never in memory.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Bool, Float, Int

from .. import hopper, platform
from ..head_attention.gradient import Masks, Static, Tensors, differentiable
from ..head_attention.scores import MASKED, scores_of

QUERIES = 64  # of one block: the rows of one warpgroup product
KEYS = 64  # of one step
STAGES = 2  # blocks of keys and values that are in shared memory at once


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
    """See `kernels.head_attention.api.head_attention`. Takes bfloat16 only.

    A Hopper tensor core has no product of float32, and cutting them to TF32 would not be float32.
    """
    check(q, k, v)
    tensors, masks = Tensors(q, k, v, gain, replacement), Masks(valid, window)
    return _differentiable(tensors, masks, Static(scale, soft_cap, precision))


def check(q: Array, k: Array, v: Array) -> None:
    """Raises NotImplementedError unless the kernel can take these, and run, here."""
    hopper.check(q, k, v)
    if q.dtype != jnp.bfloat16:
        raise NotImplementedError(
            f"{hopper.NAME} has no exact float32 attention, only bfloat16; got {q.dtype}"
        )


def shared_memory_bytes(K: int) -> int:
    """Queries (later the output), keys and values in flight, and the log-sum-exp, for K of whole lines."""
    return 2 * QUERIES * K + STAGES * 2 * 2 * KEYS * K + 4 * QUERIES


@platform.narrow
def attend(
    tensors: Tensors, masks: Masks, static: Static, causal: bool = True
) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H"]]:
    """The kernel. Without causality every query stands at the last cached position, and S may exceed T."""
    B, S, H, K = tensors.q.shape
    T, G = tensors.k.shape[1:3]

    def padded(x: Array, axis_1: int) -> Array:
        """[B S H K] with whole blocks along axis 1 and whole lines along the last."""
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % axis_1), (0, 0), (0, -x.shape[3] % hopper.LINE)))

    q, k, v = padded(tensors.q, QUERIES), padded(tensors.k, KEYS), tensors.v
    if masks.valid is not None:  # a weight of zero times a NaN would be a NaN
        v = jnp.where(masks.valid[:, :, None, None], v, 0)
    v = padded(v, KEYS)
    S_padded, K_padded = q.shape[1], q.shape[3]
    hopper.check_shared_memory(shared_memory_bytes(K_padded), f"K={K}")

    operands = {"q": q, "k": k, "v": v}
    if masks.window is not None:
        operands["window"] = masks.window.reshape(1)
    if masks.valid is not None:
        operands["valid"] = jnp.pad(masks.valid.astype(jnp.float32), ((0, 0), (0, k.shape[1] - T)))
    if tensors.gain is not None:
        gain = jnp.broadcast_to(tensors.gain.astype(jnp.float32), (B, S, H))
        gain = jnp.pad(gain, ((0, 0), (0, S_padded - S), (0, 0)))
        operands["gain"] = jnp.swapaxes(gain, 1, 2)
        replacement = jnp.broadcast_to(tensors.replacement.astype(jnp.bfloat16), tensors.q.shape)
        operands["replacement"] = padded(replacement, QUERIES)

    def kernel(*refs):
        inputs = dict(zip(operands, refs, strict=False))
        z_ref, lse_ref, q_smem, lse_smem, barrier = refs[len(operands) :]
        b, h, i = (lax.axis_index(name) for name in ("prompt", "head", "block"))
        queries = pl.ds(i * QUERIES, QUERIES)
        group = lax.div(h, jnp.int32(H // G))
        shape = (QUERIES, KEYS)

        def constant(value: float, shape: tuple[int, ...], layout) -> Array:
            return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

        def spread(rows: Array, columns: int) -> Array:
            return lax.broadcast_in_dim(rows, (QUERIES, columns), [0])

        # Blocks of keys ahead of every query, or before every query's window, are not read.
        first_query, first_block, last_block = T - 1, 0, (T - 1) // KEYS
        if causal:
            first_query = i * QUERIES + (T - S)
            last_query = jnp.minimum((i + 1) * QUERIES, S) - 1 + (T - S)
            last_block = lax.div(last_query, jnp.int32(KEYS))
        if "window" in inputs:
            window = inputs["window"][0]
            first_block = lax.div(jnp.maximum(first_query - window + 1, 0), jnp.int32(KEYS))

        def allowed(first_key: Array) -> Array:
            """`kernels.head_attention.scores.allowed_keys` for one tile."""
            key, query = (
                plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA) for axis in (1, 0)
            )
            key, query = key + first_key, query + first_query if causal else first_query
            mask = key <= query
            if "window" in inputs:
                mask &= key > query - window
            if "valid" in inputs:
                valid = hopper.load(inputs["valid"].at[b, pl.ds(first_key, KEYS)], hopper.COLUMN)
                mask &= lax.broadcast_in_dim(valid, shape, [1]) > 0
            return mask

        def step(indices, k_smem, v_smem, state):
            top, total, z = state

            def score(accumulator):
                plgpu.wgmma(accumulator, q_smem, k_smem.transpose((1, 0)))
                return accumulator[...]

            products = pl.run_scoped(score, plgpu.ACC(shape, jnp.float32))
            scores = scores_of(products, static.scale, static.soft_cap)
            mask = allowed((first_block + indices[0]) * KEYS)
            scores = jnp.where(mask, scores, constant(MASKED, shape, plgpu.Layout.WGMMA))
            new_top = jnp.maximum(top, jnp.max(scores, axis=1))
            weights = jnp.where(mask, jnp.exp(scores - spread(new_top, KEYS)), jnp.zeros_like(scores))
            shrink = jnp.exp(top - new_top)
            total = shrink * total + jnp.sum(weights, axis=1)
            z = z * spread(shrink, K_padded)
            return new_top, total, hopper.add_product(z, weights.astype(jnp.bfloat16), v_smem)

        plgpu.copy_gmem_to_smem(inputs["q"].at[b, queries, h], q_smem, barrier)
        plgpu.barrier_wait(barrier)
        keys_and_values = plgpu.BlockSpec(
            (KEYS, K_padded), lambda j: (first_block + j, 0), transforms=hopper.swizzled()
        )
        pipeline = plgpu.emit_pipeline(
            step,
            grid=(last_block - first_block + 1,),
            in_specs=[keys_and_values] * 2,
            max_concurrent_steps=STAGES,
            init_carry=(
                constant(MASKED, (QUERIES,), hopper.ROW),
                constant(0.0, (QUERIES,), hopper.ROW),
                constant(0.0, (QUERIES, K_padded), plgpu.Layout.WGMMA),
            ),
        )
        top, total, z = pipeline(inputs["k"].at[b, :, group], inputs["v"].at[b, :, group])

        divisor = jnp.where(total > 0, total, jnp.ones_like(total))
        z = z / spread(divisor, K_padded)
        if "gain" in inputs:
            gain = spread(hopper.load(inputs["gain"].at[b, h, queries], hopper.ROW), K_padded)
            other = hopper.load(inputs["replacement"].at[b, queries, h], plgpu.Layout.WGMMA)
            z = gain * z + (1 - gain) * other.astype(jnp.float32)
        q_smem[...] = z.astype(jnp.bfloat16)
        lse_smem[...] = jnp.where(total > 0, top + jnp.log(divisor), jnp.full_like(top, -jnp.inf))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q_smem, z_ref.at[b, queries, h])
        plgpu.copy_smem_to_gmem(lse_smem, lse_ref.at[b, h, queries])
        plgpu.wait_smem_to_gmem(0)

    z, lse = plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct(q.shape, jnp.bfloat16),
            jax.ShapeDtypeStruct((B, H, S_padded), jnp.float32),
        ),
        scratch_types=[
            plgpu.SMEM((QUERIES, K_padded), jnp.bfloat16, transforms=hopper.swizzled()),
            plgpu.SMEM((QUERIES,), jnp.float32),
            plgpu.Barrier(),
        ],
        grid=(H, S_padded // QUERIES, B),
        grid_names=("head", "block", "prompt"),
        interpret=hopper.interpret(),
    )(*operands.values())
    return z[:, :S, :, :K], jnp.swapaxes(lse[:, :, :S], 1, 2)


_differentiable = differentiable(attend)
