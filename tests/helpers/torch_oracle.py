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


def _gemma(kind, heads: int, kv_heads: int, **overrides):
    # The norms' gains are stored less 1: of all of them `random_model` makes other numbers.
    fields = {"hidden_size": 12 * heads, "head_dim": 14, "tie_word_embeddings": True}
    return kind(**_llama_like(heads, kv_heads, **fields | overrides))


def _gptj(**overrides):
    sizes = {"vocab_size": 103, "n_positions": 39, "n_embd": 50, "n_layer": 3, "n_head": 5, "n_inner": 59}
    fields = {"layer_norm_epsilon": 3e-4, "rotary_dim": 6, **sizes, **overrides}
    return transformers.GPTJConfig(**fields, bos_token_id=0, eos_token_id=0)


def _gpt_neo(**overrides):
    fields = {
        "vocab_size": 101, "max_position_embeddings": 37, "hidden_size": 42, "num_layers": 3, "num_heads": 7,
        "intermediate_size": 59, "attention_types": [[["local", "global", "local"], 1]], "window_size": 4,
        "layer_norm_epsilon": 3e-4, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return transformers.GPTNeoConfig(**fields | overrides)


def _opt(**overrides):
    fields = {
        "vocab_size": 101, "max_position_embeddings": 37, "hidden_size": 42, "num_hidden_layers": 3,
        "num_attention_heads": 7, "ffn_dim": 59, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    return transformers.OPTConfig(**fields | overrides)


MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
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
    "qwen3-mha-windows-by-layer": _qwen3(
        5, 5, head_dim=8, use_sliding_window=True, sliding_window=4, layer_types=MIXED
    ),
    "mistral-mqa-window": _mistral(5, 1, head_dim=14, sliding_window=3),
    "phi3-gqa-window": transformers.Phi3Config(**_llama_like(6, 3, sliding_window=5, pad_token_id=0)),
    "phi3-mha-partial-rotary": transformers.Phi3Config(
        **_llama_like(5, 5, pad_token_id=0, hidden_size=50) | {
            "rope_parameters": {"rope_type": "default", "rope_theta": 900.0, "partial_rotary_factor": 0.6}
        }
    ),
    "gemma-mqa": _gemma(transformers.GemmaConfig, 4, 1),
    # Caps that bend what they cap.
    "gemma2-gqa-caps-windows": _gemma(
        transformers.Gemma2Config, 4, 2, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=19,
        attn_logit_softcapping=1.7, final_logit_softcapping=2.3, sliding_window=4,
    ),
    "gemma3-mqa-windows": _gemma(
        transformers.Gemma3TextConfig, 5, 1, query_pre_attn_scalar=13, sliding_window=4, layer_types=MIXED,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    ),
    "olmo2-gqa": transformers.Olmo2Config(**_llama_like(6, 2)),
    "olmo3-mqa-windows": transformers.Olmo3Config(
        **_llama_like(5, 1, sliding_window=4, layer_types=MIXED) | {
            "rope_parameters": {
                "full_attention": YARN_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 900.0},
            }
        }
    ),
    "gptj": _gptj(),
    "gpt_neo-windows": _gpt_neo(),
    "opt": _opt(),
    "opt-no-biases": _opt(enable_bias=False, tie_word_embeddings=False),
}  # fmt: skip
# For tests whose promise depends on what heads read and write: positions learned and rotated, attention and
# MLP side by side, norms of queries and keys, a window, norms around attention, norms after it, caps.
FAMILIES = (
    *("gpt2", "phi-gqa", "qwen3-gqa-head-dim-window"),
    *("gemma2-gqa-caps-windows", "gemma3-mqa-windows", "olmo2-gqa"),
)

# Where each family's blocks and output projections are.
_LLAMA_LIKE = (
    *("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma", "gemma2", "gemma3_text", "olmo2", "olmo3"),
)
_LAYERS = {
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo"), "transformer.h"),
    "opt": "model.decoder.layers",
    "gpt_neox": "gpt_neox.layers",
    "phi": "model.layers",
    **dict.fromkeys(_LLAMA_LIKE, "model.layers"),
}
_OUTPUT_PROJECTION = {
    "gptj": "attn.out_proj",
    "gpt_neo": "attn.attention.out_proj",
    "opt": "self_attn.out_proj",
    "gpt2": "attn.c_proj",
    "gpt_neox": "attention.dense",
    "phi": "self_attn.dense",
    **dict.fromkeys(_LLAMA_LIKE, "self_attn.o_proj"),
}


