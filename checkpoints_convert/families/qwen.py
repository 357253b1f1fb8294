"""Qwen2, 2.5 and 3: Llama with biases of queries, keys and values, or (3) with norms of queries and keys."""

from checkpoints_convert.families.llama import (
    BUFFERS,
    MLP_BIASES,
    NORM_BIASES,
    WEIGHTS,
    output_bias,
    qkv_biases,
    read_llama_like,
)
from checkpoints_convert.fields import Fields
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig


def read_window(fields: Fields) -> int | None:
    """The window of positions that all layers see, None where they see all.

    Raises InputError where some layers see a window and others do not.
    """
    used = fields.flag("use_sliding_window", default=False)
    window = (
        fields.size_or_null("sliding_window", default=4096)
        if used
        else fields.take("sliding_window", default=None)
    )
    first = fields.take("max_window_layers", default=28)
    if type(first) is not int or first < 0:
        raise fields.refuse("max_window_layers must be a whole number", first)
    n_layers = fields.size("num_hidden_layers")
    if used and window is not None:
        default = {"full_attention"} if first >= n_layers else {"sliding_attention"}
        default |= {"full_attention"} if first > 0 else set()
    else:
        window, default = None, {"full_attention"}
    types = fields.take("layer_types", default=None)
    if types is not None and not (isinstance(types, list) and all(isinstance(one, str) for one in types)):
        raise fields.refuse("layer_types must be a list of names", types)
    kinds = default if types is None else set(types)
    if kinds == {"full_attention"}:
        return None
    if kinds == {"sliding_attention"} and window is not None:
        return window
    raise fields.refuse(
        "layer_types must be full_attention in all layers or, where use_sliding_window is set, "
        "sliding_attention in all",
        sorted(kinds),
    )


def read_qwen2(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    window = read_window(fields)
    config = read_llama_like(fields, "qwen2", n_kv_heads=32, max_positions=32_768, window=window)
    fields.finish()
    return config, {}


def read_qwen3(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    config = read_llama_like(
        *(fields, "qwen3"),
        n_kv_heads=32,
        d_head=128,
        max_positions=32_768,
        window=read_window(fields),
        qk_norm=True,
    )
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
    zeros=(*NORM_BIASES, *MLP_BIASES, "blocks.attn.q_norm.bias", "blocks.attn.k_norm.bias"),
    buffers=BUFFERS,
)
