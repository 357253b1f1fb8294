"""Direct logit attribution by torch."""

import numpy as np

from tests.helpers import torch_oracle
from tests.helpers.torch_or_skip import torch

FINAL_NORM = {
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "phi": "model.final_layernorm",
}


def watch(module: torch.nn.Module, seen: list, what) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_hook(lambda _, args, output: seen.append(what(args, output)))


@torch.no_grad()
def torch_parts(theirs, prompts, metric: str) -> dict[str, np.ndarray]:
    """The parts in float64, each one through the norm by itself at the whole residual's scale."""
    family = theirs.config.model_type
    layers = theirs.get_submodule(torch_oracle._LAYERS[family])
    norm = theirs.get_submodule(FINAL_NORM.get(family, "model.norm"))
    rms = family not in FINAL_NORM
    unembed = theirs.get_output_embeddings()
    mlps, embedding, final = [], [], []
    handles = [watch(block.mlp, mlps, lambda args, output: output[:, -1]) for block in layers]
    handles.append(layers[0].register_forward_pre_hook(lambda _, args: embedding.append(args[0][:, -1])))
    handles.append(norm.register_forward_pre_hook(lambda _, args: final.append(args[0][:, -1])))
    logits, z = torch_oracle.run(theirs, prompts.tokens, prompts.mask)
    for handle in handles:
        handle.remove()

    rows = unembed.weight.double()
    bias = torch.zeros(len(rows)) if unembed.bias is None else unembed.bias
    answers, distractors = torch.tensor(prompts.answers).long(), torch.tensor(prompts.distractors).long()
    keep = 1 if metric == "logit_diff" else 0
    u = rows[answers] - keep * rows[distractors]
    final = final[0].double()
    if rms:
        scale = (final.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    else:
        scale = (final.var(-1, keepdim=True, correction=0) + norm.eps).sqrt()

    def logit_of(part: torch.Tensor) -> np.ndarray:
        part = part.double()
        if not rms:
            part = part - part.mean(-1, keepdim=True)
        return (part / scale * norm.weight * u).sum(-1).numpy()

    heads, biases = [], []
    for layer, block in enumerate(layers):
        project = block.get_submodule(torch_oracle._OUTPUT_PROJECTION[family])
        nothing = torch.zeros(z.shape[1], z.shape[3] * z.shape[4])
        biases.append(logit_of(project(nothing)))
        for head in range(z.shape[3]):
            alone = torch.zeros(z.shape[1], *z.shape[3:])
            alone[:, head] = torch.tensor(z[layer, :, -1, head])
            heads.append(logit_of(project(alone.flatten(1)) - project(nothing)))
    final_bias = bias[answers].double() - keep * bias[distractors].double()
    if not rms:
        final_bias = final_bias + (norm.bias * u).sum(-1)
    own = np.arange(len(answers))
    logit = logits[own, -1, prompts.answers] - keep * logits[own, -1, prompts.distractors]
    return {
        "heads": np.stack(heads, axis=-1).reshape(len(u), len(layers), -1),
        "attention_biases": np.stack(biases, axis=-1),
        "mlps": np.stack([logit_of(mlp) for mlp in mlps], axis=-1),
        "embedding": logit_of(embedding[0]),
        "final_bias": final_bias.numpy(),
        "logit": logit,
    }
