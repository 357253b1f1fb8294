"""GPT-Neo: GPT-2 whose every other layer sees a window, and whose scores are not scaled."""

from typing import Any

from checkpoints_convert.fields import ACTIVATIONS, MAX_LAYERS, Fields
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig


def read_config(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    d_model, n_heads = fields.size("hidden_size"), fields.size("num_heads", "num_attention_heads")
    if d_model % n_heads:
        raise fields.refuse(f"hidden_size must be a multiple of num_heads, {n_heads}", d_model)
    n_layers = fields.size("num_layers", "num_hidden_layers", most=MAX_LAYERS)
    config = ModelConfig(
        family="gpt_neo",
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_model=d_model,
        d_mlp=fields.size("intermediate_size", default=4 * d_model),
        vocab_size=fields.size("vocab_size", default=50_257),
        max_positions=fields.size("max_position_embeddings", default=2048),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", default=1e-5),
        rotary=None,
        window=read_windows(fields, n_layers),
        score_scale=1.0,
        activation=fields.choice("activation_function", table=ACTIVATIONS, default="gelu_new"),
        gated_mlp=False,
        parallel_residual=False,
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
    )
    fields.finish(head_dim=d_model // n_heads, num_key_value_heads=n_heads)
    return config, {}


def read_windows(fields: Fields, n_layers: int) -> int | tuple[int | None, ...] | None:
    """`attention_types` is [[["global", "local"], 12]] for 24 layers; `attention_layers` names each."""
    window = fields.size("window_size", default=256)
    types = fields.take("attention_types", default=[[["global", "local"], 12]])
    layers = fields.take("attention_layers", default=None)
    kinds = _expanded(types, n_layers) if layers is None else layers
    known = isinstance(kinds, list) and all(kind in ("global", "local") for kind in kinds)
    if not known or len(kinds) != n_layers:
        raise fields.refuse(f"attention_types must be global or local for each of {n_layers} layers", types)
    windows = tuple(window if kind == "local" else None for kind in kinds)
    return windows[0] if len(set(windows)) == 1 else windows


def _expanded(types: Any, n_layers: int) -> list | None:
    """What [[names, times], ...] lists; None where it is something else, or lists too many."""
    found: list = []
    for item in types if isinstance(types, list) else [None]:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], list)):
            return None
        if type(item[1]) is not int or not 0 <= item[1] <= n_layers:
            return None
        found += item[0] * item[1]
    return found


NORMS = {"ln_1": "blocks.ln1", "ln_2": "blocks.ln2"}
GPT_NEO = Family(
    prefix="transformer.",
    read_config=read_config,
    rules=(
        Rule("transformer.wte.weight", ("embed.W_E",), "V D -> V D"),
        Rule("transformer.wpe.weight", ("embed.W_pos",), "P D -> P D"),
        *(
            Rule(f"transformer.h.{{l}}.{theirs}.{stored}", (f"{ours}.{part}",), "D -> D")
            for theirs, ours in NORMS.items()
            for stored, part in (("weight", "scale"), ("bias", "bias"))
        ),
        Rule("transformer.h.{l}.attn.attention.q_proj.weight", ("blocks.attn.W_Q",), "(H K) D -> D H K"),
        Rule("transformer.h.{l}.attn.attention.k_proj.weight", ("blocks.attn.W_K",), "(G K) D -> D G K"),
        Rule("transformer.h.{l}.attn.attention.v_proj.weight", ("blocks.attn.W_V",), "(G K) D -> D G K"),
        Rule("transformer.h.{l}.attn.attention.out_proj.weight", ("blocks.attn.W_O",), "D (H K) -> H K D"),
        Rule("transformer.h.{l}.attn.attention.out_proj.bias", ("blocks.attn.b_O",), "D -> D"),
        Rule("transformer.h.{l}.mlp.c_fc.weight", ("blocks.mlp.W_in",), "F D -> D F"),
        Rule("transformer.h.{l}.mlp.c_fc.bias", ("blocks.mlp.b_in",), "F -> F"),
        Rule("transformer.h.{l}.mlp.c_proj.weight", ("blocks.mlp.W_out",), "D F -> F D"),
        Rule("transformer.h.{l}.mlp.c_proj.bias", ("blocks.mlp.b_out",), "D -> D"),
        Rule("transformer.ln_f.weight", ("ln_final.scale",), "D -> D"),
        Rule("transformer.ln_f.bias", ("ln_final.bias",), "D -> D"),
        Rule("lm_head.weight", ("unembed.rows",), "V D -> V D"),
    ),
    zeros=("unembed.b_U", *(f"blocks.attn.b_{part}" for part in "QKV")),
    buffers=("transformer.h.{l}.attn.attention.bias", "transformer.h.{l}.attn.attention.masked_bias"),
)
