"""Words, pairs and prompts become the right tokens, whatever kind of tokenizer a checkpoint brings."""

import builtins
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from tokenizers import processors
from transformers import AutoTokenizer

from experiments import trained
from headjax.data.prompts import (
    Prompt,
    batch_prompts,
    beginning_token,
    describe_dropped,
    load_tokenizer,
    select_pairs,
    tokenise_pairs,
    word_tokens,
)
from headjax.data.relations import Relation, load_relations
from headjax.errors import InputError
from headjax.model import Transformer
from tests.helpers.tiny_tokenizers import WORDS, byte_level, characters, metaspace, sentencepiece, whole_words
from tests.helpers.words import CONFIG, REAL_MODEL, ids, spelled

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
    (("France", "Paris"), ("Chile", "Lima"), ("Italy", "Rome"), ("Peru", "Cusco"), ("New Spain", "Madrid")),
)


# Words


@pytest.mark.parametrize("kind", SUBWORD)
def test_a_word_is_tokenised_as_after_a_space(kind):
    tokenizer, mark = SUBWORD[kind], MARK[kind]
    assert spelled(tokenizer, word_tokens(tokenizer, "Paris")) == [mark + "Paris"]
    assert spelled(tokenizer, word_tokens(tokenizer, "a")) == [mark + "a"]
    assert all(len(word_tokens(tokenizer, word)) == 1 for word in WORDS.split())
    assert spelled(tokenizer, word_tokens(tokenizer, "Paris Rome")) == [mark + "Paris", mark + "Rome"]


def trimmed():
    """Byte-level as the published GPT-2's file has it: spans are reported without the space."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


@pytest.mark.parametrize("kind", [*SUBWORD, "trimmed"])
def test_a_lone_space_token_is_a_token_of_the_word_after_it(kind):
    """`" Z"` is two tokens, a space and a letter, so it is no word of one token."""
    tokenizer, mark = (trimmed(), "Ġ") if kind == "trimmed" else (SUBWORD[kind], MARK[kind])
    assert spelled(tokenizer, word_tokens(tokenizer, "Zoo")) == [mark, "Z", "o", "o"]
    assert spelled(tokenizer, word_tokens(tokenizer, "Z")) == [mark, "Z"]
    assert spelled(tokenizer, word_tokens(tokenizer, "Paris")) == [mark + "Paris"]


def test_bytes_of_one_character_are_tokens_of_the_word():
    assert len(word_tokens(byte_level(), "é")) == 3
    assert len(word_tokens(byte_level(), "北")) == 4


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
    assert [(pair.source, pair.target, pair.dropped) for pair in pairs.dropped] == [
        ("Chile", "Lima", f"source of {len(word_tokens(tokenizer, 'Chile'))} tokens"),
        ("Peru", "Cusco", f"target of {len(word_tokens(tokenizer, 'Cusco'))} tokens"),
        ("New Spain", "Madrid", f"source of {len(word_tokens(tokenizer, 'New Spain'))} tokens"),
    ]
    assert describe_dropped(pairs) == "several tokens: Chile, Cusco, New Spain"
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
    small = Relation("small", (("Peru", "Lima"), ("Peru", "Quito")), "Small")
    kept, skipped = select_pairs(tokenizer, (small, CAPITALS), len(tokenizer), min_pairs=2)
    assert [pairs.relation.id for pairs in kept] == ["capitals"]
    assert skipped == {"small": "1 of 2 pairs are single tokens, min_pairs is 2; several tokens: Quito"}
    rule = (
        r"min_pairs=30 pairs .*; the most has capitals, 2 of 5 pairs are single tokens; several tokens: Chi"
    )
    with pytest.raises(InputError, match=rule):
        select_pairs(tokenizer, (small, CAPITALS), len(tokenizer))
    with pytest.raises(InputError, match="no relation was given"):
        select_pairs(tokenizer, (), len(tokenizer))


def test_words_that_cost_a_relation_pairs_are_named_up_to_ten_of_each_kind():
    words = [chr(ord("a") + i) * 2 for i in range(12)]
    relation = Relation("r", tuple((word, "ab") for word in words), "R")
    pairs = tokenise_pairs(whole_words("ab"), relation, 10)
    assert describe_dropped(pairs) == f"not in the vocabulary: {', '.join(words[:10])} and 2 more"
    assert {pair.dropped for pair in pairs.dropped} == {"source not in the vocabulary"}
    pairs = tokenise_pairs(characters(" bcda"), Relation("r", (("ab", "xy"),), "R"), 10)
    assert [pair.dropped for pair in pairs.dropped] == ["source of 2 tokens, target not in the vocabulary"]
    assert describe_dropped(pairs) == "several tokens: ab; not in the vocabulary: xy"


# Tokenizer files

TEXTS = (
    "The capital of France is Paris, isn't it? In 1984   there were 12,345 of them.\n\tx = len(items))",
    "Zürich naïve Ωmega 北京是中国的首都。 こんにちは 🙂 e\u0301",
    " leading and trailing ",
    "<|endoftext|> <s> hello",
)


def tokenizer_directories(shared_data: Path) -> list[Path]:
    real = [Path(REAL_MODEL)] if REAL_MODEL else []
    shared = [*shared_data.glob("checkpoints/*"), *shared_data.glob("tokenizers/*")]
    return [*shared, *trained.MODELS.values(), *real]


def test_every_tokenizer_at_hand_gives_what_transformers_gives(shared_data):
    directories = tokenizer_directories(shared_data)
    assert len(directories) >= 6
    for directory in directories:
        ours, theirs = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
        for text in (*TEXTS, "ABC", *(word for pair in CAPITALS.pairs for word in pair)):
            for added in (False, True):
                expected, given = ids(theirs, text, added), ids(ours, text, added)
                assert given == expected, (directory, text)
        assert (ours.bos_token_id, ours.unk_token_id) == (theirs.bos_token_id, theirs.unk_token_id), directory
        assert set(ours.all_special_ids) >= set(theirs.all_special_ids)


def write_tokenizer(directory: Path, tokenizer, **config: object) -> Path:
    """The tokenizer's files, with a tokenizer_config.json of these fields and a config.json of Llama."""
    directory.mkdir(exist_ok=True)
    tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "LlamaTokenizerFast", "GPTNeoXTokenizerFast", "Nobody's"])
