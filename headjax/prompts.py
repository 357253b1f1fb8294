"""Text to tokens: the only place that tokenises.

A word's tokens are those whose span overlaps it in running text after a space: byte-level BPE gives
`" Paris"`, SentencePiece `▁Paris`, a character-level tokenizer the letters. The tokenizer's own offsets
decide, so nothing here knows a tokenizer's kind. Which prompts there are is in `prompt_sets.py`.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from headjax.config import ModelConfig
from headjax.errors import InputError, shown
from headjax.relations import Relation

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")

# Whether a prompt starts with the beginning-of-text token unless the caller says otherwise: as each
# family's own tokenizer does it, which is also what the models were trained on. Llama saw the token
# before every document; the others' <|endoftext|> only separated documents packed into one sequence.
BOS_BY_FAMILY = {"gpt2": False, "gpt_neox": False, "phi": False, "llama": True}

# What a text ends with when the next word follows without a space: white space, an opened quotation
# or bracket.
_OPEN_END = re.compile(r"""(?:^|\s)["'(\[{“\u2018«]*$""")


class Piece(NamedTuple):
    """One token and the characters [start, end) of the text that it stands for."""

    token: int
    start: int
    end: int


@dataclass(frozen=True)
class TokenPairs:
    """The pairs of a relation that a model can be asked about: see `tokenise_pairs`."""

    relation: Relation
    sources: Int[np.ndarray, " N"]
    targets: Int[np.ndarray, " N"]
    words: tuple[tuple[str, str], ...]

    @property
    def n_dropped(self) -> int:
        """Pairs of the relation that are not here because of their tokens."""
        return len(self.relation.pairs) - len(self.words)


