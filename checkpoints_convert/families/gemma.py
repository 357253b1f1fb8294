"""Gemma 1 to 3 (text): Llama with embeddings times the root of d_model, and gains of norms stored less 1.

Gemma 2 and 3 have norms around attention and MLP, and windows in some layers; Gemma 2 caps scores and logits,
Gemma 3 norms queries and keys and rotates differently in layers with a window.
"""

from typing import Any

from checkpoints_convert.families.llama import (
    BUFFERS,
    MATRICES,
    MLP_BIASES,
    NORM_BIASES,
    output_bias,
    qkv_biases,
    read_llama_like,
    read_whole_rotary,
)
from checkpoints_convert.fields import ACTIVATIONS, NO_EFFECT, Fields, read_rotaries, read_window
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig

TANH = "gelu_pytorch_tanh"
# What all of them take where a field is absent.
DEFAULTS = {"vocab_size": 256_000, "head_dim": 256, "hidden_act": TANH, "tie_word_embeddings": True}
GEMMA_1 = {
    **{"hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28, "num_attention_heads": 16},
    **{"num_key_value_heads": 16, "max_position_embeddings": 8192},
}
GEMMA_2 = {
    **{"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8},
    **{"num_key_value_heads": 4, "max_position_embeddings": 8192},
}
GEMMA_3 = {**GEMMA_2, "vocab_size": 262_208, "max_position_embeddings": 131_072}


def read_gemma_like(fields: Fields, family: str, **defaults: Any) -> dict[str, Any]:
    """The fields of ModelConfig that all of them say alike."""
    # "gelu" in `hidden_act` is a mistake of the first files and means the approximation by tanh; the later
    # models' own field is `hidden_activation`.
    for name in ("hidden_act", "hidden_activation"):
        if fields.values.get(name) == "gelu":
            fields.values[name] = TANH
    activation = fields.choice("hidden_activation", table=ACTIVATIONS, default=TANH)
    own = read_llama_like(fields, family, **{**DEFAULTS, **defaults})
    if family == "gemma":
        activation = own["activation"] if "hidden_act" in fields.values else activation
    scale = own["d_model"] ** 0.5
    return {**own, "activation": activation, "embedding_scale": scale}


def read_gemma(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    own = read_gemma_like(fields, "gemma", **GEMMA_1)
    config = ModelConfig(**own, rotary=read_whole_rotary(fields, own))
    return config, finish(fields)


def read_gemma2(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    own = read_gemma_like(fields, "gemma2", **GEMMA_2)
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(own["n_layers"])]
    window = fields.size_or_null("sliding_window", default=4096)
    config = ModelConfig(
        **own,
        rotary=read_whole_rotary(fields, own),
        window=read_window(fields, own["n_layers"], window, kinds),
        norms="around",
        score_scale=fields.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        soft_cap=read_cap(fields, "attn_logit_softcapping", 50.0),
        logit_cap=read_cap(fields, "final_logit_softcapping", 30.0),
    )
    return config, finish(fields)


def read_gemma3_text(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    own = read_gemma_like(fields, "gemma3_text", **GEMMA_3)
    every = fields.take("sliding_window_pattern", "_sliding_window_pattern", default=6)
    if type(every) is not int or every < 1:
        raise fields.refuse("sliding_window_pattern must be a positive whole number", every)
    n_layers = own["n_layers"]
    kinds = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(n_layers)]
    window = fields.size_or_null("sliding_window", default=4096)
    rotary, in_window = read_rotaries(fields, own["d_head"], own["max_positions"], 1e6, 1e4)
    config = ModelConfig(
        **own,
        rotary=rotary,
        rotary_in_window=in_window,
        window=read_window(fields, n_layers, window, kinds),
        norms="around",
        qk_norm="head",
        score_scale=fields.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        logit_cap=read_cap(fields, "final_logit_softcapping", None),
    )
    return config, finish(fields)


def read_gemma3(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    """The part of it that reads and writes text."""
    text = fields.inner("text_config")
    text.values.setdefault("tie_word_embeddings", fields.flag("tie_word_embeddings", default=True))
    found = read_gemma3_text(text)
    fields.finish(no_effect=(*NO_EFFECT_ON_TEXT, *NO_EFFECT))
    return found


NO_EFFECT_ON_TEXT = (
    *("vision_config", "mm_tokens_per_image", "boi_token_*", "eoi_token_*", "image_token_*"),
    *("text_config",),
)


def read_cap(fields: Fields, name: str, default: float | None) -> float | None:
    """A cap, which null switches off."""
    if name in fields.nulls:
        fields.taken.add(name)
        return None
    return fields.number(name, default=default)


def finish(fields: Fields) -> dict[str, bool]:
    """The switches; refuses what nobody took."""
    switches = {"attention_bias": fields.flag("attention_bias", default=False)}
    fields.finish()
    return switches


def gain(tensor: str, parameter: str, layout: str = "D -> D") -> Rule:
    """A norm's gain, stored less 1."""
    return Rule(tensor, (f"{parameter}.scale",), layout, plus=1.0)


BIASES = (*qkv_biases("attention_bias"), output_bias("attention_bias"))
BEFORE = (
    gain("model.layers.{l}.input_layernorm.weight", "blocks.ln1"),
    gain("model.norm.weight", "ln_final"),
)
AROUND = (
    *BEFORE,
    gain("model.layers.{l}.post_attention_layernorm.weight", "blocks.ln1_post"),
    gain("model.layers.{l}.pre_feedforward_layernorm.weight", "blocks.ln2"),
    gain("model.layers.{l}.post_feedforward_layernorm.weight", "blocks.ln2_post"),
)
OF_QUERIES_AND_KEYS = (
    gain("model.layers.{l}.self_attn.q_norm.weight", "blocks.attn.q_norm", "K -> K"),
    gain("model.layers.{l}.self_attn.k_norm.weight", "blocks.attn.k_norm", "K -> K"),
)
ZEROS = (*NORM_BIASES, *MLP_BIASES)

GEMMA = Family(
    prefix="model.",
    read_config=read_gemma,
    rules=(
        *MATRICES,
        *BEFORE,
        gain("model.layers.{l}.post_attention_layernorm.weight", "blocks.ln2"),
        *BIASES,
    ),
    zeros=ZEROS,
    buffers=BUFFERS,
)
GEMMA2 = Family("model.", read_gemma2, (*MATRICES, *AROUND, *BIASES), ZEROS, BUFFERS)
GEMMA3_TEXT = Family(
    "model.", read_gemma3_text, (*MATRICES, *AROUND, *OF_QUERIES_AND_KEYS, *BIASES), ZEROS, BUFFERS
)
GEMMA3 = Family(
    prefix="model.",
    read_config=read_gemma3,
    rules=GEMMA3_TEXT.rules,
    zeros=ZEROS,
    buffers=BUFFERS,
    others=tuple(
        f"{before}{part}." for before in ("", "model.") for part in ("vision_tower", "multi_modal_projector")
    ),
)
