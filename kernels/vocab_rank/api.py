"""The one door to `vocab_rank`: checks the call, chooses the cheaper order of products, runs."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from .. import dispatch

IMPLEMENTATIONS = dispatch.implementations("vocab_rank")
DEFAULT = "xla"


class VocabRank(NamedTuple):
    """What is known of each query's target.

    Attributes:
      above: how many logits are strictly greater than the target's; at most `cap` if there is one. A
        comparison with NaN counts here and in `below`, so that one never makes a target look first.
      below: how many are strictly smaller; likewise.
      logit: the target's own.
      lse: log of the sum of the exponentials of all logits, if asked for. ``logit - lse`` is the target's
        log-probability.
    """

    above: Int[Array, "H N"]
    below: Int[Array, "H N"]
    logit: Float[Array, "H N"]
    lse: Float[Array, "H N"] | None


def vocab_rank(
    q: Float[Array, "H N K"],
    unembed: Float[Array, "V D"],
    target: Int[Array, " N"],
    *,
    W_O: Float[Array, "H K D"] | None = None,
    bias: Float[Array, " V"] | None = None,
    cap: Int[Array, " N"] | None = None,
    with_lse: bool = False,
    precision: str | None = None,
    implementation: str | None = None,
) -> VocabRank:
    """Ranks the target among the logits ``q[h, n] @ W_O[h] @ unembed.T + bias``, tile by tile.

    The logits are never in memory: a tile of them is formed, counted and dropped. A target's logit comes
    out of a product of the same shape, order and operands as the tiles it is compared with, and the
    target is never compared with itself, so rounding cannot move it. Sums are in float32.

    With more queries than K a head, `W_O` first meets the vocabulary and each query then costs K
    multiplications a token; with fewer the queries first meet `W_O`, which costs D.

    Args:
      target: each query's token, the same for every head.
      W_O: each head's output projection; None if the queries already live in the unembedding's space
        (K = D), as a residual does.
      bias: added to the logits.
      cap: counts stop mattering here: a query whose both counts have reached its cap is decided, and
        where a block of queries is decided, the rest of the vocabulary is skipped. A hit with k is
        ``above < k``, so a cap of k leaves hits exact.
      with_lse: whether to return the log-sum-exp, which needs the whole vocabulary.
      precision: matmul precision, as in `jax.lax.dot_general`.
      implementation: a name in `IMPLEMENTATIONS`, or None for the default.

    Raises:
      ValueError: the arguments do not fit each other, or the implementation is unknown.
      NotImplementedError: the named implementation cannot do this here.
    """
    H, N, K = q.shape
    if W_O is None and unembed.shape[1] != K:
        raise ValueError(
            f"without W_O the queries live in the unembedding's space; got K={K} and D={unembed.shape[1]}"
        )
    if cap is not None and with_lse:
        raise ValueError("a cap skips tiles, but lse needs them all; got both")
    run, precision = dispatch.choose("vocab_rank", IMPLEMENTATIONS, DEFAULT, implementation, precision)
    if W_O is None or N <= K:
        if W_O is not None:
            x = jnp.einsum("hnk,hkd->hnd", q, W_O, precision=precision, preferred_element_type=jnp.float32)
            q, W_O = x.astype(q.dtype), None
        q = q.reshape(1, H * N, -1)
        target, cap = (None if per_query is None else jnp.tile(per_query, H) for per_query in (target, cap))
    ranks = run(
        q,
        unembed,
        target,
        W_O=W_O,
        bias=bias,
        cap=cap,
        with_lse=with_lse,
        precision=precision,
    )
    ranks = VocabRank(*(None if rank is None else rank.reshape(H, N) for rank in ranks))
    if cap is None:
        return ranks
    # How far past its cap a decided query was still counted is the implementation's business.
    limit = cap.astype(jnp.int32).reshape(-1, N)  # [1 N], or [H N] where it was repeated
    return ranks._replace(above=jnp.minimum(ranks.above, limit), below=jnp.minimum(ranks.below, limit))
