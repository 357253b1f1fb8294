"""Text to tokens: the only place that tokenises.

A word's tokens are those whose span overlaps it, or the space before it, in running text: byte-level BPE
gives `" Paris"`, SentencePiece `▁Paris`; where the space is a token of its own, as in `Ġ`, `urn`, the word is
two tokens. A character-level tokenizer, which never joins a space to anything, gives the letters. The
tokenizer's own offsets decide, so nothing here knows a tokenizer's kind. Which prompts there are is in
`prompt_sets.py`.
"""

import re
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from headjax.config import ModelConfig
from headjax.data.relations import Relation
from headjax.errors import InputError, shown
from headjax.io import read_json

# A `PreTrainedTokenizerBase` of transformers. That takes seconds to import, and torch with it where there is
# one: it is imported when a tokenizer is loaded.
Tokenizer = Any

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")

SPACES = ("auto", "yes", "no")
# Ends of a text that a word follows without a space: white space, an opened bracket or quotation (a straight
# quotation mark opens one where white space or an opening stands before it), a script without spaces: Thai,
# Lao, Burmese, Khmer, Chinese, Japanese, and their punctuation.
_OPEN_END = re.compile(r"""(?:^|[\s(\[{“\u2018«])["'(\[{“\u2018«]*$""")
_NO_SPACES_END = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003fffd]$"
)
# Answers that follow a word without a space: closing punctuation, an English contraction.
_CLOSING = re.compile(r"""[)\]},.;:!?%…”\u2019»](?!\w)|['\u2019](?:s|t|re|ve|m|ll|d)$""")


class Piece(NamedTuple):
    """One token and the characters [start, end) of the text that it stands for."""

    token: int
    start: int
    end: int


class PairTokens(NamedTuple):
    """A pair's words and the tokens of each; `dropped` says why the pair does not count, "" where it does."""

    source: str
    target: str
    source_tokens: tuple[int, ...]
    target_tokens: tuple[int, ...]
    dropped: str


