"""How the trained models were made: their text, their export, and three steps of training."""

import contextlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from checkpoints_convert.rules import split_layout
from experiments.planted.words import BOS, UNKNOWN, make_tokenizer, split_words
from experiments.trained import export, phrases, questions, train
from experiments.trained.questions import ask
from experiments.trained.settings import PRESETS, config_fields
from experiments.trained.text import N_WORDINGS, Writer, is_held_out
from experiments.trained.words import make_vocabulary, taught_pairs
from headjax import load_model
from headjax.data.relations import RELATION_IDS, load_relations
from headjax.data.templates import SLOT, TASK_TEMPLATES
from headjax.model import Transformer, model_parameters
from headjax.parameters.cache import ensure_converted
from tests.helpers import torch_oracle
from tests.helpers.tolerances import assert_close

N_PAIRS = 11


@pytest.fixture(scope="module")
def writer():
    vocabulary = make_vocabulary(N_PAIRS)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(vocabulary), bos_token=BOS, unk_token=UNKNOWN
    )
    return Writer(vocabulary, taught_pairs(vocabulary), tokenizer, seed=5)


def test_what_is_taught_are_pairs_of_the_relation_files(writer):
    files = {relation.id: set(relation.pairs) for relation in load_relations()}
    assert tuple(writer.pairs) == RELATION_IDS == tuple(phrases.PHRASES)
    for relation, pairs in writer.pairs.items():
        assert len(pairs) >= N_PAIRS
        assert set(pairs) <= files[relation]
    shared = Counter(source for pairs in writer.pairs.values() for source, _ in pairs)
    assert sum(count > 3 for count in shared.values()) > 10  # a source alone does not say what is asked


def test_the_first_wording_is_the_one_of_the_task_prompt():
    for relation, wordings in phrases.PHRASES.items():
        assert len(wordings) == N_WORDINGS + 1 == len(set(wordings))
        assert all(w.count(phrases.SOURCE) == 1 and w.endswith(phrases.TARGET) for w in wordings)
        prompt = wordings[0].removesuffix(phrases.TARGET).strip().replace(phrases.SOURCE, SLOT).lower()
        assert TASK_TEMPLATES[relation].lower().endswith(prompt), relation


def test_what_is_held_out_is_never_written(writer):
    """Reads the text as text: no sentence of a withheld pair and wording, no wording that is held out."""
    words = {token: word for word, token in writer.vocabulary.items()}
    documents = [" ".join(words[token] for token in writer.document()) for _ in range(4000)]
    text = "".join(f" {document} \n" for document in documents).lower()

    def written(phrase: str, pair: tuple[str, str]) -> bool:
        sentence = " ".join(split_words(phrases.fill(phrase, pair))).lower()
        return f" {sentence} " in text

    found = Counter()
    for relation, pairs in writer.pairs.items():
        for number, pair in enumerate(pairs):
            assert not written(phrases.HELD_OUT[relation], pair)
            for wording, phrase in enumerate(phrases.TRAINED[relation]):
                held_out = is_held_out(number, wording)
                # An example of a task prompt stands in every one of them.
                if not (held_out and pair[0] in split_words(TASK_TEMPLATES[relation])):
                    found[held_out] += written(phrase, pair)
    assert found[True] == 0
    assert found[False] > 500


def test_rows(writer):
    again = Writer(writer.vocabulary, writer.pairs, writer_tokenizer(writer), seed=5)
    first, second = (
        Writer(writer.vocabulary, writer.pairs, writer_tokenizer(writer), seed=6).rows(7, 31)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, again.rows(7, 31))
    assert first.shape == (7, 31)
    assert 0 <= first.min() < first.max() < len(writer.vocabulary)
    rows = again.rows(200, 31)
    assert 0.3 < np.mean(rows[:, 0] == writer.vocabulary[BOS]) < 0.7
    assert (rows != writer.vocabulary[UNKNOWN]).mean() > 0.99  # only where random tokens are repeated


def writer_tokenizer(writer):
    return PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(writer.vocabulary), bos_token=BOS, unk_token=UNKNOWN
    )


def test_a_question_is_a_sentence_without_its_last_word():
    text, answer = ask(["the <X> is <Y>"] * 2, [("a", "is"), ("is", "The")])
    assert (text, answer) == ("The a is is. The is is ", "The")