@dataclass(frozen=True)
class Prompt:
    """One prompt as text.

    Attributes:
      name: what error messages call it, e.g. ``prompts.jsonl line 3``.
      text: what the model reads; the answer follows directly where the text ends in white space or an
        opened quotation or bracket, else after its own white space, else after a space.
      answer, distractor: the right next word, and a wrong one to compare it with.
      source: characters [start, end) of the word that the answer is about or comes from.
      corrupted: the same prompt without the information that the answer needs, token for token as long.
      relation, template: the prompt's coordinates in results.
    """

    name: str
    text: str
    answer: str
    source: tuple[int, int] | None = None
    distractor: str | None = None
    corrupted: str | None = None
    relation: str = ""
    template: str = ""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as arrays, padded on the left: every prompt ends at S - 1 and its answer would come next.

    Attributes:
      tokens: [B S]; 0 where there is padding.
      mask: [B S], False on padding.
      sources: [B], index in the padded row of the source's last token; -1 for a prompt without one.
      answers: [B]; distractors: [B], None where the prompts have none.
      corrupted: [B S], with the same mask; None where the prompts have none.
      prompts: what they were made from, with `relation` and `template`.
      bos: whether every row begins with the tokenizer's beginning-of-text token.
    """

    tokens: Int[np.ndarray, "B S"]
    mask: Bool[np.ndarray, "B S"]
    sources: Int[np.ndarray, " B"]
    answers: Int[np.ndarray, " B"]
    distractors: Int[np.ndarray, " B"] | None
    corrupted: Int[np.ndarray, "B S"] | None
    prompts: tuple[Prompt, ...]
    bos: bool


def load_tokenizer(directory: Path | str) -> PreTrainedTokenizerBase:
    """Reads the tokenizer beside a checkpoint, from local files only.

    Raises InputError when there is none, when it cannot be read, or when it reports no offsets.
    """
    directory = Path(directory)
    # Checked first: without these files transformers may look elsewhere or build an empty vocabulary.
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"a tokenizer needs one of {', '.join(TOKENIZER_FILES)}; {directory} has none")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # readers raise whatever they like for a broken file
        raise InputError(f"the tokenizer in {directory} cannot be read: {shown(error)}") from error
    # Prompts are held against the model's own positions: what the tokenizer says of it is not asked.
    tokenizer.model_max_length = sys.maxsize
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise InputError(f"a tokenizer must report offsets, as tokenizer.json's do; {directory} gives {kind}")
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[Piece] | None:
    """The tokens of a text with their spans, nothing added; None where the vocabulary cannot write it."""
    try:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except Exception as error:
        # The tokenizers library raises a bare Exception for a symbol it has neither a token nor <unk> for.
        if type(error) is not Exception:
            raise
        return None
    return [
        Piece(token, start, end)
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]


def overlapping(pieces: Sequence[Piece], start: int, end: int) -> list[int]:
    """Indices of the pieces that share a character with [start, end)."""
    return [i for i, piece in enumerate(pieces) if max(piece.start, start) < min(piece.end, end)]


def word_tokens(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    """The tokens of a word in running text after a space; a word that is one token gives one.

    Where the vocabulary cannot write running text (no space in it), the bare word is taken. Special
    tokens are never included: a word that holds one, `<unk>` above all, has no tokens.
    """
    # A word stands before the space, because SentencePiece prepends a space of its own to a text.
    for lead in ("a ", ""):
        pieces = encode(tokenizer, lead + word)
        if pieces is not None:
            tokens = [pieces[i].token for i in overlapping(pieces, len(lead), len(lead) + len(word))]
            return [] if set(tokens) & set(tokenizer.all_special_ids) else tokens
    return []


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """What a token reads like, with the space before it where it begins a word."""
    text = tokenizer.decode([token])
    starts_word = str(tokenizer.convert_ids_to_tokens(token)).startswith("▁")  # which decoding drops
    return " " + text if starts_word and not text.startswith(" ") else text


def tokenise_pairs(
    tokenizer: PreTrainedTokenizerBase,
    relation: Relation,
    vocab_size: int,
    single_source: bool = True,
) -> TokenPairs:
    """The pairs of a relation whose words are one token each, in the relation's order.

    With `single_source=False` only the target must be one token; a source is then its last one.
    Raises InputError for a token that the model has no row for: the two do not belong together.
    """
    kept, words = [], []
    for pair in relation.pairs:
        source, target = (word_tokens(tokenizer, word) for word in pair)
        if len(target) == 1 and source and (len(source) == 1 or not single_source):
            kept.append((source[-1], target[0]))
            words.append(pair)
    ids = np.array(kept, np.int32).reshape(-1, 2)
    _check_vocabulary(ids, vocab_size)
    return TokenPairs(relation, sources=ids[:, 0], targets=ids[:, 1], words=tuple(words))


def select_pairs(
    tokenizer: PreTrainedTokenizerBase,
    relations: Sequence[Relation],
    vocab_size: int,
    min_pairs: int = 30,
    single_source: bool = True,
) -> tuple[tuple[TokenPairs, ...], dict[str, str]]:
    """The relations with enough pairs for this tokenizer, and {relation id: why} for those skipped.

    Raises InputError when every relation is skipped.
    """
    counted = [tokenise_pairs(tokenizer, relation, vocab_size, single_source) for relation in relations]
    selected = tuple(pairs for pairs in counted if len(pairs.words) >= min_pairs)
    skipped = {
        pairs.relation.id: f"{_count(pairs)}, min_pairs is {min_pairs}"
        for pairs in counted
        if len(pairs.words) < min_pairs
    }
    if not selected:
        best = max(counted, key=lambda pairs: len(pairs.words), default=None)
        found = (
            "no relation was given" if best is None else f"the most has {best.relation.id}, {_count(best)}"
        )
        raise InputError(f"a relation needs min_pairs={min_pairs} pairs of single tokens; {found}")
    return selected, skipped


def _count(pairs: TokenPairs) -> str:
    return f"{len(pairs.words)} of {len(pairs.relation.pairs)} pairs are single tokens"


def batch_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: ModelConfig,
    bos: bool | None = None,
) -> PromptBatch:
    """Tokenises prompts for a model and pads them on the left.

    A prompt's tokens are those before its answer in the text with the answer, so that the last position
    is always the one that predicts the answer, whatever the tokenizer makes of the space between.

    Args:
      bos: whether a beginning-of-text token comes first; None takes the family's default
        (BOS_BY_FAMILY) where the tokenizer has such a token.

    Raises InputError for an answer or distractor that is not one token, a prompt that is longer than the
    model's positions or that the vocabulary cannot write, a source that is no token's, a corrupted
    partner of another length, and distractors or partners that only some of the prompts have.
    """
    if not prompts:
        raise InputError("a batch needs at least one prompt; none was given")
    for field in ("distractor", "corrupted"):
        lacking = [prompt.name for prompt in prompts if getattr(prompt, field) is None]
        if 0 < len(lacking) < len(prompts):
            raise InputError(f"every prompt or none must have {field!r}; {lacking[0]} has none")

    first = _first_token(tokenizer, config, bos)
    rows = [_tokenise(tokenizer, prompt, first, config.max_positions) for prompt in prompts]
    lengths = np.array([len(row.tokens) for row in rows])
    padding = lengths.max() - lengths
    mask = np.arange(lengths.max())[None, :] >= padding[:, None]

    def pad(tokens: list[list[int]]) -> Int[np.ndarray, "B S"]:
        padded = np.zeros(mask.shape, np.int32)
        padded[mask] = np.concatenate(tokens)
        return padded

    sources = [
        -1 if row.source is None else shift + row.source for row, shift in zip(rows, padding, strict=True)
    ]
    distractors = [row.distractor for row in rows]
    corrupted = [row.corrupted for row in rows]
    batch = PromptBatch(
        tokens=pad([row.tokens for row in rows]),
        mask=mask,
        sources=np.array(sources, np.int32),
        answers=np.array([row.answer for row in rows], np.int32),
        distractors=None if None in distractors else np.array(distractors, np.int32),
        corrupted=None if None in corrupted else pad(corrupted),
        prompts=tuple(prompts),
        bos=bool(first),
    )
    for ids in (batch.tokens, batch.answers, batch.distractors, batch.corrupted):
        if ids is not None:
            _check_vocabulary(ids, config.vocab_size)
    return batch


def _first_token(tokenizer: PreTrainedTokenizerBase, config: ModelConfig, bos: bool | None) -> list[int]:
    """The beginning-of-text token in a list, or an empty one."""
    token = tokenizer.bos_token_id
    if bos and token is None:
        raise InputError("bos=True needs a tokenizer with a beginning-of-text token; this one has none")
    if bos is None:
        bos = BOS_BY_FAMILY[config.family] and token is not None
    return [token] if bos else []


class _Row(NamedTuple):
    """One prompt's tokens, before padding."""

    tokens: list[int]
    source: int | None
    answer: int
    distractor: int | None
    corrupted: list[int] | None


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, first: list[int], max_positions: int
) -> _Row:
    """One prompt's tokens, checked; `first` comes before them."""
    name = prompt.name
    pieces, answer = _split_answer(tokenizer, name, prompt.text, prompt.answer)
    tokens = first + [piece.token for piece in pieces]
    if not 1 <= len(tokens) <= max_positions:
        rule = f"a prompt must have 1 to {max_positions} tokens, the model's positions"
        raise InputError(f"{rule}; {name} has {len(tokens)}")

    source = None
    if prompt.source is not None:
        inside = overlapping(pieces, *prompt.source)
        if not inside:
            raise InputError(
                f"a source must be a word of the prompt; {name} gives characters {prompt.source}"
            )
        source = len(first) + inside[-1]

    distractor = None
    if prompt.distractor is not None:
        before, distractor = _split_answer(tokenizer, name, prompt.text, prompt.distractor)
        if before != pieces:
            both = f"{prompt.answer!r} and {prompt.distractor!r}"
            raise InputError(f"answer and distractor must follow the same tokens; {name} has {both}")

    corrupted = None
    if prompt.corrupted is not None:
        before, _ = _split_answer(tokenizer, name, prompt.corrupted, prompt.answer)
        corrupted = first + [piece.token for piece in before]
        if len(corrupted) != len(tokens):
            found = f"{len(corrupted)} against {len(tokens)}"
            raise InputError(f"a corrupted prompt must have as many tokens as the prompt; {name} has {found}")

    return _Row(tokens, source, answer, distractor, corrupted)


