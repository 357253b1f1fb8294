"""Which prompts there are: templates around a relation's words, a user's file, and two known tasks.

Everything here is text; `prompts.batch_prompts` turns it into tokens. What is drawn at random is drawn
from the seed alone.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from headjax.data.prompts import SPACES, Prompt, Tokenizer, TokenPairs, encode, word_tokens
from headjax.data.relations import Relation
from headjax.data.templates import DYNAMIC_TEMPLATES, SLOT, TASK_TEMPLATES
from headjax.errors import InputError, shown
from headjax.inputs import check_count
from headjax.io import parse_json, read_text

_REQUIRED, _OPTIONAL = ("prompt", "answer"), ("distractor", "corrupted", "source", "space")
_LINE = '{"prompt", "answer", "distractor"?, "corrupted"?, "source"?, "space"?}'
MAX_PROMPTS = 100_000  # drawn or read; every one is tokenised before anything is computed


def template_prompts(pairs: TokenPairs, templates: Sequence[str] = DYNAMIC_TEMPLATES) -> list[Prompt]:
    """Every template filled with every source, template by template; the answer is the target.

    The source is the last ``<X>`` of a template; where a template ends in it, the answer follows a space.
    Raises InputError for a template without ``<X>``.
    """
    prompts = []
    for template in templates:
        if SLOT not in template:
            raise InputError(f"a template must hold {SLOT}, where the source goes; got {shown(template)}")
        for source, target in pairs.words:
            text = template.replace(SLOT, source)
            start = len(template[: template.rindex(SLOT)].replace(SLOT, source))
            prompts.append(
                Prompt(
                    name=f"{pairs.relation.id} prompt for {source!r}",
                    text=text,
                    answer=target,
                    source=(start, start + len(source)),
                    relation=pairs.relation.id,
                    template=template,
                    space="yes" if template.endswith(SLOT) else "auto",
                )
            )
    return prompts


def task_prompts(pairs: TokenPairs, templates: Sequence[str] = ()) -> list[Prompt]:
    """Prompts that ask for the target, from the relation's own task template unless others are given.

    A pair that a template shows as an example is left out of it: there the answer could be copied.
    """

    def shown(prompt: Prompt) -> bool:
        return {_source(prompt), prompt.answer} <= set(re.findall(r"\w+", prompt.template))

    prompts = template_prompts(pairs, templates or (task_template(pairs.relation),))
    return [prompt for prompt in prompts if not shown(prompt)]


def corrupted_twins(tokenizer: Tokenizer, prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """The prompts that have a twin: another source in the same template, token for token as long.

    The twin's text is the corrupted partner and its answer the distractor ("The capital of Peru is" for "The
    capital of France is", Lima for Paris). Neither's answer may be a right one for the other. Twins are drawn
    from the seed; prompts that find none are left out. Raises InputError where no prompt finds one.
    """
    alike, answers = defaultdict(list), defaultdict(set)
    lengths = [len(encode(tokenizer, prompt.text) or ()) for prompt in prompts]
    for prompt, length in zip(prompts, lengths, strict=True):
        alike[prompt.relation, prompt.template, length].append(prompt)
        answers[prompt.relation, _source(prompt)].add(prompt.answer)

    rng = random.Random(seed)
    twins = []
    for prompt, length in zip(prompts, lengths, strict=True):
        own = answers[prompt.relation, _source(prompt)]
        possible = [
            other
            for other in alike[prompt.relation, prompt.template, length]
            if own.isdisjoint(answers[prompt.relation, _source(other)])
        ]
        if possible:
            twin = rng.choice(possible)
            twins.append(replace(prompt, distractor=twin.answer, corrupted=twin.text))
    if not twins:
        raise InputError(
            f"a corrupted partner needs another source of as many tokens; {prompts[0].name} has none"
        )
    return twins


def _source(prompt: Prompt) -> str:
    return prompt.text[slice(*prompt.source)]


def task_template(relation: Relation) -> str:
    """The relation's task template; for a user's own relation its first pairs are the examples."""
    if relation.id in TASK_TEMPLATES:
        return TASK_TEMPLATES[relation.id]
    examples = [f"{source} - {target}" for source, target in relation.pairs[:3]]
    return "\n".join(f"Pair: {example}" for example in [*examples, f"{SLOT} -"])


def read_prompts(path: Path | str) -> list[Prompt]:
    """A user's prompts: JSON lines {"prompt", "answer", "distractor"?, "corrupted"?, "source"?, "space"?}.

    `source` is a word of the prompt; where it occurs more than once, the last time counts. `space` says
    whether a space comes before the answer, see `Prompt`. The file's name without its ending stands for the
    relation. Raises InputError naming the line.
    """
    path = Path(path)
    lines = read_text(path).split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise InputError(f"{path}: a prompt file has at least one line; this one is empty")
    if len(numbered) > MAX_PROMPTS:
        raise InputError(f"{path}: a prompt file has at most {MAX_PROMPTS:,} lines; got {len(numbered):,}")
    return [_read_line(line, f"{path} line {number}", path.stem) for number, line in numbered]


def _read_line(line: str, name: str, relation: str) -> Prompt:
    fields = parse_json(line, name)
    if not isinstance(fields, dict):
        raise InputError(f"{name}: a line is an object such as {_LINE}; got {shown(fields)}")
    for field in _REQUIRED:
        if field not in fields:
            raise InputError(f"{name}: a prompt is {_LINE}; {field!r} is missing")
    for field, value in fields.items():
        if field not in _REQUIRED + _OPTIONAL:
            raise InputError(f"{name}: a prompt is {_LINE}; it has no {shown(field)}")
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{name}: {field!r} is a non-empty string; got {shown(value)}")
    space = fields.get("space", "auto")
    if space not in SPACES:
        raise InputError(f"{name}: 'space' is one of {', '.join(SPACES)}; got {shown(space)}")
    source = fields.get("source")
    return Prompt(
        name=name,
        text=fields["prompt"],
        answer=fields["answer"],
        source=None if source is None else _find_word(fields["prompt"], source.strip(), name),
        distractor=fields.get("distractor"),
        corrupted=fields.get("corrupted"),
        relation=relation,
        space=space,
    )


def _find_word(text: str, word: str, name: str) -> tuple[int, int]:
    """Where a word is in a text: the last time it stands alone, else the last time it occurs at all."""
    found = list(re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)) or list(
        re.finditer(re.escape(word), text)
    )
    if not found:
        raise InputError(f"{name}: a source must occur in its prompt; {shown(word)} does not")
    return found[-1].span()


def sample_prompts(prompts: Sequence[Prompt], n_prompts: int | None, seed: int) -> list[Prompt]:
    """At most n_prompts of them (None: all), drawn without replacement and kept in order."""
    if n_prompts is not None and n_prompts < 1:
        raise InputError(f"n_prompts must be at least 1; got {n_prompts}")
    if n_prompts is None or n_prompts >= len(prompts):
        return list(prompts)
    chosen = random.Random(seed).sample(range(len(prompts)), n_prompts)
    return [prompts[i] for i in sorted(chosen)]


IOI_NAMES = """
    James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Steven
    Paul Andrew George Kevin Brian Edward Ryan Jason Jeff Eric Adam Scott Peter Simon Frank Jack Henry Martin
    Alan Mary Jennifer Linda Elizabeth Susan Jessica Sarah Karen Lisa Nancy Betty Sandra Emily Michelle Laura
    Amy Anna Kate Alice Julia Rachel Maria Jane Rose Lucy Emma
