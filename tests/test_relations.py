"""The relations: the loader, each of its error messages, and the facts that the built-in data promises."""

import hashlib
import json
from importlib import resources
from pathlib import Path

import pytest

from headjax.data.relations import BUILT_IN, CATEGORIES, MAPS_NAMES, RELATION_IDS, Relation, load_relations
from headjax.errors import InputError

PAIRS = [["France", "Paris"], ["Italy", "Rome"], ["Japan", "Tokyo"]]
OWN = {"id": "capitals", "name": "Capital cities", "category": "Geography", "pairs": PAIRS}


def _write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# --- The loader ---


def test_built_in_relations_come_in_their_order_and_by_id():
    assert tuple(relation.id for relation in load_relations()) == RELATION_IDS
    assert len(RELATION_IDS) == 20
    assert CATEGORIES == ("Algorithmic", "Knowledge", "Linguistic", "Translation")
    chosen = load_relations(["word_to_last_letter", "copying"])
    assert [relation.id for relation in chosen] == ["word_to_last_letter", "copying"]


def test_our_form_says_everything_itself(tmp_path):
    _write(tmp_path / "anything.json", OWN)
    pairs = (("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"))
    assert load_relations(directory=tmp_path) == (Relation("capitals", pairs, "Capital cities", "Geography"),)


def test_only_the_pairs_are_required(tmp_path):
    _write(tmp_path / "country_to_capital.json", {"pairs": PAIRS})
    (relation,) = load_relations(directory=tmp_path)
    assert (relation.id, relation.name) == ("country_to_capital", "Country to capital")
    assert relation.category == "Knowledge"  # a built-in relation with other pairs


@pytest.mark.parametrize(
    ("file", "id", "name"),
    [
        ("country_to_capital.json", "country_to_capital", "Country to capital"),
        ("mine/country_to_capital.json", "country_to_capital", "Country to capital"),
        ("country_to_capital/data.json", "country_to_capital", "Country to capital"),
        ("country_to_capital/pairs.json", "country_to_capital", "Country to capital"),
        ("country_to_capital/relation.json", "country_to_capital", "Country to capital"),
        ("XOR_to_NAND.json", "XOR_to_NAND", "XOR to NAND"),
    ],
)
def test_a_plain_list_is_named_by_its_file_or_folder(tmp_path, file, id, name):
    _write(tmp_path / file, PAIRS)
    (relation,) = load_relations(directory=tmp_path)
    category = "Custom" if id not in RELATION_IDS else "Knowledge"
    assert (relation.id, relation.name, relation.category) == (id, name, category)
    assert relation.pairs == tuple(map(tuple, PAIRS))


def test_the_data_sets_of_maps_are_our_relations_with_their_pairs(tmp_path):
    """A folder a data set, with a file of the same name and a text: under our ids, names and categories."""
    for name in (
        "adj_antonym",
        "english_to_french",
        "general_copying_english_500",
        "name_copying",
        "new_one",
    ):
        _write(tmp_path / name / f"{name}.json", PAIRS)
        _write(tmp_path / name / "data_source.txt", "where it is from")
    found = {relation.id: relation for relation in load_relations(directory=tmp_path)}
    assert set(found) == {"word_to_antonym", "english_to_french", "copying", "name_copying", "new_one"}
    for id, relation in found.items():
        if id in RELATION_IDS:
            (built_in,) = load_relations([id])
            assert (relation.name, relation.category) == (built_in.name, built_in.category)
        assert relation.pairs == tuple(map(tuple, PAIRS))
    assert found["new_one"].category == "Custom"
    assert set(MAPS_NAMES.values()) < set(RELATION_IDS)
    assert not set(MAPS_NAMES) & set(RELATION_IDS)


def test_a_directory_is_read_one_level_deep_in_the_order_of_its_names(tmp_path):
    for file in (
        "b.json",
        "a.json",
        "c/data.json",
        "c/deeper/d.json",
        ".hidden.json",
        ".cache/e.json",
        "f.txt",
    ):
        _write(tmp_path / file, PAIRS)
    assert [relation.id for relation in load_relations(directory=tmp_path)] == ["a", "b", "c"]


