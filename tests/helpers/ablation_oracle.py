"""Prompts for ablation, and metrics that must be the same."""

import dataclasses

import numpy as np

from headjax.data.prompts import PromptBatch
from headjax.engine.metrics import Metrics
from headjax.model import Transformer, build_model, model_parameters
from tests.helpers.models import CONFIGS, informative_model
from tests.helpers.random_prompts import random_prompts
from tests.helpers.tolerances import assert_close


def prompts_for(model: Transformer, **options) -> PromptBatch:
    """Random prompts with corrupted partners; the clean model knows the answer to every second one."""
    prompts = random_prompts(model.config.vocab_size, **options)
    best = np.asarray(model(prompts.tokens, mask=prompts.mask).logits[:, -1]).argmax(axis=1)
    corrupted = np.random.default_rng(7).integers(0, model.config.vocab_size, prompts.tokens.shape)
    return dataclasses.replace(
        prompts,
        answers=np.where(np.arange(len(best)) % 2, prompts.answers, best).astype(np.int32),
        corrupted=np.where(prompts.mask, corrupted, 0).astype(np.int32),
    )


def assert_same_metrics(actual: Metrics, expected: Metrics) -> None:
    for name, one, other in zip(Metrics._fields, actual, expected, strict=True):
        if name == "accuracy":
            np.testing.assert_array_equal(one, other)
        else:
            assert_close(one, other)


def metrics_of(logits: np.ndarray, prompts: PromptBatch) -> Metrics:
    """Of whole rows of logits [B V], in float64."""
    rows, logits = np.arange(len(logits)), np.asarray(logits, np.float64)
    own = logits[rows, prompts.answers]
    return Metrics(
        logprob=own - np.log(np.exp(logits).sum(axis=1)),
        logit_diff=own - logits[rows, prompts.distractors],
        accuracy=(own == logits.max(axis=1)).astype(np.float32),
    )


def deaf_model(family: str, dtype: str) -> Transformer:
    """Whatever head 1 of any layer computes, its W_O makes nothing of it: to replace it changes nothing."""
    parameters = model_parameters(informative_model(CONFIGS[family]))
    parameters["blocks.attn.W_O"] = parameters["blocks.attn.W_O"].at[:, 1].set(0)
    return build_model(CONFIGS[family], {name: value.astype(dtype) for name, value in parameters.items()})


DTYPES = ("float32", "bfloat16", "float16")