def test_a_tokenizer_is_what_its_file_says_whatever_class_is_named(tmp_path, named):
    for kind, original in SUBWORD.items():
        fields = {"tokenizer_class": named, "bos_token": original.bos_token}
        read = load_tokenizer(write_tokenizer(tmp_path, original, **fields))
        for text in ("The capital of France", " Zoo", "Peru\n"):
            for added in (False, True):
                expected = original(text, add_special_tokens=added)["input_ids"]
                assert read(text, add_special_tokens=added)["input_ids"] == expected, kind
    # What is guarded against: the class that is named splits words as it thinks right.
    if named == "GPT2Tokenizer":
        write_tokenizer(tmp_path, sentencepiece(), tokenizer_class=named, bos_token="<s>")
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        assert len(theirs("Paris")["input_ids"]) > len(load_tokenizer(tmp_path)("Paris")["input_ids"])


def test_special_tokens_are_read_from_either_file_and_only_if_the_vocabulary_has_them(tmp_path):
    write_tokenizer(tmp_path, sentencepiece(), eos_token="</s>")
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "<s>"}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.unk_token, tokenizer.eos_token) == ("<s>", "<unk>", None)
    assert len(tokenizer) == len(sentencepiece())
    assert word_tokens(tokenizer, "é") == []  # <unk>, which the file names itself
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": 3}')
    with pytest.raises(InputError, match=r"tokenizer_config\.json: bos_token is a token's text; got 3"):
        load_tokenizer(tmp_path)


def test_slow_files_are_converted_to_the_tokens_they_hold(shared_data, tmp_path):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "gpt2")
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]  # as OpenAI's encoder has it
    for file in (shared_data / "tokenizers" / "gpt2").glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizerFast"}')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match=r"must have the tokens of .*vocab\.json; .*|cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("files", ["slow", "tokenizer.json"])
