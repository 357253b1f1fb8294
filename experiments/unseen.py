"""A model that is not on this machine, as far as a plan needs it: its published sizes, words for tokens."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from checkpoints_convert.published import published_config
from headjax.data import prompt_sets, templates
from headjax.data.relations import load_relations
from headjax.study import Data
from headjax.zoo import MODELS, find_entry


def find_published(name: str) -> dict[str, Any] | None:
    """The published fields of a model by alias or Hub id; None where they are not known here."""
    entry = find_entry(name)
    ids = {model.id: alias for alias, model in MODELS.items()}
    return None if entry is None or entry.id not in ids else published_config(ids[entry.id])


def write_published(fields: dict[str, Any], data: Data, directory: Path) -> None:
    """A directory that a study can be made of: config.json, and a tokenizer of one token a word or mark."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    words = dict.fromkeys(["<unk>", *(word for text in _texts(data) for word in _split(text))])
    # As many tokens as the model has: all of them are ranked.
    words |= dict.fromkeys(f"<{i}>" for i in range(fields["vocab_size"] - len(words)))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))


def _split(text: str) -> list[str]:
    return [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)]


def _texts(data: Data) -> Iterator[str]:
    """All that prompts are made of."""
    for relation in [*data.load_relations(), *load_relations()]:
        yield from (word for pair in relation.pairs for word in pair)
    yield from data.templates
    for module in (templates, prompt_sets):
        for value in vars(module).values():
            yield from _strings(value)
    named = (data.prompts,) if isinstance(data.prompts, str) else data.prompts or ()
    for one in named:
        if isinstance(one, str) and Path(one).is_file():
            for prompt in prompt_sets.read_prompts(one):
                yield from filter(None, (prompt.text, prompt.answer, prompt.distractor, prompt.corrupted))


def _strings(value: Any) -> Iterator[str]:
    """Texts and lists of texts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for one in value.values() for text in _strings(one))
    elif isinstance(value, tuple | list):
        yield from (text for one in value for text in _strings(one))
