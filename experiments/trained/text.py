"""The text that the trained models learn from, as tokens: an endless stream of short documents.

A document is one of the KINDS, drawn by weight: sentences that state a relation's pairs, one or several in
a row; the templates of dynamic scores, continued by any word that is related to the source; tokens
repeated; indirect objects and colored objects. Pair i of a relation is never stated in its wording i mod 4
and never in the exact task prompt where that is wording 0, so that whether a fact is known beyond the
sentences it was read in can be measured.
"""

import random
from collections import defaultdict

import numpy as np
from jaxtyping import Int

from experiments.planted.words import BOS, split_words
from experiments.trained.phrases import BARE, OPENINGS, TRAINED, capital, fill
from headjax.data.prompt_sets import colored_object_prompts, ioi_prompts
from headjax.data.prompts import Tokenizer
from headjax.data.templates import DYNAMIC_TEMPLATES, SLOT, TASK_TEMPLATES

N_WORDINGS = 4
# Kind of document -> weight.
KINDS = {
    **{"facts": 8, "portrait": 4, "task": 4, "bare": 2, "mention": 2},
    **{"repeat": 2, "ioi": 2, "colored": 1},
}
N_PROMPTS = 5000  # of each task that headjax.data.prompt_sets draws


def is_held_out(pair: int, wording: int) -> bool:
    """Whether the pair of this number is never stated in the wording of that number."""
    return pair % N_WORDINGS == wording


class Writer:
    """Writes documents as lists of tokens.

    Args:
      vocabulary: word -> token.
      pairs: relation id -> its (source, target) pairs.
      tokenizer: of the vocabulary, for the prompts that `headjax.data.prompt_sets` draws.
    """

    def __init__(
        self,
        vocabulary: dict[str, int],
        pairs: dict[str, list[tuple[str, str]]],
        tokenizer: Tokenizer,
        seed: int,
    ):
        self.random = random.Random(seed)
        self.vocabulary, self.pairs = vocabulary, pairs
        self.relations = list(pairs)
        self.facts_of = defaultdict(list)  # source -> (relation, number of the pair)
        for relation, known in pairs.items():
            for number, (source, _) in enumerate(known):
                self.facts_of[source].append((relation, number))
        self.sources = list(self.facts_of)
        self.prompts = {
            "ioi": ioi_prompts(tokenizer, N_PROMPTS, seed),
            "colored": colored_object_prompts(tokenizer, N_PROMPTS, seed),
        }

    def rows(self, n_rows: int, length: int) -> Int[np.ndarray, "B S"]:
        """Documents one after another, each row from the beginning of one; cut where the row is full.

        A token of its own stands between documents, and at the beginning of half of the rows.
        """
        bos = self.vocabulary[BOS]
        rows = np.empty((n_rows, length), np.int32)
        for row in rows:
            tokens = [bos] if self.random.random() < 0.5 else []
            while len(tokens) < length:
                tokens += [*self.document(), bos]
            row[:] = tokens[:length]
        return rows

    def document(self) -> list[int]:
        """One document of a kind drawn by weight."""
        (kind,) = self.random.choices(list(KINDS), list(KINDS.values()))
        if kind == "repeat":
            return self.repeat()
        if kind in self.prompts:
            prompt = self.random.choice(self.prompts[kind])
            return self.encode(f"{prompt.text} {prompt.answer}.")
        return self.encode(getattr(self, kind)())

    def encode(self, text: str) -> list[int]:
        return [self.vocabulary[word] for word in split_words(text)]

    def facts(self) -> str:
        """One to four pairs of a relation, all in the same wording."""
        relation, wording = self.random.choice(self.relations), self.random.randrange(N_WORDINGS)
        n_shots = self.random.choices((1, 2, 3, 4), (4, 2, 2, 1))[0]
        phrase = TRAINED[relation][wording]
        return self.join([(phrase, pair) for pair in self.draw_pairs(relation, n_shots, wording)])

    def portrait(self) -> str:
        """Up to three facts about one word, of different relations."""
        facts = self.facts_of[self.random.choice(self.sources)]
        stated = []
        for relation, number in self.random.sample(facts, min(len(facts), 3)):
            wording = self.random.choice([w for w in range(N_WORDINGS) if not is_held_out(number, w)])
            stated.append((TRAINED[relation][wording], self.pairs[relation][number]))
        return self.join(stated)

    def task(self) -> str:
        """A relation's task prompt and its answer."""
        relation = self.random.choice(self.relations)
        (pair,) = self.draw_pairs(relation, 1, wording=0)
        return f"{TASK_TEMPLATES[relation].replace(SLOT, pair[0])} {pair[1]}."

    def bare(self) -> str:
        """Two to five pairs of a relation that is not named."""
        phrase = self.random.choice(BARE)
        pairs = self.draw_pairs(self.random.choice(self.relations), self.random.randint(2, 5))
        return self.random.choice((" ", ", ")).join(fill(phrase, pair) for pair in pairs)

    def mention(self) -> str:
        """A template of dynamic scores and any word that is related to its source."""
        source = self.random.choice(self.sources)
        relation, number = self.random.choice(self.facts_of[source])
        text = self.random.choice(DYNAMIC_TEMPLATES).replace(SLOT, source)
        return f"{text} {self.pairs[relation][number][1]}."

    def repeat(self) -> list[int]:
        """Three to 24 random tokens, twice."""
        tokens = self.random.choices(range(len(self.vocabulary)), k=self.random.randint(3, 24))
        return tokens + tokens

    def draw_pairs(self, relation: str, n: int, wording: int | None = None) -> list[tuple[str, str]]:
        """Different pairs of a relation, of those that are stated in a wording (None: all)."""
        known = self.pairs[relation]
        numbers = [i for i in range(len(known)) if wording is None or not is_held_out(i, wording)]
        return [known[i] for i in self.random.sample(numbers, n)]

    def join(self, facts: list[tuple[str, tuple[str, str]]]) -> str:
        """Facts, each a wording and a pair, in a row with commas or full stops, after an opening."""
        opening, stops = self.random.choice(OPENINGS), self.random.random() < 0.5
        (first, _), *others = facts
        first = f"{capital(opening)} {first}" if opening else capital(first)
        phrases = [first, *(capital(phrase) if stops else phrase for phrase, _ in others)]
        sentences = [fill(phrase, pair) for phrase, (_, pair) in zip(phrases, facts, strict=True)]
        return (". " if stops else ", ").join(sentences) + "."
