"""Llama 1 to 3.3 (text): root-mean-square norms, gated MLP, grouped-query attention, few biases."""

from checkpoints_convert.fields import ACTIVATIONS, MAX_LAYERS, Fields, read_rotary
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig


def read_config(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    d_model, n_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    n_kv_heads = fields.size("num_key_value_heads", default=n_heads)
    if n_heads % n_kv_heads:
        raise fields.refuse(f"num_key_value_heads must divide num_attention_heads, {n_heads}", n_kv_heads)
    d_head = fields.size("head_dim", default=d_model // n_heads)
    max_positions = fields.size("max_position_embeddings", default=2048)
    config = ModelConfig(
        family="llama",
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
    )
    if config.rotary.dim != d_head:
        raise fields.refuse("partial_rotary_factor must be 1 for a Llama", config.rotary.dim / d_head)
    switches = {name: fields.flag(name, default=False) for name in ("attention_bias", "mlp_bias")}
    fields.finish()
    return config, switches


LLAMA = Family(
    prefix="model.",
    read_config=read_config,
    rules=(
        Rule("model.embed_tokens.weight", ("embed.W_E",), "V D -> V D"),
        Rule("model.layers.{l}.input_layernorm.weight", ("blocks.ln1.scale",), "D -> D"),
        Rule("model.layers.{l}.self_attn.q_proj.weight", ("blocks.attn.W_Q",), "(H K) D -> D H K"),
        Rule(
            "model.layers.{l}.self_attn.q_proj.bias",
            ("blocks.attn.b_Q",),
            "(H K) -> H K",
            when="attention_bias",
        ),
        Rule("model.layers.{l}.self_attn.k_proj.weight", ("blocks.attn.W_K",), "(G K) D -> D G K"),
        Rule(
            "model.layers.{l}.self_attn.k_proj.bias",
            ("blocks.attn.b_K",),
            "(G K) -> G K",
            when="attention_bias",
        ),
        Rule("model.layers.{l}.self_attn.v_proj.weight", ("blocks.attn.W_V",), "(G K) D -> D G K"),
        Rule(
            "model.layers.{l}.self_attn.v_proj.bias",
            ("blocks.attn.b_V",),
            "(G K) -> G K",
            when="attention_bias",
        ),
        Rule("model.layers.{l}.self_attn.o_proj.weight", ("blocks.attn.W_O",), "D (H K) -> H K D"),
        Rule("model.layers.{l}.self_attn.o_proj.bias", ("blocks.attn.b_O",), "D -> D", when="attention_bias"),
        Rule("model.layers.{l}.post_attention_layernorm.weight", ("blocks.ln2.scale",), "D -> D"),
        Rule("model.layers.{l}.mlp.gate_proj.weight", ("blocks.mlp.W_gate",), "F D -> D F"),
        Rule("model.layers.{l}.mlp.gate_proj.bias", ("blocks.mlp.b_gate",), "F -> F", when="mlp_bias"),
        Rule("model.layers.{l}.mlp.up_proj.weight", ("blocks.mlp.W_in",), "F D -> D F"),
        Rule("model.layers.{l}.mlp.up_proj.bias", ("blocks.mlp.b_in",), "F -> F", when="mlp_bias"),
        Rule("model.layers.{l}.mlp.down_proj.weight", ("blocks.mlp.W_out",), "D F -> F D"),
        Rule("model.layers.{l}.mlp.down_proj.bias", ("blocks.mlp.b_out",), "D -> D", when="mlp_bias"),
        Rule("model.norm.weight", ("ln_final.scale",), "D -> D"),
        Rule("lm_head.weight", ("unembed.rows",), "V D -> V D"),
    ),
    zeros=("blocks.ln1.bias", "blocks.ln2.bias", "ln_final.bias", "unembed.b_U"),
    buffers=("model.layers.{l}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
)
