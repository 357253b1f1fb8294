"""Qwen2, 2.5 and 3: Llama with biases of queries, keys and values, or (3) with norms of queries and keys."""

from checkpoints_convert.families.llama import (
    BUFFERS,
    MLP_BIASES,
    NORM_BIASES,
    WEIGHTS,
    output_bias,
    qkv_biases,
    read_llama_like,
    read_whole_rotary,
)
from checkpoints_convert.fields import Fields, read_window
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig


def read_qwen_window(fields: Fields, n_layers: int) -> int | tuple[int | None, ...] | None:
    """The window, which `use_sliding_window` switches on, of the layers from `max_window_layers` on."""
    used = fields.flag("use_sliding_window", default=False)
    window = fields.size_or_null("sliding_window", default=4096) if used else None
    fields.take("sliding_window", default=None)  # says nothing where it is not used
    first = fields.take("max_window_layers", default=28)
    if type(first) is not int or first < 0:
        raise fields.refuse("max_window_layers must be a whole number", first)
    sliding = [window is not None and layer >= first for layer in range(n_layers)]
    return read_window(
        fields, n_layers, window, ["sliding_attention" if one else "full_attention" for one in sliding]
    )


def read_qwen2(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    own = read_llama_like(fields, "qwen2", num_key_value_heads=32, max_position_embeddings=32_768)
    window = read_qwen_window(fields, own["n_layers"])
    config = ModelConfig(**own, rotary=read_whole_rotary(fields, own), window=window)
    fields.finish()
    return config, {}


def read_qwen3(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    own = read_llama_like(
        fields, "qwen3", num_key_value_heads=32, head_dim=128, max_position_embeddings=32_768
    )
    window = read_qwen_window(fields, own["n_layers"])
    config = ModelConfig(**own, rotary=read_whole_rotary(fields, own), window=window, qk_norm="head")
    switches = {"attention_bias": fields.flag("attention_bias", default=False)}
    fields.finish()
    return config, switches


QWEN2 = Family(
    prefix="model.",
    read_config=read_qwen2,
    rules=(*WEIGHTS, *qkv_biases()),
    zeros=(*NORM_BIASES, *MLP_BIASES, "blocks.attn.b_O"),
    buffers=BUFFERS,
)
QWEN3 = Family(
    prefix="model.",
    read_config=read_qwen3,
    rules=(
        *WEIGHTS,
        Rule("model.layers.{l}.self_attn.q_norm.weight", ("blocks.attn.q_norm.scale",), "K -> K"),
        Rule("model.layers.{l}.self_attn.k_norm.weight", ("blocks.attn.k_norm.scale",), "K -> K"),
        *qkv_biases("attention_bias"),
        output_bias("attention_bias"),
    ),
    zeros=(*NORM_BIASES, *MLP_BIASES),
    buffers=BUFFERS,
)
