"""Relation hits by screened counting: exact, and almost never looking at the whole vocabulary.

A pair (s, t) is a *hit* of a head if fewer than k of the head's logits are strictly greater than the
logit of t, and a *suppression hit* if fewer than k are strictly smaller (Elhelo & Geva 2024, "MAPS",
section 3). A count over part of the vocabulary that already reaches k therefore rules the pair out. The
pairs of all heads of a layer pass through a few stages, each of which goes on counting over tokens that the
ones before have not seen, and only pairs that are still undecided move on:

    stage 1   512 drawn tokens                      all pairs
    stage 2   some 2,000 more                       about 4 % of them for k = 10
    stage 3   some 5,000 more                       1 %
    ...       some 13,000, some 33,000 more; only in vocabularies like Llama's
    last      the whole vocabulary, counted anew    0.1 to 0.04 %, and all true hits

Before the first, every pair's own logit, its target's, is computed by itself; or the run's own targets are
counted over in stage 1, too, where there are no more of them than a row of the unembedding is long. Early
stages count only logits that differ from the target's by more than rounding can explain; the last one
counts them as they are, and the target's own logit is read out of the product that it is compared with, so
a target never differs from itself. Survivors are packed into chunks of a fixed size and a loop runs until
none is left: shapes are static, and no survivor is ever dropped.

What a stage costs is bounded by the rank of a head. A head with more than K undecided pairs forms
``W_O U`` once, [K T], and each of its pairs then costs K multiplications a token; the few pairs of all
other heads are pooled as rows of D. So at most K rows a head are ever multiplied with the unembedding,
whatever the weights: a model with many true hits, or adversarial weights, cost a few times the usual.

A fused kernel (kernels/vocab_rank) screens on the chip instead: it walks the whole vocabulary once, with a
cap of k, and skips what is left of it where all pairs of a block are decided.
"""

from collections.abc import Callable
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int, UInt16

from headjax.inputs import check_ids
from headjax.kernels import dispatch, platform
from headjax.kernels.vocab_rank import vocab_rank

DRAWS = (512, 2560, 7680, 20480, 53248)  # tokens seen after each early stage


class Chunk(NamedTuple):
    """How much is multiplied at once: rows in pooled products (or 2 or 4 times as many, where that many are
    left: what is done to the other factor is then done less often), and logits in those of one head."""

    rows: int
    logits: int


# Measured on CPU, where tiles should stay in the cache; elsewhere large enough to fill the device.
CHUNKS = {"cpu": Chunk(rows=64, logits=2**20), "gpu": Chunk(512, 2**28), "tpu": Chunk(512, 2**26)}

# Rows of the unembedding that are stored as bfloat16 stay that until they are multiplied, except in stages
# of at most SMALL numbers. They are held as bits, because XLA makes whatever a loop carries in bfloat16 a
# float32 on CPU: all of it, and twice the memory. A tile of TILE numbers is float32 at a time.
SMALL, TILE = 2**27, 2**22
SLOTS = 16  # pairs of each head whose rows of D are made at once
HELD_LOGITS = 2**26  # of pooled rows at once, where there are enough of them to use larger chunks

Rows = Float[Array, "T D"] | UInt16[Array, "T D"]


class Stage(NamedTuple):
    """The tokens that one stage counts over: T distinct ones.

    Attributes:
      rows: of the unembedding, float32 or the bits of bfloat16.
      target: [N], where each pair's target lies among the rows; -1 where no target is among them.
      largest: norm of the largest row.
    """

    rows: Rows
    target: Int[Array, " N"]
    largest: Float[Array, ""]


class Targets(NamedTuple):
    """The distinct targets, over which nothing is counted: rows, places and norm as those of a stage."""

    rows: Rows
    target: Int[Array, " N"]
    largest: Float[Array, ""]


class Counts(NamedTuple):
    """How many logits are strictly greater and strictly smaller than the target's own."""

    above: Int[Array, "*pairs"]
    below: Int[Array, "*pairs"]
    own: Float[Array, "*pairs"]


def no_counts(shape: tuple[int, ...]) -> Counts:
    """What counting begins with."""
    return Counts(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))


