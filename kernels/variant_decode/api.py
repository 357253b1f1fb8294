"""The one door to `variant_decode`: checks the call, then runs the implementation asked for."""

from jax import Array
from jaxtyping import Bool, Float, Int

from .. import dispatch
from ..head_attention import scores

IMPLEMENTATIONS = dispatch.implementations("variant_decode")
DEFAULT = "xla"


def variant_decode(
    q: Float[Array, "M B H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    k_new: Float[Array, "M B G K"],
    v_new: Float[Array, "M B G K"],
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | Int[Array, ""] | None = None,
    valid: Bool[Array, "B S"] | None = None,
    precision: str | None = None,
    implementation: str | None = None,
) -> Float[Array, "M B H K"]:
    """Attention of the last position of M variants that share all positions before it: z [M B H K].

    The last of the S cached positions is not read: in its place every variant has its own `k_new` and
    `v_new`. Query head h reads key/value head ``h // (H / G)``. Scores are as in
    `kernels.head_attention.head_attention`; the softmax is in float32. The cache is read once per prompt
    and key/value head and never copied per variant.

    Args:
      scale: ``1 / sqrt(K)`` if not given.
      soft_cap: what no score exceeds in magnitude; no cap if not given.
      window: how many of the S positions a variant sees, its own the last of them, as in
        `head_attention`; all if not given. What lies before is not read, except that XLA, whose shapes
        are fixed, reads and masks it where the window is an array.
      valid: which cached positions hold a real token; nothing of the others, not even a NaN, reaches a
        result. The last entry is ignored: a variant always attends to its own position.
      precision: matmul precision, as in `jax.lax.dot_general`.
      implementation: a name in `IMPLEMENTATIONS`, or None for the default.

    Raises:
      ValueError: the shapes do not fit each other, or the implementation is unknown.
      NotImplementedError: the named implementation cannot do this here.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"H must be a multiple of G; got H={q.shape[2]} and G={k.shape[2]}")
    if k.shape[1] == 0:
        raise ValueError("the cache must hold at least the position that is replaced; got S=0")
    scores.check(soft_cap, window)
    run, precision = dispatch.choose("variant_decode", IMPLEMENTATIONS, DEFAULT, implementation, precision)
    return run(
        *(q, k, v, k_new, v_new),
        scale=q.shape[3] ** -0.5 if scale is None else scale,
        soft_cap=soft_cap,
        window=window,
        valid=valid,
        precision=precision,
    )
