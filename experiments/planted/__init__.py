"""A checkpoint whose heads are known: GPT-2 architecture, Hugging Face files, planted heads.

`build` writes it, with the relations that it was made for beside it (``relations/``) and the list of what
was planted where (``planted.json``); `compare` holds the scores of a run against that list. Which words it
knows is in planted/words.py, how a head is planted in planted/weights.py.
"""

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file

from experiments.planted import weights as weights
from experiments.planted.scores import Pairs, as_planted, make_pairs
from experiments.planted.weights import HeadWeights, Planting
from experiments.planted.words import (
    BOS,
    UNKNOWN,
    choose_relations,
    make_tokenizer,
    make_vocabulary,
    template_words,
    token_pairs,
    tokenizer_config,
)
from headjax.axes import Head
from headjax.data.relations import Relation
from headjax.errors import InputError
from headjax.grid import HeadGrid
from headjax.io import read_json

VERSION = 1  # to be raised when the same words and seed give other files
RECORD = "planted.json"
KINDS = {1: "static", -1: "static_suppression"}
COPYING = ("copying", "name_copying")  # a hit is the first word alone, not one of the first ten
MAX_DRAWS = 50

# What is planted besides two heads for each relation alone: suppression, written with a minus, and heads
# that carry several relations, of one to four categories.
MIXED = (
    "-copying",
    "-country_to_capital",
    "-word_to_antonym",
    "-english_to_french",
    "word_to_synonym adj_to_comparative",
    "country_to_language product_to_company",
    "year_to_following english_to_spanish",
    "country_to_capital noun_to_pronoun",
    "name_copying word_to_homophone",
    "verb_to_past_tense english_to_french",
    "copying work_to_location",
    "name_copying -word_to_synonym",
    "adj_to_superlative -object_to_superclass",
    "word_to_compound -english_to_spanish",
    "word_to_first_letter product_to_company word_to_homophone",
    "word_to_last_letter country_to_language english_to_spanish",
    "object_to_superclass adj_to_comparative english_to_french",
    "year_to_following work_to_location -adj_to_superlative",
    "year_to_following country_to_capital word_to_antonym english_to_french",
    "word_to_first_letter object_to_superclass verb_to_past_tense english_to_spanish",
    "word_to_last_letter -product_to_company word_to_compound english_to_french",
)


def build(
    directory: Path | str,
    seed: int = 0,
    shape: tuple[int, int] = weights.SHAPE,
    placed: Mapping[Head, str] = MappingProxyType({}),
) -> Path:
    """Writes the planted checkpoint into a directory of its own and returns the directory.

    `shape` is how many layers and heads it has; `placed` says which heads carry which relations, besides
    those drawn at random.

    It holds config.json, model.safetensors, tokenizer.json, tokenizer_config.json, relations/ and
    planted.json, and appears whole or not at all. If it is there already, made from the same words and
    seed, nothing is done; an older one is replaced.

    Raises InputError if the directory holds something else or cannot be written.
    """
    directory = Path(directory)
    relations, vocabulary = choose_relations(), make_vocabulary()
    # The usual one is known by words and seed alone.
    other = () if shape == weights.SHAPE and not placed else (shape, sorted(placed.items()))
    fingerprint = hashlib.sha256(
        repr((VERSION, seed, relations, list(vocabulary), *other)).encode()
    ).hexdigest()
    if is_planted(directory) and read_record(directory)["fingerprint"] == fingerprint:
        return directory

    rng = np.random.default_rng(seed)
    plantings = plan_heads([relation.id for relation in relations], shape, placed, rng)
    tensors = draw_tensors(relations, vocabulary, plantings, shape, rng)
    record = {
        "version": VERSION,
        "seed": seed,
        "fingerprint": fingerprint,
        "planted": [
            {"layer": p.layer, "head": p.head, "relation": relations[p.relation].id, "kind": KINDS[p.sign]}
            for p in plantings
        ],
    }
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        if directory.exists() and any(directory.iterdir()) and not is_planted(directory):
            raise InputError(f"the planted checkpoint needs a directory of its own; {directory} is not empty")
        write_files(temporary, relations, vocabulary, tensors, record, shape)
        if directory.exists():
            shutil.rmtree(directory)
        temporary.rename(directory)
    except OSError as error:
        raise InputError(f"{directory} must be writable; {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def is_planted(directory: Path | str) -> bool:
    """Whether a directory is what `build` writes."""
    return (Path(directory) / RECORD).is_file()


def read_record(directory: Path | str) -> dict:
    """planted.json of a planted checkpoint."""
    return read_json(Path(directory) / RECORD)


def plan_heads(
    ids: Sequence[str], shape: tuple[int, int], placed: Mapping[Head, str], rng: np.random.Generator
) -> list[Planting]:
    """Which head carries what: two heads for each relation alone, then MIXED, on heads drawn at random, and
    those that are placed."""
    contents = [*ids, *ids, *MIXED]
    heads = [Head(*divmod(place, shape[1])) for place in rng.permutation(shape[0] * shape[1]).tolist()]
    free = [head for head in heads if head not in placed]
    carried = dict(zip(free, contents, strict=False)) | dict(placed)
    return sorted(
        Planting(*head, ids.index(word.lstrip("-")), -1 if word[0] == "-" else 1)
        for head, content in carried.items()
        for word in content.split()
    )


def draw_tensors(
    relations: Sequence[Relation],
    vocabulary: dict[str, int],
    plantings: Sequence[Planting],
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, "..."]]:
    """All tensors, float32, by their Hugging Face names.

    By its static scores each head carries what was planted in it and, by a margin, nothing else. Codes that
    chance has made too alike for that are drawn again.
    """
    tokens = token_pairs(relations, vocabulary)
    top_k = [1 if relation.id in COPYING else 10 for relation in relations]
    quiet = [vocabulary[word] for word in (BOS, UNKNOWN, *template_words())]
    carried = defaultdict(list)
    for planting in plantings:
        carried[planting.layer, planting.head].append((planting.relation, planting.sign))
    for _ in range(MAX_DRAWS):
        codes = weights.draw_codes(weights.D_MODEL // shape[1], rng)
        W_E = weights.draw_embedding(tokens, len(vocabulary), quiet, codes, rng)
        pairs = make_pairs(tokens, top_k, W_E, codes)
        heads = {place: weights.plant_head(place[0], what, codes, rng) for place, what in carried.items()}
        if all(as_planted(pairs, place[0], head, carried[place]) for place, head in heads.items()):
            for place in np.ndindex(*shape):
                if place not in heads:
                    heads[place] = draw_random_head(place[0], pairs, codes.d_head, rng)
            return weights.gpt2_tensors(W_E, heads, codes, rng)
    raise RuntimeError(f"{MAX_DRAWS} draws of codes gave no model with the planted heads and no others")


def draw_random_head(layer: int, pairs: Pairs, d_head: int, rng: np.random.Generator) -> HeadWeights:
    """A random head that carries nothing.

    It favours some words, and where those answer much of a relation (four pronouns answer all of one) it
    would pass for planted; such a head, about one in a hundred, is drawn again.
    """
    for _ in range(MAX_DRAWS):
        head = weights.random_head(d_head, rng)
        if as_planted(pairs, layer, head, []):
            return head
    raise RuntimeError(f"{MAX_DRAWS} random heads in layer {layer} all carry a relation")


def write_files(
    directory: Path,
    relations: Sequence[Relation],
    vocabulary: dict[str, int],
    tensors: dict[str, Float[np.ndarray, "..."]],
    record: dict,
    shape: tuple[int, int],
) -> None:
    """The checkpoint's files, into a new directory."""
    (directory / "relations").mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer(vocabulary).save(str(directory / "tokenizer.json"))
    contents = {
        "config.json": {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": len(vocabulary),
            "n_positions": weights.MAX_POSITIONS,
            "n_layer": shape[0],
            "n_head": shape[1],
            "n_embd": weights.D_MODEL,
            "n_inner": weights.D_MLP,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": vocabulary[BOS],
            "eos_token_id": vocabulary[BOS],
            "dtype": "float32",
        },
        "tokenizer_config.json": tokenizer_config(weights.MAX_POSITIONS),
        RECORD: record,
    }
    contents |= {
        f"relations/{one.id}.json": {
            "id": one.id,
            "name": one.name,
            "category": one.category,
            "pairs": one.pairs,
        }
        for one in relations
    }
    for name, content in contents.items():
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, "utf-8")