def _split_answer(
    tokenizer: PreTrainedTokenizerBase, name: str, text: str, answer: str
) -> tuple[list[Piece], int]:
    """The tokens of a text that come before a one-token answer to it, and the answer's."""
    word = answer.strip()
    own_space = answer[: len(answer) - len(answer.lstrip())]
    between = "" if _OPEN_END.search(text) else own_space or " "
    for lead in (between, ""):  # a vocabulary without a space: the answer follows directly
        pieces = encode(tokenizer, text + lead + word)
        if pieces is not None:
            break
    else:
        raise InputError(f"a prompt must be written in the tokenizer's vocabulary; {name} is not")
    start = len(text + lead)
    inside = overlapping(pieces, start, start + len(word))
    tokens = [pieces[i].token for i in inside]
    if len(tokens) != 1 or tokens[0] in tokenizer.all_special_ids:
        spelling = tokenizer.convert_ids_to_tokens(tokens)
        raise InputError(f"an answer must be one token; {name} has {answer!r}, which is {spelling}")
    if pieces[inside[0]].start < len(text.rstrip()):
        raise InputError(f"an answer must begin a token of its own; {name} joins {answer!r} to its text")
    before = pieces[: inside[0]]
    unknown = tokenizer.unk_token_id
    # Byte-level tokenizers name <|endoftext|> as <unk> although they never need one.
    if unknown != tokenizer.bos_token_id and any(piece.token == unknown for piece in before):
        raise InputError(f"a prompt must be written in the tokenizer's vocabulary; {name} holds <unk>")
    return before, tokens[0]


def _check_vocabulary(ids: Int[np.ndarray, "..."], vocab_size: int) -> None:
    """Raises InputError for a token that the model has no row for."""
    if ids.size and ids.max() >= vocab_size:
        rule = "tokenizer and model must share a vocabulary"
        raise InputError(f"{rule}; the text needs token {ids.max()}, the model has {vocab_size}")