"""
IOI_PLACES = ("school", "park", "library", "station", "market", "beach", "office", "garden", "restaurant")
IOI_THINGS = ("book", "letter", "key", "drink", "ring", "map", "basket", "ticket", "gift", "phone")
IOI_TEMPLATES = (
    "When {first} and {second} met at the {place}, {giver} handed a {thing} to",
    "After {first} and {second} had walked to the {place}, {giver} passed a {thing} to",
    "Yesterday {first} and {second} were together at the {place}, and {giver} gave a {thing} to",
    "Because {first} and {second} were leaving the {place}, {giver} brought a {thing} to",
    "While {first} and {second} were waiting near the {place}, {giver} offered a {thing} to",
)


def ioi_names(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The names that IOI prompts are made of: those of IOI_NAMES that are one token."""
    return tuple(_single_tokens(tokenizer, IOI_NAMES, at_least=5, what="names"))


def ioi_prompts(tokenizer: Tokenizer, n_prompts: int, seed: int) -> list[Prompt]:
    """Indirect object identification (Wang et al. 2022, section 2), own wording.

    Two names are met, one of them (the subject) gives something, and the other (the indirect object) is
    the answer; the subject is the distractor. ABBA (indirect object first) and BABA alternate; they are
    the prompts' `template`. The source is the indirect object. The corrupted partner is the paper's ABC:
    three other names, all different, so that neither role can be told. All names are one token.
    """
    check_count("n_prompts", n_prompts, MAX_PROMPTS)
    names = ioi_names(tokenizer)
    rng = random.Random(seed)
    prompts = []
    for i in range(n_prompts):
        order = ("ABBA", "BABA")[i % 2]
        wording = rng.choice(IOI_TEMPLATES)
        scene = {"place": rng.choice(IOI_PLACES), "thing": rng.choice(IOI_THINGS)}
        subject, indirect_object, *others = rng.sample(names, 5)
        first, second = (indirect_object, subject) if order == "ABBA" else (subject, indirect_object)
        text = wording.format(first=first, second=second, giver=subject, **scene)
        name = f"IOI prompt {i}"
        prompts.append(
            Prompt(
                name=name,
                text=text,
                answer=indirect_object,
                source=_find_word(text, indirect_object, name),
                distractor=subject,
                corrupted=wording.format(first=others[0], second=others[1], giver=others[2], **scene),
                relation="ioi",
                template=order,
            )
        )
    return prompts