def compare(grids: Iterable[HeadGrid], directory: Path | str, threshold: float) -> tuple[str, bool]:
    """What a run found in a planted checkpoint against what was planted in it.

    Returns a table (one line a relation: planted heads found, the lowest score of a planted head, the
    highest of any other; then every head that is missing or too many) and whether each planted
    (head, relation) scores above the threshold and no other does. Grids of other kinds are ignored.
    """
    planted = defaultdict(list)
    for entry in read_record(directory)["planted"]:
        planted[entry["relation"], entry["kind"]].append(Head(entry["layer"], entry["head"]))
    scores = {(grid.relation, grid.kind): grid.scores for grid in grids if grid.kind in KINDS.values()}

    heading = f"{'found':>8}{'lowest':>8}{'others':>8}"
    lines = [f"{'planted heads':24}{'plain':>24}  {'suppression':>24}", f"{'':24}{heading}  {heading}"]
    faults = []
    for relation in dict.fromkeys(relation for relation, _ in (*planted, *scores)):
        cells = []
        for kind in KINDS.values():
            heads, grid = planted.get((relation, kind), []), scores.get((relation, kind))
            cell, wrong = _compare_heads(heads, grid, threshold)
            cells.append(cell)
            faults += [f"{relation} ({kind}) {what}" for what in wrong]
        lines.append(f"{relation:24}" + "  ".join(cells))
    total = sum(map(len, planted.values()))
    verdict = f"all {total} planted (head, relation) are above {threshold}, and no other is"
    if faults:
        verdict = f"not as planted: {len(faults)} of (head, relation)"
    return "\n".join([*lines, *faults, verdict]), not faults


def _compare_heads(
    heads: Sequence[Head], scores: Float[np.ndarray, "L H"] | None, threshold: float
) -> tuple[str, list[str]]:
    """Three cells of the table and what is wrong, for one relation and kind."""
    if scores is None:
        return f"{'-':>8}{'-':>8}{'-':>8}", [f"{head} planted, not scored" for head in heads]
    is_planted_head = np.zeros(scores.shape, bool)
    for head in heads:
        is_planted_head[head] = True
    found = is_planted_head & (scores > threshold)
    wrong = is_planted_head ^ (scores > threshold)
    lowest = f"{scores[is_planted_head].min():.2f}" if heads else "-"
    cells = f"{found.sum():>3} of {len(heads)}{lowest:>8}{scores[~is_planted_head].max():>8.2f}"
    return cells, [
        f"{Head(*place)} {'planted' if is_planted_head[*place] else 'not planted'}, {scores[*place]:.2f}"
        for place in np.argwhere(wrong).tolist()
    ]
