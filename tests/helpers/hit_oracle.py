"""Hits the slow way."""

import numpy as np

from headjax.engine.hits import Hits
from tests.helpers.torch_or_skip import torch


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def slow_hits(q, W_O, unembed, targets, k, tolerance: float = 0.0) -> Hits:
    """Forms the logits of every head over the whole vocabulary, in float64, and counts.

    With a tolerance (of the largest logit), hits even if logits that close to the target's lie beyond it;
    with a negative one, hits only if they may lie there too.
    """
    q, W_O, unembed = (torch.tensor(np.asarray(a, np.float64)) for a in (q, W_O, unembed))
    pair, k = torch.arange(q.shape[1]), torch.tensor(np.asarray(k))
    found = []
    for head in range(q.shape[0]):
        logits = q[head] @ W_O[head] @ unembed.T
        own = logits[pair, torch.tensor(np.asarray(targets)).long()][:, None]
        others = torch.ones_like(logits, dtype=bool)
        others[pair, torch.tensor(np.asarray(targets)).long()] = False
        near = tolerance * logits.abs().max()
        above = (others & (logits > own + near)).sum(dim=1)
        below = (others & (logits < own - near)).sum(dim=1)
        found.append(torch.stack([above < k, below < k]).numpy())
    return Hits(*np.moveaxis(found, 1, 0))
