"""Our model against Hugging Face's in torch: logits, every head's output, edits; every family."""

import jax.numpy as jnp
import numpy as np
import pytest

from headjax import load_model
from headjax.model.edits import HeadEdit
from headjax.parameters.cache import ensure_converted
from tests.helpers import torch_oracle
from tests.helpers.tolerances import assert_close
from tests.helpers.torch_or_skip import torch
from tests.helpers.trained_checkpoints import TRAINED


@pytest.fixture(scope="module", params=torch_oracle.CONFIGS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The same random checkpoint as ours and as torch's."""
    directory = tmp_path_factory.mktemp("hf")
    theirs = torch_oracle.save_model(request.param, directory)
    return load_model(ensure_converted(directory, tmp_path_factory.mktemp("ours"))), theirs


def random_tokens(vocab_size: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(3).integers(0, vocab_size, shape).astype(np.int32)


def test_logits_and_head_outputs(both):
    ours, theirs = both
    tokens = random_tokens(ours.config.vocab_size, (3, 23))
    logits, z = torch_oracle.run(theirs, tokens)
    output = ours(tokens, return_z=True)
    assert_close(output.logits, logits)
    assert_close(output.z, z)


def test_edited_left_padded_prompts(both):
    """Ablation as an argument equals a hook that rewrites the input of the output projection."""
    ours, theirs = both
    c = ours.config
    tokens = random_tokens(c.vocab_size, (3, 11))
    mask = np.arange(11)[None, :] >= np.array([0, 3, 5])[:, None]
    replacement = np.random.default_rng(4).normal(size=(c.n_layers, 1, 1, c.n_heads, c.d_head))
    replacement = replacement.astype(np.float32)
    ablated = {(0, 1): "all", (1, 0): "all", (2, c.n_heads - 1): "all", (1, 2): "all"}

    def edit(layer: int, z: torch.Tensor) -> torch.Tensor:
        for at_layer, head in ablated:
            if at_layer == layer:
                z[:, :, head] = torch.tensor(replacement[layer, 0, 0, head])
        return z

    logits, z = torch_oracle.run(theirs, tokens, mask, edit)
    output = ours(
        tokens,
        mask=mask,
        edit=HeadEdit.ablate(c, ablated, n_positions=11, replacement=jnp.asarray(replacement)),
        return_z=True,
    )
    assert_close(np.asarray(output.logits)[mask], logits[mask])
    assert_close(np.asarray(output.z)[:, mask], z[:, mask])


@pytest.mark.parametrize("name", TRAINED)
def test_trained_checkpoints(name: str, shared_data, tmp_path):
    directory = shared_data / "checkpoints" / name
    ours, theirs = load_model(ensure_converted(directory, tmp_path)), torch_oracle.load_directory(directory)
    tokens = random_tokens(ours.config.vocab_size, (2, ours.config.max_positions))
    logits, z = torch_oracle.run(theirs, tokens)
    output = ours(tokens, return_z=True)
    assert_close(output.logits, logits)
    assert_close(output.z, z)


def test_greedy_continuation_of_stories260K(shared_data, tmp_path):
    """Token for token over 100 tokens from the beginning-of-text token."""
    directory = shared_data / "checkpoints" / "stories260K"
    theirs = torch_oracle.load_directory(directory)
    expected = theirs.generate(torch.tensor([[1]]), max_new_tokens=100, do_sample=False, eos_token_id=-1)[0]

    ours = load_model(ensure_converted(directory, tmp_path))
    tokens = np.zeros((1, 101), np.int32)  # one length, one compile: what comes later is never seen
    tokens[0, 0] = 1
    for step in range(100):
        tokens[0, step + 1] = int(ours(tokens).logits[0, step].argmax())
    assert tokens[0].tolist() == expected.tolist()
