"""Dynamic scores by torch."""

import sys

import numpy as np

from headjax.analyses.dynamic_scores import SCORES
from tests.helpers import torch_oracle
from tests.helpers.torch_or_skip import torch


def forced_outputs(theirs, tokens, mask, sources) -> np.ndarray:
    """z [L B H K] of the last position if its attention were 1 at the source, in an otherwise clean run.

    Every layer's softmax is taken as it is for what goes on, and once more with its last row replaced.
    """
    module = sys.modules[type(theirs).__module__]
    clean = module.eager_attention_forward
    rows = torch.arange(len(tokens))
    forced = []

    def attention(layer, query, key, value, *args, **kwargs):
        output, weights = clean(layer, query, key, value, *args, **kwargs)
        weights = weights.clone()
        weights[:, :, -1] = 0
        weights[rows, :, -1, torch.tensor(sources).long()] = 1
        values = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
        forced.append((weights @ values)[:, :, -1])
        return output, weights

    module.eager_attention_forward = attention
    try:
        torch_oracle.run(theirs, tokens, mask)
    finally:
        module.eager_attention_forward = clean
    return torch.stack(forced).numpy()


@torch.no_grad()
def slow_hits(theirs, z: np.ndarray, answers: np.ndarray, top_k: np.ndarray) -> np.ndarray:
    """Hits [2 B L H], plain and suppression, of outputs z [L B H K], one head at a time, by sorting."""
    family = theirs.config.model_type
    layers = theirs.get_submodule(torch_oracle._LAYERS[family])
    rows = theirs.get_output_embeddings().weight
    L, B, H, _ = z.shape
    hits = np.zeros((2, B, L, H), bool)
    for layer, block in enumerate(layers):
        project = block.get_submodule(torch_oracle._OUTPUT_PROJECTION[family])
        for head in range(H):
            alone = torch.zeros(B, H, z.shape[-1])
            alone[:, head] = torch.tensor(z[layer, :, head])
            written = project(alone.flatten(1)) - project(torch.zeros_like(alone).flatten(1))
            if (after := torch_oracle.norm_after_attention(theirs, block)) is not None:
                written = written * torch_oracle.gain(after)  # at unit scale: ranks do not depend on it
            logits = written @ rows.T
            for b in range(B):
                descending = logits[b].sort(descending=True).values.tolist()
                own = logits[b, answers[b]].item()
                hits[0, b, layer, head] = descending.index(own) < top_k[b]
                hits[1, b, layer, head] = descending[::-1].index(own) < top_k[b]
    return hits


def expected_scores(theirs, prompts, top_k) -> dict[str, np.ndarray]:
    """Kind -> [R L H]."""
    _, z = torch_oracle.run(theirs, prompts.tokens, prompts.mask)
    forced = forced_outputs(theirs, prompts.tokens, prompts.mask, prompts.sources)
    hits = [*slow_hits(theirs, z[:, :, -1], prompts.answers, top_k)]
    hits += [*slow_hits(theirs, forced, prompts.answers, top_k)]
    groups = [(prompt.relation, prompt.template) for prompt in prompts.prompts]
    return {
        kind: np.stack(
            [of_kind[[g == group for g in groups]].mean(axis=0) for group in dict.fromkeys(groups)]
        )
        for kind, of_kind in zip(SCORES, hits, strict=True)
    }