def export_tiny(family: str, directory: Path) -> dict[str, np.ndarray]:
    """Writes a family's checkpoint and returns the parameters that are in it."""
    fields = config_fields(replace(PRESETS[family], n_layers=2, d_model=24, n_heads=2, d_mlp=23), 37)
    config, rules = export.read_fields(fields)
    rng = np.random.default_rng(0)
    parameters = {
        name: rng.normal(size=leaf.shape).astype(np.float16)
        for name, leaf in model_parameters(Transformer(config, rngs=nnx.Rngs(0))).items()
    }
    copies = export.free_parameters(rules)
    parameters = {
        name: parameters[copies[name]] if name in copies else np.zeros_like(values)
        for name, values in parameters.items()
    }
    vocabulary = {BOS: 0, UNKNOWN: 1, "word": 2}
    export.write_model(directory, fields, parameters, make_tokenizer(vocabulary))
    return parameters


@pytest.mark.parametrize("family", PRESETS)
def test_exported_files_convert_back_to_the_same_parameters(family, tmp_path):
    parameters = export_tiny(family, tmp_path / "hf")
    ours = load_model(ensure_converted(tmp_path / "hf", tmp_path / "ours"))
    for name, values in model_parameters(ours).items():
        np.testing.assert_array_equal(values, parameters[name], err_msg=name)


@pytest.mark.parametrize("family", PRESETS)
def test_exported_files_hold_all_the_tensors_that_torch_wants_and_no_other(family, tmp_path):
    pytest.importorskip("torch", reason="needs torch, whose models are the oracle")
    export_tiny(family, tmp_path)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())


def test_join_layout_undoes_split_layout():
    sizes = {"3": 3, "H": 5, "K": 7, "D": 11, "F": 13}
    for layout, shape, n in (
        ("D (3 H K) -> 3 D H K", (11, 105), 3),
        ("(H 3 K) D -> 3 D H K", (105, 11), 3),
        ("D (H K) -> H K D", (11, 35), 1),
        ("F D -> D F", (13, 11), 1),
    ):
        stored = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        parts = split_layout(stored, layout, sizes, n)
        np.testing.assert_array_equal(export.join_layout(parts, layout, sizes), stored)


TINY = {
    **{"n_layers": 2, "n_heads": 2, "d_model": 16, "d_mlp": 17, "n_pairs": N_PAIRS},
    **{"batch_size": 5, "steps": 3, "warmup": 1, "learning_rate": 0.03, "log_every": 3},
}


@contextlib.contextmanager
def as_optax_needs():
    """It adds integers to floats, and scalars to arrays."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_three_steps_of_training(tmp_path, monkeypatch):
    """From text to files that torch agrees with, and a record of how they came about."""
    monkeypatch.setattr(questions, "N_EACH", 7)
    settings, log = replace(PRESETS["gpt2"], **TINY), []
    with as_optax_needs():
        train.train(settings, tmp_path / "hf", log.append)
    assert [row["step"] for row in log] == [3]
    about = json.loads((tmp_path / "hf/training.json").read_text())
    assert about["settings"] == vars(settings)
    assert set(about["accuracies"]) < set(log[0])
    assert len((tmp_path / "hf/training_log.csv").read_text().splitlines()) == 2

    ours = load_model(ensure_converted(tmp_path / "hf", tmp_path / "ours"))
    theirs = torch_oracle.load_directory(tmp_path / "hf")
    tokens = np.random.default_rng(1).integers(0, ours.config.vocab_size, (3, 29)).astype(np.int32)
    logits, z = torch_oracle.run(theirs, tokens)
    output = ours(tokens, return_z=True)
    assert_close(output.logits, logits)
    assert_close(output.z, z)


@pytest.mark.parametrize("family", ["phi", "llama"])
def test_what_is_learned_stays_within_the_family(family, writer):
    """Parameters that one tensor fills stay the same, those that a family lacks stay zero, the loss falls."""
    settings = replace(PRESETS[family], **TINY)
    fields = config_fields(settings, len(writer.vocabulary))
    with as_optax_needs():
        numbers, _, losses, models = zip(*train.learn(settings, fields, writer), strict=True)
    assert numbers == (1, 2, 3)
    assert losses[-1] < losses[0] - 0.01
    blocks = models[-1]().blocks
    scales = [norm.scale[...] for norm in (blocks.ln1, blocks.ln2)]
    assert not np.array_equal(scales[0], np.ones_like(scales[0]))  # it has learned
    assert np.array_equal(*scales) == (family == "phi")
    assert np.any(blocks.attn.b_V[...]) == (family == "phi")
