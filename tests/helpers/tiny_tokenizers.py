"""Tokenizers of every kind, small enough to see through, made in memory."""

import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = """
    The capital of is story a dog cat France Paris Italy Rome Spain Madrid Peru Lima No means no
    John Mary Anna Peter Mark Lucy
"""


def byte_level(bos: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2's; with `bos`, as Llama 3's, whose post-processor adds a token in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(_whole_words("Ġ", alphabet, specials=["<|begin|>"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = _bos_first("<|begin|>", tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2's: a space is put before the text, spaces become ▁, a token comes in front."""
    alphabet = ["▁", *string.ascii_letters, *string.punctuation]
    tokenizer = Tokenizer(_whole_words("▁", alphabet, specials=["<unk>", "<s>"], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = _bos_first("<s>", tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def metaspace() -> PreTrainedTokenizerFast:
    """As newer conversions of Llama 2's: a pre-tokenizer in place of the normalizer."""
    alphabet = ["▁", *string.ascii_letters, *string.punctuation]
    tokenizer = Tokenizer(_whole_words("▁", alphabet, specials=["<unk>", "<s>"], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.post_processor = _bos_first("<s>", tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def characters(alphabet: str) -> PreTrainedTokenizerFast:
    """One token a character; anything outside the alphabet cannot be written at all."""
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def whole_words(words: str) -> PreTrainedTokenizerFast:
    """One token a word or mark of the text, <unk> for the rest."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def _whole_words(mark: str, alphabet: list[str], specials: list[str], **options: str) -> models.BPE:
    """BPE that merges the marked form of every word of WORDS, letter by letter, and nothing else."""
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS.split():
        for end in range(1, len(word) + 1):
            left, right = mark + word[: end - 1], word[end - 1]
            merges[left, right] = None
            vocabulary.setdefault(left + right, len(vocabulary))
    return models.BPE(vocabulary, list(merges), **options)


def _bos_first(token: str, tokenizer: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
    )
