"""Benchmark of the static relation scores against the method as published, on GPT-2 medium's shapes.

As published, in torch: for each head and relation form ``W_V W_O``, project the relation's sources, form
their logits, sort out the top k and the bottom k, and look the target up among them (Elhelo & Geva 2024).
Ours is the sweep as users call it, its preparation included. Both score the same random weights, heads
and pairs with as many threads; what single pairs are judged to be is compared before a time is printed.
"""

import statistics
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from jaxtyping import Float, Int

from experiments.benchmarks.measure import matmul_rate, seconds, usable_cores
from experiments.torch_model import ranked, ties
from headjax.analyses.relation_scores import HitShares, Weights, head_queries, relation_scores
from headjax.data.hit_rule import HitRule
from headjax.data.prompts import TokenPairs
from headjax.data.relations import Relation
from headjax.engine import hits as scores
from headjax.engine.hits import Hits, Stages, Targets

L, H, K, D, V = 2, 16, 64, 1024, 50257
PAIRS = 100  # of each relation
RELATIONS = ("copying", "name_copying", *(f"relation {i}" for i in range(18)))
RULE = HitRule(top_k=10, top_k_copying=1, first_mlp=False)
REPEATS = 3


class Problem(NamedTuple):
    """Weights and pairs that both ways score; every layer sees the embeddings themselves."""

    W_E: np.ndarray  # [V D], also the unembedding
    W_V: np.ndarray  # [L D H K]
    W_O: np.ndarray  # [L H K D]
    sources: np.ndarray  # [R, PAIRS] token ids
    targets: np.ndarray  # [R, PAIRS]
    top_k: np.ndarray  # [R]


def random_problem(hit_share: float, seed: int = 0) -> Problem:
    """Random weights in which every fifth head implements some relations, as heads of trained models do:
    so many that `hit_share` of all (head, pair) are true hits."""
    rng = np.random.default_rng(seed)
    normal = partial(rng.standard_normal, dtype=np.float32)
    W_E, W_V, W_O = normal((V, D)), normal((L, D, H, K)), normal((L, H, K, D))
    sources, targets = (rng.permutation(V)[: len(RELATIONS) * PAIRS].astype(np.int32) for _ in range(2))
    sources, targets = (tokens.reshape(len(RELATIONS), PAIRS) for tokens in (sources, targets))
    makers = range(0, H, 5)
    n_implemented = round(hit_share * H / len(makers) * len(RELATIONS))
    for layer in range(L if n_implemented else 0):
        for head in makers:
            chosen = rng.choice(len(RELATIONS), n_implemented, replace=False)
            wanted = W_E[targets[chosen].ravel()] @ W_O[layer, head].T
            W_V[layer, :, head] = np.linalg.lstsq(W_E[sources[chosen].ravel()], wanted, rcond=None)[0]
    return Problem(W_E, W_V, W_O, sources, targets, np.array([RULE.k(name) for name in RELATIONS]))


@torch.no_grad()
def as_published(problem: Problem, layer: int, heads: int = H) -> Hits:
    """Hits [H N] of one layer, one head and relation at a time, by sorting."""
    W_E, W_V, W_O = (torch.from_numpy(a) for a in (problem.W_E, problem.W_V[layer], problem.W_O[layer]))
    W_U = W_E.T.contiguous()
    found = np.zeros((2, heads, len(RELATIONS), PAIRS), bool)
    for head in range(heads):
        for r, k in enumerate(problem.top_k.tolist()):
            logits = W_E[problem.sources[r]] @ (W_V[:, head] @ W_O[head]) @ W_U
            found[:, head, r] = ranked(logits, torch.from_numpy(problem.targets[r]), k)
    return Hits(*found.reshape(2, heads, -1))


def our_way(problem: Problem, W_E: Array) -> HitShares:
    """The sweep over all layers; W_E is on the device, as a model's parameters are."""
    layers = ((jnp.asarray(W_V), jnp.asarray(W_O)) for W_V, W_O in zip(problem.W_V, problem.W_O, strict=True))
    pairs = [
        TokenPairs(Relation(name, (), name, "Random"), sources, targets, ())
        for name, sources, targets in zip(RELATIONS, problem.sources, problem.targets, strict=True)
    ]
    return relation_scores(Weights(W_E, lambda x: x, W_E, layers), pairs, RULE)


class Inside(NamedTuple):
    """What the sweep finds and does for one layer, looked at stage by stage."""

    hits: Hits
    shares: list[float]  # of the (head, pair) that enter each stage
    operations: float  # multiplications and additions, x_s W_V of every distinct source among them


own_logits = jax.jit(scores.own_logits, static_argnames="precision")
count = jax.jit(scores.count_undecided, static_argnames="precision")


