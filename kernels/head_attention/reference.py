"""`head_attention` as its definition reads: one head at a time, float32, highest precision."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


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
    """See `kernels.head_attention.api.head_attention`. `precision` is ignored: always the highest."""
    del precision
    dtype = q.dtype
    B, S, H, _ = q.shape
    T, G = k.shape[1:3]
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    key, query = jnp.arange(T, dtype=jnp.int32)[None], jnp.arange(T - S, T, dtype=jnp.int32)[:, None]
    allowed = key <= query
    if window is not None:
        allowed = allowed & (query - key < window)
    allowed = jnp.broadcast_to(allowed[None], (B, S, T))
    if valid is not None:
        allowed = allowed & valid[:, None]
        k = jnp.where(valid[:, :, None, None], k, 0)
        v = jnp.where(valid[:, :, None, None], v, 0)

    outputs, sums = [], []
    for h in range(H):
        k_h, v_h = k[:, :, h // (H // G)], v[:, :, h // (H // G)]
        scores = jnp.einsum("bsk,btk->bst", q[:, :, h], k_h, precision="highest") * scale
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        scores = jnp.where(allowed, scores, -jnp.inf)
        pattern = jax.nn.softmax(jnp.where(allowed.any(axis=-1, keepdims=True), scores, 0), axis=-1)
        pattern = jnp.where(allowed, pattern, 0)
        outputs.append(jnp.einsum("bst,btk->bsk", pattern, v_h, precision="highest"))
        sums.append(jax.nn.logsumexp(scores, axis=-1))
    z = jnp.stack(outputs, axis=2)
    if gain is not None:
        g = gain[..., None].astype(jnp.float32)
        z = g * z + (1 - g) * replacement.astype(jnp.float32)
    return z.astype(dtype), jnp.stack(sums, axis=2)
