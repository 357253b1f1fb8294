"""`vocab_rank` for Hopper GPUs: tiles of logits live in the registers of a warpgroup and are counted there.

A block holds 128 queries and walks over its share of the vocabulary in tiles of 128 tokens. The
contracted axis of queries and tokens streams through shared memory, copied ahead by the tensor memory
accelerator; products are sums of warpgroup instructions in float32. Several blocks share a processor, so
that one counts while another multiplies.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Float, Int

from .. import hopper, platform

TILE = 128  # queries, and tokens: square, so that the targets' own logits are a diagonal
STAGES = 3  # steps of the contracted axis that are in shared memory at once
BLOCKS = 264  # blocks that should exist at least: two for each of an H100's 132 processors
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
    """See `kernels.vocab_rank.api.vocab_rank`. float32 is float32 at any `precision`; see `hopper.split`."""
    hopper.check(q, unembed, *(() if W_O is None else (W_O,)))

    def one_head(head: tuple[Array, Array | None]) -> tuple[Array, ...]:
        x, W_O = head
        columns = unembed
        if W_O is not None:  # the head's own map to the tokens, [V K]: far smaller than its logits
            exact = "highest" if q.dtype == jnp.float32 else None
            columns = jnp.einsum(
                "vd,kd->vk", unembed, W_O, precision=exact, preferred_element_type=jnp.float32
            ).astype(x.dtype)
        return rank_rows(x, columns, target, bias, cap, with_lse)

    above, below, logit, lse = lax.map(one_head, (q, W_O))
    return above, below, logit, lse if with_lse else None


def shared_memory_bytes() -> int:
    """Queries and tokens in flight, and the vectors that are returned."""
    return STAGES * 2 * TILE * hopper.LINE * 2 + 5 * TILE * 4


@platform.narrow
def rank_rows(
    x: Float[Array, "R C"],
    columns: Float[Array, "V C"],
    target: Int[Array, " R"],
    bias: Float[Array, " V"] | None,
    cap: Int[Array, " R"] | None,
    with_lse: bool,
) -> tuple[Array, ...]:
    """Counts above and below, the targets' logits, and, if asked for, log-sum-exp."""
    R, V = x.shape[0], columns.shape[0]
    if x.dtype == jnp.float32:
        x, columns = hopper.split(x, left=True), hopper.split(columns, left=False)
    hopper.check_shared_memory(shared_memory_bytes(), f"{STAGES} stages of {TILE} by {hopper.LINE}")

    def padded(array: Array, *multiples: int) -> Array:
        return jnp.pad(array, [(0, -size % m) for size, m in zip(array.shape, multiples, strict=True)])

    targets = padded(target.astype(jnp.int32), TILE)
    x = padded(x, TILE, hopper.LINE)
    own_columns = padded(columns[targets], TILE, hopper.LINE)
    columns = padded(columns, 8, hopper.LINE)  # a copy only where it is not whole (8, 64) tiles already
    bias = jnp.zeros(V, jnp.float32) if bias is None else bias.astype(jnp.float32)
    caps = padded(jnp.full(R, V) if cap is None else cap.astype(jnp.int32), TILE)
    n_blocks, n_tiles = x.shape[0] // TILE, pl.cdiv(V, TILE)
    tiles_per_share = pl.cdiv(n_tiles, min(n_tiles, pl.cdiv(BLOCKS, n_blocks)))
    n_shares = pl.cdiv(n_tiles, tiles_per_share)

    kernel = functools.partial(
        _kernel, V=V, tiles_per_share=tiles_per_share, capped=cap is not None, with_lse=with_lse
    )
    per_share = jax.ShapeDtypeStruct((n_shares, x.shape[0]), jnp.float32)
    results = plgpu.kernel(
        kernel,
        out_type=[per_share] * 5,
        scratch_types=[plgpu.SMEM((5, TILE), jnp.float32)],
        grid=(n_blocks, n_shares),
        grid_names=("block", "share"),
        compiler_params=plgpu.CompilerParams(approx_math=False),
        interpret=hopper.interpret(),
    )(
        x,
        own_columns,
        columns,
        targets,
        padded(bias[targets], 1),
        padded(bias, TILE),
        caps.astype(jnp.float32),
    )
    above, below, logit, top, total = (result[:, :R] for result in results)
    highest = jnp.max(top, axis=0)
    total = jnp.sum(total * jnp.exp(top - highest[None]), axis=0)
    above, below = (jnp.sum(counts, axis=0).astype(jnp.int32) for counts in (above, below))
    return above, below, logit[0], highest + jnp.log(total)


