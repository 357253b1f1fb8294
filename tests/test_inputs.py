"""Prompts and options that do not fit a model are refused by every sweep, in one line that names the rule."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from headjax.analyses.dynamic_scores import dynamic_scores
from headjax.analyses.gradient_attribution import gradient_attribution
from headjax.analyses.head_ablation import head_ablation
from headjax.analyses.logit_attribution import logit_attribution
from headjax.analyses.path_patching import direct_effects, path_patching
from headjax.engine.batches import check_prompts
from headjax.engine.curves import ablation_curves
from headjax.engine.replacement import find_replacement
from headjax.errors import InputError
from tests.helpers.models import GPT2, informative_model
from tests.helpers.on_disk import from_memory
from tests.helpers.random_prompts import random_prompts

K = np.full(7, 5, np.int32)


SWEEPS: dict[str, Callable] = {
    "ablation": head_ablation,
    "curves": lambda *given, **how: ablation_curves(*given, {"capitals": np.ones((3, 5))}, **how),
    "dynamic": lambda *given, **how: dynamic_scores(*given, K, **how),
    "gradient": gradient_attribution,
    "attribution": logit_attribution,
    "direct": direct_effects,
    "paths": path_patching,
    "replacement": lambda *given, **how: find_replacement(*given, "mean", **({"positions": "last"} | how)),
    "streamed ablation": head_ablation,
    "streamed dynamic": lambda *given, **how: dynamic_scores(*given, K, **how),
    "streamed attribution": logit_attribution,
}
PROMPTS = dataclasses.replace(random_prompts(53), corrupted=random_prompts(53, seed=1).tokens)


def with_entry(field: str, place: tuple[int, ...], value: int):
    """The prompts with one entry of a field changed."""
    array = getattr(PROMPTS, field).copy()
    array[place] = value
    return dataclasses.replace(PROMPTS, **{field: array})


WRONG = {
    "token ids must be from 0 to 52, the vocabulary; got 53": with_entry("tokens", (3, -1), 53),
    "token ids must be from 0 to 52, the vocabulary; got -7": with_entry("corrupted", (0, -1), -7),
    "answers must be from 0 to 52, the vocabulary; got 53": with_entry("answers", (2,), 53),
    "distractors must be from 0 to 52, the vocabulary; got -1": with_entry("distractors", (6,), -1),
    "padded on the left": with_entry("mask", (1, -1), False),
    "the mask of prompt 3 has none": with_entry("mask", (3,), False),
    "sources must be one position a prompt": with_entry("sources", (0,), 11),
    "must describe its 7 prompts; got 6": dataclasses.replace(PROMPTS, prompts=PROMPTS.prompts[1:]),
}


@pytest.fixture(scope="module")
def models():
    """One that is held, and the same read layer by layer."""
    model = informative_model(GPT2)
    return {False: model, True: from_memory(model)}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_what_does_not_fit_the_model_is_refused_before_anything_runs(sweep: str, models, count_compiles):
    run, model = SWEEPS[sweep], models[sweep.startswith("streamed")]
    with count_compiles() as compiled:
        for rule, prompts in WRONG.items():
            with pytest.raises(InputError, match=rule):
                run(model, prompts)
        for batch_size in (0, -3, True):
            with pytest.raises(InputError, match="'batch_size' must be a whole number of at least 1"):
                run(model, PROMPTS, batch_size=batch_size)
    assert compiled == []


@pytest.mark.parametrize("sweep", ["ablation", "gradient", "paths", "replacement", "streamed ablation"])
def test_unknown_positions_are_refused(sweep: str, models):
    model = models[sweep.startswith("streamed")]
    with pytest.raises(InputError, match="'positions' must be one of last, all; got 'first'"):
        SWEEPS[sweep](model, PROMPTS, positions="first")


def test_other_options_are_refused(models):
    model = models[False]
    with pytest.raises(InputError, match="'variant_batch' must be a whole number of at least 1; got 0"):
        head_ablation(model, PROMPTS, variant_batch=0)
    with pytest.raises(InputError, match="'mean_over' must be one of prompts, tokens; got 'heads'"):
        head_ablation(model, PROMPTS, ablation="mean", mean_over="heads")
    with pytest.raises(InputError, match="'metric' must be one of logit, logit_diff; got 'logprob'"):
        logit_attribution(model, PROMPTS, metric="logprob")
    with pytest.raises(InputError, match=r"here \[3, 5\]; 'capitals' has \[5, 3\]"):
        ablation_curves(model, PROMPTS, {"capitals": np.ones((5, 3))})
    with pytest.raises(InputError, match=r"must be a PromptBatch.*; got \[\[1, 2\]\]"):
        check_prompts([[1, 2]], GPT2)