def test_ids_select_from_the_directory_and_not_from_the_built_in(tmp_path):
    for name in ("a", "b", "copying"):
        _write(tmp_path / f"{name}.json", PAIRS)
    chosen = load_relations(["copying", "a"], tmp_path)
    assert [relation.id for relation in chosen] == ["copying", "a"]
    assert chosen[0].pairs == tuple(map(tuple, PAIRS))
    with pytest.raises(InputError, match="name_copying"):
        load_relations(["name_copying"], tmp_path)


def test_spaces_around_words_and_a_byte_order_mark_are_dropped(tmp_path):
    _write(tmp_path / "a.json", '\ufeff[[" France", "Paris "], ["Côte d\'Ivoire", "Yamoussoukro"]]')
    (relation,) = load_relations(directory=tmp_path)
    assert relation.pairs == (("France", "Paris"), ("Côte d'Ivoire", "Yamoussoukro"))


# --- Its errors: one line that names the file, or the id ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("3", r"a relation is a list of \[source, target\] pairs, alone or as the field 'pairs'; got 3"),
        ({}, r"list of \[source, target\] pairs, alone or as the field 'pairs'; got \{\}"),
        ({"pairs": {"France": "Paris"}}, r"list of .* pairs, .*; got \{'France': 'Paris'\}"),
        ({"France": "Paris"}, "has the fields id, name, category, pairs; got 'France'"),
        ({**OWN, "pair": []}, "has the fields id, name, category, pairs; got 'pair'"),
        ({**OWN, "id": 3}, "id is a non-empty string; got 3"),
        ({**OWN, "id": "../capitals"}, "an id names files, so it has no slash; got '../capitals'"),
        ({**OWN, "name": ""}, "name is a non-empty string; got ''"),
        ({**OWN, "category": None}, "category is a non-empty string; got None"),
        ([], "at least one pair; this one is empty"),
        ({**OWN, "pairs": []}, "at least one pair; this one is empty"),
        ([*PAIRS, ["Spain"]], r"entry 4 of 4 is \[source, target\], two non-empty words; got \['Spain'\]"),
        ([["a", "b", "c"], *PAIRS], "entry 1 of 4 is"),
        ([*PAIRS, "to"], "entry 4 of 4 is .* got 'to'"),
        ([["France", 7], *PAIRS], r"entry 1 of 4 is .* got \['France', 7\]"),
        ([["France", ""], *PAIRS], "entry 1 of 4 is .* two non-empty words"),
        ([["  ", "Paris"], *PAIRS], "entry 1 of 4 is .* two non-empty words"),
        ([["Fran\nce", "Paris"], *PAIRS], r"entry 1 of 4 is .* got \['Fran\\nce', 'Paris'\]"),
        ('[["\\ud800", "Paris"]]', "must hold whole characters; it holds half of a surrogate pair"),
        ('{"pairs": [["a", "b"]], "pairs": []}', "an object names each field once; twice: 'pairs'"),
        ({**OWN, "id": "x" * 101}, "an id names files, so it has at most 100 characters; got 'xxx"),
        ([*PAIRS, ["Italy", "Turin"]], "a source has one target; given more often: 'Italy'$"),
        ([*PAIRS, ["Japan", "Tokyo"], [" Italy ", "Turin"]], "given more often: 'Italy', 'Japan'$"),
        ([[str(i), "x"] for i in range(7)] * 2, "more often: '0', '1', '2', '3', '4' and 2 more$"),
    ],
)
def test_a_file_that_is_no_relation_is_refused_by_name(tmp_path, content, message):
    file = _write(tmp_path / "mine" / "capitals.json", content)
    with pytest.raises(InputError, match=message) as caught:
        load_relations(directory=tmp_path)
    assert str(caught.value).startswith(f"{file}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(file)) + 200


def test_files_that_cannot_be_read_are_named(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'[["caf\xe9", "x"]]')
    with pytest.raises(InputError, match=r"a\.json: must be UTF-8 text; byte 6 is not"):
        load_relations(directory=tmp_path)
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"a\.json: cannot be read: No such file"):
        load_relations(directory=tmp_path)


def test_two_files_with_one_id_are_refused(tmp_path):
    _write(tmp_path / "capitals.json", PAIRS)
    _write(tmp_path / "other.json", OWN)
    with pytest.raises(InputError, match=r"'capitals' is in .*capitals\.json and .*other\.json"):
        load_relations(directory=tmp_path)


