"""Llama 1 to 3.3 (text), and what the families built like it share.

Root-mean-square norms, gated MLP, grouped-query attention, few biases.
"""

from typing import Any

from checkpoints_convert.fields import ACTIVATIONS, MAX_LAYERS, MAX_SIZE, REQUIRED, Fields, read_rotary
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig, Rotary

# What transformers takes where a field is absent; families built like it differ from it in some.
DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def read_llama_like(fields: Fields, family: str, **defaults: Any) -> dict[str, Any]:
    """The fields of ModelConfig that config.json says alike for all models of Llama's shape: all but
    `rotary` and what Llama does not have. `defaults` are what differs from DEFAULTS."""
    defaults = DEFAULTS | defaults

    def size(name: str, most: int = MAX_SIZE) -> int:
        return fields.size(name, default=defaults.get(name, REQUIRED), most=most)

    d_model, n_heads = size("hidden_size"), size("num_attention_heads")
    n_kv_heads = fields.size_or_null("num_key_value_heads", default=defaults.get("num_key_value_heads"))
    n_kv_heads = n_kv_heads or n_heads
    if n_heads % n_kv_heads:
        raise fields.refuse(f"num_key_value_heads must divide num_attention_heads, {n_heads}", n_kv_heads)
    return {
        "family": family,
        "n_layers": size("num_hidden_layers", MAX_LAYERS),
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_head": fields.size("head_dim", default=defaults.get("head_dim", d_model // n_heads)),
        "d_model": d_model,
        "d_mlp": size("intermediate_size"),
        "vocab_size": size("vocab_size"),
        "max_positions": size("max_position_embeddings"),
        "norm": "rms",
        "norm_eps": fields.number("rms_norm_eps", default=defaults["rms_norm_eps"]),
        "activation": fields.choice("hidden_act", table=ACTIVATIONS, default=defaults["hidden_act"]),
        "gated_mlp": True,
        "parallel_residual": False,
        "tied_embeddings": fields.flag("tie_word_embeddings", default=defaults["tie_word_embeddings"]),
    }


def read_whole_rotary(fields: Fields, own: dict[str, Any]) -> Rotary:
    """The rotary embedding of a model that rotates all of a head; `own` are its fields of ModelConfig."""
    rotary = read_rotary(fields, own["d_head"], own["max_positions"])
    if rotary.dim != own["d_head"]:
        rule = f"partial_rotary_factor must be 1 for a {own['family']} model"
        raise fields.refuse(rule, rotary.dim / own["d_head"])
    return rotary


def read_config(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    own = read_llama_like(fields, "llama")
    config = ModelConfig(**own, rotary=read_whole_rotary(fields, own))
    switches = {name: fields.flag(name, default=False) for name in ("attention_bias", "mlp_bias")}
    fields.finish()
    return config, switches


# The tensors that all of them have but for norms, the embedding first.
MATRICES = (
    Rule("model.embed_tokens.weight", ("embed.W_E",), "V D -> V D"),
    Rule("model.layers.{l}.self_attn.q_proj.weight", ("blocks.attn.W_Q",), "(H K) D -> D H K"),
    Rule("model.layers.{l}.self_attn.k_proj.weight", ("blocks.attn.W_K",), "(G K) D -> D G K"),
    Rule("model.layers.{l}.self_attn.v_proj.weight", ("blocks.attn.W_V",), "(G K) D -> D G K"),
    Rule("model.layers.{l}.self_attn.o_proj.weight", ("blocks.attn.W_O",), "D (H K) -> H K D"),
    Rule("model.layers.{l}.mlp.gate_proj.weight", ("blocks.mlp.W_gate",), "F D -> D F"),
    Rule("model.layers.{l}.mlp.up_proj.weight", ("blocks.mlp.W_in",), "F D -> D F"),
    Rule("model.layers.{l}.mlp.down_proj.weight", ("blocks.mlp.W_out",), "D F -> F D"),
    Rule("lm_head.weight", ("unembed.rows",), "V D -> V D"),
)
# Their norms before attention and MLP, and at the end.
NORMS = (
    Rule("model.layers.{l}.input_layernorm.weight", ("blocks.ln1.scale",), "D -> D"),
    Rule("model.layers.{l}.post_attention_layernorm.weight", ("blocks.ln2.scale",), "D -> D"),
    Rule("model.norm.weight", ("ln_final.scale",), "D -> D"),
)
WEIGHTS = (*MATRICES, *NORMS)
# Of all norms that a family may have.
NORM_BIASES = (
    *(f"blocks.{norm}.bias" for norm in ("ln1", "ln1_post", "ln2", "ln2_post", "attn.q_norm", "attn.k_norm")),
    *("ln_final.bias", "unembed.b_U"),
)
BUFFERS = ("model.layers.{l}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")


def qkv_biases(when: str | None = None) -> tuple[Rule, ...]:
    """Biases of queries, keys and values, where the field `when` says so (None: always)."""
    return (
        Rule("model.layers.{l}.self_attn.q_proj.bias", ("blocks.attn.b_Q",), "(H K) -> H K", when),
        Rule("model.layers.{l}.self_attn.k_proj.bias", ("blocks.attn.b_K",), "(G K) -> G K", when),
        Rule("model.layers.{l}.self_attn.v_proj.bias", ("blocks.attn.b_V",), "(G K) -> G K", when),
    )


def output_bias(when: str) -> Rule:
    """The bias of the output projection, where the field `when` says so."""
    return Rule("model.layers.{l}.self_attn.o_proj.bias", ("blocks.attn.b_O",), "D -> D", when)


MLP_BIASES = ("blocks.mlp.b_gate", "blocks.mlp.b_in", "blocks.mlp.b_out")
ATTENTION_BIASES = tuple(f"blocks.attn.b_{part}" for part in "QKVO")


LLAMA = Family(
    prefix="model.",
    read_config=read_config,
    rules=(
        *WEIGHTS,
        *qkv_biases("attention_bias"),
        output_bias("attention_bias"),
        Rule("model.layers.{l}.mlp.gate_proj.bias", ("blocks.mlp.b_gate",), "F -> F", when="mlp_bias"),
        Rule("model.layers.{l}.mlp.up_proj.bias", ("blocks.mlp.b_in",), "F -> F", when="mlp_bias"),
        Rule("model.layers.{l}.mlp.down_proj.bias", ("blocks.mlp.b_out",), "D -> D", when="mlp_bias"),
    ),
    zeros=NORM_BIASES,
    buffers=BUFFERS,
)
