"""The relations heads are scored on: 20 built in, one JSON file each in ``word_pairs/``, and the user's own.

A relation is a list of (source, target) words, such as France -> Paris. A file of one is either

    {"id": "country_to_capital", "name": "Country to capital", "category": "Knowledge",
     "pairs": [["France", "Paris"], ["Italy", "Rome"]]}

where only ``pairs`` is required, or the plain list of pairs alone. What a file does not say follows from
its name: the id is the file's name, or its folder's when the file is called data, pairs or relation
(``.json``); the display name is the id in words; the category is "Custom". A file that has a built-in
relation's id, or the name of that relation's data set in the code of Elhelo & Geva 2024 ("MAPS"), is that
relation with other pairs: so their folder ``datasets`` gives all that they scored under our ids.
"""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from headjax.errors import InputError, shown
from headjax.io import check_file_names, parse_json, read_bytes

BUILT_IN = {
    "Algorithmic": (
        "copying",
        "name_copying",
        "word_to_first_letter",
        "word_to_last_letter",
        "year_to_following",
    ),
    "Knowledge": (
        "country_to_capital",
        "country_to_language",
        "object_to_superclass",
        "product_to_company",
        "work_to_location",
    ),
    "Linguistic": (
        "adj_to_comparative",
        "adj_to_superlative",
        "word_to_antonym",
        "noun_to_pronoun",
        "verb_to_past_tense",
        "word_to_compound",
        "word_to_homophone",
        "word_to_synonym",
    ),
    "Translation": ("english_to_french", "english_to_spanish"),
}
CATEGORIES = tuple(BUILT_IN)
RELATION_IDS = tuple(relation for ids in BUILT_IN.values() for relation in ids)
CUSTOM_CATEGORY = "Custom"

# Data set of MAPS -> our id, where the names differ.
MAPS_NAMES = {
    "adj_antonym": "word_to_antonym",
    "adj_comparative": "adj_to_comparative",
    "adj_superlative": "adj_to_superlative",
    "country_to_capital_wikidata": "country_to_capital",
    "country_to_official_language_wikidata": "country_to_language",
    "entity_to_pronoun": "noun_to_pronoun",
    "general_copying_english_500": "copying",
    "object_superclass": "object_to_superclass",
    "product_by_company": "product_to_company",
    "verb_past_tense": "verb_to_past_tense",
    "word_first_letter": "word_to_first_letter",
    "word_last_letter": "word_to_last_letter",
    "work_location": "work_to_location",
}

_FIELDS = ("id", "name", "category", "pairs")
_NAMED_BY_FOLDER = ("data", "pairs", "relation")
MAX_NAME = 100  # characters of an id: figures are named after it and more


@dataclass(frozen=True)
class Relation:
    """One relation: source words and the target word of each; no source occurs twice.

        Relation("country_to_currency", [("Japan", "yen"), ("India", "rupee")])

    `name` is its display name, made from the id if not given. Raises InputError for what is no pair of words.
    """

    id: str
    pairs: Any  # a sequence of (source, target), held as a tuple of tuples
    name: str = ""
    category: str = "Custom"

    def __post_init__(self):
        if not isinstance(self.pairs, list | tuple) or not all(map(_is_pair, self.pairs)):
            raise InputError(f"{self.id}: pairs must be (source, target) words; got {shown(self.pairs)}")
        object.__setattr__(self, "pairs", tuple((source, target) for source, target in self.pairs))
        if not self.name:
            object.__setattr__(self, "name", self.id.replace("_", " ").capitalize())


def load_relations(ids: Sequence[str] | None = None, directory: Path | None = None) -> tuple[Relation, ...]:
    """Loads relations, the built-in ones or those of a directory.

    ids: which ones, in this order; None for all (built-in: in the order of RELATION_IDS; else by file name).
    directory: where the user's own lie, every ``*.json`` in it and in its direct sub-folders; hidden ones
        are left out. The built-in relations are then not considered.

    Raises InputError for an id that is unknown or named twice, for a directory without relations, and for
    a file that cannot be read, has another shape, holds no pairs, or gives a source two targets.
    """
    known = dict.fromkeys(RELATION_IDS) if directory is None else _load_directory(directory)
    ids = tuple(known) if ids is None else tuple(ids)
    if not ids:
        raise InputError("at least one relation must be named; got none")
    if doubled := _doubled(ids):
        raise InputError(f"a relation is named once; named more often: {doubled}")
    for relation in ids:
        if relation not in known:
            near = difflib.get_close_matches(relation, known, cutoff=0.5)
            where = "is not built in" if directory is None else f"is not in {directory}"
            rest = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"relation {shown(relation)} {where}; {rest}")
    return tuple(known[relation] or _load_built_in(relation) for relation in ids)


