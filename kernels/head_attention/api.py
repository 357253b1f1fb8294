"""The one door to `head_attention`: checks the call, then runs the implementation asked for."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from .. import dispatch
from ..head_attention import scores

IMPLEMENTATIONS = dispatch.implementations("head_attention")
DEFAULT = "xla"


class HeadAttention(NamedTuple):
    """What attention gives back.

    Attributes:
      z: every head's own output, before any output projection, as edited.
      lse: log of the sum of the exponentials of each query's scores, minus infinity where a query may
        attend to nothing. A row of the pattern is ``exp(scores - lse)`` over the keys that the query sees.
    """

    z: Float[Array, "B S H K"]
    lse: Float[Array, "B S H"]


def head_attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | Int[Array, ""] | None = None,
    valid: Bool[Array, "B T"] | None = None,
    gain: Float[Array, "#B #S H"] | None = None,
    replacement: Float[Array, "#B #S #H #K"] | None = None,
    precision: str | None = None,
    implementation: str | None = None,
) -> HeadAttention:
    """Causal attention with every head's output kept apart, and edited if asked.

    The S queries are the last S of the T cached positions. Query head h reads key/value head
    ``h // (H / G)``. Scores are ``q @ k.T * scale``, with a soft cap ``soft_cap * tanh(. / soft_cap)`` of
    that; the softmax is in float32. Differentiable in q, k, v, gain and replacement.

    Args:
      scale: ``1 / sqrt(K)`` if not given.
      soft_cap: what no score exceeds in magnitude; no cap if not given.
      window: how many cached positions a query sees, 1 or more, its own the last of them; all up to its
        own if not given, or T or more. Cached positions count whether valid or not: where prompts are
        padded on the left, and so no padding lies between tokens, that is the distance in tokens. An array
        may differ from call to call of one program, as over the layers of a scan; its value is not checked.
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
    scores.check(soft_cap, window)
    if window is not None:
        window = jnp.asarray(window, jnp.int32)
    run, precision = dispatch.choose("head_attention", IMPLEMENTATIONS, DEFAULT, implementation, precision)
    z, lse = run(
        *(q, k, v),
        scale=q.shape[3] ** -0.5 if scale is None else scale,
        soft_cap=soft_cap,
        window=window,
        valid=valid,
        gain=gain,
        replacement=replacement,
        precision=precision,
    )
    return HeadAttention(z, lse)
