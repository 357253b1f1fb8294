"""Prompts of random tokens, ragged and left-padded, without any text behind them."""

import numpy as np

from headjax.data.prompts import Prompt, PromptBatch


def random_prompts(
    vocab_size: int,
    lengths: tuple[int, ...] = (11, 7, 9, 4, 11, 5, 8),
    groups: tuple[tuple[str, str], ...] = (("capitals", "<X> is"),),
    seed: int = 0,
    distractors: bool = True,
) -> PromptBatch:
    """One prompt for each length; relation and template are dealt out in turn."""
    rng = np.random.default_rng(seed)
    S, B = max(lengths), len(lengths)
    padding = S - np.array(lengths)
    mask = np.arange(S)[None, :] >= padding[:, None]
    answers = rng.integers(0, vocab_size, B).astype(np.int32)
    dealt = [groups[i % len(groups)] for i in range(B)]
    return PromptBatch(
        tokens=np.where(mask, rng.integers(0, vocab_size, (B, S)), 0).astype(np.int32),
        mask=mask,
        sources=rng.integers(padding, S).astype(np.int32),
        answers=answers,
        distractors=((answers + rng.integers(1, vocab_size, B)) % vocab_size).astype(np.int32)
        if distractors
        else None,
        corrupted=None,
        prompts=tuple(
            Prompt(f"prompt {i}", "", "", relation=relation, template=template)
            for i, (relation, template) in enumerate(dealt)
        ),
        bos=False,
    )