@pytest.mark.parametrize("second", ["a_b", "a.b", "A b", "a/b"])
def test_ids_that_would_name_one_file_are_refused(tmp_path, second):
    _write(tmp_path / "1.json", {"id": "a b", "pairs": PAIRS})
    _write(tmp_path / "2.json", {"id": second, "pairs": PAIRS})
    if second == "a.b":  # another file: a point stays one
        assert [relation.id for relation in load_relations(directory=tmp_path)] == ["a b", "a.b"]
        return
    rule = "relation ids name files, so they differ in more than punctuation and case; got 'a b' and|no slash"
    with pytest.raises(InputError, match=rule):
        load_relations(directory=tmp_path)


def test_a_directory_must_exist_and_hold_relations(tmp_path):
    with pytest.raises(InputError, match="absent is not one"):
        load_relations(directory=tmp_path / "absent")
    with pytest.raises(InputError, match=r"capitals\.json is not one"):
        load_relations(directory=_write(tmp_path / "capitals.json", OWN))
    _write(tmp_path / "empty" / "notes.txt", "")
    with pytest.raises(InputError, match=r"\*\.json files; .*empty and its sub-folders hold none"):
        load_relations(directory=tmp_path / "empty")


def test_an_unknown_id_names_the_near_ones(tmp_path):
    with pytest.raises(
        InputError, match=r"'country_to_capitol' is not built in; did you mean country_to_capital"
    ):
        load_relations(["copying", "country_to_capitol"])
    with pytest.raises(InputError, match=r"'zzz' is not built in; known: copying, name_copying, .*spanish$"):
        load_relations(["zzz"])
    _write(tmp_path / "capitals.json", OWN)
    with pytest.raises(InputError, match=r"'capital' is not in .*; did you mean capitals\?"):
        load_relations(["capital"], tmp_path)


def test_ids_are_named_and_named_once():
    with pytest.raises(InputError, match="at least one relation must be named; got none"):
        load_relations([])
    with pytest.raises(InputError, match="a relation is named once; named more often: 'copying'"):
        load_relations(["copying", "name_copying", "copying"])


# --- The built-in data ---

# What must remain of each relation where both words are one token after a space, as (GPT-2, Pythia).
# Translations have none: few French or Spanish words are one token there, so only the files' length counts.
MIN_PAIRS = {
    "copying": (150, 150),
    "name_copying": (150, 150),
    "word_to_first_letter": (150, 150),
    "word_to_last_letter": (150, 150),
    "year_to_following": (100, 100),
    # The ceiling: no other undisputed capital is one token in Pythia while its country is one too.
    "country_to_capital": (45, 38),
    "country_to_language": (60, 60),
    "object_to_superclass": (150, 150),
    "product_to_company": (60, 50),
    "work_to_location": (60, 60),
    "adj_to_comparative": (40, 40),
    # The ceiling: Pythia has no other superlative as one token.
    "adj_to_superlative": (40, 33),
    "word_to_antonym": (150, 150),
    "noun_to_pronoun": (150, 150),
    "verb_to_past_tense": (150, 150),
    "word_to_compound": (150, 150),
    "word_to_homophone": (150, 150),
    "word_to_synonym": (150, 150),
}
DISPLAY_NAMES = {
    "copying": "Copying",
    "name_copying": "Name copying",
    "word_to_first_letter": "Word to first letter",
    "word_to_last_letter": "Word to last letter",
    "year_to_following": "Year to following",
    "country_to_capital": "Country to capital",
    "country_to_language": "Country to language",
    "object_to_superclass": "Object to superclass",
    "product_to_company": "Product by company",
    "work_to_location": "Work to location",
    "adj_to_comparative": "Adj to comparative",
    "adj_to_superlative": "Adj to superlative",
    "word_to_antonym": "Word to antonym",
    "noun_to_pronoun": "Noun to pronoun",
    "verb_to_past_tense": "Verb to past tense",
    "word_to_compound": "Word to compound",
    "word_to_homophone": "Word to homophone",
    "word_to_synonym": "Word to synonym",
    "english_to_french": "English to French",
    "english_to_spanish": "English to Spanish",
}
COPYING = ("copying", "name_copying")


