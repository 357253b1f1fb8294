"""`head_attention` in plain jax.numpy, left to XLA: all heads in two batched products."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from ..head_attention.scores import MASKED, allowed_keys, scores_of


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
    """See `kernels.head_attention.api.head_attention`. A window only masks: the scores are one array."""
    B, S, H, K = q.shape
    T, G = k.shape[1:3]
    keys = jnp.arange(T, dtype=jnp.int32)
    allowed = allowed_keys(keys, keys[T - S :], valid, window)
    if valid is not None:  # a zero weight times a NaN would be a NaN, here or in a gradient
        k = jnp.where(valid[:, :, None, None], k, 0)
        v = jnp.where(valid[:, :, None, None], v, 0)
    grouped = q.reshape(B, S, G, H // G, K)
    products = jnp.einsum(
        "bsgrk,btgk->bgrst", grouped, k, precision=precision, preferred_element_type=jnp.float32
    ).reshape(B, H, S, T)
    scores = jnp.where(allowed, scores_of(products, scale, soft_cap), MASKED)
    top = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(allowed, jnp.exp(scores - top), 0)
    total = weights.sum(axis=-1, keepdims=True)
    divisor = jnp.where(total == 0, 1, total)
    lse = jnp.where(total == 0, -jnp.inf, top + jnp.log(divisor))
    z = jnp.einsum(
        "bgrst,btgk->bsgrk",
        (weights / divisor).astype(v.dtype).reshape(B, G, H // G, S, T),
        v,
        precision=precision,
        preferred_element_type=jnp.float32,
    ).reshape(B, S, H, K)
    return edit(z, gain, replacement).astype(q.dtype), jnp.swapaxes(lse[..., 0], 1, 2)


def edit(
    z: Float[Array, "B S H K"],
    gain: Float[Array, "#B #S H"] | None,
    replacement: Float[Array, "#B #S #H #K"] | None,
) -> Float[Array, "B S H K"]:
    """``gain * z + (1 - gain) * replacement``, in z's own dtype; z itself without a gain."""
    if gain is None:
        return z
    g = gain[..., None].astype(z.dtype)
    return g * z + (1 - g) * replacement.astype(z.dtype)
