"""Salient operations against the definition in numpy, one head at a time over the whole vocabulary."""

import numpy as np
import pytest

from headjax.analyses import salient_operations as sweep
from headjax.analyses.relation_scores import relation_weights
from headjax.analyses.salient_operations import salient_operations
from headjax.axes import Head
from headjax.parameters import InMemory
from tests.helpers import torch_oracle
from tests.helpers.relation_oracle import random_weights, theirs_of_relation_scores
from tests.helpers.torch_or_skip import torch
from tests.helpers.twins import twins

N_TOKENS, N_MAPPED = 7, 3


def assert_salient(found: dict[Head, sweep.SalientTokens], inputs, W_V, W_O, unembed) -> None:
    """Every head's tokens and mappings are the largest there are, in order, but for rounding."""
    for (layer, head), salient in found.items():
        x = inputs[layer].astype(np.float64)
        written = x @ W_V[layer][:, head].astype(np.float64) @ W_O[layer][head]
        amplification = np.linalg.norm(written, axis=1) / np.linalg.norm(x, axis=1)
        expected = np.sort(amplification)[::-1][: len(salient.tokens)]
        np.testing.assert_allclose(amplification[salient.tokens], expected, rtol=1e-5)
        np.testing.assert_allclose(salient.amplification, expected, rtol=1e-5)
        assert len(set(salient.tokens.tolist())) == len(salient.tokens)
        for token, mapped in zip(salient.tokens, salient.mapped, strict=True):
            logits = written[token] @ unembed.T.astype(np.float64)
            np.testing.assert_allclose(
                logits[mapped], np.sort(logits)[::-1][: len(mapped)], rtol=1e-4, atol=1e-5
            )
            assert len(set(mapped.tolist())) == len(mapped)


@pytest.mark.parametrize("name", torch_oracle.CONFIGS)
@torch.no_grad()
def test_operations_of_every_family(name: str, monkeypatch: pytest.MonkeyPatch):
    """In tiles of 13 tokens, which divide no vocabulary, so that the last one overlaps the one before."""
    monkeypatch.setattr(sweep, "TILE", 13)
    ours, theirs = twins(name)
    found = salient_operations(relation_weights(InMemory(ours)), n_tokens=N_TOKENS, n_mapped=N_MAPPED)
    config = ours.config
    assert list(found) == [Head(at, h) for at in range(config.n_layers) for h in range(config.n_heads)]
    assert {salient.mapped.shape for salient in found.values()} == {(N_TOKENS, N_MAPPED)}
    assert_salient(found, *theirs_of_relation_scores(theirs))


@pytest.mark.parametrize("tile", [5, 2003, 4096])
def test_tiles_of_any_size_give_the_same(tile: int, monkeypatch: pytest.MonkeyPatch):
    """One smaller than what is kept of it, one of the whole vocabulary, one larger than it."""
    monkeypatch.setattr(sweep, "TILE", tile)
    weights, oracle = random_weights(6, 3)
    found = salient_operations(weights, n_tokens=N_TOKENS, n_mapped=N_MAPPED)
    assert_salient(found, *oracle)


def test_chosen_heads_padding_rows_and_first_mlp():
    """Only the heads asked for; no token from the padding; W_E itself where the first MLP is left out."""
    weights, (inputs, *oracle) = random_weights(6, 3)
    heads = (Head(2, 5), Head(0, 1))
    found = salient_operations(
        weights, heads=heads, n_tokens=N_TOKENS, n_mapped=N_MAPPED, first_mlp=False, vocab_size=101
    )
    assert list(found) == sorted(heads)
    W_V, W_O, unembed = oracle
    assert_salient(found, [inputs[0][:101]] * 3, W_V, W_O, unembed[:101])


def test_a_token_of_zeros_is_not_salient_and_no_more_tokens_come_than_there_are():
    weights, _ = random_weights(3, 3, L=1, K=3, D=11, V=5)
    zero = weights._replace(embedding=weights.embedding.at[2].set(0.0))
    (salient,) = salient_operations(zero, heads=[Head(0, 1)], n_tokens=15, n_mapped=9).values()
    assert salient.mapped.shape == (5, 5)
    assert salient.tokens[-1] == 2
    assert salient.amplification[-1] == 0
    assert np.isfinite(salient.amplification).all()


def test_one_compilation_serves_all_layers():
    weights, _ = random_weights(3, 3, L=5, K=3, D=11, V=101)
    sweep._layer_best.clear_cache()
    seen = []
    salient_operations(weights, track=lambda layers: (seen.append(0) or layer for layer in layers))
    assert sweep._layer_best._cache_size() == 1
    assert len(seen) == 5
