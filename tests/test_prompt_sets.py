"""Templates, a user's prompt file, and the two published tasks give the prompts that they promise."""

import dataclasses
import json
import re

import numpy as np
import pytest

from headjax.data.prompt_sets import (
    COLORS,
    IOI_NAMES,
    IOI_TEMPLATES,
    OBJECTS,
    colored_object_prompts,
    corrupted_twins,
    ioi_prompts,
    read_prompts,
    sample_prompts,
    task_prompts,
    task_template,
    template_prompts,
)
from headjax.data.prompts import batch_prompts, load_tokenizer, tokenise_pairs
from headjax.data.relations import RELATION_IDS, Relation, load_relations
from headjax.data.templates import DYNAMIC_TEMPLATES, SLOT, TASK_TEMPLATES
from headjax.errors import InputError
from tests.helpers.tiny_tokenizers import byte_level, whole_words
from tests.helpers.words import CONFIG, spelled

CAPITALS = Relation(
    "capitals",
    (("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Peru", "Lima")),
)
PAIRS = tokenise_pairs(byte_level(), CAPITALS, len(byte_level()))
CONFIG = dataclasses.replace(CONFIG, vocab_size=60_000, max_positions=128)


def source_of(prompt):
    return prompt.text[slice(*prompt.source)]


# Templates


def test_every_template_is_filled_with_every_source():
    prompts = template_prompts(PAIRS)
    assert len(prompts) == 4 * 4
    assert [prompt.template for prompt in prompts[::4]] == list(DYNAMIC_TEMPLATES)
    assert {prompt.relation for prompt in prompts} == {"capitals"}
    assert prompts[4 + 1].text == "The story of Italy contains"
    for prompt, (source, target) in zip(prompts, PAIRS.words * 4, strict=True):
        assert (source_of(prompt), prompt.answer) == (source, target)

    batch = batch_prompts(byte_level(), prompts, CONFIG)
    rows = np.arange(len(prompts))
    np.testing.assert_array_equal(batch.tokens[rows, batch.sources].reshape(4, 4), [PAIRS.sources] * 4)
    np.testing.assert_array_equal(batch.answers.reshape(4, 4), [PAIRS.targets] * 4)
    ends_in_source = [prompt.template.endswith(SLOT) for prompt in prompts]
    assert (batch.sources == batch.tokens.shape[1] - 1).tolist() == ends_in_source


def test_the_last_slot_of_a_template_is_the_source():
    (prompt, *_) = template_prompts(PAIRS, ["<X> or <X> is"])
    assert prompt.text == "France or France is"
    assert prompt.source == (10, 16)


def test_a_source_of_several_tokens_fills_a_template_too():
    tokenizer = byte_level()
    relation = Relation("r", (("New Spain", "Madrid"),), "R")
    pairs = tokenise_pairs(tokenizer, relation, len(tokenizer), single_source=False)
    batch = batch_prompts(tokenizer, template_prompts(pairs), CONFIG)
    assert spelled(tokenizer, batch.tokens[np.arange(4), batch.sources]) == ["ĠSpain"] * 4


def test_an_answer_after_a_source_follows_a_space_even_between_digits():
    relation = Relation("years", (("1", "2"),), "Years")
    tokenizer = whole_words("1 2")
    pairs = tokenise_pairs(tokenizer, relation, len(tokenizer))
    (prompt,) = template_prompts(pairs, ["<X>"])
    batch = batch_prompts(tokenizer, [prompt], CONFIG)
    assert spelled(tokenizer, batch.tokens) + spelled(tokenizer, batch.answers) == ["1", "2"]


def test_a_template_without_a_slot_is_refused():
    for prompts in (template_prompts, task_prompts):
        with pytest.raises(InputError, match=r"a template must hold <X>, .*; got 'The capital is'"):
            prompts(PAIRS, ["The capital of <X> is", "The capital is"])


def test_a_pair_that_the_template_shows_is_left_out():
    prompts = task_prompts(PAIRS, ["Rome is in Italy, Paris is in <X>. The capital of <X> is"])
    assert [source_of(prompt) for prompt in prompts] == ["France", "Spain", "Peru"]


# Corrupted twins