# Targets, where they stand by themselves, early stages, the last one.
Stages = tuple[Stage | Targets, ...]


class Hits(NamedTuple):
    """Which pairs are hits of which heads."""

    plain: Bool[Array, "H N"]
    suppression: Bool[Array, "H N"]


def screening_stages(
    unembed: Float[Array | np.ndarray, "V D"] | UInt16[Array | np.ndarray, "V D"],
    targets: Int[np.ndarray, " N"],
    draws: tuple[int, ...] = DRAWS,
    seed: int = 0,
    vocab_size: int | None = None,
) -> Stages:
    """Prepares the stages, once a run: sets of tokens, the last one the whole vocabulary.

    The early ones hold draws[i] tokens, all in all, that are no targets. Of the targets the first early
    one holds each, where these are no more than D: then it is forming W_O U that costs, and that of the
    targets is needed anyhow. Where they are more, comparing all pairs with all targets would cost most,
    and they come first, by themselves. An early stage after which half of the vocabulary would have been
    seen is left out, so a small vocabulary is counted at once, and has but the last stage. The seed
    decides which pairs are ruled out early and changes no result. `unembed` of type uint16 is the bits of
    bfloat16. Rows from `vocab_size` on are padding that stands for no token: they are not counted.

    Raises InputError for a target that is none of the tokens.
    """
    n_rows = min(vocab_size or len(unembed), len(unembed))
    check_ids(np.asarray(targets), "targets", n_rows)
    unembed = token_rows(unembed if n_rows == len(unembed) else unembed[:n_rows])
    n_tokens, whole = unembed.shape[0], Stage(_held(unembed), _slots(targets), _largest_norm(unembed))
    own, slot = np.unique(targets, return_inverse=True)
    if not (ends := [n for n in draws if 2 * (len(own) + n) < n_tokens]):
        return (whole,)
    others = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(n_tokens), own))
    first, *drawn = (others[start:end] for start, end in pairwise([0, *ends]))
    unseen = np.full(len(targets), -1)
    more = [_stage(unembed, tokens, unseen) for tokens in drawn]
    if len(targets) <= unembed.shape[1]:
        return (_stage(unembed, np.concatenate([own, first]), slot), *more, whole)
    return (Targets(*_stage(unembed, own, slot)), _stage(unembed, first, unseen), *more, whole)


def token_rows(unembed: Array | np.ndarray) -> Rows:
    """An unembedding [V D] as stages hold it."""
    if unembed.dtype == jnp.uint16:
        return jnp.asarray(unembed)
    if unembed.dtype != jnp.bfloat16:
        return jnp.asarray(unembed, jnp.float32)
    if isinstance(unembed, np.ndarray):
        return jnp.asarray(unembed.view(np.uint16))
    return lax.bitcast_convert_type(unembed, jnp.uint16)


def _stage(unembed: Rows, tokens: Int[np.ndarray, " chosen"], target: Int[np.ndarray, " N"]) -> Stage:
    rows, largest = _gather(unembed, jax.device_put(tokens.astype(np.int32)))
    return Stage(rows, _slots(target), largest)


def _slots(target: Int[np.ndarray, " N"]) -> Int[Array, " N"]:
    return jax.device_put(np.asarray(target, np.int32))


@jax.jit
def _gather(rows: Rows, tokens: Int[Array, " chosen"]) -> tuple[Array, Float[Array, ""]]:
    """The rows of some tokens [chosen D], as stages hold them, and the largest norm among them."""
    chosen = _held(rows.at[tokens].get(mode="promise_in_bounds"))
    return chosen, _largest_norm(chosen)


def _held(rows: Rows) -> Rows:
    return _widen(rows) if rows.size <= SMALL else rows


def _widen(rows: Rows) -> Float[Array, "T D"]:
    """float32 rows, whatever they are held as: a bfloat16 is the upper half of a float32."""
    if rows.dtype == jnp.float32:
        return rows
    return lax.bitcast_convert_type(rows.astype(jnp.uint32) << 16, jnp.float32)


