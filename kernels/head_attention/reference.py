"""`head_attention` as its definition reads: one head at a time, float32, highest precision."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


def head_attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    *,
    valid: Bool[Array, "B T"] | None,
    precision: str | None,
) -> Float[Array, "B S H K"]:
    """See `kernels.head_attention.api.head_attention`. `precision` is ignored: always the highest."""
    del precision
    S, T = q.shape[1], k.shape[1]
    heads_per_group = q.shape[2] // k.shape[2]
    allowed = jnp.arange(T)[None, :] <= jnp.arange(T - S, T)[:, None]
    allowed = jnp.broadcast_to(allowed[None], (q.shape[0], S, T))
    if valid is not None:
        allowed = allowed & valid[:, None, :]
        k = jnp.where(valid[:, :, None, None], k, 0)
        v = jnp.where(valid[:, :, None, None], v, 0)
    outputs = []
    for h in range(q.shape[2]):
        q_h = q[:, :, h].astype(jnp.float32)
        k_h = k[:, :, h // heads_per_group].astype(jnp.float32)
        v_h = v[:, :, h // heads_per_group].astype(jnp.float32)
        scores = jnp.einsum("bsk,btk->bst", q_h, k_h, precision="highest") * q.shape[3] ** -0.5
        pattern = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf), axis=-1)
        pattern = jnp.where(allowed.any(axis=-1, keepdims=True), pattern, 0)
        outputs.append(jnp.einsum("bst,btk->bsk", pattern, v_h, precision="highest"))
    return jnp.stack(outputs, axis=2).astype(q.dtype)
