"""Gradients by torch."""

import numpy as np

from tests.helpers import torch_oracle
from tests.helpers.torch_or_skip import torch


def torch_gradient(theirs, prompts, metric: str, positions: str, replacement) -> np.ndarray:
    """[B L H] by torch's own differentiation, the gains multiplied in before the output projection."""
    family, heads = theirs.config.model_type, theirs.config.num_attention_heads
    layers = theirs.get_submodule(torch_oracle._LAYERS[family])
    B, S = prompts.tokens.shape
    gains = torch.ones(len(layers), B, heads, requires_grad=True)
    acts = torch.zeros(S, dtype=bool)
    acts[-1 if positions == "last" else slice(None)] = True

    def hook_for(layer: int):
        def hook(_module, args):
            z = args[0].unflatten(-1, (heads, -1))
            gain = torch.where(acts[None, :, None], gains[layer][:, None], 1.0)[..., None]
            instead = 0 if replacement is None else torch.tensor(replacement[layer])
            return ((gain * z + (1 - gain) * instead).flatten(-2),)

        return hook

    handles = [
        block.get_submodule(torch_oracle._OUTPUT_PROJECTION[family]).register_forward_pre_hook(
            hook_for(layer)
        )
        for layer, block in enumerate(layers)
    ]
    mask = torch.tensor(prompts.mask).long()
    logits = theirs(
        input_ids=torch.tensor(prompts.tokens).long(),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    ).logits[:, -1]
    for handle in handles:
        handle.remove()
    own = torch.arange(B)
    if metric == "logit_diff":
        values = logits[own, prompts.answers] - logits[own, prompts.distractors]
    else:
        values = logits.log_softmax(-1)[own, prompts.answers]
    return torch.autograd.grad(values.sum(), gains)[0].swapaxes(0, 1).numpy()