_FINAL_NORM = {
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo"), "transformer.ln_f"),
    "gpt_neox": "gpt_neox.final_layer_norm",
    "phi": "model.final_layernorm",
    "opt": "model.decoder.final_layer_norm",
}
_NORMS_AFTER = ("gemma2", "gemma3_text", "olmo2", "olmo3")


def final_norm(model: transformers.PreTrainedModel) -> torch.nn.Module:
    return model.get_submodule(_FINAL_NORM.get(model.config.model_type, "model.norm"))


def gain(norm: torch.nn.Module) -> torch.Tensor:
    """What a norm multiplies by in the end: Gemma's stores one less."""
    return norm.weight + 1 if "Gemma" in type(norm).__name__ else norm.weight


def inverse_size(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a norm multiplies x by before its gain; a layer norm subtracts the mean first."""
    if isinstance(norm, torch.nn.LayerNorm):
        return (x.var(-1, keepdim=True, correction=0) + norm.eps).rsqrt()
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def norm_after_attention(
    model: transformers.PreTrainedModel, block: torch.nn.Module
) -> torch.nn.Module | None:
    return block.post_attention_layernorm if model.config.model_type in _NORMS_AFTER else None


def mlp_writer(model: transformers.PreTrainedModel, block: torch.nn.Module) -> torch.nn.Module:
    """The module whose output the MLP adds to the residual."""
    if model.config.model_type in _NORMS_AFTER:
        return block.post_feedforward_layernorm
    return block.fc2 if model.config.model_type == "opt" else block.mlp


def first_mlp(model: transformers.PreTrainedModel, x: torch.Tensor) -> torch.Tensor:
    """What the first block's MLP writes of a residual."""
    family = model.config.model_type
    block = model.get_submodule(_LAYERS[family])[0]
    if family == "opt":
        return block.fc2(torch.relu(block.fc1(block.final_layer_norm(x))))
    before = {
        **dict.fromkeys(("gpt2", "gpt_neo"), "ln_2"), "gptj": "ln_1", "phi": "input_layernorm",
        **dict.fromkeys(("gemma2", "gemma3_text"), "pre_feedforward_layernorm"),
        **dict.fromkeys(("olmo2", "olmo3"), None),
    }.get(family, "post_attention_layernorm")  # fmt: skip
    output = block.mlp(x if before is None else block.get_submodule(before)(x))
    return block.post_feedforward_layernorm(output) if family in _NORMS_AFTER else output


def values_of(model: transformers.PreTrainedModel, block: torch.nn.Module) -> torch.Tensor:
    """W_V [D G K] of a block."""
    family, config = model.config.model_type, model.config
    H, D = config.num_attention_heads, config.hidden_size
    if family == "gpt2":
        weight = block.attn.c_attn.weight[:, 2 * D :].T
    elif family == "gpt_neox":
        weight = block.attention.query_key_value.weight.unflatten(0, (H, 3, -1))[:, 2].flatten(0, 1)
    elif family == "phi3":
        size = block.self_attn.head_dim * config.num_key_value_heads
        weight = block.self_attn.qkv_proj.weight[-size:]
    else:
        owner = {"gptj": "attn", "gpt_neo": "attn.attention"}.get(family, "self_attn")
        weight = block.get_submodule(owner).v_proj.weight
    n_kv_heads = getattr(config, "num_key_value_heads", None) or H
    return weight.T.unflatten(1, (n_kv_heads, -1))


def outputs_of(model: transformers.PreTrainedModel, block: torch.nn.Module) -> torch.Tensor:
    """W_O [H K D] of a block, with the gain of the norm after attention."""
    weight = block.get_submodule(_OUTPUT_PROJECTION[model.config.model_type]).weight
    weight = weight if model.config.model_type == "gpt2" else weight.T
    norm = norm_after_attention(model, block)
    weight = weight if norm is None else weight * gain(norm)
    return weight.unflatten(0, (model.config.num_attention_heads, -1))


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
