"""The one door to `head_attention`: checks the call, then runs the implementation asked for."""

from jax import Array
from jaxtyping import Bool, Float

from kernels.head_attention import reference, xla

IMPLEMENTATIONS = {"reference": reference.head_attention, "xla": xla.head_attention}
DEFAULT = "xla"


def head_attention(
    q: Float[Array, "B S H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    *,
    valid: Bool[Array, "B T"] | None = None,
    precision: str | None = None,
    implementation: str | None = None,
) -> Float[Array, "B S H K"]:
    """Causal attention with every head's output kept apart: z [B S H K], before any output projection.

    The S queries are the last S of the T cached positions. Query head h reads key/value head
    ``h // (H / G)``. Scores are scaled by ``1 / sqrt(K)``; the softmax is in float32.

    Args:
      valid: which cached positions hold a real token; nothing of the others, not even a NaN, reaches
        a result. A query that may attend to nothing gets zeros.
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
    name = DEFAULT if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {sorted(IMPLEMENTATIONS)}; got {name!r}")
    return IMPLEMENTATIONS[name](q, k, v, valid=valid, precision=precision)
