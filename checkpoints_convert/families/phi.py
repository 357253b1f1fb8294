"""Phi-1, 1.5 and 2: attention and MLP side by side behind one norm, which fills both of ours."""

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
        family="phi",
        n_layers=fields.size("num_hidden_layers", most=MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_model=d_model,
        d_mlp=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        max_positions=max_positions,
        norm="layer",
        norm_eps=fields.number("layer_norm_eps", default=1e-5),
        rotary=read_rotary(fields, d_head, max_positions, default_fraction=0.5),
        activation=fields.choice("hidden_act", table=ACTIVATIONS, default="gelu_new"),
        gated_mlp=False,
        parallel_residual=True,
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
    )
    fields.finish()
    return config, {}


PHI = Family(
    prefix="model.",
    read_config=read_config,
    rules=(
        Rule("model.embed_tokens.weight", ("embed.W_E",), "V D -> V D"),
        Rule("model.layers.{l}.input_layernorm.weight", ("blocks.ln1.scale", "blocks.ln2.scale"), "D -> D"),
        Rule("model.layers.{l}.input_layernorm.bias", ("blocks.ln1.bias", "blocks.ln2.bias"), "D -> D"),
        Rule("model.layers.{l}.self_attn.q_proj.weight", ("blocks.attn.W_Q",), "(H K) D -> D H K"),
        Rule("model.layers.{l}.self_attn.q_proj.bias", ("blocks.attn.b_Q",), "(H K) -> H K"),
        Rule("model.layers.{l}.self_attn.k_proj.weight", ("blocks.attn.W_K",), "(G K) D -> D G K"),
        Rule("model.layers.{l}.self_attn.k_proj.bias", ("blocks.attn.b_K",), "(G K) -> G K"),
        Rule("model.layers.{l}.self_attn.v_proj.weight", ("blocks.attn.W_V",), "(G K) D -> D G K"),
        Rule("model.layers.{l}.self_attn.v_proj.bias", ("blocks.attn.b_V",), "(G K) -> G K"),
        Rule("model.layers.{l}.self_attn.dense.weight", ("blocks.attn.W_O",), "D (H K) -> H K D"),
        Rule("model.layers.{l}.self_attn.dense.bias", ("blocks.attn.b_O",), "D -> D"),
        Rule("model.layers.{l}.mlp.fc1.weight", ("blocks.mlp.W_in",), "F D -> D F"),
        Rule("model.layers.{l}.mlp.fc1.bias", ("blocks.mlp.b_in",), "F -> F"),
        Rule("model.layers.{l}.mlp.fc2.weight", ("blocks.mlp.W_out",), "D F -> F D"),
        Rule("model.layers.{l}.mlp.fc2.bias", ("blocks.mlp.b_out",), "D -> D"),
        Rule("model.final_layernorm.weight", ("ln_final.scale",), "D -> D"),
        Rule("model.final_layernorm.bias", ("ln_final.bias",), "D -> D"),
        Rule("lm_head.weight", ("unembed.rows",), "V D -> V D"),
        Rule("lm_head.bias", ("unembed.b_U",), "V -> V"),
    ),
    zeros=(),
    buffers=("model.layers.{l}.self_attn.rotary_emb.inv_freq",),
)
