"""Static relation scores against the definition, read off Hugging Face's own modules in torch."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from headjax.analyses import relation_scores as sweep
from headjax.analyses.relation_scores import head_queries, relation_scores, relation_weights
from headjax.data.hit_rule import HitRule
from headjax.data.prompts import TokenPairs
from headjax.engine.hits import screening_stages
from headjax.engine.mesh import make_mesh
from headjax.errors import InputError
from headjax.parameters import InMemory
from tests.helpers import torch_oracle
from tests.helpers.hit_oracle import normal, slow_hits
from tests.helpers.kernel_checks import allowing
from tests.helpers.relation_oracle import (
    RULE,
    random_weights,
    some_relations,
    theirs_of_relation_scores,
    token_pairs,
)
from tests.helpers.torch_or_skip import torch
from tests.helpers.twins import twins

HEADS = {"mha": (7, 7), "gqa": (6, 3), "mqa": (5, 1)}


def slow_scores(
    inputs: Sequence[np.ndarray], W_V, W_O, unembed, pairs: Sequence[TokenPairs], rule: HitRule
) -> dict[str, np.ndarray]:
    """Kind -> [2 R L H], the least and the largest share that rounding allows, one head at a time.

    `inputs` [V D] of every layer, W_V [L D H K] already one a query head.
    """
    found = {"plain": [], "suppression": []}
    for p in pairs:
        k = np.full(len(p.targets), rule.k(p.relation.id))
        for tolerance in (-1e-5, 1e-5):
            hits = []
            for x, values, outputs in zip(inputs, W_V, W_O, strict=True):
                q = np.einsum("nd,dhk->hnk", x[p.sources].astype(np.float64), values.astype(np.float64))
                hits.append(slow_hits(q, outputs, unembed, p.targets, k, tolerance))
            for kind, shares in found.items():
                shares.append(np.stack([getattr(layer, kind).mean(axis=1) for layer in hits]))
    n = len(pairs)
    return {kind: np.stack(s).reshape(n, 2, *s[0].shape).swapaxes(0, 1) for kind, s in found.items()}


def assert_within(ours, bounds: dict[str, np.ndarray]) -> None:
    for kind, (least, most) in bounds.items():
        actual = getattr(ours, kind)
        assert actual.shape == least.shape
        assert (least - 1e-6 <= actual).all(), kind
        assert (actual <= most + 1e-6).all(), kind
        assert (most - least).mean() < 0.01, "the weights are too close to ties to test anything"


@pytest.mark.parametrize("kind", HEADS)
def test_scores_follow_the_definition(kind):
    """A vocabulary large enough that pairs are screened; k differs between the relations."""
    weights, oracle = random_weights(*HEADS[kind])
    pairs = some_relations(2003)
    assert len(screening_stages(weights.unembed, np.concatenate([p.targets for p in pairs]))) == 3
    assert_within(relation_scores(weights, pairs, RULE), slow_scores(*oracle, pairs, RULE))


@pytest.mark.parametrize("way", ["one device", "mesh", "tpu kernel", "bfloat16"])
def test_padding_rows_of_the_vocabulary_are_not_ranked(way: str):
    """Three times as large as any other row, they would come before most targets."""
    weights, _ = random_weights(6, 3, L=2)
    pairs, n_tokens = some_relations(1800), 1800
    how = {
        "mesh": {"mesh": make_mesh({"data": 2, "model": 4})},
        "tpu kernel": {"implementation": "pallas_mosaic_tpu"},
    }.get(way, {})
    dtype = jnp.bfloat16 if way == "bfloat16" else jnp.float32

    def scores(rows: np.ndarray, vocab_size: int | None) -> np.ndarray:
        fresh = random_weights(6, 3, L=2)[0]
        given = fresh._replace(unembed=jnp.asarray(rows, dtype))
        with allowing("pallas_mosaic_tpu"):
            return np.stack(relation_scores(given, pairs, RULE, vocab_size=vocab_size, **how))

    rows = np.asarray(weights.unembed)
    loud = np.where(np.arange(2003)[:, None] < n_tokens, rows, 3 * rows)
    expected = scores(rows[:n_tokens], None)
    np.testing.assert_array_equal(scores(loud, n_tokens), expected)
    assert (scores(loud, None) != expected).any()


def test_words_beyond_the_vocabulary_and_no_words_are_refused():
    weights, _ = random_weights(6, 3, L=1)
    beyond = token_pairs("capitals", 31, 2003, seed=0)
    with pytest.raises(InputError, match="must be from 0 to 99, the vocabulary"):
        relation_scores(weights, [beyond], RULE, vocab_size=100)
    with pytest.raises(InputError, match="sources must be from 0 to 2002, the vocabulary; got 3000"):
        relation_scores(weights, [dataclasses.replace(beyond, sources=beyond.sources * 0 + 3000)], RULE)
    for none in ([], [token_pairs("capitals", 0, 2003, seed=0)]):
        with pytest.raises(InputError, match="need pairs of words"):
            relation_scores(weights, none, RULE)


def test_the_first_mlp_can_be_left_out():
    weights, (inputs, *oracle) = random_weights(5, 5)
    rule, pairs = RULE._replace(first_mlp=False), some_relations(2003)
    expected = slow_scores([inputs[0]] * len(inputs), *oracle, pairs, rule)
    assert_within(relation_scores(weights, pairs, rule), expected)


@pytest.mark.parametrize("name", torch_oracle.CONFIGS)
@torch.no_grad()
def test_scores_of_every_family(name):
    ours, theirs = twins(name)
    pairs = some_relations(ours.config.vocab_size)
    actual = relation_scores(relation_weights(InMemory(ours)), pairs, RULE)
    assert_within(actual, slow_scores(*theirs_of_relation_scores(theirs), pairs, RULE))


def test_one_compilation_serves_all_layers():
    weights, _ = random_weights(3, 3, L=7, K=3, D=11, V=101)
    pairs = some_relations(101)
    sweep.compile_scores.cache_clear()
    relation_scores(weights, pairs, RULE)
    assert sweep.compile_scores(None, len(pairs), "highest", None)._cache_size() == 1


def test_layers_are_asked_for_one_at_a_time_and_in_order():
    weights, _ = random_weights(3, 3, L=5, K=3, D=11, V=101)
    seen = []
    scores = relation_scores(
        weights, some_relations(101), RULE, track=lambda layers: (seen.append(0) or layer for layer in layers)
    )
    assert len(seen) == scores.plain.shape[1] == 5


def shapes_in(jaxpr) -> set[tuple[int, ...]]:
    """Of everything that a traced function computes, loops and branches included."""
    shapes = {tuple(v.aval.shape) for e in jaxpr.eqns for v in e.outvars}
    inner = (shapes_in(sub) for e in jaxpr.eqns for sub in jaxprs_in_params(e.params))
    return shapes.union(*inner)


def test_no_d_model_by_d_model_matrix_is_formed():
    H, K, D, V, N = 3, 5, 37, 2003, 61
    targets = np.arange(N, dtype=np.int32)
    stages = screening_stages(jnp.asarray(normal(0, V, D)), targets)
    source = jnp.asarray(targets)

    def layer(x, W_V, W_O):
        score = sweep.compile_scores(None, 1, "highest")
        return score(W_V, W_O, jnp.ones(H, bool), x, stages, source, jnp.zeros(N, jnp.int32), source)

    traced = jax.make_jaxpr(layer)(normal(1, 2, N, D), normal(2, H, D, K), normal(3, H, K, D))
    shapes = shapes_in(traced.jaxpr)
    assert any(shape.count(D) == 1 for shape in shapes)
    assert not any(shape.count(D) > 1 for shape in shapes)


def test_query_heads_read_their_own_key_value_head():
    x, W_V = normal(0, 7, 11), normal(1, 2, 11, 3)
    source = np.array([4, 0, 4, 6])
    q = head_queries(jnp.asarray(x), jnp.asarray(W_V), 6, jnp.asarray(source))
    for head in range(6):
        np.testing.assert_allclose(q[head], x[source] @ W_V[head // 3], rtol=1e-5, atol=1e-5)
