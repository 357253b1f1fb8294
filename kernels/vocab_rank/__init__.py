"""Where a token's logit ranks in the vocabulary, without ever holding the logits."""

from ..vocab_rank.api import IMPLEMENTATIONS, VocabRank, vocab_rank

__all__ = ["IMPLEMENTATIONS", "VocabRank", "vocab_rank"]
