"""`head_attention` in plain jax.numpy, left to XLA: all heads in two batched products."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

# Finite, so that a row with nothing to attend to gives no NaN, and far below any real score.
_MASKED = -1e30


def head_attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    *,
    valid: Bool[Array, "B T"] | None,
    precision: str | None,
) -> Float[Array, "B S H K"]:
    """See `kernels.head_attention.api.head_attention`."""
    B, S, H, K = q.shape
    T, G = k.shape[1:3]
    allowed = jnp.arange(T)[None, :] <= jnp.arange(T - S, T)[:, None]
    allowed = allowed[None, None, None]
    if valid is not None:
        allowed = allowed & valid[:, None, None, None, :]
        v = jnp.where(valid[:, :, None, None], v, 0)  # a zero weight times a NaN would be a NaN
    grouped = q.reshape(B, S, G, H // G, K)
    scores = jnp.einsum(
        "bsgrk,btgk->bgrst", grouped, k, precision=precision, preferred_element_type=jnp.float32
    )
    scores = jnp.where(allowed, scores * K**-0.5, _MASKED)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = jnp.where(allowed, weights, 0)
    total = weights.sum(axis=-1, keepdims=True)
    pattern = weights / jnp.where(total == 0, 1, total)
    z = jnp.einsum(
        "bgrst,btgk->bsgrk",
        pattern.astype(v.dtype),
        v,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return z.reshape(B, S, H, K).astype(q.dtype)