@jax.jit
def _largest_norm(rows: Rows) -> Float[Array, ""]:
    return jnp.sqrt(jnp.max(jnp.sum(jnp.square(_widen(rows)), axis=1)))


def relation_hits(
    q: Float[Array, "H N K"],
    W_O: Float[Array, "H K D"],
    stages: Stages,
    k: Int[Array, " N"],
    precision: str = "highest",
    implementation: str | None = None,
) -> Hits:
    """Which pairs are hits of which heads, plain and suppression, for the heads of one layer.

    The logits of head h and pair n are ``q[h, n] @ W_O[h] @ unembed.T``, without any bias; k[n] is the k
    of pair n. Heads do not depend on each other. Exact at precision "highest": a pair that counts as a
    hit or not does so by its float32 logits over the whole vocabulary. Logits that are not a number make
    no hits. `implementation` is that of `vocab_rank`, if it is to be used.
    """
    q, W_O = q.astype(jnp.float32), W_O.astype(jnp.float32)
    last = stages[-1]
    if is_fused(implementation):
        how = {"cap": k, "precision": precision, "implementation": implementation}
        rank = vocab_rank(q, _widen(last.rows), last.target, W_O=W_O, **how)
        return Hits(rank.above < k[None], rank.below < k[None])
    dispatch.note("relation_hits", "xla", precision)
    undecided, none = jnp.ones(q.shape[:2], bool), no_counts(q.shape[:2])
    margin, counts = rounding_margin(q, W_O, last.largest), none
    for stage in stages[:-1]:
        if isinstance(stage, Targets):
            counts = own_logits(q, W_O, stage, precision)
            continue
        counts = count_undecided(q, W_O, stage, undecided, margin, counts, precision)
        undecided &= (counts.above < k[None]) | (counts.below < k[None])
    counts = count_undecided(q, W_O, last, undecided, jnp.zeros_like(margin), none, precision)
    return Hits(undecided & (counts.above < k[None]), undecided & (counts.below < k[None]))


def is_fused(implementation: str | None) -> bool:
    """Whether `vocab_rank` ranks. Otherwise the caller's own XLA code does: no kernel was measured faster."""
    return implementation not in (None, "xla")


def rounding_margin(
    q: Float[Array, "H N K"], W_O: Float[Array, "H K D"], largest: Float[Array, ""]
) -> Float[Array, "H N"]:
    """By how much two computed logits may differ though their exact values do not.

    `largest` is the norm of the largest row of the unembedding.

    The error of a product of n terms stays below ``c sqrt(n) eps |x| |u|`` with overwhelming probability,
    c about 1, in whatever order it is summed (Higham & Mary 2019, "A new approach to probabilistic rounding
    error analysis"). Only early stages use it: a margin that is too wide lets more pairs survive and changes
    no result.
    """
    n_terms = q.shape[2] + W_O.shape[2]
    norms_q = jnp.linalg.norm(q, axis=2)
    norms_O = jnp.linalg.norm(W_O, axis=(1, 2))
    return 4 * sqrt(n_terms) * float(jnp.finfo(jnp.float32).eps) * largest * norms_O[:, None] * norms_q


def own_logits(
    q: Float[Array, "H N K"], W_O: Float[Array, "H K D"], stage: Targets, precision: str
) -> Counts:
    """Nothing counted, and every pair's own logit.

    The cheaper way round: either W_O U of all targets, [K T] of each head, or ``q W_O``, [N D].
    """

    def of_targets(inputs: tuple[Array, Array]) -> Float[Array, " N"]:
        q, W_O = inputs
        return jnp.sum(q * _times_rows(W_O, stage.rows, precision).T[stage.target], axis=1)

    def of_pairs(inputs: tuple[Array, Array]) -> Float[Array, " N"]:
        q, W_O = inputs
        return jnp.sum(jnp.matmul(q, W_O, precision=precision) * _widen(stage.rows[stage.target]), axis=1)

    way = of_targets if len(stage.rows) < q.shape[1] else of_pairs
    return no_counts(q.shape[:2])._replace(own=lax.map(way, (q, W_O)))


