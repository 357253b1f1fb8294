"""Benchmark of the static relation scores against the method as published, on GPT-2 medium's shapes.

As published, in torch: for each head and relation, form ``W_V W_O``, project the relation's sources,
form their logits, take the top k and the bottom k by sorting, and look the target up among them
(Elhelo & Geva 2024). Ours is the sweep as users call it, preparation included. Both score the same random
weights, heads and pairs, with as many threads. Every hit is compared before anything is timed.
"""

import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.measure import matmul_rate, seconds, usable_cores
from headjax import scores
from headjax.prompts import TokenPairs
from headjax.relations import Relation
from headjax.sweeps.relation_scores import HitRule, RelationScores, Weights, head_queries, relation_scores

L, H, K, D, V = 3, 16, 64, 1024, 50257
PAIRS, TOP_K = 100, 10  # of each relation
RELATIONS = ("copying", "name_copying", *(f"relation {i}" for i in range(18)))
REPEATS = 3
RULE = HitRule(top_k=TOP_K, top_k_copying=1, first_mlp=False)


class Problem(NamedTuple):
    """Weights and pairs that both ways score; every layer sees the embeddings themselves."""

    W_E: np.ndarray  # [V D], also the unembedding
    W_V: np.ndarray  # [L D H K]
    W_O: np.ndarray  # [L H K D]
    pairs: list[TokenPairs]


class Hits(NamedTuple):
    """Of one layer: [H N], pairs in the order of the relations."""

    plain: np.ndarray
    suppression: np.ndarray


def random_problem(hit_share: float = 0.0, seed: int = 0) -> Problem:
    """Random weights; with a `hit_share`, every fifth head implements so many relations that this
    share of all (head, pair) are true hits, which is how hits lie in trained models."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    W_E, W_V, W_O = normal(V, D), normal(L, D, H, K) * D**-0.5, normal(L, H, K, D) * K**-0.5
    pairs = []
    for name in RELATIONS:
        sources, targets = rng.choice(V, (2, PAIRS), replace=False).astype(np.int32)
        relation = Relation(name, name, "Random", tuple((str(s), str(t)) for s, t in zip(sources, targets)))
        pairs.append(TokenPairs(relation, sources, targets, relation.pairs))
    makers = range(0, H, 5)
    n_made = round(hit_share * H / len(makers) * len(RELATIONS))
    for layer in range(L):
        for head in makers if n_made else ():
            made = [pairs[r] for r in rng.choice(len(RELATIONS), n_made, replace=False)]
            sources, targets = (
                np.concatenate([getattr(p, end) for p in made]) for end in ("sources", "targets")
            )
            wanted = W_E[targets] @ W_O[layer, head].T
            W_V[layer, :, head] = np.linalg.lstsq(W_E[sources], wanted, rcond=None)[0]
    return Problem(W_E, W_V, W_O, pairs)


@torch.no_grad()
def as_published(problem: Problem, layer: int, heads: int = H) -> Hits:
    """Of one layer, one head and relation at a time, by sorting: [H N]."""
    W_E, W_V, W_O = (torch.from_numpy(a) for a in (problem.W_E, problem.W_V, problem.W_O))
    W_U = W_E.T
    found = np.zeros((2, heads, len(RELATIONS), PAIRS), bool)
    for head in range(heads):
        for r, pairs in enumerate(problem.pairs):
            W_VO = W_V[layer, :, head] @ W_O[layer, head]
            logits = W_E[torch.from_numpy(pairs.sources).long()] @ W_VO @ W_U
            targets = torch.from_numpy(pairs.targets).long()[:, None]
            for suppression in (False, True):
                best = logits.topk(RULE.k(pairs.relation.id), dim=1, largest=not suppression).indices
                found[int(suppression), head, r] = (best == targets).any(dim=1).numpy()
    return Hits(*found.reshape(2, heads, -1))


def our_way(problem: Problem) -> RelationScores:
    """The sweep over all layers, as users call it."""
    W_E = jnp.asarray(problem.W_E)
    layers = ((jnp.asarray(W_V), jnp.asarray(W_O)) for W_V, W_O in zip(problem.W_V, problem.W_O, strict=True))
    return relation_scores(Weights(W_E, lambda x: x, W_E, layers), problem.pairs, RULE)


class Screened(NamedTuple):
    """What the sweep does inside, for the hits of single pairs and for the floor."""

    hits: list[Hits]  # of every layer
    operations: float  # in all
    undecided: list[float]  # share of (head, pair) that enters each stage


def look_inside(problem: Problem) -> Screened:
    """Runs the sweep's parts one by one. Operations: multiplications and additions, two each."""
    sources, targets = (
        np.concatenate([getattr(p, e) for p in problem.pairs]) for e in ("sources", "targets")
    )
    k = jnp.asarray(np.repeat([RULE.k(p.relation.id) for p in problem.pairs], PAIRS), jnp.int32)
    stages = scores.screening_stages(problem.W_E, targets)
    x, source = jnp.asarray(problem.W_E[sources]), jnp.arange(len(sources))
    count = jax.jit(scores.count_undecided, static_argnames="precision")
    all_hits, operations, entered = [], 0, np.zeros(len(stages))
    for W_V, W_O in zip(problem.W_V, jnp.asarray(problem.W_O), strict=True):
        q = head_queries(x, jnp.asarray(W_V), H, source)
        operations += 2 * len(sources) * D * H * K
        undecided = jnp.ones(q.shape[:2], bool)
        for i, (rows, target) in enumerate(stages):
            entered[i] += undecided.mean() / L
            for n in np.asarray(undecided.sum(axis=1)).tolist():
                crowded = n > K
                operations += 2 * len(rows) * K * (D + n) if crowded else 2 * n * D * (len(rows) + K)
            margin = scores.rounding_margin(q, W_O, rows) * (i + 1 < len(stages))
            counts = count(q, W_O, scores.Stage(rows, target), undecided, margin, precision="highest")
            above, below = counts.above < k[None], counts.below < k[None]
            undecided &= above | below
        all_hits.append(Hits(np.asarray(undecided & above), np.asarray(undecided & below)))
    return Screened(all_hits, operations, entered.tolist())


