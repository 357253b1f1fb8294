"""Prompts with partners, and receivers."""

import dataclasses

import numpy as np

from headjax.analyses.path_patching import Receiver
from headjax.data.prompts import PromptBatch
from headjax.model import Transformer
from tests.helpers.random_prompts import random_prompts


def prompts_for(model: Transformer, lengths: tuple[int, ...] = (11, 7, 4)) -> PromptBatch:
    prompts = random_prompts(model.config.vocab_size, lengths=lengths)
    corrupted = np.random.default_rng(7).integers(0, model.config.vocab_size, prompts.tokens.shape)
    return dataclasses.replace(prompts, corrupted=np.where(prompts.mask, corrupted, 0).astype(np.int32))


def receivers_of(*labels: str) -> tuple[Receiver, ...]:
    return tuple(map(Receiver.parse, labels))