def _kernel(
    x_ref,
    own_columns_ref,
    columns_ref,
    target_ref,
    own_bias_ref,
    bias_ref,
    cap_ref,
    *out_and_scratch,
    V: int,
    tiles_per_share: int,
    capped: bool,
    with_lse: bool,
):
    *out_refs, result_ref = out_and_scratch
    queries = pl.ds(lax.axis_index("block") * TILE, TILE)
    first_tile = lax.axis_index("share") * tiles_per_share
    n_steps = x_ref.shape[1] // hopper.LINE
    shape = (TILE, TILE)

    def per_query(ref) -> Array:
        return hopper.load(ref.at[queries], hopper.ROW)

    def spread(values: Array) -> Array:
        """What belongs to the queries, over the tile."""
        return lax.broadcast_in_dim(values, shape, [0])

    def iota(axis: int) -> Array:
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)

    def constant(value: float, shape: tuple[int, ...], layout) -> Array:
        return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

    def sum_where(condition: Array, values: Array) -> Array:
        return jnp.sum(jnp.where(condition, values, jnp.zeros_like(values)), axis=1)

    def walk(columns_ref, n_tiles, finish, carry):
        """finish(tile, logits, carry) -> (go_on, carry) for every tile of 128 of these columns.

        Once go_on is 0 nothing is multiplied or counted any more.
        """

        def step(indices, x_smem, columns_smem, state):
            tile, c = indices

            def multiply(state):
                go_on, logits, carry = state

                starts = lax.broadcast_in_dim(c, shape, ()) == 0  # whole: 0.11 selects by no scalar
                logits = jnp.where(starts, jnp.zeros_like(logits), logits)
                logits = hopper.add_product(logits, x_smem, columns_smem.transpose((1, 0)))
                go_on, carry = lax.cond(
                    c == n_steps - 1, lambda: finish(tile, logits, carry), lambda: (go_on, carry)
                )
                return go_on, logits, carry

            return lax.cond(state[0] > 0, multiply, lambda state: state, state)

        specs = [
            plgpu.BlockSpec((TILE, hopper.LINE), lambda tile, c: (0, c), transforms=hopper.swizzled()),
            plgpu.BlockSpec((TILE, hopper.LINE), lambda tile, c: (tile, c), transforms=hopper.swizzled()),
        ]
        pipeline = plgpu.emit_pipeline(
            step,
            grid=(n_tiles, n_steps),
            in_specs=specs,
            max_concurrent_steps=STAGES,
            init_carry=(jnp.float32(1), constant(0.0, shape, plgpu.Layout.WGMMA), carry),
        )
        return pipeline(x_ref.at[queries], columns_ref)[2]

    def diagonal(tile, logits, carry):
        return jnp.float32(1), sum_where(iota(0) == iota(1), logits)

    zeros = constant(0.0, (TILE,), hopper.ROW)
    own = walk(own_columns_ref.at[queries], 1, diagonal, zeros) + per_query(own_bias_ref)
    target, cap = per_query(target_ref), per_query(cap_ref)

    def count(tile, logits, carry):
        above, below, top, total = carry
        first_token = (first_tile + tile) * TILE
        token = iota(1) + first_token
        tile_bias = hopper.load(bias_ref.at[pl.ds(first_token, TILE)], hopper.COLUMN)
        logits = logits + lax.broadcast_in_dim(tile_bias, shape, [1])
        other = (token < V) & (token != spread(target))
        ones = constant(1.0, shape, plgpu.Layout.WGMMA)
        counted = jnp.where(other, ones, jnp.zeros_like(ones))

        def how_many_not(within: Array) -> Array:
            """What is not within counts, so a NaN does. No `~`, which JAX lowers for no bools since 0.11."""
            return jnp.sum(jnp.where(within, jnp.zeros_like(counted), counted), axis=1)

        above = above + how_many_not(logits <= spread(own))
        below = below + how_many_not(logits >= spread(own))
        if with_lse:
            logits = jnp.where(token < V, logits, constant(MASKED, shape, plgpu.Layout.WGMMA))
            new_top = jnp.maximum(top, jnp.max(logits, axis=1))
            total = total * jnp.exp(top - new_top) + sum_where(token < V, jnp.exp(logits - spread(new_top)))
            top = new_top
        go_on = jnp.float32(1)
        if capped:
            undecided = (above < cap) | (below < cap)
            go_on = jnp.max(jnp.where(undecided, jnp.ones_like(above), jnp.zeros_like(above)))
        return go_on, (above, below, top, total)

    n_tiles = jnp.minimum(tiles_per_share, pl.cdiv(V, TILE) - first_tile)
    start = (zeros, zeros, constant(MASKED, (TILE,), hopper.ROW), zeros)
    columns = columns_ref.at[pl.ds(first_tile * TILE, tiles_per_share * TILE)]
    above, below, top, total = walk(columns, n_tiles, count, start)
    for i, (result, ref) in enumerate(zip((above, below, own, top, total), out_refs, strict=True)):
        result_ref[i] = result
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(result_ref.at[i], ref.at[lax.axis_index("share"), queries])
    plgpu.wait_smem_to_gmem(0)
