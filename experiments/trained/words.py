"""The words of the trained models: which pairs of the built-in relations they are taught, and a tokenizer.

Unlike the planted checkpoint's, words are shared between relations as much as possible (*big* has a
comparative, an antonym, a French word, a first letter, ...), so that a model can only answer by reading
what it was asked.
"""

import re
from collections import Counter

from experiments.planted.words import BOS, UNKNOWN, one_word_pairs, split_words, template_words
from experiments.trained.phrases import BARE, OPENINGS, PHRASES, capital
from headjax.data.prompt_sets import (
    COLORS,
    IOI_NAMES,
    IOI_PLACES,
    IOI_TEMPLATES,
    IOI_THINGS,
    OBJECTS,
    SURFACES,
)
from headjax.data.relations import load_relations


def make_vocabulary(n_pairs: int) -> dict[str, int]:
    """Word -> token: special tokens, the words of all wordings, prompts and templates, then the relations'.

    Each relation takes, in turn and n_pairs times, the pair that needs the fewest words that are not
    there yet and whose target it has taken least often; the earlier one in its file first.
    """
    tasks = (*IOI_TEMPLATES, *IOI_PLACES, *IOI_THINGS, IOI_NAMES, OBJECTS, *SURFACES, COLORS, COLORS.title())
    colored = "Q: On the there is a an , and . What color is the ? A:"
    wordings = [phrase for phrases in PHRASES.values() for phrase in phrases]
    wordings = [text for phrase in (*wordings, *OPENINGS, *BARE) for text in (phrase, capital(phrase))]
    texts = re.sub(r"[{<]\w+[}>]", " ", " ".join((*wordings, *tasks, colored)))
    words = dict.fromkeys((BOS, UNKNOWN, *template_words(), *split_words(texts)))
    left = [(one_word_pairs(relation), Counter()) for relation in load_relations()]
    for _ in range(n_pairs):
        for pairs, taken in left:
            if pairs:
                pair = min(pairs, key=lambda pair: len({*pair} - words.keys()) + taken[pair[1]])
                pairs.remove(pair)
                taken[pair[1]] += 1
                words |= dict.fromkeys(pair)
    return {word: token for token, word in enumerate(words)}


def taught_pairs(vocabulary: dict[str, int]) -> dict[str, list[tuple[str, str]]]:
    """Relation id -> every pair of it whose two words are in the vocabulary."""
    return {
        relation.id: [pair for pair in one_word_pairs(relation) if all(word in vocabulary for word in pair)]
        for relation in load_relations()
    }