@dataclass(frozen=True)
class TokenPairs:
    """The pairs of a relation that a model can be asked about, see `tokenise_pairs`, and those `dropped`."""

    relation: Relation
    sources: Int[np.ndarray, " N"]
    targets: Int[np.ndarray, " N"]
    words: tuple[tuple[str, str], ...]
    dropped: tuple[PairTokens, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """One prompt as text.

    Attributes:
      name: what error messages call it, e.g. ``prompts.jsonl line 3``.
      text: what the model reads.
      answer, distractor: the right next word, and a wrong one to compare it with.
      source: characters [start, end) of the word that the answer is about or comes from.
      corrupted: the same prompt without the information that the answer needs, token for token as long.
      relation, template: the prompt's coordinates in results.
      space: whether a space stands between the text and the answer (and the distractor): "yes", "no" or
        "auto". White space that the text ends in, or that the answer begins with, counts as that space.
        "auto" puts none where the text ends in white space, an opened bracket or quotation, or a character
        of a script that is written without spaces; none where the answer is closing punctuation (`))`, `.`)
        or a contraction (`'s`); else one. A digit after a digit it refuses: "the year 17" goes on with "41",
        "1 2 3" with " 4".
    """

    name: str
    text: str
    answer: str
    source: tuple[int, int] | None = None
    distractor: str | None = None
    corrupted: str | None = None
    relation: str = ""
    template: str = ""
    space: str = "auto"


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
      bos: whether every row begins with a beginning-of-text token, see `beginning_token`.
    """

    tokens: Int[np.ndarray, "B S"]
    mask: Bool[np.ndarray, "B S"]
    sources: Int[np.ndarray, " B"]
    answers: Int[np.ndarray, " B"]
    distractors: Int[np.ndarray, " B"] | None
    corrupted: Int[np.ndarray, "B S"] | None
    prompts: tuple[Prompt, ...]
    bos: bool


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """Reads the tokenizer beside a checkpoint, from local files only; no code of the checkpoint runs.

    tokenizer.json is read as it is, whatever class tokenizer_config.json names: a class that does not fit
    would put another splitting of words in the place of the file's. Only the names of special tokens come
    from tokenizer_config.json and special_tokens_map.json. Without a tokenizer.json, transformers converts
    vocab.json and merges.txt, or tokenizer.model.

    Raises InputError when there is none, when it cannot be read, or when it reports no offsets.
    """
    directory = Path(directory)
    # Checked first: without these files transformers may look elsewhere or build an empty vocabulary.
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"a tokenizer needs one of {', '.join(TOKENIZER_FILES)}; {directory} has none")
    try:
        if (directory / "tokenizer.json").is_file():
            return _read_tokenizer_json(directory)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except InputError:
        raise
    except BaseException as error:
        # Readers raise whatever they like for a broken file, the tokenizers library also its own panics.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"the tokenizer in {directory} cannot be read: {shown(error)}") from error
    # Prompts are held against the model's own positions: what the tokenizer says of it is not asked.
    tokenizer.model_max_length = sys.maxsize
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise InputError(f"a tokenizer must report offsets, as tokenizer.json's do; {directory} gives {kind}")
    if (directory / "vocab.json").is_file():
        vocabulary = tokenizer.get_vocab()
        for token, number in read_json(directory / "vocab.json").items():
            if vocabulary.get(token) != number:
                rule = f"a tokenizer must have the tokens of {directory / 'vocab.json'}"
                raise InputError(f"{rule}; {kind} makes {vocabulary.get(token)} of {shown(token)}")
    return tokenizer


def _read_tokenizer_json(directory: Path) -> Tokenizer:
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    named = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):  # what the second says counts
        for field, value in read_json(directory / file).items() if (directory / file).is_file() else ():
            if field in _SPECIAL_TOKENS and value is not None:
                text = value.get("content") if isinstance(value, dict) else value
                if not isinstance(text, str):
                    raise InputError(f"{directory / file}: {field} is a token's text; got {shown(value)}")
                named[field] = text
    # A file of merges or words knows its <unk> itself.
    named.setdefault("unk_token", getattr(backend.model, "unk_token", None))
    # A token that is not in the vocabulary would be given a number past the model's.
    named = {field: text for field, text in named.items() if text and backend.token_to_id(text) is not None}
    special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **named,
        extra_special_tokens=[text for text in special if text not in named.values()],
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: Tokenizer, text: str) -> list[Piece] | None:
    """The tokens of a text with their spans, nothing added; None where the vocabulary cannot write it."""
    encoding = _call(tokenizer, text, add_special_tokens=False, return_offsets_mapping=True)
    if encoding is None:
        return None
    pieces, end = [], 0
    for token, (start, stop) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        # Some tokenizers report a token's span without the space that is in the token.
        if text[end:start].isspace():
            start = end
        pieces.append(Piece(token, start, stop))
        end = max(end, stop)
    return pieces


def _call(tokenizer: Tokenizer, text: str, **options: bool) -> Any | None:
    """What a tokenizer makes of a text; None where the vocabulary cannot write it."""
    try:
        return tokenizer(text, **options)
    except BaseException as error:
        # The tokenizers library raises a bare Exception for a symbol it has neither a token nor <unk> for,
        # and panics over files that contradict themselves.
        if type(error) is Exception:
            return None
        if type(error).__name__ != "PanicException":
            raise
        raise InputError(f"a tokenizer's files must fit together; this one fails: {shown(error)}") from error


def overlapping(pieces: Sequence[Piece], start: int, end: int) -> list[int]:
    """Indices of the pieces that share a character with [start, end)."""
    return [i for i, piece in enumerate(pieces) if max(piece.start, start) < min(piece.end, end)]


def word_tokens(tokenizer: Tokenizer, word: str) -> list[int]:
    """The tokens of a word in running text after a space; a word that is one token gives one.

    A token of the space alone is the first of them, unless the tokenizer joins no letter to a space. Where
    the vocabulary cannot write running text (no space in it), the bare word is taken. Special tokens are
    never included: a word that holds one, `<unk>` above all, has no tokens.
    """
    # A word stands before the space, because SentencePiece prepends a space of its own to a text.
    for lead in ("a ", ""):
        pieces = encode(tokenizer, lead + word)
        if pieces is not None:
            start = _word_start(tokenizer, lead)
            tokens = [pieces[i].token for i in overlapping(pieces, start, len(lead) + len(word))]
            return [] if set(tokens) & set(tokenizer.all_special_ids) else tokens
    return []


def _word_start(tokenizer: Tokenizer, lead: str) -> int:
    """Where the word that follows `lead` begins: with the space before it, if that is part of words."""
    return len(lead) - (lead.endswith(" ") and _spaces_join(tokenizer))


@lru_cache(maxsize=1)
def _spaces_join(tokenizer: Tokenizer) -> bool:
    """Whether some letter after a space is one token with it; at character level none is."""
    for letter in string.ascii_letters:
        pieces = encode(tokenizer, f"a {letter}")
        if pieces and any(piece.start <= 1 and piece.end == 3 for piece in pieces):
            return True
    return False


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What a token reads like, with the space before it where it begins a word."""
    text = tokenizer.decode([token])
    starts_word = str(tokenizer.convert_ids_to_tokens(token)).startswith("▁")  # which decoding drops
    return " " + text if starts_word and not text.startswith(" ") else text


def pair_tokens(
    tokenizer: Tokenizer, relation: Relation, single_source: bool = True
) -> tuple[PairTokens, ...]:
    """The tokens of a relation's pairs, in its order, and why a pair does not count: see `tokenise_pairs`."""

    def fault(role: str, tokens: list[int], single: bool) -> list[str]:
        if not tokens:
            return [f"{role} not in the vocabulary"]
        return [f"{role} of {len(tokens)} tokens"] if single and len(tokens) > 1 else []

    found = []
    for pair in relation.pairs:
        source, target = (word_tokens(tokenizer, word) for word in pair)
        dropped = [*fault("source", source, single_source), *fault("target", target, True)]
        found.append(PairTokens(*pair, tuple(source), tuple(target), ", ".join(dropped)))
    return tuple(found)


def tokenise_pairs(
    tokenizer: Tokenizer,
    relation: Relation,
    vocab_size: int,
    single_source: bool = True,
) -> TokenPairs:
    """The pairs of a relation whose words are one token each, in the relation's order.

    With `single_source=False` only the target must be one token; a source is then its last one.
    Raises InputError for a token that the model has no row for: the two do not belong together.
    """
    pairs = pair_tokens(tokenizer, relation, single_source)
    kept = [pair for pair in pairs if not pair.dropped]
    ids = np.array([(pair.source_tokens[-1], *pair.target_tokens) for pair in kept], np.int32).reshape(-1, 2)
    check_vocabulary(ids, vocab_size)
    return TokenPairs(
        relation,
        sources=ids[:, 0],
        targets=ids[:, 1],
        words=tuple((pair.source, pair.target) for pair in kept),
        dropped=tuple(pair for pair in pairs if pair.dropped),
    )


def select_pairs(
    tokenizer: Tokenizer,
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
        pairs.relation.id: f"{_count(pairs)}, min_pairs is {min_pairs}{_because(pairs)}"
        for pairs in counted
        if len(pairs.words) < min_pairs
    }
    if not selected:
        best = max(counted, key=lambda pairs: len(pairs.words), default=None)
        found = "no relation was given"
        if best is not None:
            found = f"the most has {best.relation.id}, {_count(best)}{_because(best)}"
        raise InputError(f"a relation needs min_pairs={min_pairs} pairs of single tokens; {found}")
    return selected, skipped


def _count(pairs: TokenPairs) -> str:
    return f"{len(pairs.words)} of {len(pairs.relation.pairs)} pairs are single tokens"


def _because(pairs: TokenPairs) -> str:
    return f"; {describe_dropped(pairs)}" if pairs.dropped else ""


def describe_dropped(pairs: TokenPairs, at_most: int = 10) -> str:
    """The words that cost a relation pairs, by what is wrong with them; "" where none was lost."""
    several, absent = {}, {}  # dictionaries, to keep each word once and in order
    for pair in pairs.dropped:
        for role, word, tokens in (
            ("source", pair.source, pair.source_tokens),
            ("target", pair.target, pair.target_tokens),
        ):
            if role in pair.dropped:
                (several if tokens else absent)[word] = None
    parts = []
    for what, words in (("several tokens", several), ("not in the vocabulary", absent)):
        if words:
            named = ", ".join(word[:40] for word in list(words)[:at_most])
            rest = f" and {len(words) - at_most} more" if len(words) > at_most else ""
            parts.append(f"{what}: {named}{rest}")
    return "; ".join(parts)


def batch_prompts(
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    config: ModelConfig,
    bos: bool | None = None,
) -> PromptBatch:
    """Tokenises prompts for a model and pads them on the left.

    A prompt's tokens are those before its answer in the text with the answer, so that the last position
    is always the one that predicts the answer, whatever the tokenizer makes of the space between.

    Args:
      bos: whether a beginning-of-text token comes first; None: as the tokenizer does it, see
        `beginning_token`.

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

    begin = beginning_token(tokenizer, bos)
    first = [] if begin is None else [begin]
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
            check_vocabulary(ids, config.vocab_size)
    return batch


def beginning_token(tokenizer: Tokenizer, bos: bool | None = None) -> int | None:
    """The token that every prompt begins with, or None.

    Args:
      bos: None asks the tokenizer what it puts before a text itself (Llama's <s>; nothing for GPT-2). It is
        the post-processor in tokenizer.json that says so: as in transformers, the field add_bos_token of
        tokenizer_config.json counts only for tokenizers without a tokenizer.json. True takes that token or,
        where there is none, the one called bos_token; False takes none.

    Raises InputError for `bos=True` without such a token, and for a tokenizer that puts several in front.
    """
    if bos is False:
        return None
    added = _added_in_front(tokenizer)
    if len(added) > 1:
        names = " ".join(tokenizer.convert_ids_to_tokens(added))
        raise InputError(f"a tokenizer puts at most one token before a text; this one {names}: set bos=False")
    if added:
        return added[0]
    if bos and tokenizer.bos_token_id is None:
        raise InputError("bos=True needs a tokenizer with a beginning-of-text token; this one has none")
    return tokenizer.bos_token_id if bos else None


def _added_in_front(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that a tokenizer adds before a text."""
    for text in (*string.ascii_letters, *string.digits, "."):
        if encode(tokenizer, text):  # the first text that the vocabulary can write
            encoding = _call(tokenizer, text, return_special_tokens_mask=True)
            special = [*encoding["special_tokens_mask"], 0]
            return encoding["input_ids"][: special.index(0)]
    return []


class _Row(NamedTuple):
    """One prompt's tokens, before padding."""

    tokens: list[int]
    source: int | None
    answer: int
    distractor: int | None
    corrupted: list[int] | None


def _tokenise(tokenizer: Tokenizer, prompt: Prompt, first: list[int], max_positions: int) -> _Row:
    """One prompt's tokens, checked; `first` comes before them."""
    name = prompt.name
    pieces, answer = _split_answer(tokenizer, prompt, prompt.text, prompt.answer)
    tokens = first + [piece.token for piece in pieces]
    if not 1 <= len(tokens) <= max_positions:
        rule = f"a prompt must have 1 to {max_positions} tokens, the model's positions"
        raise InputError(f"{rule}; {name} has {len(tokens)}")

    source = None
    if prompt.source is not None:
        start, end = prompt.source
        inside = overlapping(pieces, start, end) if 0 <= start < end <= len(prompt.text) else []
        if not inside:
            raise InputError(
                f"a source must be a word of the prompt; {name} gives characters {prompt.source}"
            )
        source = len(first) + inside[-1]

    distractor = None
    if prompt.distractor is not None:
        before, distractor = _split_answer(tokenizer, prompt, prompt.text, prompt.distractor)
        if before != pieces:
            both = f"{shown(prompt.answer)} and {shown(prompt.distractor)}"
            raise InputError(f"answer and distractor must follow the same tokens; {name} has {both}")

    corrupted = None
    if prompt.corrupted is not None:
        before, _ = _split_answer(tokenizer, prompt, prompt.corrupted, prompt.answer)
        corrupted = first + [piece.token for piece in before]
        if len(corrupted) != len(tokens):
            found = f"{len(corrupted)} against {len(tokens)}"
            raise InputError(f"a corrupted prompt must have as many tokens as the prompt; {name} has {found}")

    return _Row(tokens, source, answer, distractor, corrupted)


def _split_answer(tokenizer: Tokenizer, prompt: Prompt, text: str, answer: str) -> tuple[list[Piece], int]:
    """The tokens of a text that come before a one-token answer to it, and the answer's."""
    name, word = prompt.name, answer.strip()
    leads = [_space_between(prompt, text, answer)]
    if prompt.space == "auto" and leads != [""]:
        leads.append("")  # a vocabulary without a space: the answer follows directly
    for lead in leads:
        pieces = encode(tokenizer, text + lead + word)
        if pieces is not None:
            break
    else:
        raise InputError(f"a prompt must be written in the tokenizer's vocabulary; {name} is not")
    # A space that the text ends in is the text's, one that is put there is the word's.
    start = _word_start(tokenizer, text + lead) if lead else len(text)
    inside = overlapping(pieces, start, len(text + lead + word)) if word else []
    tokens = [pieces[i].token for i in inside]
    if len(tokens) != 1 or tokens[0] in tokenizer.all_special_ids:
        spelling = shown(tokenizer.convert_ids_to_tokens(tokens))
        alone = len(tokens) == 2 and pieces[inside[0]].end <= len(text + lead)
        hint = "; where the prompt ends in the space, the second is scored" if alone else ""
        raise InputError(
            f"an answer must be one token; {name} has {shown(answer)}, which is {spelling}{hint}"
        )
    if pieces[inside[0]].start < len(text.rstrip()):
        raise InputError(f"an answer must begin a token of its own; {name} joins {shown(answer)} to its text")
    before = pieces[: inside[0]]
    unknown = tokenizer.unk_token_id
    # Byte-level tokenizers name <|endoftext|> as <unk> although they never need one.
    if unknown != tokenizer.bos_token_id and any(piece.token == unknown for piece in before):
        raise InputError(f"a prompt must be written in the tokenizer's vocabulary; {name} holds <unk>")
    return before, tokens[0]


def _space_between(prompt: Prompt, text: str, answer: str) -> str:
    """What stands between a text and the answer to it, by the rule of `Prompt.space`."""
    word = answer.strip()
    own = answer[: len(answer) - len(answer.lstrip())]
    if prompt.space not in SPACES:
        raise InputError(f"space is one of {', '.join(SPACES)}; {prompt.name} has {shown(prompt.space)}")
    if prompt.space == "no":
        if own:
            rule = "with space 'no' an answer begins without one"
            raise InputError(f"{rule}; {prompt.name} has {shown(answer)}")
        return ""
    if prompt.space == "yes":
        return "" if text != text.rstrip() else own or " "
    if _OPEN_END.search(text):
        return ""
    if own:
        return own
    if _NO_SPACES_END.search(text) or _CLOSING.match(word):
        return ""
    if text[-1:].isdigit() and word[:1].isdigit():
        rule = 'a digit after a digit needs the field \'space\', "yes" or "no"'
        raise InputError(f"{rule}; {prompt.name} has {shown(word)} after {shown(text[-20:])}")
    return " "


def check_vocabulary(ids: Int[np.ndarray, "..."], vocab_size: int) -> None:
    """Raises InputError for a token that the model has no row for."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        rule = "tokenizer and model must share a vocabulary"
        token = ids.max() if ids.max() >= vocab_size else ids.min()
        raise InputError(f"{rule}; the text needs token {token}, the model has {vocab_size}")
