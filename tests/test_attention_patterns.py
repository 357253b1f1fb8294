"""Previous-token, duplicate-token and induction scores: heads built by hand, and torch's own attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from headjax.analyses.attention_patterns import (
    PATTERNS,
    SWEEP,
    attention_patterns,
    repeated_tokens,
)
from headjax.engine.layer_sweep import whole_sweep
from headjax.errors import InputError
from headjax.model import Transformer, build_model, parameter_shapes
from tests.helpers import torch_oracle
from tests.helpers.models import CONFIGS, GPT2, informative_model
from tests.helpers.random_prompts import random_prompts
from tests.helpers.tolerances import assert_close
from tests.helpers.torch_or_skip import torch
from tests.helpers.twins import twins

LENGTH = 7


def looking_back(*shifts: int) -> Transformer:
    """One layer whose head h attends from position p to p - shifts[h], by learned positions alone."""
    n_positions = 2 * LENGTH
    config = dataclasses.replace(
        GPT2,
        n_layers=1,
        n_heads=len(shifts),
        n_kv_heads=len(shifts),
        d_head=n_positions,
        d_model=n_positions,
        max_positions=n_positions,
    )
    parameters = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(config).items()}
    parameters["embed.W_pos"] = np.eye(n_positions, dtype=np.float32)
    parameters["blocks.ln1.scale"] += 1
    for head, shift in enumerate(shifts):
        for position in range(n_positions):
            parameters["blocks.attn.W_K"][0, position, head, position] = 1
            if position >= shift:
                parameters["blocks.attn.W_Q"][0, position, head, position - shift] = 100
    return build_model(config, {name: jnp.asarray(value) for name, value in parameters.items()})


def test_heads_built_by_hand_have_a_score_of_one():
    model = looking_back(1, LENGTH, LENGTH - 1)
    drawn = np.random.default_rng(0).permutation(53)[: 3 * LENGTH].reshape(3, LENGTH)  # no chance repeats
    scores = attention_patterns(model, np.tile(drawn, 2).astype(np.int32), batch_size=2)
    np.testing.assert_allclose([scores.previous[0, 0], scores.duplicate[0, 1], scores.induction[0, 2]], 1)
    for pattern, others in (("previous", [1, 2]), ("duplicate", [0, 2]), ("induction", [0, 1])):
        assert (getattr(scores, pattern)[0, others] < 0.2).all(), pattern
    assert scores.n_tokens == {
        "previous": 3 * (2 * LENGTH - 1),
        "duplicate": 3 * LENGTH,
        "induction": 3 * LENGTH,
    }


@pytest.mark.parametrize("name", torch_oracle.FAMILIES)
def test_equals_torch_on_ragged_prompts(name: str):
    """Every token of every prompt, its targets found by looking, in Hugging Face's attention."""
    ours, theirs = twins(name)
    prompts = random_prompts(5)  # few tokens, so that they repeat, next to each other too
    mask = torch.tensor(prompts.mask).long()
    with torch.no_grad():
        attentions = theirs(
            input_ids=torch.tensor(prompts.tokens).long(),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            output_attentions=True,
            use_cache=False,
        ).attentions
    attention = torch.stack(attentions).double().numpy()  # [L B H S S]

    paid = {pattern: [] for pattern in PATTERNS}
    for b, row in enumerate(prompts.tokens):
        begin = int(np.argmax(prompts.mask[b]))
        for s in range(begin, len(row)):
            same = [t for t in range(begin, s) if row[t] == row[s]]
            targets = {
                "previous": [s - 1] if s > begin else [],
                "duplicate": same,
                "induction": [t + 1 for t in same if t + 1 < s],
            }
            for pattern, at in targets.items():
                if at:
                    paid[pattern].append(attention[:, b, :, s, at].sum(axis=0))
    scores = attention_patterns(ours, prompts.tokens, prompts.mask, batch_size=3)
    for pattern in PATTERNS:
        assert_close(getattr(scores, pattern), np.mean(paid[pattern], axis=0))
        assert scores.n_tokens[pattern] == len(paid[pattern])


