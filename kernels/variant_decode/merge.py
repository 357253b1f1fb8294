"""A variant's own position joined to attention over the cache that all variants share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


def with_own_position(
    attend: Callable,
    q: Float[Array, "M B H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    k_new: Float[Array, "M B G K"],
    v_new: Float[Array, "M B G K"],
    valid: Bool[Array, "B S"] | None,
) -> Float[Array, "M B H K"]:
    """`variant_decode` by an attention kernel in which all variants' queries are rows of the same tile.

    Args:
      attend: ``(q [B R G K], k, v, seen [B S]) -> (z [B R G K], lse [B R G])``: R queries of each group,
        each of which sees every seen position.
    """
    M, B, H, K = q.shape
    S, G = k.shape[1:3]
    grouped = q.reshape(M, B, G, H // G, K)
    rows = jnp.transpose(grouped, (1, 0, 3, 2, 4)).reshape(B, M * (H // G), G, K)
    seen = (jnp.ones((B, S), bool) if valid is None else valid).at[:, -1].set(False)

    def ungrouped(x: Array) -> Array:
        return jnp.transpose(x.reshape(B, M, H // G, G, -1), (1, 0, 3, 2, 4)).astype(jnp.float32)

    z, lse = (ungrouped(x) for x in attend(rows, k, v, seen))
    own = jnp.sum(grouped.astype(jnp.float32) * k_new[:, :, :, None].astype(jnp.float32), axis=-1)
    # The own position's share of a softmax over both; all of it where the cache holds nothing.
    share = jax.nn.sigmoid(own[..., None] * K**-0.5 - lse)
    z = (1 - share) * z + share * v_new[:, :, :, None].astype(jnp.float32)
    return z.reshape(M, B, H, K).astype(q.dtype)
