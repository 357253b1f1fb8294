"""Dynamic scores against torch: z through hooks, forced attention as a computation of its own."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from headjax.analyses.dynamic_scores import SCORES, dynamic_scores
from headjax.data.prompt_sets import template_prompts
from headjax.data.prompts import batch_prompts, tokenise_pairs
from headjax.data.relations import Relation
from headjax.engine.prefill import prefill
from headjax.errors import InputError
from headjax.model import build_model, model_parameters
from tests.helpers import torch_oracle
from tests.helpers.dynamic_oracle import expected_scores
from tests.helpers.meshes import on_mesh
from tests.helpers.models import CONFIGS, informative_model
from tests.helpers.on_disk import from_memory
from tests.helpers.random_prompts import random_prompts
from tests.helpers.tiny_tokenizers import byte_level
from tests.helpers.twins import twins

GROUPS = (("capitals", "<X> is"), ("capitals", "No <X>"), ("copying", "<X> is"))
LENGTHS = (11, 7, 9, 4, 11, 5, 8, 3, 10, 6, 7, 2, 9, 11, 5, 1, 8)


@pytest.mark.parametrize("name", torch_oracle.FAMILIES)
def test_equals_torch(name: str):
    ours, theirs = twins(name)
    prompts = random_prompts(ours.config.vocab_size, LENGTHS, GROUPS)
    top_k = np.array([1 if prompt.relation == "copying" else 10 for prompt in prompts.prompts], np.int32)
    result = dynamic_scores(ours, prompts, top_k, batch_size=5)
    assert result.groups == GROUPS
    assert result.n_prompts.tolist() == [6, 6, 5]
    expected = expected_scores(theirs, prompts, top_k)
    assert tuple(result.scores) == SCORES
    for kind in SCORES:
        np.testing.assert_array_equal(
            result.scores[kind], expected[kind].astype(np.float32), err_msg=str(kind)
        )
        assert 0 < result.scores[kind].mean() < 0.5
    for kind, other in itertools.combinations(SCORES, 2):
        assert (result.scores[kind] != result.scores[other]).any(), (kind, other)


def test_a_source_of_several_tokens_is_its_last_one():
    """Words through a tokenizer: the value vector is that of the source's last token."""
    tokenizer = byte_level()
    config = dataclasses.replace(CONFIGS["llama"], vocab_size=len(tokenizer), max_positions=43)
    model = informative_model(config)
    pairs = (("France", "Paris"), ("Ouagadougou", "Rome"), ("Italy", "Rome"), ("San Marino", "Lima"))
    relation = Relation("capitals", pairs, "Capitals", "Custom")
    pairs = tokenise_pairs(tokenizer, relation, config.vocab_size, single_source=False)
    prompts = batch_prompts(tokenizer, template_prompts(pairs, ["No <X> means", "The <X>"]), config, bos=True)
    assert len(prompts.tokens) == 8
    assert prompts.bos

    top_k = np.full(8, 17, np.int32)
    result = dynamic_scores(model, prompts, top_k, batch_size=3)
    unembed = np.asarray(model.unembed_rows, np.float64)
    hits = np.zeros((8, config.n_layers, config.n_heads), bool)
    for b in range(8):
        prompt = prompts.prompts[b]
        # The prompt alone; its text cut behind the source tells where the source's last token is.
        tokens = prompts.tokens[b, prompts.mask[b]][None]
        before = tokenizer(prompt.text[: prompt.source[1]], add_special_tokens=False)["input_ids"]
        source = prompts.bos + len(before) - 1
        values = prefill(model, tokens, np.ones(tokens.shape, bool), keep="last").v[:, 0, source]
        for layer, head in np.ndindex(config.n_layers, config.n_heads):
            group = head // (config.n_heads // config.n_kv_heads)
            logits = unembed @ np.asarray(values[layer, group] @ model.W_O[layer, head], np.float64)
            hits[b, layer, head] = (logits > logits[prompts.answers[b]]).sum() < 17
    expected = hits.reshape(2, 4, config.n_layers, config.n_heads).mean(axis=1)
    np.testing.assert_array_equal(result.scores["no_context", ""], expected.astype(np.float32))
    assert 0 < expected.mean() < 1


