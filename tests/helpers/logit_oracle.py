"""Direct logit attribution by torch."""

import numpy as np

from tests.helpers import torch_oracle
from tests.helpers.torch_or_skip import torch


def watch(module: torch.nn.Module, seen: list, what) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_hook(lambda _, args, output: seen.append(what(args, output)))


@torch.no_grad()
def torch_parts(theirs, prompts, metric: str) -> dict[str, np.ndarray]:
    """The parts in float64, each one through the norm by itself at the whole residual's scale."""
    family = theirs.config.model_type
    layers = theirs.get_submodule(torch_oracle._LAYERS[family])
    norm, unembed = torch_oracle.final_norm(theirs), theirs.get_output_embeddings()
    rms, shape = not isinstance(norm, torch.nn.LayerNorm), (len(prompts.tokens), -1, unembed.in_features)
    mlps, embedding, final = [], [], []
    handles = [
        watch(torch_oracle.mlp_writer(theirs, block), mlps, lambda args, output: output.reshape(shape)[:, -1])
        for block in layers
    ]
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
    scale = torch_oracle.inverse_size(norm, final[0].double())

    def logit_of(part: torch.Tensor) -> np.ndarray:
        part = part.double()
        if not rms:
            part = part - part.mean(-1, keepdim=True)
        return (part * scale * torch_oracle.gain(norm) * u).sum(-1).numpy()

    heads, biases = [], []
    for layer, block in enumerate(layers):
        project = block.get_submodule(torch_oracle._OUTPUT_PROJECTION[family])
        after, outputs = torch_oracle.norm_after_attention(theirs, block), torch.tensor(z[layer, :, -1])
        factor = torch.ones(1)
        if after is not None:  # at the scale that it has for all heads together
            factor = torch_oracle.gain(after) * torch_oracle.inverse_size(after, project(outputs.flatten(1)))
        nothing = torch.zeros(z.shape[1], z.shape[3] * z.shape[4])
        biases.append(logit_of(project(nothing) * factor))
        for head in range(z.shape[3]):
            alone = torch.zeros(z.shape[1], *z.shape[3:])
            alone[:, head] = outputs[:, head]
            heads.append(logit_of((project(alone.flatten(1)) - project(nothing)) * factor))
    final_bias = bias[answers].double() - keep * bias[distractors].double()
    if not rms:
        final_bias = final_bias + (norm.bias * u).sum(-1)
    logits = torch.tensor(logits[:, -1]).double()
    if cap := getattr(theirs.config, "final_logit_softcapping", None):
        logits = cap * (logits / cap).atanh()  # as they were before the cap
    own = torch.arange(len(answers))
    logit = logits[own, answers] - keep * logits[own, distractors]
    return {
        "heads": np.stack(heads, axis=-1).reshape(len(u), len(layers), -1),
        "attention_biases": np.stack(biases, axis=-1),
        "mlps": np.stack([logit_of(mlp) for mlp in mlps], axis=-1),
        "embedding": logit_of(embedding[0]),
        "final_bias": final_bias.numpy(),
        "logit": logit.numpy(),
    }
