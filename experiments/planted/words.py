"""The words of the planted checkpoint: which pairs its relations keep, its vocabulary, its tokenizer.

The built-in relations share many words (*big* has a comparative, an antonym and a French word). Here each
word is the source of at most one relation, so that a source alone says which relation a prompt asks for.
"""

import re
from collections import Counter
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from headjax.data.relations import Relation, load_relations
from headjax.data.templates import DYNAMIC_TEMPLATES, SLOT, TASK_TEMPLATES

BOS, UNKNOWN = "<|endoftext|>", "<unk>"
WORD = r"\w+(?:[-']\w+)*|[^\w\s]"
MAX_PAIRS = 60


def split_words(text: str) -> list[str]:
    """The words and punctuation marks of a text, as the tokenizer splits it."""
    return re.findall(WORD, text)


def template_words() -> list[str]:
    """The words around the slot of every template, each once."""
    texts = (*DYNAMIC_TEMPLATES, *TASK_TEMPLATES.values())
    return list(dict.fromkeys(split_words(" ".join(texts).replace(SLOT, " "))))


def one_word_pairs(relation: Relation) -> list[tuple[str, str]]:
    """The pairs of a relation that are one word each."""
    return [pair for pair in relation.pairs if all(re.fullmatch(WORD, word) for word in pair)]


def choose_relations(max_pairs: int = MAX_PAIRS) -> tuple[Relation, ...]:
    """The built-in relations with at most max_pairs pairs each, such that

    - no word occurs in two relations;
    - no source is a word of a template, so that a prompt's last source is the word it asks about.

    The relation with the fewest pairs picks next: the source that the fewest relations want and, among
    those, the target that it has least often.
    """
    around = set(template_words())
    relations = load_relations()
    left = {r.id: [pair for pair in one_word_pairs(r) if pair[0] not in around] for r in relations}
    wanted = Counter(source for pairs in left.values() for source, _ in pairs)
    chosen = {r.id: [] for r in relations}
    frequency = {r.id: Counter() for r in relations}
    sources, owner = set(), {}  # owner: the relation that a word is in

    def next_relation() -> str | None:
        able = [id for id in left if left[id] and len(chosen[id]) < max_pairs]
        return min(able, key=lambda id: len(chosen[id]), default=None)

    while (relation := next_relation()) is not None:
        pair = min(left[relation], key=lambda pair: (wanted[pair[0]], frequency[relation][pair[1]]))
        left[relation].remove(pair)
        if pair[0] in sources or any(owner.get(word, relation) != relation for word in pair):
            continue
        chosen[relation].append(pair)
        frequency[relation][pair[1]] += 1
        sources.add(pair[0])
        owner |= dict.fromkeys(pair, relation)
    return tuple(Relation(r.id, tuple(chosen[r.id]), r.name, r.category) for r in relations)


def make_vocabulary() -> dict[str, int]:
    """Word -> token: every one-word pair of the built-in relations and every template word, about 5,500."""
    in_relations = [word for r in load_relations() for pair in one_word_pairs(r) for word in pair]
    words = dict.fromkeys((BOS, UNKNOWN, *template_words(), *in_relations))
    return {word: token for token, word in enumerate(words)}


def make_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    """A word-level tokenizer: each word or punctuation mark is one token, the spaces between are none."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.add_special_tokens([BOS, UNKNOWN])
    return tokenizer


def tokenizer_config(max_positions: int) -> dict[str, object]:
    """What goes into tokenizer_config.json beside such a tokenizer."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": BOS,
        "unk_token": UNKNOWN,
        "model_max_length": max_positions,
    }


def token_pairs(relations: Sequence[Relation], vocabulary: dict[str, int]) -> list[list[tuple[int, int]]]:
    """Source and target token of every pair of every relation."""
    return [[(vocabulary[s], vocabulary[t]) for s, t in relation.pairs] for relation in relations]
