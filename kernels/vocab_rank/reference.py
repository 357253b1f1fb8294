"""`vocab_rank` as its definition reads: all logits, float32, highest precision."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


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
    """See `kernels.vocab_rank.api.vocab_rank`. Everything is counted, at the highest precision."""
    del precision, cap
    x = q.astype(jnp.float32)
    if W_O is not None:
        x = jnp.einsum("hnk,hkd->hnd", x, W_O.astype(jnp.float32), precision="highest")
    logits = jnp.einsum("hnd,vd->hnv", x, unembed.astype(jnp.float32), precision="highest")
    if bias is not None:
        logits = logits + jnp.expand_dims(bias.astype(jnp.float32), (0, 1))
    others = (jnp.arange(len(unembed), dtype=target.dtype)[None] != target[:, None])[None]
    own = jnp.take_along_axis(logits, target[None, :, None], axis=2)
    bounds = logits <= own, logits >= own
    above, below = (jnp.sum(others & ~bound, axis=2, dtype=jnp.int32) for bound in bounds)
    lse = jax.nn.logsumexp(logits, axis=2) if with_lse else None
    return above, below, own[:, :, 0], lse