def test_a_vocabulary_wide_enough_to_be_screened():
    """The early stages of counting take part, in batches of another size, and change nothing."""
    config = dataclasses.replace(CONFIGS["gpt2"], vocab_size=20011, tied_embeddings=False)
    model = informative_model(config)
    prompts = random_prompts(config.vocab_size, LENGTHS)
    top_k = np.full(len(LENGTHS), 1000, np.int32)
    result = dynamic_scores(model, prompts, top_k, batch_size=4)
    z = np.asarray(model(prompts.tokens, mask=prompts.mask, return_z=True).z[:, :, -1], np.float64)
    written = np.einsum("lbhk,lhkd->blhd", z, np.asarray(model.W_O, np.float64))
    logits = written @ np.asarray(model.unembed_rows, np.float64).T
    own = np.take_along_axis(logits, prompts.answers[:, None, None, None], axis=-1)
    for kind, beyond in (
        (("context", ""), logits > own),
        (("context", "suppression"), logits < own),
    ):
        expected = (beyond.sum(axis=-1) < 1000).mean(axis=0)
        np.testing.assert_array_equal(result.scores[kind][0], expected.astype(np.float32))


def test_padding_rows_of_the_vocabulary_are_not_ranked():
    """In memory, streamed, and with the vocabulary split over devices."""
    config = dataclasses.replace(CONFIGS["llama"], vocab_size=64)
    parameters = model_parameters(informative_model(config))
    loud = parameters["unembed.rows"].at[53:].multiply(3)
    prompts = random_prompts(53, LENGTHS)
    top_k = np.full(len(LENGTHS), 9, np.int32)
    expected = dynamic_scores(
        build_model(
            dataclasses.replace(config, vocab_size=53),
            parameters
            | {
                "unembed.rows": parameters["unembed.rows"][:53],
                "unembed.b_U": parameters["unembed.b_U"][:53],
                "embed.W_E": parameters["embed.W_E"][:53],
            },
        ),
        prompts,
        top_k,
    ).scores
    model = build_model(config, parameters | {"unembed.rows": loud})
    for actual in (
        dynamic_scores(model, prompts, top_k, vocab_size=53),
        dynamic_scores(on_mesh(model, {"data": 2, "model": 4}), prompts, top_k, vocab_size=53),
        dynamic_scores(from_memory(model), prompts, top_k, vocab_size=53),
    ):
        for kind in SCORES:
            np.testing.assert_array_equal(actual.scores[kind], expected[kind])
    padded = dynamic_scores(model, prompts, top_k).scores
    assert any((padded[kind] != expected[kind]).any() for kind in SCORES)


def test_batch_size_changes_nothing_and_compiles_once(count_compiles):
    model = informative_model(CONFIGS["llama"])
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    top_k = np.full(len(LENGTHS), 5, np.int32)
    whole = dynamic_scores(model, prompts, top_k, batch_size=100)
    dynamic_scores(model, prompts, top_k, batch_size=4)
    shown = []

    def track(items, total, label):
        shown.append((total, label))
        return items

    with count_compiles() as compiled:
        parts = dynamic_scores(model, prompts, top_k, batch_size=4, track=track)
    assert compiled == []
    assert shown == [(5, "dynamic scores")]
    for kind in SCORES:
        np.testing.assert_array_equal(whole.scores[kind], parts.scores[kind])


def test_a_prompt_without_a_source_is_refused():
    model = informative_model(CONFIGS["gpt2"])
    prompts = random_prompts(model.config.vocab_size)
    prompts.sources[2] = -1
    with pytest.raises(InputError, match="needs prompts with a source; prompt 2 has none"):
        dynamic_scores(model, prompts, np.full(7, 5, np.int32))
    prompts = random_prompts(model.config.vocab_size)
    for wrong in (np.full(6, 5), np.full(7, 5.0), np.zeros(7, int), 5, "ten"):
        with pytest.raises(InputError, match="top_k must be"):
            dynamic_scores(model, prompts, wrong)


def test_outputs_that_are_no_numbers_are_refused():
    """They would count as no hits, and look like a score of 0."""
    model = informative_model(CONFIGS["llama"])
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    token = prompts.tokens[3, -1]
    first = int(np.argmax(((prompts.tokens == token) & prompts.mask).any(axis=1)))
    model.embed.W_E[...] = model.embed.W_E[...].at[token].set(jnp.nan)
    with pytest.raises(InputError, match=f"finite numbers; prompt {first} gives NaN"):
        dynamic_scores(model, prompts, np.full(len(LENGTHS), 5, np.int32), batch_size=4)
