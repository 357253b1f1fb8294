"""Llama 1 to 3.3 (text), and what the families built like it share.

Root-mean-square norms, gated MLP, grouped-query attention, few biases.
"""

from typing import Any

from checkpoints_convert.fields import ACTIVATIONS, MAX_LAYERS, Fields, read_rotary
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig


def read_llama_like(
    fields: Fields,
    family: str,
    *,
    n_kv_heads: int | None = None,
    d_head: int | None = None,
    max_positions: int = 2048,
    **options: Any,
) -> ModelConfig:
    """The config of a model of Llama's shape; numbers are what transformers takes where a field is absent.

    `options` are further fields of ModelConfig.
    """
    d_model, n_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    n_kv_heads = fields.size_or_null("num_key_value_heads", default=n_kv_heads) or n_heads
    if n_heads % n_kv_heads:
        raise fields.refuse(f"num_key_value_heads must divide num_attention_heads, {n_heads}", n_kv_heads)
    d_head = fields.size("head_dim", default=d_head or d_model // n_heads)
    max_positions = fields.size("max_position_embeddings", default=max_positions)
    config = ModelConfig(
        family=family,
        n_layers=fields.size("num_hidden_layers", most=MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_model=d_model,
        d_mlp=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        max_positions=max_positions,
        norm="rms",
        norm_eps=fields.number("rms_norm_eps", default=1e-6),
        rotary=read_rotary(fields, d_head, max_positions, default_fraction=1.0),
        activation=fields.choice("hidden_act", table=ACTIVATIONS, default="silu"),
        gated_mlp=True,
        parallel_residual=False,
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
        **options,
    )
    if config.rotary.dim != d_head:
        raise fields.refuse(
            f"partial_rotary_factor must be 1 for a {family} model", config.rotary.dim / d_head
        )
    return config


def read_config(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    config = read_llama_like(fields, "llama")
    switches = {name: fields.flag(name, default=False) for name in ("attention_bias", "mlp_bias")}
    fields.finish()
    return config, switches


# The tensors that all of them have, the embedding first.
WEIGHTS = (
    Rule("model.embed_tokens.weight", ("embed.W_E",), "V D -> V D"),
    Rule("model.layers.{l}.input_layernorm.weight", ("blocks.ln1.scale",), "D -> D"),
    Rule("model.layers.{l}.self_attn.q_proj.weight", ("blocks.attn.W_Q",), "(H K) D -> D H K"),
    Rule("model.layers.{l}.self_attn.k_proj.weight", ("blocks.attn.W_K",), "(G K) D -> D G K"),
    Rule("model.layers.{l}.self_attn.v_proj.weight", ("blocks.attn.W_V",), "(G K) D -> D G K"),
    Rule("model.layers.{l}.self_attn.o_proj.weight", ("blocks.attn.W_O",), "D (H K) -> H K D"),
    Rule("model.layers.{l}.post_attention_layernorm.weight", ("blocks.ln2.scale",), "D -> D"),
    Rule("model.layers.{l}.mlp.gate_proj.weight", ("blocks.mlp.W_gate",), "F D -> D F"),
    Rule("model.layers.{l}.mlp.up_proj.weight", ("blocks.mlp.W_in",), "F D -> D F"),
    Rule("model.layers.{l}.mlp.down_proj.weight", ("blocks.mlp.W_out",), "D F -> F D"),
    Rule("model.norm.weight", ("ln_final.scale",), "D -> D"),
    Rule("lm_head.weight", ("unembed.rows",), "V D -> V D"),
)
NORM_BIASES = ("blocks.ln1.bias", "blocks.ln2.bias", "ln_final.bias", "unembed.b_U")
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
