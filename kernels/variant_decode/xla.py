"""`variant_decode` in plain jax.numpy, left to XLA: all variants are rows of a (prompt, group)'s product."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ..head_attention.scores import allowed_keys, scores_of


def variant_decode(
    q: Float[Array, "M B H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    k_new: Float[Array, "M B G K"],
    v_new: Float[Array, "M B G K"],
    *,
    scale: float,
    soft_cap: float | None,
    window: int | Int[Array, ""] | None,
    valid: Bool[Array, "B S"] | None,
    precision: str | None,
) -> Float[Array, "M B H K"]:
    """See `kernels.variant_decode.api.variant_decode`."""
    M, B, H, K = q.shape
    S, G = k.shape[1:3]
    grouped = q.reshape(M, B, G, H // G, K)
    first = max(0, S - window) if isinstance(window, int) else 0
    k, v = k[:, first:-1], v[:, first:-1]
    earlier = None if valid is None else valid[:, first:-1]
    if window is not None and not isinstance(window, int):  # shapes cannot follow an array: mask
        positions = jnp.arange(S, dtype=jnp.int32)
        earlier = allowed_keys(positions[:-1], positions[-1:], earlier, window)[:, 0, 0]

    def product(equation: str, x: Array, y: Array) -> Array:
        return jnp.einsum(equation, x, y, precision=precision, preferred_element_type=jnp.float32)

    shared = scores_of(product("mbgrk,bsgk->bgmrs", grouped, k), scale, soft_cap)
    if earlier is not None:
        shared = jnp.where(earlier[:, None, None, None], shared, -jnp.inf)
        v = jnp.where(earlier[:, :, None, None], v, 0)  # a zero weight times a NaN would be a NaN
    own = jnp.sum((grouped * k_new[:, :, :, None]).astype(jnp.float32), axis=-1)
    own = jnp.transpose(scores_of(own, scale, soft_cap), (1, 2, 0, 3))[..., None]

    # Finite, since a variant attends to its own position at least.
    top = jnp.maximum(own, jnp.max(shared, axis=-1, keepdims=True, initial=-jnp.inf))
    weights, own_weight = jnp.exp(shared - top), jnp.exp(own - top)
    total = weights.sum(axis=-1, keepdims=True) + own_weight
    z = product("bgmrs,bsgk->mbgrk", (weights / total).astype(v.dtype), v)
    own_share = jnp.transpose((own_weight / total)[..., 0], (2, 0, 1, 3))[..., None]
    z = z + own_share * v_new[:, :, :, None].astype(jnp.float32)
    return z.reshape(M, B, H, K).astype(q.dtype)
