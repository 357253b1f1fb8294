"""Relation hits by screened counting: exact, and almost never looking at the whole vocabulary.

A pair (s, t) is a *hit* of a head if fewer than k of the head's logits are strictly greater than the
logit of t, and a *suppression hit* if fewer than k are strictly smaller (Elhelo & Geva 2024, "MAPS",
section 3). Counting over part of the vocabulary can therefore rule a pair out, and nothing else can
rule it out sooner. So the pairs of all heads of a layer pass through a few stages, each counting over
more tokens than the one before, and only pairs that are still undecided move on:

    stage 1   the run's own targets and 512 drawn tokens     all pairs
    stage 2   the same and some 8,000 more                   about 2 % of them, k = 10
    last      the whole vocabulary                           0.3 %, and all true hits

Early stages count only logits that differ from the target's by more than rounding can explain; the
last one counts as they are. In every stage the target's own logit is read out of the product that it
is compared with, so a target never differs from itself. Survivors are packed into chunks of a fixed
size and a loop runs until none is left: shapes are static, and no survivor is ever dropped.

What a stage costs follows from rank d_head. A head with more than K undecided pairs forms
``W_O U`` once, [K, T], and each of its pairs costs K multiplications a token; the few pairs of all
other heads are pooled as rows of D, one dense product for the layer. So no more than K rows of D a
head ever meet the vocabulary, whatever the weights.
"""

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

DRAWS = (512, 16384)  # tokens that the early stages add to the run's own targets
POOL=64
TILE=2**21
TILE0 = {"cpu": 2**23, "gpu": 2**28, "tpu": 2**27}  # logits held at once; measured on CPU only


class Stage(NamedTuple):
    """The tokens that one stage counts over: T distinct ones, every pair's target among them."""

    rows: Float[Array, "T D"]  # their rows of the unembedding, float32
    target: Int[Array, "N"]  # where each pair's target lies among the rows


class Counts(NamedTuple):
    """How many of the counted logits are strictly greater and strictly smaller than the target's."""

    above: Int[Array, "*rows"]
    below: Int[Array, "*rows"]


class Hits(NamedTuple):
    plain: Bool[Array, "H N"]
    suppression: Bool[Array, "H N"]


def screening_stages(
    unembed: Float[Array | np.ndarray, "V D"],
    targets: Int[np.ndarray, "N"],
    draws: tuple[int, ...] = DRAWS,
    seed: int = 0,
) -> tuple[Stage, ...]:
    """Prepares the stages, once a run: nested sets of tokens, the last one the whole vocabulary.

    Each early stage holds the distinct targets and so many tokens drawn from the others; those that
    would hold most of the vocabulary are left out, so a small vocabulary is counted at once.
    """
    unembed = jnp.asarray(unembed, jnp.float32)
    n_tokens = unembed.shape[0]
    own, slot = np.unique(targets, return_inverse=True)
    others = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(n_tokens), own))
    early = [np.concatenate([own, others[:n]]) for n in draws if 2 * (len(own) + n) < n_tokens]
    stages = [Stage(unembed[tokens], jnp.asarray(slot, jnp.int32)) for tokens in early]
    return (*stages, Stage(unembed, jnp.asarray(targets, jnp.int32)))


def relation_hits(
    q: Float[Array, "H N K"],
    W_O: Float[Array, "H K D"],
    stages: tuple[Stage, ...],
    k: Int[Array, "N"],
    precision: str = "highest",
) -> Hits:
    """Which pairs are hits of which heads, plain and suppression, for the heads of one layer.

    The logits of head h and pair n are ``q[h, n] @ W_O[h] @ unembed.T``; k[n] is the k of pair n. Heads
    do not depend on each other. Exact at precision "highest": a pair is judged by float32 logits.
    """
    q, W_O = q.astype(jnp.float32), W_O.astype(jnp.float32)
    margin = rounding_margin(q, W_O, stages[-1].rows)
    undecided = jnp.ones(q.shape[:2], bool)
    for stage in stages[:-1]:
        counts = count_survivors(q, W_O, stage, undecided, margin, precision)
        undecided &= (counts.above < k[None]) | (counts.below < k[None])
    counts = count_survivors(q, W_O, stages[-1], undecided, jnp.zeros_like(margin), precision)
    return Hits(undecided & (counts.above < k[None]), undecided & (counts.below < k[None]))


def rounding_margin(
    q: Float[Array, "H N K"], W_O: Float[Array, "H K D"], rows: Float[Array, "V D"]
) -> Float[Array, "H N"]:
    """By how much two float32 logits may differ in size though their exact values do not.

    A product of n terms errs by less than ``c sqrt(n) eps |x| |u|`` with overwhelming probability, c a
    few units (Higham & Mary 2019, "A new approach to probabilistic rounding error analysis"). Only the
    early stages use it: too wide lets more pairs survive, and changes no result.
    """
    n_heads, _, d_head = q.shape
    n_terms = d_head + rows.shape[1]
    norm_O = jnp.sqrt(jnp.sum(jnp.square(W_O), axis=(1, 2)))
    norm_U = jnp.sqrt(jnp.max(jnp.sum(jnp.square(rows), axis=1)))
    norm_q = jnp.sqrt(jnp.sum(jnp.square(q), axis=2))
    return 2 * sqrt(n_terms) * float(jnp.finfo(jnp.float32).eps) * norm_U * norm_O[:, None] * norm_q


