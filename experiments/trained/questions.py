"""What a trained model is asked while it trains: sentences that it has read and sentences that it has not."""

import random
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.planted.words import split_words
from experiments.trained.phrases import HELD_OUT, SOURCE, TARGET, TRAINED, capital
from experiments.trained.text import is_held_out
from headjax.data.prompt_sets import colored_object_prompts, ioi_prompts
from headjax.data.prompts import Tokenizer
from headjax.data.templates import SLOT, TASK_TEMPLATES
from headjax.model import Transformer

SEED = 10**6  # of what is drawn here: not that of any text to train on
N_EACH = 100
SENTENCES = ("read", "unread", "task_read", "task_unread", "new_wording", "new_wording_3")


class Questions(NamedTuple):
    """Prompts of several kinds, padded on the left; what is asked for comes after the last position."""

    tokens: Int[np.ndarray, "B S"]
    mask: Bool[np.ndarray, "B S"]
    answers: Int[np.ndarray, " B"]
    kinds: Float[np.ndarray, "kinds B"]
    names: tuple[str, ...]


def make_questions(
    vocabulary: dict[str, int], pairs: dict[str, list[tuple[str, str]]], tokenizer: Tokenizer
) -> Questions:
    """At most N_EACH questions of each kind.

    read: sentences of the text; unread: a pair in the one trained wording that it never stood in (but for
    the examples in a task prompt, one in a hundred of these, which are part of every such document);
    task_read, task_unread: the same of the task prompts; new_wording: every pair in a wording that was
    never trained on; new_wording_3: the same after two examples; ioi and colored: prompts of other seeds;
    repeat: the last of 12 random tokens the second time.
    """
    rng = random.Random(SEED)
    asked = {name: [] for name in SENTENCES}
    for relation, known in pairs.items():
        for number, pair in enumerate(known):
            for wording, phrase in enumerate(TRAINED[relation]):
                asked["unread" if is_held_out(number, wording) else "read"].append(ask([phrase], [pair]))
            text = TASK_TEMPLATES[relation].replace(SLOT, pair[0])
            if not {*pair} <= set(split_words(TASK_TEMPLATES[relation])):
                asked["task_unread" if is_held_out(number, 0) else "task_read"].append((text, pair[1]))
            new, examples = HELD_OUT[relation], rng.sample([p for p in known if p != pair], 2)
            asked["new_wording"].append(ask([new], [pair]))
            asked["new_wording_3"].append(ask([new] * 3, [*examples, pair]))
    for name, draw in (("ioi", ioi_prompts), ("colored", colored_object_prompts)):
        asked[name] = [(prompt.text, prompt.answer) for prompt in draw(tokenizer, N_EACH, SEED)]
    rows, answers, kinds = [], [], []
    for name, questions in asked.items():
        for text, answer in rng.sample(questions, min(N_EACH, len(questions))):
            rows.append([vocabulary[word] for word in split_words(text)])
            answers.append(vocabulary[answer])
            kinds.append(name)
    for _ in range(N_EACH):
        *tokens, answer = rng.choices(range(len(vocabulary)), k=12)
        rows.append([*tokens, answer, *tokens])
        answers.append(answer)
        kinds.append("repeat")
    length = max(map(len, rows))
    padding = np.array([length - len(row) for row in rows])
    mask = np.arange(length) >= padding[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(rows)
    names = (*asked, "repeat")
    of_kind = np.array([[kind == name for kind in kinds] for name in names], float)
    return Questions(tokens, mask, np.array(answers, np.int32), of_kind, names)


def ask(phrases: list[str], pairs: list[tuple[str, str]]) -> tuple[str, str]:
    """Sentences up to the last target, and that target."""
    sentences = [
        capital(phrase).replace(SOURCE, source).replace(TARGET, target)
        for phrase, (source, target) in zip(phrases, pairs, strict=True)
    ]
    text = ". ".join(sentences)
    return text[: text.rindex(pairs[-1][1])], pairs[-1][1]


def accuracies(model: Transformer, questions: Questions) -> dict[str, float]:
    """Of each kind, the share of questions whose answer has the highest logit of all tokens."""
    logits = np.asarray(model(questions.tokens, mask=questions.mask).logits[:, -1])
    right = logits.argmax(axis=1) == questions.answers
    shares = questions.kinds @ right / questions.kinds.sum(axis=1)
    return {name: round(float(share), 4) for name, share in zip(questions.names, shares, strict=True)}