def test_a_twin_is_another_source_and_its_answer_the_distractor():
    prompts = task_prompts(PAIRS, ["The capital of <X> is"])
    twins = corrupted_twins(byte_level(), prompts, seed=0)
    assert [dataclasses.replace(twin, distractor=None, corrupted=None) for twin in twins] == prompts
    texts = {prompt.text: prompt.answer for prompt in prompts}
    for twin in twins:
        assert twin.corrupted != twin.text
        assert texts[twin.corrupted] == twin.distractor != twin.answer
    batch = batch_prompts(byte_level(), twins, CONFIG)
    differs = batch.tokens != batch.corrupted
    assert (differs.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(differs.argmax(axis=1), batch.sources)
    assert twins == corrupted_twins(byte_level(), prompts, seed=0)
    assert twins != corrupted_twins(byte_level(), prompts, seed=1)


def test_a_twin_is_as_long_in_the_same_template_and_has_another_right_answer():
    """Germany is several tokens and nobody else is; two countries share a capital with what is called dog."""
    words = (*CAPITALS.pairs, ("dog", "Paris"), ("dog", "Lima"), ("Germany", "Rome"))
    relation = dataclasses.replace(CAPITALS, pairs=words)
    pairs = tokenise_pairs(byte_level(), relation, len(byte_level()), single_source=False)
    prompts = template_prompts(pairs, ("The capital of <X> is", "No <X> means no"))
    twins = corrupted_twins(byte_level(), prompts, seed=0)
    assert len(twins) == len(prompts) - 2
    assert not any("Germany" in twin.text + twin.corrupted for twin in twins)
    by_text = {prompt.text: source_of(prompt) for prompt in prompts}
    for twin in twins:
        template = twin.template.replace(SLOT, "(.*)")
        assert re.fullmatch(template, twin.corrupted)
        both = {source_of(twin), by_text[twin.corrupted]}
        assert len(both) == 2
        assert both not in ({"dog", "France"}, {"dog", "Peru"})
    with pytest.raises(InputError, match="another source of as many tokens; capitals prompt for 'France'"):
        corrupted_twins(byte_level(), prompts[:1], seed=0)


def test_a_users_own_relation_shows_its_first_pairs():
    assert task_template(CAPITALS) == (
        "Pair: France - Paris\nPair: Italy - Rome\nPair: Spain - Madrid\nPair: <X> -"
    )
    (prompt,) = task_prompts(PAIRS)
    assert prompt.text.endswith("\nPair: Peru -")
    assert prompt.answer == "Lima"


def test_every_built_in_relation_has_its_task_template():
    assert set(TASK_TEMPLATES) == set(RELATION_IDS)
    for template in TASK_TEMPLATES.values():
        assert template.count(" " + SLOT) == template.count(SLOT) == 1
        assert template == template.strip()
        assert not re.search(rf"\ban? {SLOT}", template)


def test_the_examples_of_task_templates_are_pairs_of_their_relations():
    for relation in load_relations():
        words = set(re.findall(r"\w+", TASK_TEMPLATES[relation.id]))
        shown = [pair for pair in relation.pairs if set(pair) <= words]
        # Antonyms, homophones and synonyms may stand in the data both ways round.
        expected = {0} if relation.id == "country_to_capital" else {2, 3, 4}
        assert len(shown) in expected, (relation.id, shown)


@pytest.mark.parametrize("name", ["gpt2", "pythia"])
def test_task_prompts_of_every_built_in_relation(shared_data, name):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
    for relation in load_relations():
        pairs = tokenise_pairs(tokenizer, relation, len(tokenizer))
        prompts = task_prompts(pairs)
        assert len(pairs.words) - 4 <= len(prompts) <= len(pairs.words), relation.id
        prompts = sample_prompts(prompts, 20, seed=0)
        batch = batch_prompts(tokenizer, prompts, CONFIG)
        sources = batch.tokens[np.arange(len(prompts)), batch.sources]
        known = dict(zip(pairs.sources.tolist(), pairs.targets.tolist(), strict=True))
        assert [known[source] for source in sources.tolist()] == batch.answers.tolist(), relation.id


# A user's file


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_prompt_file_is_read(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        {"prompt": "The art of a party is art", "answer": "Paris", "source": "art"},
        "",
        {"prompt": "Zürich", "answer": "a", "distractor": "no", "corrupted": "The", "source": "ür"},
        {"prompt": "No", "answer": "means"},
    )
    first, second, third = read_prompts(path)
    assert first.source == (22, 25)
    assert (second.text, second.answer, second.distractor, second.corrupted) == ("Zürich", "a", "no", "The")
    assert source_of(second) == "ür"
    assert (third.source, third.distractor, third.corrupted) == (None, None, None)
    assert [prompt.name for prompt in (first, second, third)] == [f"{path} line {n}" for n in (1, 3, 4)]
    assert {prompt.relation for prompt in (first, second, third)} == {"mine"}
    assert {prompt.template for prompt in (first, second, third)} == {""}


def test_a_file_of_windows_is_read_and_says_where_there_is_no_space(tmp_path):
    lines = ({"prompt": "Zürich 17", "answer": "41", "space": "no"}, {"prompt": "a", "answer": "b"})
    text = "\ufeff" + "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines)
    (tmp_path / "p.jsonl").write_bytes(text.encode())
    first, second = read_prompts(tmp_path / "p.jsonl")
    assert (first.text, first.answer, first.space, first.relation) == ("Zürich 17", "41", "no", "p")
    assert (second.text, second.space) == ("a", "auto")


def test_the_last_time_a_source_stands_alone_counts(tmp_path):
    line = {"prompt": "art, art and party", "answer": "a", "source": "art"}
    (prompt,) = read_prompts(write(tmp_path / "p.jsonl", line))
    assert prompt.source == (5, 8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", ', "line 2: not valid JSON: "),
        ("[" * 100_000, "line 2: not valid JSON: "),
        ('["prompt"]', r"line 2: a line is an object such as .*; got \['prompt'\]"),
        ({"prompt": "a"}, "line 2: a prompt is .*; 'answer' is missing"),
        ({"answer": "a"}, "line 2: a prompt is .*; 'prompt' is missing"),
        ({"prompt": "a", "answer": "b", "anwser": "c"}, "line 2: a prompt is .*; it has no 'anwser'"),
        ({"prompt": "a", "answer": 3}, "line 2: 'answer' is a non-empty string; got 3"),
        ({"prompt": " ", "answer": "b"}, "line 2: 'prompt' is a non-empty string; got ' '"),
        ({"prompt": "a", "answer": "b", "space": True}, "line 2: 'space' is a non-empty string; got True"),
        ({"prompt": "a", "answer": "b", "space": "of"}, "line 2: 'space' is one of auto, yes, no; got 'of'"),
        ({"prompt": "a", "answer": "b" * 9999, "b" * 9999: ""}, "line 2: a prompt is .*; it has no 'bbb"),
        ('{"prompt": "a", "answer": "b", "answer": "c"}', "line 2: an object names each field once"),
        ('{"prompt": "a", "answer": "\\ud800"}', "line 2: must hold whole characters"),
        ('{"prompt": "a", "answer": NaN}', "line 2: JSON numbers are finite; got NaN"),
        (
            {"prompt": "a", "answer": "b", "source": "c"},
            "line 2: a source must occur in its prompt; 'c' does not",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "p.jsonl", {"prompt": "a", "answer": "b"}, line)
    with pytest.raises(InputError, match=message) as error:
        read_prompts(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(path))


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read: No such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="at least one line; this one is empty"):
        read_prompts(write(tmp_path / "p.jsonl", "", " "))
    (tmp_path / "p.jsonl").write_bytes(b"{\xff}")
    with pytest.raises(InputError, match="must be UTF-8 text; byte 1 is not"):
        read_prompts(tmp_path / "p.jsonl")


# Drawing


def test_a_sample_is_drawn_without_replacement_in_order_and_by_seed():
    prompts = template_prompts(PAIRS)
    drawn = sample_prompts(prompts, 7, seed=3)
    assert len(set(drawn)) == 7
    assert [prompt for prompt in prompts if prompt in drawn] == drawn
    assert sample_prompts(prompts, 7, seed=3) == drawn
    assert sample_prompts(prompts, 7, seed=4) != drawn
    assert sample_prompts(prompts, None, seed=3) == sample_prompts(prompts, 99, seed=3) == prompts
    for wrong in (0, -1):
        with pytest.raises(InputError, match=f"n_prompts must be at least 1; got {wrong}"):
            sample_prompts(prompts, wrong, seed=3)


@pytest.mark.parametrize("generate", [ioi_prompts, colored_object_prompts])
@pytest.mark.parametrize("n_prompts", [0, -1, 10**8, 10**30])
def test_prompts_without_end_are_refused_before_one_is_drawn(generate, n_prompts):
    rule = f"'n_prompts' must be a whole number from 1 to 100000; got {n_prompts}"
    with pytest.raises(InputError, match=rule):
        generate(TASK_WORDS, n_prompts, seed=0)


# The published tasks

TASK_WORDS = whole_words(
    " ".join([IOI_NAMES, COLORS, COLORS.title(), OBJECTS]) + " Q A an : . , ? On the there is and What color"
)


def names_in(text):
    return [word for word in re.findall(r"\w+", text) if word in IOI_NAMES.split()]


def test_ioi_has_both_orders_and_an_abc_partner():
    prompts = ioi_prompts(TASK_WORDS, 60, seed=0)
    assert [prompt.template for prompt in prompts] == ["ABBA", "BABA"] * 30
    for prompt in prompts:
        first, second, giver = names_in(prompt.text)
        indirect_object, subject = (first, second) if prompt.template == "ABBA" else (second, first)
        assert indirect_object != subject
        assert (prompt.answer, prompt.distractor, giver) == (indirect_object, subject, subject)
        assert source_of(prompt) == indirect_object
        others = names_in(prompt.corrupted)
        assert len({*others, indirect_object, subject}) == 5
        assert [w for w in prompt.text.split() if w.strip(",") not in (first, second)] == [
            w for w in prompt.corrupted.split() if w.strip(",") not in others
        ]
    assert len({prompt.text for prompt in prompts}) == 60


def test_ioi_names_always_follow_a_space():
    for template in IOI_TEMPLATES:
        assert all(f" {{{slot}}}" in template for slot in ("first", "second", "giver"))


def test_colored_objects_ask_for_another_object_in_the_partner():
    prompts = colored_object_prompts(TASK_WORDS, 60, seed=0)
    assert {prompt.template for prompt in prompts} == {"first", "second", "third"}
    for prompt in prompts:
        seen = re.findall(r"an? (\w+) (\w+)", prompt.text)
        assert len(seen) == len(set(dict(seen).values())) == len(dict(seen)) == 6
        colour_of = {thing: color for color, thing in seen}
        solved, asked = re.findall(r"the (\w+)\?", prompt.text)
        assert f"the {solved}?\nA: {colour_of[solved].title()}\nQ:" in prompt.text
        assert prompt.answer == colour_of[asked].title()
        assert seen[3:][("first", "second", "third").index(prompt.template)][1] == asked
        assert source_of(prompt) == colour_of[asked]
        assert prompt.text[prompt.source[1] :].startswith(f" {asked}")
        _, other = re.findall(r"the (\w+)\?", prompt.corrupted)
        assert prompt.distractor == colour_of[other].title() != prompt.answer
        assert other in dict(seen[3:]).values()
        assert prompt.corrupted == prompt.text.removesuffix(f"{asked}?\nA:") + f"{other}?\nA:"


@pytest.mark.parametrize("generate", [ioi_prompts, colored_object_prompts])
def test_the_seed_decides_what_is_generated(generate):
    assert generate(TASK_WORDS, 9, seed=1) == generate(TASK_WORDS, 9, seed=1)
    assert generate(TASK_WORDS, 9, seed=1) == generate(TASK_WORDS, 20, seed=1)[:9]
    assert generate(TASK_WORDS, 9, seed=1) != generate(TASK_WORDS, 9, seed=2)


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        (ioi_prompts, "5 names that are one token each; 4 are"),
        (colored_object_prompts, "6 objects that are one token each; 2 are"),
    ],
)
def test_a_vocabulary_too_small_for_a_task_is_refused(generate, message):
    with pytest.raises(InputError, match=message):
        generate(whole_words("John Mary Anna Peter book pen"), 3, seed=0)


@pytest.mark.parametrize("name", ["gpt2", "pythia"])
def test_the_partners_differ_in_names_and_in_the_object_alone(shared_data, name):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
    for generate, n_changed in ((ioi_prompts, 3), (colored_object_prompts, 1)):
        batch = batch_prompts(tokenizer, generate(tokenizer, 50, seed=0), CONFIG)
        assert (batch.tokens != batch.corrupted).sum(axis=1).tolist() == [n_changed] * 50
        sources = spelled(tokenizer, batch.tokens[np.arange(50), batch.sources])
        assert [s.lower() for s in sources] == [a.lower() for a in spelled(tokenizer, batch.answers)]
        assert (batch.answers != batch.distractors).all()
