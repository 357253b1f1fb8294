"""The derivative of a metric with respect to every head's gain, against differences taken in torch."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest

from headjax.analyses.gradient_attribution import agreement, gradient_attribution
from headjax.axes import Head
from headjax.errors import InputError
from tests.helpers import torch_oracle
from tests.helpers.ablation_oracle import metrics_of
from tests.helpers.gradient_oracle import torch_gradient
from tests.helpers.models import CONFIGS, informative_model
from tests.helpers.random_prompts import random_prompts
from tests.helpers.tolerances import assert_close
from tests.helpers.torch_or_skip import torch
from tests.helpers.twins import twins

CASES = (
    ("gpt2", "logprob", "last", False),
    ("gpt_neox-parallel", "logit_diff", "all", False),
    ("phi-gqa", "logprob", "all", True),
    ("llama-gqa-llama3-rope", "logit_diff", "last", True),
    ("qwen3-gqa-head-dim-window", "logprob", "last", False),
    ("mistral-mqa-window", "logit_diff", "all", True),
)


def random_replacement(config, prompts, positions: str) -> np.ndarray:
    """[L B P H K]"""
    B, S = prompts.tokens.shape
    shape = (config.n_layers, B, 1 if positions == "last" else S, config.n_heads, config.d_head)
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("name", "metric", "positions", "replaced"), CASES)
def test_equals_torch(name: str, metric: str, positions: str, replaced: bool):
    ours, theirs = twins(name)
    prompts = random_prompts(ours.config.vocab_size)
    replacement = random_replacement(ours.config, prompts, positions) if replaced else None
    found = gradient_attribution(
        ours,
        prompts,
        metric=metric,
        positions=positions,
        replacement=(lambda rows: replacement[:, rows]) if replaced else None,
        batch_size=3,
    )
    logits = ours(prompts.tokens, mask=prompts.mask).logits[:, -1]
    assert_close(found.clean, getattr(metrics_of(logits, prompts), metric))
    assert_close(found.effects, torch_gradient(theirs, prompts, metric, positions, replacement))


def test_is_the_effect_of_a_small_change():
    """Clean minus slightly ablated, in torch and float64, over the part of the way that was gone."""
    ours, theirs = twins("gpt2")
    theirs = copy.deepcopy(theirs).double()
    prompts = random_prompts(ours.config.vocab_size)
    step = 1e-4

    def logprob(layer: int, head: int, gain: float) -> np.ndarray:
        def edit(at_layer: int, z: torch.Tensor) -> torch.Tensor:
            z[:, -1, head] *= gain if at_layer == layer else 1
            return z

        logits, _ = torch_oracle.run(theirs, prompts.tokens, prompts.mask, edit)
        logprobs = torch.tensor(logits[:, -1]).log_softmax(-1).numpy()
        return np.take_along_axis(logprobs, prompts.answers[:, None], axis=1)[:, 0]

    effects = gradient_attribution(ours, prompts, metric="logprob", positions="last", batch_size=3).effects
    for layer, head in ((0, 0), (1, 4), (2, 6)):
        change = logprob(layer, head, 1 + step) - logprob(layer, head, 1 - step)
        assert_close(effects[:, layer, head], change / (2 * step))


def test_a_batch_compiles_once(count_compiles):
    model = informative_model(CONFIGS["gpt2"])
    gradient_attribution(model, random_prompts(53), batch_size=3)
    with count_compiles() as compiled:
        gradient_attribution(model, random_prompts(53, seed=1), batch_size=3)
    assert compiled == []


def test_accuracy_has_no_derivative():
    with pytest.raises(InputError, match="one of the metrics logprob, logit_diff; got 'accuracy'"):
        gradient_attribution(informative_model(CONFIGS["gpt2"]), random_prompts(53), metric="accuracy")


def test_logit_diff_needs_distractors():
    prompts = random_prompts(53, distractors=False)
    with pytest.raises(InputError, match="'logit_diff' needs a distractor; prompt 0 has none"):
        gradient_attribution(informative_model(CONFIGS["gpt2"]), prompts, metric="logit_diff")


def test_derivatives_that_are_no_numbers_are_refused():
    model = informative_model(CONFIGS["gpt2"])
    model.ln_final.scale[...] = model.ln_final.scale[...].at[3].set(jnp.nan)
    with pytest.raises(InputError, match="derivatives must be finite numbers; prompt 0 gives NaN"):
        gradient_attribution(model, random_prompts(53), batch_size=3)


def test_agreement_of_a_monotone_estimate_is_perfect():
    exact = np.random.default_rng(0).normal(size=(5, 7))
    result = agreement(exact, np.sign(exact) * exact**2)
    assert result.spearman == pytest.approx(1)
    assert result.missed == ()
    assert result.n_top == 2  # 5 % of 35, rounded up


def test_agreement_names_the_heads_that_the_estimate_misses():
    exact = np.zeros((10, 6))
    exact[9, 2], exact[1, 5], exact[4, 4] = -8, 5, 4  # the exact top 3 of 60
    estimate = exact + np.linspace(0, 0.1, 60).reshape(10, 6)
    estimate[9, 2], estimate[3, 3] = -0.5, 2
    result = agreement(exact, estimate)
    assert result.n_top == 3
    assert result.missed == (Head(9, 2),)
    assert -1 < result.spearman < 1


def test_agreement_with_a_constant_is_not_a_number():
    assert np.isnan(agreement(np.ones((2, 3)), np.arange(6.0).reshape(2, 3)).spearman)
