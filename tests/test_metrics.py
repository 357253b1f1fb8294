"""Log-probability, logit difference and accuracy: against the whole row of logits, however it is tiled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from headjax.engine import metrics
from headjax.engine.clean_run import clean_metrics
from headjax.engine.metrics import mean_and_stderr, next_token_metrics
from headjax.errors import InputError
from headjax.model import build_model, model_parameters
from tests.helpers.ablation_oracle import metrics_of
from tests.helpers.models import CONFIGS, informative_model
from tests.helpers.random_prompts import random_prompts
from tests.helpers.tolerances import assert_close

M, B = 7, 5


def rows(config):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(M, B, config.d_model)), jnp.float32)
    answers, distractors = rng.integers(0, config.vocab_size, (2, B)).astype(np.int32)
    return x, answers, distractors


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("tile", "limit"), [(53, 53 * 35), (7, 7 * 35), (11, 11 * 4), (1, 1), (53, 53)])
def test_equal_the_whole_logits_in_any_tiles(family: str, tile: int, limit: int, monkeypatch):
    monkeypatch.setattr(metrics, "MIN_TILE", tile)
    monkeypatch.setitem(metrics.TILE_LOGITS, "cpu", limit)
    model = informative_model(CONFIGS[family])
    x, answers, distractors = rows(model.config)
    logits = np.asarray(model.logits(x), np.float64)
    own, other = (logits[:, np.arange(B), tokens] for tokens in (answers, distractors))
    # A function of its own for each case: what is jitted once is traced once, with the first case's tiles.
    result = jax.jit(lambda *arguments: next_token_metrics(*arguments))(model, x, answers, distractors)
    assert_close(result.logprob, own - np.log(np.exp(logits).sum(axis=-1)))
    assert_close(result.logit_diff, own - other)
    np.testing.assert_array_equal(result.accuracy, own >= logits.max(axis=-1))
    assert result.accuracy.dtype == jnp.float32
    assert next_token_metrics(model, x, answers).logit_diff is None


@pytest.mark.parametrize("tile", [1, 7, 53])
def test_the_best_token_is_always_right(tile: int, monkeypatch):
    """Compared with itself a logit is equal, in any tile; and no other token is right."""
    monkeypatch.setattr(metrics, "MIN_TILE", tile)
    monkeypatch.setitem(metrics.TILE_LOGITS, "cpu", 1)
    model = informative_model(CONFIGS["gpt2"])
    x = jnp.asarray(np.random.default_rng(1).normal(size=(200, 23)), jnp.float32)
    best = np.asarray(model.logits(x)).argmax(axis=-1).astype(np.int32)
    assert np.asarray(next_token_metrics(model, x, best).accuracy).all()
    assert not np.asarray(next_token_metrics(model, x, (best + 1) % 53).accuracy).any()


def test_equal_rows_have_equal_metrics_in_any_chunk(monkeypatch):
    """Rows that fill up a chunk, or begin one, go through the same product as all others."""
    monkeypatch.setattr(metrics, "MIN_TILE", 7)
    monkeypatch.setitem(metrics.TILE_LOGITS, "cpu", 7 * 10)
    model = informative_model(CONFIGS["gpt2"])
    x = jnp.tile(jnp.asarray(np.random.default_rng(2).normal(size=(1, 23)), jnp.float32), (33, 1))
    tokens = np.full(33, 5, np.int32)
    for values in jax.jit(lambda *arguments: next_token_metrics(*arguments))(model, x, tokens, tokens + 1):
        np.testing.assert_array_equal(values, np.full(33, values[0]))


def test_no_more_logits_than_stated_exist_at_a_time(monkeypatch):
    monkeypatch.setattr(metrics, "MIN_TILE", 8)
    monkeypatch.setitem(metrics.TILE_LOGITS, "cpu", 100)
    config = dataclasses.replace(CONFIGS["llama"], vocab_size=997, d_model=3)
    model = informative_model(config)
    x = jnp.zeros((101, 13, 3))
    program = str(jax.make_jaxpr(next_token_metrics)(model, x, np.zeros(13, np.int32)))
    assert "f32[12,8]" in program  # 12 rows of 8 logits
    assert "997]" not in program.replace("f32[997]", "")


def test_a_nan_logit_is_seen():
    model = informative_model(CONFIGS["gpt2"])
    x, answers, _ = rows(model.config)
    result = next_token_metrics(model, x.at[2, 1, 3].set(jnp.nan), answers)
    bad = np.isnan(result.logprob)
    assert bad[2, 1]
    assert bad.sum() == 1


def test_mean_and_standard_error_over_prompts():
    values = np.random.default_rng(0).normal(size=(3, 2, 11)).astype(np.float32)
    mean, stderr = mean_and_stderr(values)
    np.testing.assert_allclose(mean, values.mean(axis=2), rtol=1e-6)
    np.testing.assert_allclose(stderr, values.std(axis=2, ddof=1) / np.sqrt(11), rtol=1e-6)
    assert np.isnan(mean_and_stderr(values[..., :1])[1]).all()


def test_a_clean_run_whose_logits_are_no_numbers_is_refused():
    model = informative_model(CONFIGS["gpt2"])
    model.ln_final.scale[...] = model.ln_final.scale[...].at[3].set(jnp.nan)
    with pytest.raises(InputError, match="logits must be numbers; prompt 0 gives NaN"):
        clean_metrics(model, random_prompts(model.config.vocab_size))


def test_metrics_under_a_cap_are_of_capped_logits():
    config = dataclasses.replace(CONFIGS["llama"], logit_cap=1.5)
    model = build_model(config, model_parameters(informative_model(CONFIGS["llama"])))
    prompts = random_prompts(config.vocab_size)
    logits = np.asarray(model(prompts.tokens, mask=prompts.mask).logits[:, -1], np.float64)
    assert 1.2 < np.abs(logits).max() < 1.5
    found, expected = clean_metrics(model, prompts), metrics_of(logits, prompts)
    for name in ("logprob", "logit_diff"):
        assert_close(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.accuracy, expected.accuracy)
