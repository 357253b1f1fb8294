"""Direct logit attribution: every part as torch has it, and the parts sum to torch's logit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from headjax.analyses.logit_attribution import SWEEP, logit_attribution
from headjax.engine.layer_sweep import whole_sweep
from headjax.errors import InputError
from headjax.model import build_model, model_parameters
from tests.helpers.logit_oracle import torch_parts
from tests.helpers.models import CONFIGS, informative_model
from tests.helpers.random_prompts import random_prompts
from tests.helpers.tolerances import assert_close
from tests.helpers.twins import twins

# Sequential and parallel residuals, layer and root-mean-square norms, tied, untied and biased unembeddings.
CASES = (
    ("gpt2", "logit_diff"),
    ("gpt_neox-parallel", "logit"),
    ("gpt_neox-sequential", "logit_diff"),
    ("phi-gqa", "logit_diff"),
    ("llama-gqa-llama3-rope", "logit"),
    ("llama-gqa-head-dim-biases", "logit_diff"),
    ("qwen3-gqa-head-dim-window", "logit_diff"),
)


@pytest.mark.parametrize(("name", "metric"), CASES)
def test_every_part_equals_torch_and_they_sum_to_the_logit(name: str, metric: str):
    ours, theirs = twins(name)
    prompts = random_prompts(ours.config.vocab_size)
    parts = logit_attribution(ours, prompts, metric=metric, batch_size=4)
    for field, expected in torch_parts(theirs, prompts, metric).items():
        if expected.any():
            assert_close(getattr(parts, field), expected)
        else:  # biases that the family lacks
            assert not getattr(parts, field).any(), field
    total = (
        parts.heads.sum(axis=(1, 2))
        + parts.attention_biases.sum(axis=1)
        + parts.mlps.sum(axis=1)
        + parts.embedding
        + parts.final_bias
    )
    assert_close(total, parts.logit)


def test_bfloat16_parts_still_sum():
    model = informative_model(CONFIGS["llama"])
    half = {name: leaf.astype(jnp.bfloat16) for name, leaf in model_parameters(model).items()}
    parts = logit_attribution(build_model(model.config, half), random_prompts(53))
    total = sum(np.sum(part.reshape(7, -1), axis=1) for part in parts[:-1])
    assert_close(total, parts.logit)


def test_no_array_holds_what_every_head_writes():
    """The largest intermediate has no axis of heads beside one of d_model, but for the weights' own."""
    config = dataclasses.replace(CONFIGS["llama"], d_model=997)
    model = informative_model(config)
    prompts = random_prompts(config.vocab_size)
    program = jax.make_jaxpr(whole_sweep(SWEEP))((model, None), prompts.tokens, prompts.mask, prompts.answers)
    assert f"[7,{config.n_heads},997]" not in str(program)
    assert f"[{config.n_heads},7,997]" not in str(program)
    assert f"[{config.n_heads},{config.d_head},997]" in str(program)  # W_O: shapes are found


def test_logit_diff_needs_distractors():
    prompts = random_prompts(53, distractors=False)
    with pytest.raises(InputError, match="'logit_diff' needs a distractor; prompt 0 has none"):
        logit_attribution(informative_model(CONFIGS["gpt2"]), prompts, metric="logit_diff")


def test_logits_that_are_no_numbers_are_refused():
    model = informative_model(CONFIGS["gpt2"])
    model.ln_final.scale[...] = model.ln_final.scale[...].at[3].set(jnp.nan)
    with pytest.raises(InputError, match="logits must be finite numbers; prompt 0 gives NaN"):
        logit_attribution(model, random_prompts(53))