def count_undecided(
    q: Float[Array, "H N K"],
    W_O: Float[Array, "H K D"],
    stage: Stage,
    undecided: Bool[Array, "H N"],
    margin: Float[Array, "H N"],
    counts: Counts,
    precision: str,
) -> Counts:
    """The counts [H N] with those of one stage added; entries of pairs that are decided mean nothing."""
    n_pairs, d_head = q.shape[1:]
    if n_pairs <= d_head:
        return _count_pooled(q, W_O, stage, undecided, margin, counts, precision)
    crowded = jnp.sum(undecided, axis=1) > d_head
    pooled = _count_pooled(q, W_O, stage, undecided & ~crowded[:, None], margin, counts, precision)

    def one_head(inputs: tuple) -> Counts:
        crowded, pooled, *head = inputs
        return lax.cond(crowded, lambda: _count_head(*head, stage=stage, precision=precision), lambda: pooled)

    return lax.map(one_head, (crowded, pooled, q, W_O, undecided, margin, counts))


def _count_head(
    q: Float[Array, "N K"],
    W_O: Float[Array, "K D"],
    undecided: Bool[Array, " N"],
    margin: Float[Array, " N"],
    counts: Counts,
    *,
    stage: Stage,
    precision: str,
) -> Counts:
    """One head with many undecided pairs: its own map to the tokens, then rows of K."""
    head_rows = _times_rows(W_O, stage.rows, precision)

    def add(pairs: Int[Array, " C"], counts: Counts) -> Counts:
        logits = jnp.matmul(q[pairs], head_rows, precision=precision)
        return add_counts(logits, stage.target[pairs], margin[pairs], counts)

    chunk = CHUNKS[platform.target()]
    return _in_chunks(add, undecided, (max(chunk.rows, chunk.logits // stage.rows.shape[0]),), counts)


def _count_pooled(
    q: Float[Array, "H N K"],
    W_O: Float[Array, "H K D"],
    stage: Stage,
    undecided: Bool[Array, "H N"],
    margin: Float[Array, "H N"],
    counts: Counts,
    precision: str,
) -> Counts:
    """Heads with at most K undecided pairs each: the pairs of all of them as rows of D."""
    n_heads, n_pairs, d_head = q.shape
    n_slots = min(n_pairs, d_head)
    pair = jax.vmap(lambda chosen: jnp.nonzero(chosen, size=n_slots, fill_value=n_pairs)[0])(undecided)
    head = jnp.arange(n_heads, dtype=pair.dtype)[:, None]
    x = _head_rows(q[head, pair], W_O, jnp.max(jnp.sum(undecided, axis=1)), precision).reshape(
        -1, W_O.shape[2]
    )
    target, slot_margin = stage.target[pair].ravel(), margin[head, pair].ravel()

    def add(slots: Int[Array, " C"], counts: Counts) -> Counts:
        logits = _times_rows(x[slots], stage.rows, precision)
        return add_counts(logits, target[slots], slot_margin[slots], counts)

    rows, n_tokens = CHUNKS[platform.target()].rows, stage.rows.shape[0]
    sizes = tuple(n * rows for n in (1, 2, 4) if n == 1 or n * rows * n_tokens <= HELD_LOGITS)
    before = jax.tree.map(lambda values: values[head, pair].ravel(), counts)
    after = _in_chunks(add, (pair < n_pairs).ravel(), sizes, before)
    return jax.tree.map(
        lambda values, new: values.at[head, pair].set(new.reshape(pair.shape), mode="drop"), counts, after
    )


def _head_rows(
    q: Float[Array, "H C K"], W_O: Float[Array, "H K D"], n_used: Int[Array, ""], precision: str
) -> Float[Array, "H C D"]:
    """``q W_O`` of each head, as far as any head uses its places: in late stages few do."""
    n_slots = q.shape[1]
    chunk = min(n_slots, SLOTS)

    def add_chunk(i: Int[Array, ""], x: Array) -> Array:
        start = jnp.minimum(i * chunk, n_slots - chunk)
        part = jnp.matmul(lax.dynamic_slice_in_dim(q, start, chunk, axis=1), W_O, precision=precision)
        return lax.dynamic_update_slice_in_dim(x, part, start, axis=1)

    nothing = jnp.zeros((*q.shape[:2], W_O.shape[2]), jnp.float32)
    return lax.fori_loop(0, -(-n_used // chunk), add_chunk, nothing)


def _times_rows(x: Float[Array, "C D"], rows: Rows, precision: str) -> Float[Array, "C T"]:
    """``x @ rows.T`` in float32; narrow rows are widened a tile at a time."""
    if rows.dtype == jnp.float32:
        return jnp.matmul(x, rows.T, precision=precision)
    n_tokens, d_model = rows.shape
    tile = min(n_tokens, -(-TILE // d_model))

    def add_tile(i: Int[Array, ""], product: Array) -> Array:
        start = jnp.minimum(i * tile, n_tokens - tile)  # the last tile overlaps the one before
        part = jnp.matmul(x, _widen(lax.dynamic_slice_in_dim(rows, start, tile)).T, precision=precision)
        return lax.dynamic_update_slice_in_dim(product, part, start, axis=1)

    nothing = jnp.zeros((len(x), n_tokens), jnp.float32)
    return lax.fori_loop(0, -(-n_tokens // tile), add_tile, nothing)


def _in_chunks(
    add: Callable[[Int[Array, " C"], Counts], Counts],
    chosen: Bool[Array, " M"],
    sizes: tuple[int, ...],
    counts: Counts,
) -> Counts:
    """Adds to the counts [M] of the chosen rows, C of them at a time, until none is left.

    C is the smallest of the `sizes` that holds all that are left, or the last one.
    """
    n_rows, n_chosen = chosen.shape[0], jnp.sum(chosen)
    sizes = tuple(sorted({min(size, n_rows) for size in sizes}))
    # Places past the chosen rows hold n_rows: read as some row, written nowhere.
    queue = jnp.nonzero(chosen, size=n_rows + sizes[-1], fill_value=n_rows)[0]

    def of_size(size: int) -> Callable[[Array, Counts], Counts]:
        def add_chunk(start: Int[Array, ""], counts: Counts) -> Counts:
            rows = lax.dynamic_slice(queue, (start,), (size,))
            added = add(rows, jax.tree.map(lambda values: values[rows], counts))
            put = lambda values, new: values.at[rows].set(new, mode="drop")  # noqa: E731
            return jax.tree.map(put, counts, added)

        return add_chunk

    def body(state: tuple[Array, Counts]) -> tuple[Array, Counts]:
        start, counts = state
        which = jnp.sum(n_chosen - start > jnp.asarray(sizes[:-1], n_chosen.dtype))
        counts = lax.switch(which, [of_size(size) for size in sizes], start, counts)
        return start + jnp.asarray(sizes, n_chosen.dtype)[which], counts

    start = jnp.zeros((), n_chosen.dtype)
    return lax.while_loop(lambda state: state[0] < n_chosen, body, (start, counts))[1]


def add_counts(
    logits: Float[Array, "C T"], target: Int[Array, " C"], margin: Float[Array, " C"], counts: Counts
) -> Counts:
    """The counts [C] with the logits that lie above and below the target's by more than the margin.

    The target's own logit is among them or, where `target` is -1, known from before.
    """
    among = jnp.take_along_axis(logits, jnp.maximum(target, 0)[:, None], axis=1)[:, 0]
    own = jnp.where(target < 0, counts.own, among)
    # Written as "not within", so that a comparison with NaN counts and can make no hit.
    above = ~(logits <= (own + margin)[:, None])
    below = ~(logits >= (own - margin)[:, None])
    # One reduction of both: several times faster than two sums in XLA's code for CPUs.
    operands = above.astype(jnp.int32), below.astype(jnp.int32)
    add = lambda a, b: (a[0] + b[0], a[1] + b[1])  # noqa: E731
    above, below = lax.reduce(operands, (jnp.int32(0), jnp.int32(0)), add, (1,))
    return Counts(counts.above + above, counts.below + below, own)
