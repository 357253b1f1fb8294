"""GPT-NeoX, the architecture of Pythia. Queries, keys and values of one head are neighbours."""

from checkpoints_convert.fields import ACTIVATIONS, MAX_LAYERS, Fields, read_rotary
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig


def read_config(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    d_model, n_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if d_model % n_heads:
        raise fields.refuse(f"hidden_size must be a multiple of num_attention_heads, {n_heads}", d_model)
    max_positions = fields.size("max_position_embeddings", default=2048)
    config = ModelConfig(
        family="gpt_neox",
        n_layers=fields.size("num_hidden_layers", most=MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_model=d_model,
        d_mlp=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        max_positions=max_positions,
        norm="layer",
        norm_eps=fields.number("layer_norm_eps", default=1e-5),
        rotary=read_rotary(fields, d_model // n_heads, max_positions, default_fraction=0.25),
        activation=fields.choice("hidden_act", table=ACTIVATIONS, default="gelu"),
        gated_mlp=False,
        parallel_residual=fields.flag("use_parallel_residual", default=True),
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
    )
    switches = {"attention_bias": fields.flag("attention_bias", default=True)}
    fields.finish(head_dim=d_model // n_heads, num_key_value_heads=n_heads)
    return config, switches


GPT_NEOX = Family(
    prefix="gpt_neox.",
    read_config=read_config,
    rules=(
        Rule("gpt_neox.embed_in.weight", ("embed.W_E",), "V D -> V D"),
        Rule("gpt_neox.layers.{l}.input_layernorm.weight", ("blocks.ln1.scale",), "D -> D"),
        Rule("gpt_neox.layers.{l}.input_layernorm.bias", ("blocks.ln1.bias",), "D -> D"),
        Rule(
            "gpt_neox.layers.{l}.attention.query_key_value.weight",
            ("blocks.attn.W_Q", "blocks.attn.W_K", "blocks.attn.W_V"),
            "(H 3 K) D -> 3 D H K",
        ),
        Rule(
            "gpt_neox.layers.{l}.attention.query_key_value.bias",
            ("blocks.attn.b_Q", "blocks.attn.b_K", "blocks.attn.b_V"),
            "(H 3 K) -> 3 H K",
            when="attention_bias",
        ),
        Rule("gpt_neox.layers.{l}.attention.dense.weight", ("blocks.attn.W_O",), "D (H K) -> H K D"),
        Rule(
            "gpt_neox.layers.{l}.attention.dense.bias", ("blocks.attn.b_O",), "D -> D", when="attention_bias"
        ),
        Rule("gpt_neox.layers.{l}.post_attention_layernorm.weight", ("blocks.ln2.scale",), "D -> D"),
        Rule("gpt_neox.layers.{l}.post_attention_layernorm.bias", ("blocks.ln2.bias",), "D -> D"),
        Rule("gpt_neox.layers.{l}.mlp.dense_h_to_4h.weight", ("blocks.mlp.W_in",), "F D -> D F"),
        Rule("gpt_neox.layers.{l}.mlp.dense_h_to_4h.bias", ("blocks.mlp.b_in",), "F -> F"),
        Rule("gpt_neox.layers.{l}.mlp.dense_4h_to_h.weight", ("blocks.mlp.W_out",), "D F -> F D"),
        Rule("gpt_neox.layers.{l}.mlp.dense_4h_to_h.bias", ("blocks.mlp.b_out",), "D -> D"),
        Rule("gpt_neox.final_layer_norm.weight", ("ln_final.scale",), "D -> D"),
        Rule("gpt_neox.final_layer_norm.bias", ("ln_final.bias",), "D -> D"),
        Rule("embed_out.weight|lm_head.weight", ("unembed.rows",), "V D -> V D"),
    ),
    zeros=("unembed.b_U",),
    buffers=(
        "gpt_neox.layers.{l}.attention.bias",
        "gpt_neox.layers.{l}.attention.masked_bias",
        "gpt_neox.layers.{l}.attention.rotary_emb.inv_freq",
    ),
)
