"""The oracle: tiny Hugging Face models in torch, read and edited through hooks.

Slow and obvious on purpose. Every tensor is informative (no bias is zero, no norm is one), epsilons
and rotary fractions are not the defaults, sizes differ from each other.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import transformers

from tests.helpers.torch_or_skip import torch

# One frequency of four is kept, one interpolated, two stretched (at d_head 8).
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 700.0,
    "factor": 4.0,
    "low_freq_factor": 0.4,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}
# The first of four pairs is kept, the last stretched, two lie between (at d_head 8).
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 900.0,
    "factor": 3.0,
    "beta_fast": 8.0,
    "beta_slow": 0.5,
    "original_max_position_embeddings": 128,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 900.0, "factor": 3.0, "partial_rotary_factor": 0.4}


def _gpt2(**overrides):
    sizes = {"vocab_size": 101, "n_positions": 37, "n_embd": 42, "n_layer": 3, "n_head": 7, "n_inner": 59}
    fields = {"layer_norm_epsilon": 3e-4, "activation_function": "gelu_new", **sizes, **overrides}
    return transformers.GPT2Config(**fields, bos_token_id=0, eos_token_id=0)


def _gpt_neox(**overrides):
    fields = {
        "vocab_size": 103,
        "hidden_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "intermediate_size": 97,
        "max_position_embeddings": 41,
        "layer_norm_eps": 3e-4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 900.0, "partial_rotary_factor": 0.5},
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return transformers.GPTNeoXConfig(**fields | overrides)


def _phi(heads: int, kv_heads: int, **overrides):
    fields = {
        "vocab_size": 107,
        "hidden_size": 10 * heads,
        "intermediate_size": 89,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 43,
        "layer_norm_eps": 3e-4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 900.0, "partial_rotary_factor": 0.4},
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return transformers.PhiConfig(**fields | overrides)


def _llama_like(heads: int, kv_heads: int, **overrides) -> dict:
    return {
        "vocab_size": 109,
        "hidden_size": 8 * heads,
        "intermediate_size": 83,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 47,
        "rms_norm_eps": 3e-4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 900.0},
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    } | overrides


def _llama(heads: int, kv_heads: int, **overrides):
    return transformers.LlamaConfig(**_llama_like(heads, kv_heads, **overrides))


def _qwen2(heads: int, kv_heads: int, **overrides):
    return transformers.Qwen2Config(**_llama_like(heads, kv_heads, **overrides))


def _qwen3(heads: int, kv_heads: int, **overrides):
    return transformers.Qwen3Config(**_llama_like(heads, kv_heads, **overrides))


def _mistral(heads: int, kv_heads: int, **overrides):
    return transformers.MistralConfig(**_llama_like(heads, kv_heads, **overrides))


# Every family, and within it every kind of attention and switch that its architecture has.
CONFIGS = {
    "gpt2": _gpt2(),
    "gpt2-untied-exact-gelu": _gpt2(
        tie_word_embeddings=False, activation_function="gelu", scale_attn_by_inverse_layer_idx=True
    ),
    "gpt_neox-parallel": _gpt_neox(use_parallel_residual=True),
    "gpt_neox-sequential": _gpt_neox(use_parallel_residual=False, hidden_act="gelu_new"),
    "phi-mha": _phi(5, 5, rope_parameters=LINEAR_ROPE),
    "phi-gqa": _phi(6, 3),
    "phi-mqa": _phi(5, 1),
    "llama-mha": _llama(5, 5, rope_parameters=YARN_ROPE),
    "llama-gqa-llama3-rope": _llama(6, 2, rope_parameters=LLAMA3_ROPE),
    "llama-mqa-tied": _llama(5, 1, tie_word_embeddings=True),
    "llama-gqa-head-dim-biases": _llama(6, 3, head_dim=14, attention_bias=True, mlp_bias=True),
    "qwen2-gqa-tied": _qwen2(6, 2, tie_word_embeddings=True),
    # Windows are shorter than the prompts.
    "qwen3-gqa-head-dim-window": _qwen3(
        6, 2, head_dim=14, use_sliding_window=True, sliding_window=4, max_window_layers=0
    ),
    "mistral-mqa-window": _mistral(5, 1, head_dim=14, sliding_window=3),
}
# One of each family, for tests whose promise does not depend on the rest.
FAMILIES = ("gpt2", "gpt_neox-parallel", "phi-gqa", "llama-gqa-llama3-rope", "qwen3-gqa-head-dim-window")

# Where each family's blocks and output projections are.
_LLAMA_LIKE = ("llama", "qwen2", "qwen3", "mistral")
_LAYERS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "phi": "model.layers",
    **dict.fromkeys(_LLAMA_LIKE, "model.layers"),
}
_OUTPUT_PROJECTION = {
    "gpt2": "attn.c_proj",
    "gpt_neox": "attention.dense",
    "phi": "self_attn.dense",
    **dict.fromkeys(_LLAMA_LIKE, "self_attn.o_proj"),
}


def random_model(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A float32 model of `CONFIGS[name]` in which every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * 1.5 * parameter.shape[-1] ** -0.5)
            elif parameter_name.endswith("bias"):
                parameter.copy_(noise * 0.3)
            else:
                parameter.copy_(1 + noise * 0.3)
    return model.eval()


def save_model(name: str, directory: Path, seed: int = 0) -> transformers.PreTrainedModel:
    """Writes `random_model(name)` as a Hugging Face directory and returns it."""
    model = random_model(name, seed)
    model.save_pretrained(directory)
    return model


def load_directory(directory: Path) -> transformers.PreTrainedModel:
    """A checkpoint on disk, in float32."""
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, **how)
    return model.eval()


Edit = Callable[[int, torch.Tensor], torch.Tensor]


@torch.no_grad()
def run(
    model: transformers.PreTrainedModel,
    tokens: np.ndarray,
    mask: np.ndarray | None = None,
    edit: Edit | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B S V] and z [L B S H K], read at the input of the output projection.

    `edit(layer, z [B S H K])` returns what takes z's place there.
    """
    family = model.config.model_type
    layers = model.get_submodule(_LAYERS[family])
    heads = model.config.num_attention_heads
    recorded, handles = [], []

    def hook_for(layer: int):
        def hook(_module, args):
            z = args[0].unflatten(-1, (heads, -1))
            if edit is not None:
                z = edit(layer, z.clone())
            recorded.append(z)
            return (z.flatten(-2),)

        return hook

    for layer, block in enumerate(layers):
        projection = block.get_submodule(_OUTPUT_PROJECTION[family])
        handles.append(projection.register_forward_pre_hook(hook_for(layer)))
    inputs = {"input_ids": torch.tensor(np.asarray(tokens), dtype=torch.long)}
    if mask is not None:
        attention_mask = torch.tensor(np.asarray(mask), dtype=torch.long)
        inputs["attention_mask"] = attention_mask
        inputs["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits.numpy(), torch.stack(recorded).numpy()


def load_tokenizer(directory: Path | str) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint as its publisher meant it, beginning-of-text token included."""
    return transformers.AutoTokenizer.from_pretrained(directory)