def count_ties(problem: Problem, layer: int, differing: np.ndarray) -> int:
    """How many (head, pair) [H N] that the two ways judge differently are ties within rounding.

    In float64, such a pair is a hit or not depending on logits within 1e-5 of the target's.
    """
    sources, targets = (
        np.concatenate([getattr(p, e) for p in problem.pairs]) for e in ("sources", "targets")
    )
    k = np.repeat([RULE.k(p.relation.id) for p in problem.pairs], PAIRS)
    ties = 0
    for head, pair in np.argwhere(differing):
        x = problem.W_E[sources[pair]].astype(np.float64)
        logits = x @ problem.W_V[layer, :, head] @ problem.W_O[layer, head] @ problem.W_E.T
        apart = np.delete(logits - logits[targets[pair]], targets[pair])
        near = 1e-5 * np.abs(logits).max()
        ties += any((s * apart > near).sum() < k[pair] <= (s * apart > -near).sum() for s in (1, -1))
    return ties


def bench_static(hit_share: float = 0.0) -> float:
    """Prints the comparison and returns how many times faster our way is."""
    torch.set_num_threads(usable_cores())
    problem, device = random_problem(hit_share), jax.devices()[0]
    print(
        f"device: {device.platform}, {device.device_kind}, {usable_cores()} cores;"
        f" torch {torch.__version__}, {torch.get_num_threads()} threads; jax {jax.__version__}, XLA, float32"
    )
    print(
        f"{L} layers, {H} heads, d_head {K}, d_model {D}, vocabulary {V:,};"
        f" {len(RELATIONS)} relations, {len(RELATIONS) * PAIRS:,} pairs, k = {TOP_K} (1 for copying)"
    )
    rate = matmul_rate()
    our_way(problem)  # compiles
    as_published(problem, 0, heads=1)  # and warms up
    inside = look_inside(problem)
    published_times, own_times, ties = [], [], 0
    for layer in range(L):  # in turn, so that whatever else the machine does meets both
        start = time.perf_counter()
        published = as_published(problem, layer)
        published_times.append(time.perf_counter() - start)
        own_times += [seconds(lambda: our_way(problem)) / L for _ in range(REPEATS)]
        differing = sum((a != b) for a, b in zip(published, inside.hits[layer], strict=True)) > 0
        ties += (n_ties := count_ties(problem, layer, differing))
        if n_ties < differing.sum():
            raise AssertionError(f"layer {layer}: {differing.sum() - n_ties} hits differ and are no ties")
    ours = our_way(problem)
    for kind in Hits._fields:
        hits = np.stack([getattr(layer, kind) for layer in inside.hits]).reshape(L, H, len(RELATIONS), PAIRS)
        np.testing.assert_array_equal(
            getattr(ours, kind), hits.mean(axis=3, dtype=np.float32).transpose(2, 0, 1)
        )
    n_hits = sum(int(hits.sum()) for layer in inside.hits for hits in layer)
    print(
        f"all {2 * L * H * len(RELATIONS) * PAIRS:,} hits and misses agree, {n_hits:,} of them hits;"
        f" {ties} but for a tie within rounding"
    )
    published_time, own_time = statistics.median(published_times), statistics.median(own_times)
    floor = inside.operations / L / rate
    print(f"as published (torch)    {published_time:8.3f} s a layer, median of {len(published_times)}")
    print(
        f"screened counting (XLA) {own_time:8.3f} s a layer, median of {len(own_times)}, preparation included"
    )
    print("pairs that enter each stage: " + ", ".join(f"{share:.2%}" for share in inside.undecided))
    print(
        f"floor                   {floor:8.3f} s a layer: {inside.operations / L / 1e9:.1f} GFLOP at the measured"
        f" {rate / 1e9:.0f} GFLOP/s of a 4096 x 4096 product; ours is {own_time / floor:.2f} of it"
    )
    print(f"ratio {published_time / own_time:.1f}x")
    return published_time / own_time
