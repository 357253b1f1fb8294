"""Static relation scores of single heads in numpy: what the planted checkpoint is checked with as it is made.

Independent of headjax's sweep on purpose, so that the demonstration does not test the sweep by itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.planted.weights import MAPPED, MAPPED_GAIN, SOURCE, Codes, HeadWeights

SURE = 0.5  # a planted head scores more on all that it carries
CLEAR = 0.125  # and every head less on everything else


class Pairs(NamedTuple):
    """All pairs of all relations, one relation after the other, and what heads see of their sources."""

    embedded: Float[np.ndarray, "N D"]  # to layer 0
    mapped: Float[np.ndarray, "N D"]  # to later layers
    targets: Int[np.ndarray, " N"]
    top_k: Int[np.ndarray, " N"]
    relation: Int[np.ndarray, " N"]
    W_E: Float[np.ndarray, "V D"]


def make_pairs(
    tokens: Sequence[Sequence[tuple[int, int]]],
    top_k: Sequence[int],
    W_E: Float[np.ndarray, "V D"],
    codes: Codes,
) -> Pairs:
    """tokens: (source, target) tokens of each relation; top_k: how many best words are hits in each."""
    counts = [len(relation_tokens) for relation_tokens in tokens]
    sources, targets = np.concatenate(tokens).T
    embedded = W_E[sources]
    centred = embedded - embedded.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    mapped = np.zeros_like(embedded)
    mapped[:, MAPPED] = MAPPED_GAIN * normed[:, SOURCE] @ codes.rotation
    relation = np.repeat(np.arange(len(counts)), counts)
    arrays = (array.astype(np.float32) for array in (embedded, mapped, W_E))
    embedded, mapped, W_E = arrays
    return Pairs(embedded, mapped, targets, np.repeat(top_k, counts), relation, W_E)


def static_scores(pairs: Pairs, layer: int, head: HeadWeights) -> Float[np.ndarray, "R 2"]:
    """Share of hits of every relation, plain and suppression (Elhelo & Geva 2024, "MAPS", section 3)."""
    out = (pairs.mapped if layer else pairs.embedded) @ head.W_V.astype(np.float32)
    hits = np.zeros((len(out), 2))
    # Most pairs miss among the relations' own targets already; the others see the whole vocabulary.
    first = count_hits(pairs, out, head, np.arange(len(out)), np.unique(pairs.targets))
    undecided = np.flatnonzero(first.any(axis=1))
    hits[undecided] = count_hits(pairs, out, head, undecided, np.arange(len(pairs.W_E)))
    return np.stack([hits[pairs.relation == r].mean(axis=0) for r in range(pairs.relation.max() + 1)])


def count_hits(
    pairs: Pairs,
    out: Float[np.ndarray, "N K"],
    head: HeadWeights,
    some: Int[np.ndarray, " n"],
    words: Int[np.ndarray, " T"],
) -> Bool[np.ndarray, "n 2"]:
    """Whether fewer than top_k of the words are above, and below, the target; for some of the pairs."""
    logits = out[some] @ (pairs.W_E[words] @ head.W_O.T.astype(np.float32)).T
    own = np.take_along_axis(logits, np.searchsorted(words, pairs.targets[some])[:, None], axis=1)
    beaten = np.stack([(logits > own).sum(axis=1), (logits < own).sum(axis=1)], axis=1)
    return beaten < pairs.top_k[some, None]


def as_planted(pairs: Pairs, layer: int, head: HeadWeights, carried: Sequence[tuple[int, int]]) -> bool:
    """Whether a head scores high on the (relation, sign) that it carries and low on everything else."""
    scores = static_scores(pairs, layer, head)
    should = np.zeros(scores.shape, bool)
    for relation, sign in carried:
        should[relation, 0 if sign > 0 else 1] = True
    return bool((scores[should] > SURE).all() and (scores[~should] < CLEAR).all())
