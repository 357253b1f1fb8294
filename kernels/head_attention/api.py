"""The one door to `head_attention`: checks the call, then runs the implementation asked for."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from kernels import dispatch
from kernels.head_attention import pallas_mosaic_gpu, pallas_mosaic_tpu, reference, xla

IMPLEMENTATIONS = {
    "reference": reference.head_attention,
    "xla": xla.head_attention,
    "pallas_mosaic_tpu": pallas_mosaic_tpu.head_attention,
    "pallas_mosaic_gpu": pallas_mosaic_gpu.head_attention,
}
DEFAULT = "xla"


class HeadAttention(NamedTuple):
    """What attention gives back.

    Attributes:
      z: every head's own output, before any output projection, as edited.
      lse: log of the sum of the exponentials of each query's scores, minus infinity where a query may
        attend to nothing. A row of the pattern is ``exp(q @ k.T / sqrt(K) - lse)`` over its keys.
    """

    z: Float[Array, "B S H K"]
    lse: Float[Array, "B S H"]


def head_attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    *,
    valid: Bool[Array, "B T"] | None = None,
    gain: Float[Array, "#B #S H"] | None = None,
    replacement: Float[Array, "#B #S #H #K"] | None = None,
    precision: str | None = None,
    implementation: str | None = None,
) -> HeadAttention:
    """Causal attention with every head's output kept apart, and edited if asked.

    The S queries are the last S of the T cached positions. Query head h reads key/value head
    ``h // (H / G)``. Scores are scaled by ``1 / sqrt(K)``; the softmax is in float32. Differentiable in
    q, k, v, gain and replacement.

    Args:
      valid: which cached positions hold a real token; nothing of the others, not even a NaN, reaches
        a result. A query that may attend to nothing gets zeros.
      gain: ``z <- gain * z + (1 - gain) * replacement``.
      replacement: what a gain below 1 mixes in; zeros if not given.
      precision: matmul precision, as in `jax.lax.dot_general`.
      implementation: a name in `IMPLEMENTATIONS`, or None for the default.

    Raises:
      ValueError: the shapes do not fit each other, or the implementation is unknown.
      NotImplementedError: the named implementation cannot do this here.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"H must be a multiple of G; got H={q.shape[2]} and G={k.shape[2]}")
    if q.shape[1] > k.shape[1]:
        raise ValueError(
            f"queries are the last of the cached positions; got S={q.shape[1]} of T={k.shape[1]}"
        )
    if replacement is not None and gain is None:
        raise ValueError("a replacement is mixed in by a gain; got a replacement and no gain")
    if gain is not None and replacement is None:
        replacement = jnp.zeros((1, 1, 1, 1), q.dtype)
    run, precision = dispatch.choose("head_attention", IMPLEMENTATIONS, DEFAULT, implementation, precision)
    z, lse = run(q, k, v, valid=valid, gain=gain, replacement=replacement, precision=precision)
    return HeadAttention(z, lse)
