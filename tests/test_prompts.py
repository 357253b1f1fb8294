"""Words, pairs and prompts become the right tokens, whatever kind of tokenizer a checkpoint brings."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from headjax.config import ModelConfig
from headjax.errors import InputError
from headjax.model import Transformer
from headjax.prompts import Prompt, batch_prompts, load_tokenizer, select_pairs, tokenise_pairs, word_tokens
from headjax.relations import Relation, load_relations
from tests.tiny_tokenizers import WORDS, byte_level, characters, metaspace, sentencepiece, whole_words

CONFIG = ModelConfig(
    family="gpt2",
    n_layers=2,
    n_heads=3,
    n_kv_heads=3,
    d_head=5,
    d_model=15,
    d_mlp=17,
    vocab_size=1000,
    max_positions=23,
    norm="layer",
    norm_eps=1e-5,
    rotary=None,
    activation="gelu",
    gated_mlp=False,
    parallel_residual=False,
    tied_embeddings=True,
)
LLAMA = dataclasses.replace(CONFIG, family="llama")
SUBWORD = {
    "byte_level": byte_level(),
    "byte_level_bos": byte_level(bos=True),
    "sentencepiece": sentencepiece(),
    "metaspace": metaspace(),
}
subword = pytest.mark.parametrize("tokenizer", SUBWORD.values(), ids=SUBWORD)
MARK = {"byte_level": "Ġ", "byte_level_bos": "Ġ", "sentencepiece": "▁", "metaspace": "▁"}

CAPITALS = Relation(
    "capitals",
    "Capitals",
    "Custom",
    (("France", "Paris"), ("Chile", "Lima"), ("Italy", "Rome"), ("Peru", "Cusco"), ("New Spain", "Madrid")),
)


def spelled(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens([int(i) for i in np.ravel(ids)])


# Words


@pytest.mark.parametrize("kind", SUBWORD)
def test_a_word_is_tokenised_as_after_a_space(kind):
    tokenizer, mark = SUBWORD[kind], MARK[kind]
    assert spelled(tokenizer, word_tokens(tokenizer, "Paris")) == [mark + "Paris"]
    assert spelled(tokenizer, word_tokens(tokenizer, "a")) == [mark + "a"]
    assert all(len(word_tokens(tokenizer, word)) == 1 for word in WORDS.split())
    assert spelled(tokenizer, word_tokens(tokenizer, "Paris Rome")) == [mark + "Paris", mark + "Rome"]


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace"])
def test_a_lone_space_token_is_no_part_of_the_word_after_it(kind):
    tokenizer = SUBWORD[kind]
    assert spelled(tokenizer, word_tokens(tokenizer, "Zoo")) == ["Z", "o", "o"]
    assert spelled(tokenizer, word_tokens(tokenizer, "Z")) == ["Z"]


def test_bytes_of_one_character_are_tokens_of_the_word():
    assert len(word_tokens(byte_level(), "é")) == 2
    assert len(word_tokens(byte_level(), "北")) == 3


def test_characters_give_the_letters_with_and_without_a_space_in_the_vocabulary():
    for alphabet in (" aPrsi", "Pairs", "Prsi"):
        tokenizer = characters(alphabet)
        assert spelled(tokenizer, word_tokens(tokenizer, "Pri")) == ["P", "r", "i"]
        assert word_tokens(tokenizer, "Pro") == []


def test_unknown_and_special_tokens_are_no_words_tokens():
    tokenizer = whole_words("Paris a")
    assert spelled(tokenizer, word_tokens(tokenizer, "Paris")) == ["Paris"]
    assert word_tokens(tokenizer, "Rome") == []
    assert word_tokens(tokenizer, "Paris Rome") == []
    assert word_tokens(SUBWORD["sentencepiece"], "é") == []
    assert word_tokens(SUBWORD["sentencepiece"], "<s>") == []
    assert word_tokens(SUBWORD["byte_level_bos"], "<|begin|>") == []


# Pairs


@subword
def test_pairs_count_only_if_both_words_are_one_token(tokenizer):
    pairs = tokenise_pairs(tokenizer, CAPITALS, len(tokenizer))
    assert pairs.words == (("France", "Paris"), ("Italy", "Rome"))
    assert pairs.n_dropped == 3
    assert [spelled(tokenizer, ids) for ids in (pairs.sources, pairs.targets)] == [
        [spelled(tokenizer, word_tokens(tokenizer, word))[0] for word in words]
        for words in (("France", "Italy"), ("Paris", "Rome"))
    ]
    assert pairs.sources.dtype == pairs.targets.dtype == np.int32


def test_a_source_of_several_tokens_is_its_last_one_where_that_is_asked_for():
    tokenizer = byte_level()
    pairs = tokenise_pairs(tokenizer, CAPITALS, len(tokenizer), single_source=False)
    assert pairs.words == (CAPITALS.pairs[0], CAPITALS.pairs[1], CAPITALS.pairs[2], CAPITALS.pairs[4])
    assert spelled(tokenizer, pairs.sources) == ["ĠFrance", "e", "ĠItaly", "ĠSpain"]
    assert spelled(tokenizer, pairs.targets) == ["ĠParis", "ĠLima", "ĠRome", "ĠMadrid"]


def test_a_tokenizer_of_another_model_is_refused():
    tokenizer = byte_level()
    with pytest.raises(
        InputError, match=r"must share a vocabulary; the text needs token \d+, the model has 97"
    ):
        tokenise_pairs(tokenizer, CAPITALS, 97)
    with pytest.raises(InputError, match="must share a vocabulary"):
        batch_prompts(tokenizer, [Prompt("p", "The", "Paris")], dataclasses.replace(CONFIG, vocab_size=97))


def test_relations_with_too_few_pairs_are_skipped_with_the_reason():
    tokenizer = byte_level()
    small = Relation("small", "Small", "Custom", (("Peru", "Lima"), ("Peru", "Quito")))
    kept, skipped = select_pairs(tokenizer, (small, CAPITALS), len(tokenizer), min_pairs=2)
    assert [pairs.relation.id for pairs in kept] == ["capitals"]
    assert skipped == {"small": "1 of 2 pairs are single tokens, min_pairs is 2"}
    with pytest.raises(InputError, match=r"min_pairs=30 pairs .*; the most has capitals, 2 of 5 pairs are"):
        select_pairs(tokenizer, (small, CAPITALS), len(tokenizer))
    with pytest.raises(InputError, match="no relation was given"):
        select_pairs(tokenizer, (), len(tokenizer))


# Tokenizer files


def test_a_saved_tokenizer_is_read_back(tmp_path):
    byte_level(bos=True).save_pretrained(tmp_path)
    assert word_tokens(load_tokenizer(tmp_path), "Paris") == word_tokens(byte_level(), "Paris")


def test_an_absent_or_broken_tokenizer_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match=r"a tokenizer needs one of tokenizer\.json, .* has none"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(InputError, match=r"the tokenizer in .* cannot be read: ") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


# Prompts

FRANCE = Prompt("first", "The capital of France is", "Paris", source=(15, 21), distractor="Rome")
SPAIN = Prompt("second", "capital of New Spain", "Madrid", source=(11, 20), distractor="Lima")


@subword
@pytest.mark.parametrize("bos", [False, True])
def test_prompts_are_padded_on_the_left(tokenizer, bos):
    batch = batch_prompts(tokenizer, [FRANCE, SPAIN], CONFIG, bos=bos)
    rows = [batch.tokens[i][batch.mask[i]] for i in range(2)]
    mark = spelled(tokenizer, batch.answers)[0][0]

    start = [tokenizer.bos_token] if bos else []
    assert spelled(tokenizer, rows[0])[-4:] == [mark + w for w in ("capital", "of", "France", "is")]
    assert spelled(tokenizer, rows[1])[-1] == mark + "Spain"
    for row in rows:
        assert spelled(tokenizer, row[: len(start)]) == start
        assert tokenizer.bos_token_id not in row[len(start) :]
    assert (np.diff(batch.mask.astype(int), axis=1) >= 0).all()
    assert batch.mask[:, -1].all()
    assert batch.mask.any(axis=0).all()
    assert (batch.tokens[~batch.mask] == 0).all()

    assert spelled(tokenizer, batch.tokens[[0, 1], batch.sources]) == [mark + "France", mark + "Spain"]
    assert spelled(tokenizer, batch.answers) == [mark + "Paris", mark + "Madrid"]
    assert spelled(tokenizer, batch.distractors) == [mark + "Rome", mark + "Lima"]
    assert batch.corrupted is None
    assert batch.prompts == (FRANCE, SPAIN)
    assert batch.bos == bos
    arrays = (batch.tokens, batch.sources, batch.answers, batch.distractors)
    assert all(array.dtype == np.int32 for array in arrays)


def test_padding_changes_no_prompts_logits():
    tokenizer = byte_level()
    config = dataclasses.replace(CONFIG, vocab_size=len(tokenizer))
    model = Transformer(config, rngs=nnx.Rngs(0))
    batch = batch_prompts(tokenizer, [FRANCE, SPAIN], config)
    lengths = batch.mask.sum(axis=1)
    assert lengths[0] != lengths[1]
    together = model(batch.tokens, mask=batch.mask).logits[:, -1]
    for i, prompt in enumerate(batch.prompts):
        alone = batch_prompts(tokenizer, [prompt, prompt], config)
        assert alone.mask.all()
        logits = model(alone.tokens, mask=alone.mask).logits[0, -1]
        np.testing.assert_allclose(logits, together[i], rtol=1e-5, atol=1e-6)


def test_the_beginning_of_text_follows_the_family_unless_given():
    plain = characters("Prsi")
    prompt = Prompt("p", "P", "r")
    assert not batch_prompts(byte_level(bos=True), [FRANCE], CONFIG).bos
    assert batch_prompts(byte_level(), [FRANCE], LLAMA).bos
    assert not batch_prompts(byte_level(), [FRANCE], LLAMA, bos=False).bos
    assert not batch_prompts(plain, [prompt], LLAMA).bos
    with pytest.raises(InputError, match="bos=True needs a tokenizer with a beginning-of-text token"):
        batch_prompts(plain, [prompt], LLAMA, bos=True)


@subword
@pytest.mark.parametrize(
    ("text", "answer"),
    [("capital is", "Paris"), ("capital is", " Paris"), ("capital is ", "Paris"), ("capital is ", " Paris")],
)
def test_the_space_before_an_answer_may_stand_on_either_side(tokenizer, text, answer):
    expected = batch_prompts(tokenizer, [Prompt("p", "capital is", "Paris")], CONFIG)
    batch = batch_prompts(tokenizer, [Prompt("p", text, answer)], CONFIG)
    np.testing.assert_array_equal(batch.tokens, expected.tokens)
    np.testing.assert_array_equal(batch.answers, expected.answers)


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("Pairs", "Pairs "),
        ('Pairs"', 'Pairs" '),
        ('Pairs "', 'Pairs "'),
        ("Pairs (", "Pairs ("),
        ("Pairs\n", "Pairs\n"),
    ],
)
def test_an_answer_follows_an_opening_or_white_space_directly_and_else_a_space(text, before):
    tokenizer = characters(' aPrsi"(\n')
    batch = batch_prompts(tokenizer, [Prompt("p", text, "a")], CONFIG)
    assert "".join(spelled(tokenizer, batch.tokens)) == before


def test_an_answer_follows_its_own_white_space():
    tokenizer = characters(" aPrsi\n")
    batch = batch_prompts(tokenizer, [Prompt("p", "Pairs", "\na")], CONFIG)
    assert spelled(tokenizer, batch.tokens) == [*"Pairs", "\n"]


def test_the_space_token_before_an_answer_belongs_to_the_prompt():
    tokenizer = sentencepiece()
    batch = batch_prompts(tokenizer, [Prompt("p", "The capital is", "Z")], CONFIG)
    assert spelled(tokenizer, batch.tokens) == ["▁The", "▁capital", "▁is", "▁"]
    assert spelled(tokenizer, batch.answers) == ["Z"]

    letters = characters(" aPrsi")
    batch = batch_prompts(letters, [Prompt("p", "Pairs", "a")], CONFIG)
    assert spelled(letters, batch.tokens) == [*"Pairs", " "]


def test_a_vocabulary_without_a_space_lets_the_answer_follow_directly():
    tokenizer = characters("ABC")
    prompts = [Prompt("p", "CBABBC", "A", source=(2, 3), distractor="B", corrupted="CBBBBC")]
    batch = batch_prompts(tokenizer, prompts, CONFIG)
    assert spelled(tokenizer, batch.tokens) == list("CBABBC")
    assert spelled(tokenizer, batch.corrupted) == list("CBBBBC")
    assert batch.sources.tolist() == [2]
    assert spelled(tokenizer, batch.distractors) == ["B"]


def test_a_corrupted_partner_has_the_prompts_padding_and_a_missing_source_is_minus_one():
    tokenizer = byte_level(bos=True)
    prompts = [
        Prompt("long", "The capital of France is", "Paris", corrupted="The capital of Italy is"),
        Prompt("short", "No dog", "means", corrupted="No cat", source=(0, 2)),
    ]
    batch = batch_prompts(tokenizer, prompts, CONFIG, bos=True)
    assert batch.corrupted.dtype == np.int32
    assert (batch.corrupted[~batch.mask] == 0).all()
    changed = batch.corrupted != batch.tokens
    assert spelled(tokenizer, batch.tokens[changed]) == ["ĠFrance", "Ġdog"]
    assert spelled(tokenizer, batch.corrupted[changed]) == ["ĠItaly", "Ġcat"]
    assert spelled(tokenizer, batch.corrupted[1, batch.mask[1]])[0] == "<|begin|>"
    assert batch.sources[0] == -1
    assert spelled(tokenizer, batch.tokens[1, batch.sources[1]]) == ["o"]  # "No" without a space: N, o


# What cannot be used


def prompt(**fields):
    return Prompt(**{"name": "file line 3", "text": "The capital of France is", "answer": "Paris", **fields})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (prompt(answer="Rio"), r"an answer must be one token; file line 3 has 'Rio', which is \['ĠR'?"),
        (prompt(answer="  "), "an answer must be one token; file line 3 has '  '"),
        (prompt(answer="<|begin|>"), "an answer must be one token; file line 3 has '<|begin|>'"),
        (prompt(distractor="Rio"), "an answer must be one token; file line 3 has 'Rio'"),
        (prompt(text="a" * 30), "1 to 23 tokens, the model's positions; file line 3 has 30"),
        (
            prompt(text="", answer="a"),
            "a prompt must have 1 to 23 tokens, the model's positions; file line 3 has 0",
        ),
        (
            prompt(source=(25, 30)),
            r"a source must be a word of the prompt; file line 3 gives characters \(25, 30\)",
        ),
        (prompt(corrupted="The capital of Chile is"), "as many tokens as the prompt; file line 3 has"),
    ],
)
def test_what_a_byte_level_tokenizer_cannot_use_is_one_line(given, message):
    with pytest.raises(InputError, match=message.replace("|", r"\|")) as error:
        batch_prompts(byte_level(), [given], CONFIG)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tokenizer", "given", "message"),
    [
        (
            characters("ABC"),
            prompt(text="AXB", answer="A"),
            "in the tokenizer's vocabulary; file line 3 is not",
        ),
        (sentencepiece(), prompt(text="The é is"), "in the tokenizer's vocabulary; file line 3 holds <unk>"),
        (sentencepiece(), prompt(answer="é"), r"an answer must be one token; file line 3 has 'é', .*<unk>"),
        (
            sentencepiece(),
            prompt(answer="Z", distractor="Paris"),
            "must follow the same tokens; file line 3 has 'Z' and 'Paris'",
        ),
    ],
)
def test_what_a_vocabulary_cannot_write_is_one_line(tokenizer, given, message):
    with pytest.raises(InputError, match=message):
        batch_prompts(tokenizer, [given], CONFIG)


def test_an_answer_that_shares_a_token_with_the_prompt_is_refused():
    tokenizer = whole_words("ab ((")  # punctuation in a row is one token to this one
    with pytest.raises(InputError, match="an answer must begin a token of its own; p joins '\\('"):
        batch_prompts(tokenizer, [Prompt("p", "ab (", "(")], CONFIG)


@pytest.mark.parametrize("field", ["distractor", "corrupted"])
def test_some_prompts_with_and_some_without_a_field_are_refused(field):
    whole, bare = prompt(**{field: "Rome"}), prompt(name="file line 4")
    with pytest.raises(InputError, match=f"every prompt or none must have '{field}'; file line 4 has none"):
        batch_prompts(byte_level(), [whole, bare], CONFIG)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(InputError, match="at least one prompt"):
        batch_prompts(byte_level(), [], CONFIG)


# Published tokenizers and trained checkpoints


@pytest.mark.parametrize("name", ["gpt2", "pythia"])
def test_published_byte_level_tokenizers(shared_data, name):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
    assert spelled(tokenizer, word_tokens(tokenizer, "Paris")) == ["ĠParis"]
    assert spelled(tokenizer, word_tokens(tokenizer, "1984")) == ["Ġ1984"]
    assert len(word_tokens(tokenizer, "Ouagadougou")) > 1
    (capitals,), _ = select_pairs(tokenizer, load_relations(["country_to_capital"]), len(tokenizer))
    assert ("France", "Paris") in capitals.words
    config = dataclasses.replace(CONFIG, vocab_size=len(tokenizer))
    batch = batch_prompts(
        tokenizer, [prompt(source=(15, 21), distractor="Rome", corrupted="The capital of Italy is")], config
    )
    assert spelled(tokenizer, batch.tokens) == ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]
    assert spelled(tokenizer, batch.corrupted) == ["The", "Ġcapital", "Ġof", "ĠItaly", "Ġis"]
    assert batch.sources.tolist() == [3]
    assert not batch.bos


def test_stories260k(shared_data):
    tokenizer = load_tokenizer(shared_data / "checkpoints" / "stories260K")
    assert spelled(tokenizer, word_tokens(tokenizer, "the")) == ["▁the"]
    assert spelled(tokenizer, word_tokens(tokenizer, "Paris")) == ["P", "ar", "is"]
    assert spelled(tokenizer, word_tokens(tokenizer, "A")) == ["A"]
    batch = batch_prompts(tokenizer, [Prompt("p", "Once upon a", "time", source=(10, 11))], LLAMA)
    assert batch.bos
    assert batch.tokens[0, 0] == 1
    assert tokenizer.decode(batch.tokens[0, 1:]) == "Once upon a"
    assert spelled(tokenizer, batch.tokens[0, batch.sources]) == ["▁a"]
    assert spelled(tokenizer, batch.answers) == ["▁time"]


def test_character_level_checkpoints(shared_data):
    tokenizer = load_tokenizer(shared_data / "checkpoints" / "slm4096")
    assert spelled(tokenizer, word_tokens(tokenizer, "Paris")) == list("Paris")
    batch = batch_prompts(tokenizer, [Prompt("p", "the", "c"), Prompt("q", "a ", "b")], CONFIG)
    assert ["".join(spelled(tokenizer, row[m])) for row, m in zip(batch.tokens, batch.mask, strict=True)] == [
        "the ",
        "a ",
    ]

    tokenizer = load_tokenizer(shared_data / "checkpoints" / "gpt-nano-sort")
    assert spelled(tokenizer, word_tokens(tokenizer, "CAB")) == list("CAB")
    assert word_tokens(tokenizer, "Paris") == []
    batch = batch_prompts(tokenizer, [Prompt("p", "CBABBC", "A")], CONFIG)
    assert spelled(tokenizer, batch.tokens) == list("CBABBC")