def look_inside(
    q: Float[Array, "H N K"],
    W_O: Float[Array, "H K D"],
    stages: Stages,
    k: Int[Array, " N"],
    n_sources: int,
) -> Inside:
    """Takes the pairs of one layer's heads, x_s W_V of each, through the stages of the sweep."""
    (H, N, K), D = q.shape, W_O.shape[2]
    undecided, shares, none = jnp.ones((H, N), bool), [], scores.no_counts((H, N))
    operations, counts = 2 * n_sources * D * H * K, none
    rounding = scores.rounding_margin(q, W_O, stages[-1].largest)
    for stage in stages:
        if isinstance(stage, Targets):
            operations += 2 * H * K * D * min(N, len(stage.rows))
            counts = own_logits(q, W_O, stage, precision="highest")
            continue
        last = stage is stages[-1]
        rows = stage.rows
        shares.append(float(undecided.mean()))
        for n in np.asarray(undecided.sum(axis=1)).tolist():
            operations += 2 * len(rows) * K * (D + n) if n > K else 2 * n * D * (len(rows) + K)
        margin, before = (jnp.zeros_like(rounding), none) if last else (rounding, counts)
        counts = count(q, W_O, stage, undecided, margin, before, precision="highest")
        hits = Hits(undecided & (counts.above < k[None]), undecided & (counts.below < k[None]))
        undecided = hits.plain | hits.suppression
    return Inside(Hits(*map(np.asarray, hits)), shares, operations)


def ties_within_rounding(problem: Problem, layer: int, differing: np.ndarray) -> int:
    """How many of the (head, pair) [H N] hang on logits within 1e-5 of the target's, in float64."""
    sources, targets, k = problem.sources.ravel(), problem.targets.ravel(), np.repeat(problem.top_k, PAIRS)
    found = 0
    for head, pair in np.argwhere(differing):
        x = problem.W_E[sources[pair]].astype(np.float64)
        logits = problem.W_E @ (x @ problem.W_V[layer, :, head] @ problem.W_O[layer, head])
        tied = ties(torch.tensor(logits)[None], torch.tensor(targets[[pair]]).long(), int(k[pair]))
        found += int(tied.any())
    return found


def bench_static(hit_share: float = 0.0) -> float:
    """Prints the comparison and returns how many times faster our way is."""
    torch.set_num_threads(usable_cores())
    device, problem, rate = jax.devices()[0], random_problem(hit_share), matmul_rate()
    print(f"device: {device.platform}, {device.device_kind}, {usable_cores()} cores; float32")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; jax {jax.__version__}, XLA")
    print(f"{L} layers, {H} heads of {K}, d_model {D}, vocabulary {V:,}, {problem.sources.size:,} pairs")

    W_E = jnp.asarray(problem.W_E)
    ours = our_way(problem, W_E)  # compiles
    as_published(problem, 0, heads=1)  # warms up
    stages = scores.screening_stages(problem.W_E, problem.targets.ravel())
    k = jnp.asarray(np.repeat(problem.top_k, PAIRS), jnp.int32)
    x = jnp.asarray(problem.W_E[problem.sources.ravel()])
    inside = []
    for W_V, W_O in zip(problem.W_V, problem.W_O, strict=True):
        q = head_queries(x, jnp.moveaxis(jnp.asarray(W_V), 1, 0), H, jnp.arange(len(x)))
        inside.append(look_inside(q, jnp.asarray(W_O), stages, k, problem.sources.size))
    published_times, own_times, n_tied = [], [], 0
    for layer in range(L):  # in turn, so that whatever else the machine does meets both
        published = []
        published_times.append(seconds(lambda: published.append(as_published(problem, layer))))  # noqa: B023
        own_times += [seconds(lambda: our_way(problem, W_E)) / L for _ in range(REPEATS)]
        differing = np.any([a != b for a, b in zip(published[0], inside[layer].hits, strict=True)], axis=0)
        tied = ties_within_rounding(problem, layer, differing)
        assert tied == differing.sum(), f"layer {layer}: {differing.sum() - tied} pairs differ and do not tie"
        n_tied += tied
    for kind in Hits._fields:
        hits = np.stack([getattr(of_layer.hits, kind) for of_layer in inside])
        shares = hits.reshape(L, H, len(RELATIONS), PAIRS).mean(axis=3).transpose(2, 0, 1)
        np.testing.assert_allclose(getattr(ours, kind), shares, atol=1e-6)
        print(f"{kind}: {hits.sum():,} hits of {hits.size:,}, all agree")
    print(f"{n_tied} judged differently because the target's logit ties within rounding")

    operations = statistics.mean(of_layer.operations for of_layer in inside)
    published_time, own_time = statistics.median(published_times), statistics.median(own_times)
    floor = operations / rate
    entering = ", ".join(f"{share:.2%}" for share in np.mean([i.shares for i in inside], axis=0))
    print(f"as published, torch    {published_time:8.3f} s a layer, median of {len(published_times)}")
    print(f"headjax, XLA           {own_time:8.3f} s a layer, median of {len(own_times)}")
    print(f"floor                  {floor:8.3f} s a layer; ours is {own_time / floor:.1f} times as much")
    print(f"    {operations / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s, measured with 4096 x 4096 matrices")
    print(f"    pairs that enter each stage: {entering}")
    print(f"ratio {published_time / own_time:.1f}x")
    return published_time / own_time
