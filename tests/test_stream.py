"""Scores of a checkpoint that is read as it is used: equal to the converted one's, and little is read."""

import copy
import dataclasses
import threading
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.engine import Source, open_source
from headjax.analyses.relation_scores import first_mlp_names, layer_names, relation_scores, relation_weights
from headjax.errors import InputError
from headjax.parameters.cache import ensure_converted
from headjax.parameters.converted import Converted
from headjax.parameters.hugging_face import HuggingFace
from headjax.parameters.read_ahead import read_ahead
from tests.helpers import torch_oracle
from tests.helpers.relation_oracle import RULE, some_relations
from tests.helpers.torch_or_skip import torch


def save(name: str, directory: Path, dtype: torch.dtype = torch.float32, **how) -> Path:
    model = torch_oracle.random_model(name)
    model.config = copy.deepcopy(model.config)  # saving would note the dtype in the one all tests share
    model.to(dtype).save_pretrained(directory, **how)
    return directory


def recording(source: Source) -> tuple[Source, Counter]:
    """The same source, and how many rows of each tensor are read from now on."""
    rows_read = Counter()

    def counted(tensor):
        def rows(start: int, stop: int) -> np.ndarray:
            rows_read[tensor.name] += stop - start
            return tensor.rows(start, stop)

        return dataclasses.replace(tensor, rows=rows)

    fillings = {key: f._replace(tensor=counted(f.tensor)) for key, f in source.fillings.items()}
    return dataclasses.replace(source, fillings=fillings), rows_read


def assert_same_scores(one, other) -> None:
    for kind in one._fields:
        np.testing.assert_array_equal(getattr(one, kind), getattr(other, kind))
    assert 0 < one.plain.mean() < 1


@pytest.mark.parametrize("name", torch_oracle.CONFIGS)
def test_scores_are_those_of_the_converted_checkpoint(name: str, tmp_path: Path):
    """Every family, in shards; each tensor that is needed is read once, of the others nothing."""
    directory = save(name, tmp_path / "hf", max_shard_size="40KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    source, rows_read = recording(open_source(directory))
    config = source.config
    pairs = some_relations(config.vocab_size)
    streamed = relation_scores(relation_weights(HuggingFace(source)), pairs, RULE)

    converted = ensure_converted(directory, tmp_path / "ours")
    weights = relation_weights(Converted(converted))
    assert_same_scores(streamed, relation_scores(weights, pairs, RULE))

    wanted = {(name, layer) for name in layer_names(config) for layer in range(config.n_layers)}
    wanted |= {(name, 0) for name in first_mlp_names(config)}
    expected = {source.fillings[key].tensor for key in wanted if key in source.fillings}
    expected = {tensor.name: tensor.shape[0] for tensor in expected}
    expected[source.fillings["embed.W_E", None].tensor.name] = len(
        np.unique(np.concatenate([p.sources for p in pairs]))
    )
    unembed = source.fillings["embed.W_E" if config.tied_embeddings else "unembed.rows", None].tensor
    expected[unembed.name] = expected.get(unembed.name, 0) + config.vocab_size
    assert rows_read == expected


@pytest.mark.parametrize("name", torch_oracle.FAMILIES)
def test_half_precision_is_kept_until_a_layer_is_used(name: str, tmp_path: Path):
    directory = save(name, tmp_path / "hf", torch.bfloat16)
    source = open_source(directory)
    weights = relation_weights(HuggingFace(source))
    W_V, W_O = next(weights.layers)
    # With the gain of a norm after attention in it, W_O is float32.
    assert W_V.dtype == jnp.bfloat16
    assert W_O.dtype == (jnp.bfloat16 if source.config.norms == "before" else jnp.float32)
    assert weights.unembed.dtype == jnp.uint16  # its bits
    pairs = some_relations(source.config.vocab_size)
    streamed = relation_scores(relation_weights(HuggingFace(source)), pairs, RULE)
    wide = relation_weights(HuggingFace(source.with_dtype(np.dtype(np.float32))))
    assert_same_scores(streamed, relation_scores(wide, pairs, RULE))


def test_bin_files_are_read_the_same_way(tmp_path: Path):
    directory = save("llama-gqa-llama3-rope", tmp_path / "hf")
    model = torch_oracle.random_model("llama-gqa-llama3-rope")
    source = open_source(directory)
    pairs = some_relations(source.config.vocab_size)
    expected = relation_scores(relation_weights(HuggingFace(source)), pairs, RULE)
    (directory / "model.safetensors").unlink()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    source = open_source(directory)
    assert_same_scores(relation_scores(relation_weights(HuggingFace(source)), pairs, RULE), expected)


def test_a_checkpoint_that_changes_is_refused(tmp_path: Path):
    directory = save("gpt2", tmp_path / "hf")
    source = open_source(directory)
    weights = relation_weights(HuggingFace(source))
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"model\.safetensors: a checkpoint must stay as it is"):
        list(weights.layers)


def test_a_number_that_is_none_is_named(tmp_path: Path):
    model = torch_oracle.random_model("gpt2-untied-exact-gelu")
    model.get_input_embeddings().weight.data[5, 3] = float("nan")
    model.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    embedding = relation_weights(HuggingFace(source)).embedding
    assert np.isfinite(embedding[np.array([3, 4, 6])]).all()
    with pytest.raises(InputError, match=r"finite; transformer\.wte\.weight"):
        embedding[np.array([4, 5])]


def test_reads_one_ahead_and_no_further():
    started, going = [], {key: threading.Event() for key in range(4)}

    def read(key: int) -> int:
        started.append(key)
        going[key].set()
        if key == 3:
            raise InputError("number 3")
        return 10 * key

    items = read_ahead(read, range(4))
    assert next(items) == 0
    assert going[1].wait(10)
    assert started == [0, 1]
    assert [next(items), next(items)] == [10, 20]
    with pytest.raises(InputError, match="number 3"):
        next(items)