def test_no_code_of_a_checkpoint_runs_and_nobody_is_asked(tmp_path, monkeypatch, files):
    asked = []
    monkeypatch.setattr(builtins, "input", lambda *words: asked.append(words) or "y")
    monkeypatch.setattr(sys.stdin, "readline", lambda: asked.append("stdin") or "y\n", raising=False)
    marker = tmp_path / "it_ran"
    code = f"open({str(marker)!r}, 'w').close()\nclass Theirs: pass\n"
    (tmp_path / "theirs.py").write_text(code)
    auto_map = {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"], "AutoConfig": "theirs.Theirs"}
    write_tokenizer(tmp_path, byte_level(), tokenizer_class="Theirs", auto_map=auto_map)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": auto_map}))
    if files == "slow":
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "vocab.json").write_text(json.dumps(byte_level().get_vocab()))
        (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ P\n")
        with pytest.raises(InputError, match="cannot be read: "):
            load_tokenizer(tmp_path)
    else:
        assert word_tokens(load_tokenizer(tmp_path), "Paris") == word_tokens(byte_level(), "Paris")
    assert not marker.exists()
    assert asked == []


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


def test_a_tokenizer_file_that_contradicts_itself_is_one_line(tmp_path):
    """The library panics over a post-processor that adds a token which it does not explain."""
    file = write_tokenizer(tmp_path, byte_level(bos=True)) / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"]["special_tokens"] = {}
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        beginning_token(load_tokenizer(tmp_path))
    assert "\n" not in str(error.value)
    content["post_processor"]["special_tokens"] = {
        "other": {"id": "other", "ids": [0], "tokens": ["<|begin|>"]}
    }
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="files must fit together; this one fails: no entry"):
        beginning_token(load_tokenizer(tmp_path))


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


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prompts_begin_as_the_tokenizer_begins_a_text_unless_told_otherwise(family):
    """As SmolLM2's, whose family is Llama's and whose bos_token is a mark of chats that it never adds."""
    config = dataclasses.replace(CONFIG, family=family)
    for tokenizer in SUBWORD.values():
        added = tokenizer("The")["input_ids"][0] == tokenizer.bos_token_id
        for bos, begins in ((None, added), (True, True), (False, False)):
            batch = batch_prompts(tokenizer, [FRANCE], config, bos=bos)
            assert batch.bos == (batch.tokens[0, 0] == tokenizer.bos_token_id) == begins
            token = beginning_token(tokenizer, bos)
            assert token == (tokenizer.bos_token_id if begins else None)
    plain = characters("Prsi")
    assert not batch_prompts(plain, [Prompt("p", "P", "r")], LLAMA).bos
    with pytest.raises(InputError, match="bos=True needs a tokenizer with a beginning-of-text token"):
        batch_prompts(plain, [Prompt("p", "P", "r")], LLAMA, bos=True)


def test_the_token_in_front_is_the_post_processors_even_where_it_has_no_name(tmp_path):
    for name, fields in (("unnamed", {}), ("told_not_to", {"bos_token": "<s>", "add_bos_token": False})):
        tokenizer = load_tokenizer(write_tokenizer(tmp_path / name, sentencepiece(), **fields))
        assert tokenizer("The")["input_ids"][0] == 1  # as transformers reads the same files
        assert beginning_token(tokenizer) == beginning_token(tokenizer, True) == 1
    plain = sentencepiece()
    plain.backend_tokenizer.post_processor = processors.Sequence([])
    fields = {"bos_token": "<s>", "add_bos_token": True}
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "told_to", plain, **fields))
    assert AutoTokenizer.from_pretrained(tmp_path / "told_to")("The")["input_ids"][0] != 1
    assert beginning_token(tokenizer) is None
    assert beginning_token(tokenizer, True) == 1

    several = processors.TemplateProcessing(single="<s> <s> $A <s>", special_tokens=[("<s>", 1)])
    plain.backend_tokenizer.post_processor = several
    with pytest.raises(InputError, match="at most one token before a text; this one <s> <s>: set bos=False"):
        beginning_token(plain)
    assert beginning_token(plain, False) is None


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


# Letters and marks, each a token: what stands between text and answer is seen in the prompt's last token.
MARKS = characters(' abcst1234.)("/北京是。とของ')


