"""Direct logit attribution: every part as torch has it, and the parts sum to torch's logit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from headjax.analyses.logit_attribution import _attribute, logit_attribution
from headjax.errors import InputError
from headjax.model import build_model, model_parameters
from tests import torch_oracle
from tests.random_prompts import random_prompts
from tests.test_model import CONFIGS, informative_model
from tests.tolerances import assert_close
from tests.torch_or_skip import torch
from tests.twins import twins

# Sequential and parallel residuals, layer and root-mean-square norms, tied, untied and biased unembeddings.
CASES = (
    ("gpt2", "logit_diff"),
    ("gpt_neox-parallel", "logit"),
    ("gpt_neox-sequential", "logit_diff"),
    ("phi-gqa", "logit_diff"),
    ("llama-gqa-llama3-rope", "logit"),
    ("llama-gqa-head-dim-biases", "logit_diff"),
)
FINAL_NORM = {
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "phi": "model.final_layernorm",
    "llama": "model.norm",
}


def watch(module: torch.nn.Module, seen: list, what) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_hook(lambda _, args, output: seen.append(what(args, output)))


@torch.no_grad()
def torch_parts(theirs, prompts, metric: str) -> dict[str, np.ndarray]:
    """The parts in float64, each one through the norm by itself at the whole residual's scale."""
    family = theirs.config.model_type
    layers = theirs.get_submodule(torch_oracle._LAYERS[family])
    norm = theirs.get_submodule(FINAL_NORM[family])
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
    if family == "llama":
        scale = (final.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    else:
        scale = (final.var(-1, keepdim=True, correction=0) + norm.eps).sqrt()

    def logit_of(part: torch.Tensor) -> np.ndarray:
        part = part.double()
        if family != "llama":
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
    if family != "llama":
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


@pytest.mark.parametrize(("name", "metric"), CASES)
def test_every_part_equals_torch_and_they_sum_to_the_logit(name: str, metric: str):
    ours, theirs = twins(name)
    prompts = random_prompts(ours.config.vocab_size)
    parts = logit_attribution(ours, prompts, metric=metric, batch_size=4)
    for field, expected in torch_parts(theirs, prompts, metric).items():
        if expected.any():
            assert_close(getattr(parts, field), expected)
        else:  # biases that the family lacks
            assert not getattr(parts, field).any(), field
    total = (
        parts.heads.sum(axis=(1, 2))
        + parts.attention_biases.sum(axis=1)
        + parts.mlps.sum(axis=1)
        + parts.embedding
        + parts.final_bias
    )
    assert_close(total, parts.logit)


def test_bfloat16_parts_still_sum():
    model = informative_model(CONFIGS["llama"])
    half = {name: leaf.astype(jnp.bfloat16) for name, leaf in model_parameters(model).items()}
    parts = logit_attribution(build_model(model.config, half), random_prompts(53))
    total = sum(np.sum(part.reshape(7, -1), axis=1) for part in parts[:-1])
    assert_close(total, parts.logit)


def test_no_array_holds_what_every_head_writes():
    """The largest intermediate has no axis of heads beside one of d_model, but for the weights' own."""
    config = dataclasses.replace(CONFIGS["llama"], d_model=997)
    model = informative_model(config)
    prompts = random_prompts(config.vocab_size)
    program = jax.make_jaxpr(_attribute)(model, prompts.tokens, prompts.mask, prompts.answers)
    assert f"[7,{config.n_heads},997]" not in str(program)
    assert f"[{config.n_heads},7,997]" not in str(program)
    assert f"[{config.n_heads},{config.d_head},997]" in str(program)  # W_O: shapes are found


def test_logit_diff_needs_distractors():
    prompts = random_prompts(53, distractors=False)
    with pytest.raises(InputError, match="'logit_diff' needs a distractor; prompt 0 has none"):
        logit_attribution(informative_model(CONFIGS["gpt2"]), prompts, metric="logit_diff")


def test_logits_that_are_no_numbers_are_refused():
    model = informative_model(CONFIGS["gpt2"])
    model.ln_final.scale[...] = model.ln_final.scale[...].at[3].set(jnp.nan)
    with pytest.raises(InputError, match="logits must be finite numbers; prompt 0 gives NaN"):
        logit_attribution(model, random_prompts(53))
