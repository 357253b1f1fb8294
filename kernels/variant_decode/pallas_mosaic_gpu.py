"""`variant_decode` for Hopper GPUs: `head_attention`'s kernel reads the cache once per prompt and group.

All variants of all heads of a group are rows of one query tile; their own position is merged afterwards
through the log-sum-exp.
"""

import functools

from jax import Array
from jaxtyping import Bool, Float, Int

from ..head_attention import pallas_mosaic_gpu
from ..head_attention.gradient import Static
from ..variant_decode.merge import with_own_position


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
    pallas_mosaic_gpu.check(q, k, v)
    attend = functools.partial(pallas_mosaic_gpu.attend, causal=False)
    static = Static(scale, soft_cap, precision)
    return with_own_position(attend, q, k, v, k_new, v_new, valid, window, static)
