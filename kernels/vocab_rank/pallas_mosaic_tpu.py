"""`vocab_rank` for TPU: tiles of logits are formed, counted and dropped on the chip.

Tiles are held transposed, [tokens, queries]: what belongs to a query (the target and its logit, both
counts, the cap) is a row along the lanes, and counting runs down the sublanes, one addition an entry.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float, Int

from .. import platform, tpu

BLOCK = 512  # queries, and tokens, of one tile: square, so that the targets' own logits are its diagonal
CONTRACTED = 2048  # most of the contracted axis that is held at once
MASKED = -1e30


def vocab_rank(
    q: Float[Array, "H N K"],
    unembed: Float[Array, "V D"],
    target: Int[Array, " N"],
    *,
    W_O: Float[Array, "H K D"] | None,
    bias: Float[Array, " V"] | None,
    cap: Int[Array, " N"] | None,
    with_lse: bool,
    precision: str | None,
) -> tuple[Array, Array, Array, Array | None]:
    """See `kernels.vocab_rank.api.vocab_rank`."""
    tpu.check(precision, q, unembed, *(() if W_O is None else (W_O,)))

    def one_head(head: tuple[Array, Array | None]) -> tuple[Array, ...]:
        x, W_O = head
        columns = unembed
        if W_O is not None:  # the head's own map to the tokens, [V K]: far smaller than its logits
            columns = jnp.einsum(
                "vd,kd->vk", unembed, W_O, precision=precision, preferred_element_type=jnp.float32
            ).astype(x.dtype)
        return rank_rows(x, columns, target, bias, cap, with_lse, precision)

    above, below, logit, top, total = lax.map(one_head, (q, W_O))
    return above, below, logit, top + jnp.log(total) if with_lse else None


def vmem_bytes(block: int, contracted: int, itemsize: int) -> int:
    """On-chip memory of one grid step: two buffers of every operand, the scratch, and the tile's values."""
    tile = tpu.tile_bytes
    factors = tile(contracted, block, itemsize) + tile(block, contracted, itemsize)
    operands = (
        factors  # queries, the tile's columns
        + tile(block, contracted, itemsize)  # the targets' columns
        + tile(block, 1, 4)  # bias
        + 8 * tile(1, block, 4)  # target, its bias, cap, and what is returned
    )
    # A product of float32 at the highest precision is one of bfloat16s, three for each number.
    thirds = factors * 3 // 2 if itemsize == 4 else 0
    return 2 * operands + thirds + 6 * tile(block, block, 4)


def contracted_block(size: int) -> int:
    """The largest block of whole lanes that divides the contracted axis; all of it where that is small."""
    if size <= CONTRACTED:
        return size
    blocks = [block for block in range(128, CONTRACTED + 1, 128) if size % block == 0]
    if not blocks:
        raise NotImplementedError(
            f"{tpu.NAME} contracts more than {CONTRACTED} numbers only in blocks of 128; got {size}"
        )
    return blocks[-1]