@pytest.fixture(params=RELATION_IDS)
def raw(request) -> dict:
    """One built-in file as it is written, before the loader forgives anything."""
    file = resources.files("headjax.data") / "word_pairs" / f"{request.param}.json"
    return {"file": request.param, **json.loads(file.read_text("utf-8"))}


# sha256 of the pairs as JSON, its first digits: a word changed by mistake is found, one changed on purpose is
# changed here too.
DIGESTS = {
    "copying": "fc12061a347ae761",
    "name_copying": "c2f395b218e43020",
    "word_to_first_letter": "b6ab26f4e7929948",
    "word_to_last_letter": "215207960102d053",
    "year_to_following": "46927960de867de2",
    "country_to_capital": "5b5d453a17dd2cc2",
    "country_to_language": "d6afd90be65af793",
    "object_to_superclass": "03dad4bda1f72718",
    "product_to_company": "6397f46c706e5b98",
    "work_to_location": "e1f515c4a0e3f190",
    "adj_to_comparative": "fb03cd8887d72726",
    "adj_to_superlative": "27d3b41b9bc6df3c",
    "word_to_antonym": "cfbee0b62452e3b1",
    "noun_to_pronoun": "8a472454277a3a67",
    "verb_to_past_tense": "8ae00fd01668ee70",
    "word_to_compound": "d86b5b93619e8980",
    "word_to_homophone": "ea5e0c5c8115ffe2",
    "word_to_synonym": "a668bb9e6a84e46b",
    "english_to_french": "4a046237fe4ad09f",
    "english_to_spanish": "68828b7bf471a218",
}


@pytest.mark.parametrize("relation", load_relations(), ids=lambda relation: relation.id)
def test_no_word_changes_by_mistake(relation: Relation):
    text = json.dumps(relation.pairs).encode()
    assert hashlib.sha256(text).hexdigest()[:16] == DIGESTS[relation.id]


def test_there_is_a_file_for_every_id_and_no_other():
    files = (resources.files("headjax.data") / "word_pairs").iterdir()
    assert sorted(file.name for file in files) == sorted(f"{id}.json" for id in RELATION_IDS)


def test_each_file_says_what_it_is(raw):
    assert set(raw) == {"file", "id", "name", "category", "pairs"}
    assert raw["id"] == raw["file"]
    assert raw["name"] == DISPLAY_NAMES[raw["id"]]
    assert raw["id"] in BUILT_IN[raw["category"]]


def test_words_are_clean_and_each_source_has_one_target(raw):
    sources = [source for source, _ in raw["pairs"]]
    assert len(sources) == len(set(sources))
    for word in (word for pair in raw["pairs"] for word in pair):
        assert word
        assert word == " ".join(word.split())


def test_targets_follow_the_rule_of_their_relation(raw):
    rules = {
        "word_to_first_letter": lambda word: word[0].lower(),
        "word_to_last_letter": lambda word: word[-1].lower(),
        "year_to_following": lambda year: str(int(year) + 1),
    } | dict.fromkeys(COPYING, lambda word: word)
    rule = rules.get(raw["id"])
    for source, target in raw["pairs"]:
        if rule:
            assert target == rule(source)
        if raw["id"] not in COPYING:
            assert target != source


@pytest.mark.parametrize("id", BUILT_IN["Translation"])
def test_translations_are_many(id):
    assert len(load_relations([id])[0].pairs) >= 100


@pytest.fixture(scope="module")
def tokenizers(shared_data):
    from transformers import AutoTokenizer

    return [AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name) for name in ("gpt2", "pythia")]


@pytest.mark.parametrize("id", MIN_PAIRS)
def test_enough_pairs_are_single_tokens(tokenizers, id):
    (relation,) = load_relations([id])
    kept = tuple(sum(_one_token(tokenizer, *pair) for pair in relation.pairs) for tokenizer in tokenizers)
    assert all(have >= least for have, least in zip(kept, MIN_PAIRS[id], strict=True)), kept


def _one_token(tokenizer, *words: str) -> bool:
    ids = tokenizer([f" {word}" for word in words], add_special_tokens=False).input_ids
    return all(len(tokens) == 1 for tokens in ids)