def count_survivors(
    q: Float[Array, "H N K"],
    W_O: Float[Array, "H K D"],
    stage: Stage,
    undecided: Bool[Array, "H N"],
    margin: Float[Array, "H N"],
    precision: str,
) -> Counts:
    """Counts of one stage for the undecided pairs; the entries of all others mean nothing."""
    n_heads, n_pairs, d_head = q.shape
    crowded = jnp.sum(undecided, axis=1) > d_head
    if n_pairs <= d_head:
        return _count_pooled(q, W_O, stage, undecided, margin, precision)
    pooled = _count_pooled(q, W_O, stage, undecided & ~crowded[:, None], margin, precision)

    def one_head(args) -> Counts:
        q, W_O, undecided, margin, crowded, pooled = args
        return lax.cond(
            crowded, lambda: _count_head(q, W_O, stage, undecided, margin, precision), lambda: pooled
        )

    return lax.map(one_head, (q, W_O, undecided, margin, crowded, pooled))


def _count_head(
    q: Float[Array, "N K"],
    W_O: Float[Array, "K D"],
    stage: Stage,
    undecided: Bool[Array, "N"],
    margin: Float[Array, "N"],
    precision: str,
) -> Counts:
    """One head with many undecided pairs: the head's own map to the tokens, then rows of K."""
    head_rows = jnp.matmul(W_O, stage.rows.T, precision=precision)

    def count(pairs: Int[Array, "C"]) -> Counts:
        logits = jnp.matmul(q[pairs], head_rows, precision=precision)
        return count_beyond(logits, stage.target[pairs], margin[pairs])

    return _in_chunks(count, undecided, max(POOL, TILE//stage.rows.shape[0]))


def _count_pooled(
    q: Float[Array, "H N K"],
    W_O: Float[Array, "H K D"],
    stage: Stage,
    undecided: Bool[Array, "H N"],
    margin: Float[Array, "H N"],
    precision: str,
) -> Counts:
    """Heads with at most K undecided pairs each: all their pairs as rows of D in one product."""
    n_heads, n_pairs, d_head = q.shape
    n_slots = min(n_pairs, d_head)
    pair = jax.vmap(lambda chosen: jnp.nonzero(chosen, size=n_slots, fill_value=n_pairs)[0])(undecided)
    head = jnp.arange(n_heads)[:, None]
    x = jnp.einsum("HNK,HKD->HND", q[head, pair], W_O, precision=precision)
    x = x.reshape(n_heads * n_slots, -1)
    target, slot_margin = stage.target[pair].ravel(), margin[head, pair].ravel()

    def count(slots: Int[Array, "C"]) -> Counts:
        logits = jnp.matmul(x[slots], stage.rows.T, precision=precision)
        return count_beyond(logits, target[slots], slot_margin[slots])

    counts = _in_chunks(count, (pair < n_pairs).ravel(), POOL)
    blank = jnp.zeros((n_heads, n_pairs), jnp.int32)
    return Counts(*(blank.at[head, pair].set(c.reshape(pair.shape), mode="drop") for c in counts))


def _in_chunks(count: Callable, chosen: Bool[Array, "M"], chunk: int) -> Counts:
    """Runs ``count(rows [C]) -> Counts`` over the chosen rows, C at a time, until none is left."""
    n_rows = chosen.shape[0]
    chunk=min(n_rows,chunk)
    size = -(-n_rows // chunk) * chunk
    queue = jnp.nonzero(chosen, size=size, fill_value=n_rows)[0]
    n_chosen = jnp.sum(chosen)

    def body(state: tuple[Array, Counts]) -> tuple[Array, Counts]:
        start, counts = state
        rows = lax.dynamic_slice(queue, (start,), (chunk,))
        # Past the end of the queue stands n_rows: read as some row, never written.
        counts = Counts(*(c.at[rows].set(new, mode="drop") for c, new in zip(counts, count(rows), strict=True)))
        return start + chunk, counts

    blank = Counts(jnp.zeros(n_rows, jnp.int32), jnp.zeros(n_rows, jnp.int32))
    return lax.while_loop(lambda state: state[0] < n_chosen, body, (jnp.zeros((), n_chosen.dtype), blank))[1]


def count_beyond(
    logits: Float[Array, "C T"], target: Int[Array, "C"], margin: Float[Array, "C"]
) -> Counts:
    """Logits that lie above and below the target's by more than the margin, counted in one pass."""
    own = jnp.take_along_axis(logits, target[:, None], axis=1)
    above = (logits > own + margin[:, None]).astype(jnp.int32)
    below = (logits < own - margin[:, None]).astype(jnp.int32)
    # One reduction of two operands: XLA's CPU code for it is several times faster than two sums.
    add = lambda a, b: (a[0] + b[0], a[1] + b[1])
    return Counts(*lax.reduce((above, below), (jnp.int32(0), jnp.int32(0)), add, (1,)))