def test_a_score_without_a_token_to_look_at_is_not_a_number():
    tokens = np.arange(10, dtype=np.int32).reshape(2, 5)  # nothing repeats
    scores = attention_patterns(informative_model(CONFIGS["llama"]), tokens)
    assert np.isnan(scores.duplicate).all()
    assert np.isnan(scores.induction).all()
    assert scores.n_tokens == {"previous": 8, "duplicate": 0, "induction": 0}
    assert ((scores.previous > 0) & (scores.previous < 1)).all()


def test_patterns_are_never_held_for_all_layers():
    model = informative_model(CONFIGS["llama"])
    c, prompts = model.config, random_prompts(53)
    B, S = prompts.tokens.shape
    program = str(jax.make_jaxpr(whole_sweep(SWEEP))((model, None), prompts.tokens, prompts.mask))
    assert f"[{B},{c.n_heads},{S},{S}]" in program
    assert f"[{c.n_layers},{B},{c.n_heads},{S},{S}]" not in program


def test_attention_that_is_no_number_is_refused():
    model = informative_model(CONFIGS["gpt2"])
    model.blocks.attn.W_Q[...] = model.blocks.attn.W_Q[...].at[1, 0, 2].set(jnp.nan)
    with pytest.raises(InputError, match="attention must be finite numbers; prompt 0 gives NaN"):
        attention_patterns(model, random_prompts(53).tokens)


def test_repeated_tokens_are_the_same_twice_behind_one_bos():
    tokens = repeated_tokens(GPT2, n_prompts=5, length=7, seed=3, bos=11, vocab_size=13)
    assert tokens.shape == (5, 15)
    assert tokens.dtype == np.int32
    assert (tokens[:, 0] == 11).all()
    np.testing.assert_array_equal(tokens[:, 1:8], tokens[:, 8:])
    assert tokens[:, 1:].max() == 12
    assert len(np.unique(tokens[:, 1:8], axis=0)) == 5
    again = repeated_tokens(GPT2, n_prompts=5, length=7, seed=3, bos=11, vocab_size=13)
    np.testing.assert_array_equal(tokens, again)
    assert (tokens != repeated_tokens(GPT2, n_prompts=5, length=7, seed=4, bos=11, vocab_size=13)).any()
    bare = repeated_tokens(GPT2, n_prompts=5, length=7, seed=3, vocab_size=13)
    np.testing.assert_array_equal(bare, tokens[:, 1:])


def test_repeated_tokens_fit_the_models_positions():
    assert repeated_tokens(GPT2).shape == (32, 18)  # of 19 positions
    assert repeated_tokens(GPT2, bos=0).shape == (32, 19)
    V = GPT2.vocab_size
    for wrong, message in (
        ({"bos": V}, f"bos must be from 0 to {V - 1}, the vocabulary; got {V}"),
        ({"bos": -1}, f"bos must be from 0 to {V - 1}, the vocabulary; got -1"),
        ({"vocab_size": V + 1}, f"vocab_size must be 1 to {V}, the model's; got {V + 1}"),
        ({"vocab_size": 0}, "vocab_size must be 1 to"),
        ({"n_prompts": 10**8}, "'n_prompts' must be a whole number from 1 to 100000; got 100000000"),
        ({"n_prompts": 0}, "'n_prompts' must be a whole number from 1 to 100000; got 0"),
    ):
        with pytest.raises(InputError, match=message):
            repeated_tokens(GPT2, **wrong)
    assert repeated_tokens(dataclasses.replace(GPT2, max_positions=1000)).shape == (32, 100)
    with pytest.raises(InputError, match="must be 1 to 9, to fit the model's positions; got 10"):
        repeated_tokens(GPT2, length=10)