COLORS = "red green blue yellow brown black white purple orange pink gray"
OBJECTS = (
    "book pen cup bowl ball bottle box bag hat shirt lamp phone key plate chair coat glove knife card ring"
)
SURFACES = ("table", "desk", "floor", "shelf")


def colored_object_prompts(tokenizer: Tokenizer, n_prompts: int, seed: int) -> list[Prompt]:
    """Colored objects (Ippolito & Callison-Burch 2023; Merullo et al. 2024, section 3), own wording.

    Three objects of three colours are named and the colour of one is asked for, after one solved example
    with other colours and objects. The distractor is the colour of another object that is present, and
    the corrupted partner asks for that one instead, as in Merullo et al.'s released prompts; the two
    differ in one token. The source is the answer's colour where the object is named. `template` is the
    place of the object asked for: first, second or third.
    """
    check_count("n_prompts", n_prompts, MAX_PROMPTS)
    objects = _single_tokens(tokenizer, OBJECTS, at_least=6, what="objects")
    # Named in lower case, answered with a capital.
    capital = _single_tokens(tokenizer, COLORS.title(), at_least=6, what="colors")
    colors = _single_tokens(tokenizer, " ".join(capital).lower(), at_least=6, what="colors")
    rng = random.Random(seed)

    def scene(colors: Sequence[str], objects: Sequence[str]) -> str:
        first, second, third = (
            f"{'an' if color[0] in 'aeiou' else 'a'} {color} {thing}"
            for color, thing in zip(colors, objects, strict=True)
        )
        return f"Q: On the {rng.choice(SURFACES)} there is {first}, {second} and {third}. What color is the"

    prompts = []
    for i in range(n_prompts):
        shown_colors, shown_objects = rng.sample(colors, 6), rng.sample(objects, 6)
        solved, (asked, other) = rng.randrange(3), rng.sample(range(3, 6), 2)
        solution = f"{shown_objects[solved]}?\nA: {shown_colors[solved].title()}"
        question = (
            f"{scene(shown_colors[:3], shown_objects[:3])} {solution}\n"
            f"{scene(shown_colors[3:], shown_objects[3:])}"
        )
        text = f"{question} {shown_objects[asked]}?\nA:"
        start = text.index(f"{shown_colors[asked]} {shown_objects[asked]}")
        prompts.append(
            Prompt(
                name=f"colored objects prompt {i}",
                text=text,
                answer=shown_colors[asked].title(),
                source=(start, start + len(shown_colors[asked])),
                distractor=shown_colors[other].title(),
                corrupted=f"{question} {shown_objects[other]}?\nA:",
                relation="colored_objects",
                template=("first", "second", "third")[asked - 3],
            )
        )
    return prompts


def _single_tokens(tokenizer: Tokenizer, words: str, at_least: int, what: str) -> list[str]:
    """Those of the words, which stand in one string, that are one token. Too few raise InputError."""
    kept = [word for word in words.split() if len(word_tokens(tokenizer, word)) == 1]
    if len(kept) < at_least:
        raise InputError(f"the task needs {at_least} {what} that are one token each; {len(kept)} are")
    return kept