@pytest.mark.parametrize(
    ("text", "answer", "space", "between"),
    [
        ("bat", "c", "auto", " "),
        ("bat", "c", "no", ""),
        ("bat", "c", "yes", " "),
        ("bat ", "c", "yes", " "),
        ("bat(", "c", "auto", ""),
        ('bat("', "c", "auto", ""),
        ("bat(", "c", "yes", " "),
        ('bat"', "c", "auto", " "),
        ("bat", ")", "auto", ""),
        ("bat", ".", "auto", ""),
        ("bat", ")", "yes", " "),
        ("bat", "(", "auto", " "),
        ("bat", '"', "auto", " "),
        ("bat/", "c", "auto", " "),
        ("1", "b", "auto", " "),
        ("a 1", "2", "no", ""),
        ("a 1", "2", "yes", " "),
        ("a 1", " 2", "auto", " "),
        ("a 1 ", "2", "auto", " "),
        ("北是", "京", "auto", ""),
        ("北是。", "京", "auto", ""),
        ("北是", "b", "auto", ""),
        ("bat", "京", "auto", " "),
        ("と", "ข", "auto", ""),
        ("ของ", "ข", "auto", ""),
        ("北是", "京", "yes", " "),
        ("北是", " 京", "auto", " "),
    ],
)
def test_the_space_before_an_answer_is_what_the_field_says(text, answer, space, between):
    batch = batch_prompts(MARKS, [Prompt("p", text, answer, space=space)], CONFIG)
    assert "".join(spelled(MARKS, batch.tokens)) == text.rstrip(" ") + between
    assert spelled(MARKS, batch.answers) == [answer.strip()]


def test_a_digit_after_a_digit_must_be_told():
    with pytest.raises(
        InputError, match=r"a digit after a digit needs the field 'space', .*; p has '2' after 'a 1'"
    ):
        batch_prompts(MARKS, [Prompt("p", "a 1", "2")], CONFIG)


def test_an_answer_follows_its_own_white_space():
    tokenizer = characters(" aPrsi\n")
    batch = batch_prompts(tokenizer, [Prompt("p", "Pairs", "\na")], CONFIG)
    assert spelled(tokenizer, batch.tokens) == [*"Pairs", "\n"]


def test_a_space_token_belongs_to_the_prompt_where_the_prompt_ends_in_it():
    tokenizer = sentencepiece()
    rule = r"one token; p has 'Z', which is \['▁', 'Z'\]; where the prompt ends in the space, the second is"
    with pytest.raises(InputError, match=rule):
        batch_prompts(tokenizer, [Prompt("p", "The capital is", "Z")], CONFIG)
    for space in ("auto", "yes", "no"):
        batch = batch_prompts(tokenizer, [Prompt("p", "The capital is ", "Z", space=space)], CONFIG, False)
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
        (prompt(answer="  "), "an answer must be one token; file line 3 has ' ', which is"),
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
        (prompt(source=(-3, 2)), r"a source must be a word of the prompt; file line 3 gives characters \(-3"),
        (prompt(space="maybe"), "space is one of auto, yes, no; file line 3 has 'maybe'"),
        (prompt(space="no", answer=" Paris"), "'no' an answer begins without one; file line 3 has ' Paris'"),
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
            prompt(text="The capital of France is ", answer="Z", distractor="Paris"),
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
    assert spelled(tokenizer, word_tokens(tokenizer, "urn")) == ["Ġ", "urn"]
    for text, answer, token in (
        ("The war lasted from the year 1732 to the year 17", "41", "41"),
        ("print(len(items", "))", "))"),
        ("It", "'s", "'s"),
    ):
        space = "no" if token == "41" else "auto"
        alike = batch_prompts(
            tokenizer,
            [Prompt("p", text, answer, space=space)],
            dataclasses.replace(CONFIG, vocab_size=60_000),
        )
        assert spelled(tokenizer, alike.answers) == [token]
        assert tokenizer.decode(alike.tokens[0]) == text
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
    assert spelled(tokenizer, word_tokens(tokenizer, "Paris")) == ["▁", "P", "ar", "is"]
    assert spelled(tokenizer, word_tokens(tokenizer, "A")) == ["▁", "A"]
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
