"""Copy scores against the definition, computed with Hugging Face's own modules, one head at a time."""

from pathlib import Path

import numpy as np
import pytest

from headjax.analyses import copy_score
from headjax.analyses.copy_score import copy_scores, copy_weights
from headjax.errors import InputError
from headjax.parameters import InMemory
from headjax.parameters.cache import ensure_converted
from headjax.parameters.converted import Converted
from tests.helpers import torch_oracle
from tests.helpers.relation_oracle import theirs_of_relation_scores
from tests.helpers.torch_or_skip import torch
from tests.helpers.twins import twins

N = 61
TOP_K = 5


@torch.no_grad()
def slow_copy_scores(model, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest shares [2 L H] that rounding allows. Edits the model."""
    family = model.config.model_type
    layers = model.get_submodule(torch_oracle._LAYERS[family])
    positions = {
        **dict.fromkeys(("gpt2", "gpt_neo"), "transformer.wpe"),
        "opt": "model.decoder.embed_positions",
    }
    if family in positions:
        model.get_submodule(positions[family]).weight.zero_()  # a name stands anywhere

    # The state after the first block of a text that is the name alone.
    state = {}
    handle = layers[0].register_forward_hook(
        lambda _m, _a, out: state.update(x=out[0] if isinstance(out, tuple) else out)
    )
    torch_oracle.run(model, names[:, None])
    handle.remove()
    # Each block reads it in place of its own input: z is then every head's value vector of that state.
    handles = [block.register_forward_pre_hook(lambda _m, args: (state["x"], *args[1:])) for block in layers]
    _, z = torch_oracle.run(model, names[:, None])
    for handle in handles:
        handle.remove()

    _, _, W_O, _ = theirs_of_relation_scores(model)
    norm = torch_oracle.final_norm(model)
    found = []
    for sign in (1, -1):
        for layer, outputs in enumerate(W_O):
            for head in range(outputs.shape[0]):
                written = sign * torch.tensor(z[layer, :, 0, head] @ outputs[head])
                logits = model.get_output_embeddings()(norm(written)).numpy()
                own = logits[np.arange(len(names)), names][:, None]
                above = [(logits > own + margin).sum(axis=1) for margin in (1e-4, -1e-4)]
                found.append([np.mean(above[0] < TOP_K), np.mean(above[1] - 1 < TOP_K)])
    shares = np.array(found).reshape(2, len(W_O), -1, 2)
    return shares.min(-1), shares.max(-1)


@pytest.fixture
def names() -> np.ndarray:
    """Tokens of pretended names; every family's vocabulary has more than 100."""
    return np.random.default_rng(0).permutation(100)[:N].astype(np.int32)


@pytest.mark.parametrize("name", torch_oracle.CONFIGS)
def test_scores_of_every_family(name: str, names: np.ndarray):
    ours, _ = twins(name)
    least, most = slow_copy_scores(torch_oracle.random_model(name), names)
    actual = copy_scores(copy_weights(InMemory(ours)), names)
    for kind, low, high in zip(actual, least, most, strict=True):
        assert kind.shape == low.shape
        assert (low - 1e-6 <= kind).all()
        assert (kind <= high + 1e-6).all()
    assert (most - least).mean() < 0.01, "the logits are too close to ties to test anything"
    assert 0 < actual.plain.mean() < 0.9
    assert (actual.plain != actual.suppression).any()


@pytest.mark.parametrize("name", ["gpt2", "llama-gqa-head-dim-biases"])
def test_a_checkpoint_gives_what_the_model_gives(name: str, names: np.ndarray, tmp_path: Path):
    torch_oracle.save_model(name, tmp_path / "hf")
    directory = ensure_converted(tmp_path / "hf", tmp_path / "ours")
    ours, _ = twins(name)
    seen = []
    streamed = copy_scores(
        copy_weights(Converted(directory)),
        names,
        track=lambda layers: (seen.append(0) or layer for layer in layers),
    )
    for ours_kind, kind in zip(copy_scores(copy_weights(InMemory(ours)), names), streamed, strict=True):
        np.testing.assert_allclose(kind, ours_kind, atol=1e-6)
    assert len(seen) == 3


def test_padding_rows_and_names_that_are_none(names: np.ndarray):
    """Rows that no token has, as loud as they may be, change nothing; ids and lists that are no names."""
    ours, _ = twins("llama-gqa-head-dim-biases")
    weights = copy_weights(InMemory(ours))
    rows = weights.readout.rows
    loud = weights.readout._replace(rows=rows.at[100:].multiply(50))
    quiet = weights.readout._replace(rows=rows[:100], bias=weights.readout.bias[:100])
    padded = copy_scores(weights._replace(readout=loud), names, vocab_size=100)
    cut = copy_scores(copy_weights(InMemory(ours))._replace(readout=quiet), names)
    np.testing.assert_array_equal(padded, cut)
    assert (
        np.stack(copy_scores(copy_weights(InMemory(ours))._replace(readout=loud), names)) != np.stack(cut)
    ).any()
    with pytest.raises(InputError, match="names must be from 0 to 99, the vocabulary; got 100"):
        copy_scores(weights, [100], vocab_size=100)
    for wrong in ([], 7, [1.5]):
        with pytest.raises(InputError, match="need names of one token each"):
            copy_scores(weights, wrong)


def test_one_compilation_serves_all_layers(names: np.ndarray):
    ours, _ = twins("gpt2")
    copy_score._layer_hits.clear_cache()
    copy_scores(copy_weights(InMemory(ours)), names)
    assert copy_score._layer_hits._cache_size() == 1