@platform.narrow
def rank_rows(
    x: Float[Array, "R C"],
    columns: Float[Array, "V C"],
    target: Int[Array, " R"],
    bias: Float[Array, " V"] | None,
    cap: Int[Array, " R"] | None,
    with_lse: bool,
    precision: str | None,
) -> tuple[Array, ...]:
    """Counts above and below, the targets' logits, greatest logit, sum of exponentials from it."""
    R, C = x.shape
    V = columns.shape[0]
    block = min(BLOCK, -(-R // 128) * 128)
    padding = -R % block
    contracted = contracted_block(C)
    needed = vmem_bytes(block, contracted, x.dtype.itemsize)
    tpu.check_vmem(needed, f"tiles of {block} by {contracted}")
    n_tiles, n_contracted = pl.cdiv(V, block), C // contracted

    def row(values: Array) -> Array:
        return jnp.pad(values, (0, padding))[None]

    targets = jnp.pad(target.astype(jnp.int32), (0, padding))
    per_query = pl.BlockSpec((1, block), lambda i, j, c: (0, i))
    # The grid's middle axis: step 0 finds the targets' own logits, step j ranks the tile j - 1.
    operands = [
        (jnp.pad(x, ((0, padding), (0, 0))).T, pl.BlockSpec((contracted, block), lambda i, j, c: (c, i))),
        (columns[targets], pl.BlockSpec((block, contracted), lambda i, j, c: (i, c))),
        (columns, pl.BlockSpec((block, contracted), lambda i, j, c: (jnp.maximum(j - 1, 0), c))),
        (targets[None], per_query),
    ]
    if cap is not None:
        operands.append((row(cap.astype(jnp.int32)), per_query))
    if bias is not None:
        bias = bias.astype(jnp.float32)
        operands.append((bias[targets][None], per_query))
        operands.append((bias[:, None], pl.BlockSpec((block, 1), lambda i, j, c: (jnp.maximum(j - 1, 0), 0))))

    def kernel(x_ref, own_columns_ref, columns_ref, target_ref, *refs):
        refs = list(refs)
        cap_ref = refs.pop(0) if cap is not None else None
        own_bias_ref, bias_ref = (refs.pop(0), refs.pop(0)) if bias is not None else (None, None)
        above_ref, below_ref, logit_ref, top_ref, total_ref, tile_ref, go_on_ref = refs
        j, c = pl.program_id(1), pl.program_id(2)

        @pl.when((j == 0) & (c == 0))
        def _start():
            above_ref[...] = jnp.zeros_like(above_ref)
            below_ref[...] = jnp.zeros_like(below_ref)
            top_ref[...] = jnp.full_like(top_ref, MASKED)
            total_ref[...] = jnp.zeros_like(total_ref)
            go_on_ref[0] = 1

        def accumulate(tile_columns: Array) -> None:
            product = tpu.dot(tile_columns, x_ref[...], precision)
            tile_ref[...] = jnp.where(c == 0, product, tile_ref[...] + product)

        @pl.when(j == 0)
        def _own_product():
            accumulate(own_columns_ref[...])

        @pl.when((j > 0) & (go_on_ref[0] == 1))
        def _tile_product():
            accumulate(columns_ref[...])

        @pl.when((j == 0) & (c == n_contracted - 1))
        def _own_logit():
            shape = (block, block)
            diagonal = lax.broadcasted_iota(jnp.int32, shape, 0) == lax.broadcasted_iota(jnp.int32, shape, 1)
            logit = jnp.sum(jnp.where(diagonal, tile_ref[...], 0), axis=0, keepdims=True)
            logit_ref[...] = logit if bias is None else logit + own_bias_ref[...]

        @pl.when((j > 0) & (c == n_contracted - 1) & (go_on_ref[0] == 1))
        def _count():
            logits = tile_ref[...] if bias is None else tile_ref[...] + bias_ref[...]
            token = (j - 1) * block + lax.broadcasted_iota(jnp.int32, logits.shape, 0)
            other = (token < V) & (token != target_ref[...])
            own = logit_ref[...]
            above_ref[...] += _how_many(other & ~(logits <= own))
            below_ref[...] += _how_many(other & ~(logits >= own))
            if cap is not None:
                limit = cap_ref[...]
                undecided = (above_ref[...] < limit) | (below_ref[...] < limit)
                go_on_ref[0] = jnp.max(undecided.astype(jnp.int32))
            if with_lse:
                logits = jnp.where(token < V, logits, MASKED)
                top = jnp.maximum(top_ref[...], jnp.max(logits, axis=0, keepdims=True))
                weights = jnp.where(token < V, jnp.exp(logits - top), 0)
                shrunk = total_ref[...] * jnp.exp(top_ref[...] - top)
                total_ref[...] = shrunk + jnp.sum(weights, axis=0, keepdims=True)
                top_ref[...] = top

    counts, numbers = (jax.ShapeDtypeStruct((1, R + padding), dtype) for dtype in (jnp.int32, jnp.float32))
    results = pl.pallas_call(
        kernel,
        out_shape=(counts, counts, numbers, numbers, numbers),
        grid=((R + padding) // block, n_tiles + 1, n_contracted),
        in_specs=[spec for _, spec in operands],
        out_specs=(per_query,) * 5,
        scratch_shapes=[pltpu.VMEM((block, block), jnp.float32), pltpu.SMEM((1,), jnp.int32)],
        name="vocab_rank",
        **tpu.settings(("parallel", "arbitrary", "arbitrary"), needed),
    )(*(array for array, _ in operands))
    return tuple(result[0, :R] for result in results)


def _how_many(condition: Array) -> Array:
    return jnp.sum(condition.astype(jnp.int32), axis=0, keepdims=True)
