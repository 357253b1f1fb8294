"""`variant_decode` as its definition reads: a whole cache for each variant, float32, highest precision."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


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
    """See `kernels.variant_decode.api.variant_decode`. `precision` is ignored: always the highest."""
    del precision
    B, S = k.shape[:2]
    heads_per_group = q.shape[2] // k.shape[2]
    seen = jnp.ones((B, S), bool) if valid is None else valid.at[:, -1].set(True)
    if window is not None:
        seen = seen & (jnp.arange(S - 1, -1, -1, dtype=jnp.int32) < window)[None]

    def one_variant(new: tuple[Array, Array, Array]) -> Float[Array, "B H K"]:
        q, k_new, v_new = new
        keys = jnp.where(seen[:, :, None, None], k.at[:, -1].set(k_new), 0).astype(jnp.float32)
        values = jnp.where(seen[:, :, None, None], v.at[:, -1].set(v_new), 0).astype(jnp.float32)
        keys, values = (jnp.repeat(x, heads_per_group, axis=2) for x in (keys, values))
        scores = jnp.einsum("bhk,bshk->bhs", q.astype(jnp.float32), keys, precision="highest")
        scores = scores * scale
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        scores = jnp.where(seen[:, None], scores, -jnp.inf)
        pattern = jax.nn.softmax(scores, axis=-1)
        return jnp.einsum("bhs,bshk->bhk", pattern, values, precision="highest")

    return jax.lax.map(one_variant, (q, k_new, v_new)).astype(q.dtype)