def _load_built_in(relation: str) -> Relation:
    file = resources.files(__package__) / "word_pairs" / f"{relation}.json"
    return _parse(file.read_bytes(), f"{relation}.json", relation)


def _load_directory(directory: Path) -> dict[str, Relation]:
    if not directory.is_dir():
        raise InputError(f"relations are read from a directory; {directory} is not one")
    found: dict[str, tuple[Relation, Path]] = {}
    for path in sorted((*directory.glob("*.json"), *directory.glob("*/*.json"))):
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(directory).parts):
            continue
        relation = _load_file(path)
        if relation.id in found:
            raise InputError(
                f"relation ids are unique; {relation.id!r} is in {found[relation.id][1]} and {path}"
            )
        found[relation.id] = relation, path
    if not found:
        raise InputError(
            f"a relations directory holds *.json files; {directory} and its sub-folders hold none"
        )
    check_file_names(found, f"{directory}: relation ids")
    return {relation: loaded for relation, (loaded, _) in found.items()}


def _load_file(path: Path) -> Relation:
    name = path.parent.resolve().name if path.stem in _NAMED_BY_FOLDER else path.stem
    return _parse(read_bytes(path), str(path), MAPS_NAMES.get(name, name))


def _parse(text: bytes, file: str, default_id: str) -> Relation:
    """The relation in the text of a file, in either form."""
    content = parse_json(text, file)
    fields = content if isinstance(content, dict) else {"pairs": content}
    for field in fields:
        if field not in _FIELDS:
            raise InputError(f"{file}: a relation has the fields {', '.join(_FIELDS)}; got {shown(field)}")
    if not isinstance(fields.get("pairs"), list):
        rule = "a relation is a list of [source, target] pairs, alone or as the field 'pairs'"
        raise InputError(f"{file}: {rule}; got {shown(fields.get('pairs', content))}")

    id = _read_name(fields, "id", default_id, file)
    if "/" in id or "\\" in id:
        raise InputError(f"{file}: an id names files, so it has no slash; got {shown(id)}")
    if len(id) > MAX_NAME:
        rule = f"an id names files, so it has at most {MAX_NAME} characters"
        raise InputError(f"{file}: {rule}; got {shown(id)}")
    in_words = id.replace("_", " ").strip()
    default_name, default_category = in_words[:1].upper() + in_words[1:], CUSTOM_CATEGORY
    if id in RELATION_IDS and not {"name", "category"} <= set(fields):
        built_in = _load_built_in(id)
        default_name, default_category = built_in.name, built_in.category
    name = _read_name(fields, "name", default_name, file)
    category = _read_name(fields, "category", default_category, file)
    return Relation(id, _read_pairs(fields["pairs"], file), name, category)


def _read_name(fields: dict, field: str, default: str, file: str) -> str:
    value = fields.get(field, default)
    if not _is_text(value):
        raise InputError(f"{file}: {field} is a non-empty string; got {shown(value)}")
    return value.strip()


def _read_pairs(entries: list, file: str) -> tuple[tuple[str, str], ...]:
    if not entries:
        raise InputError(f"{file}: a relation has at least one pair; this one is empty")
    for number, entry in enumerate(entries, start=1):
        if not (isinstance(entry, list) and len(entry) == 2 and all(map(_is_text, entry))):
            rule = "is [source, target], two non-empty words"
            raise InputError(f"{file}: entry {number} of {len(entries)} {rule}; got {shown(entry)}")
    pairs = tuple((source.strip(), target.strip()) for source, target in entries)
    if doubled := _doubled(source for source, _ in pairs):
        raise InputError(f"{file}: a source has one target; given more often: {doubled}")
    return pairs


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(word, str) for word in value)
    )


def _is_text(value: object) -> bool:
    """Something to read: more than spaces, no control characters, and writable as UTF-8."""
    if not isinstance(value, str) or not (value := value.strip()):
        return False
    return all(unicodedata.category(character) not in ("Cc", "Cs") for character in value)


def _doubled(values: Iterable[str]) -> str:
    """The values that occur more than once, named for a message, or nothing."""
    names = [shown(value) for value, count in Counter(values).items() if count > 1]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
