"""A variant's own position joined to attention over the cache that all variants share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ..head_attention.gradient import Masks, Static, Tensors
from ..head_attention.scores import scores_of


def with_own_position(
    attend: Callable,
    q: Float[Array, "M B H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    k_new: Float[Array, "M B G K"],
    v_new: Float[Array, "M B G K"],
    valid: Bool[Array, "B S"] | None,
    window: int | Int[Array, ""] | None,
    static: Static,
) -> Float[Array, "M B H K"]:
    """`variant_decode` by an attention kernel in which all variants' queries are rows of the same tile.

    Args:
      attend: ``(tensors, masks, static) -> (z [B R G K], lse [B R G])``: R queries of each group, all of
        which stand at the last position.
    """
    M, B, H, K = q.shape
    S, G = k.shape[1:3]
    grouped = q.reshape(M, B, G, H // G, K)
    rows = jnp.transpose(grouped, (1, 0, 3, 2, 4)).reshape(B, M * (H // G), G, K)
    seen = (jnp.ones((B, S), bool) if valid is None else valid).at[:, -1].set(False)
    if window is not None:
        window = jnp.asarray(window, jnp.int32)

    def ungrouped(x: Array) -> Array:
        return jnp.transpose(x.reshape(B, M, H // G, G, -1), (1, 0, 3, 2, 4)).astype(jnp.float32)

    z, lse = (ungrouped(x) for x in attend(Tensors(rows, k, v, None, None), Masks(seen, window), static))
    own = jnp.sum(grouped.astype(jnp.float32) * k_new[:, :, :, None].astype(jnp.float32), axis=-1)
    own = scores_of(own, static.scale, static.soft_cap)
    # The own position's share of a softmax over both; all of it where the cache holds nothing.
    share = jax.nn.sigmoid(own[..., None] - lse)
    z = (1 - share) * z + share * v_new[:, :, :, None].astype(jnp.float32)
    return z.reshape(M, B, H, K).astype(q.dtype)
