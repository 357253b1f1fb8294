"""GPT-2. Its linear layers are stored [in, out] (Conv1D); files on the hub often lack the prefix."""

from checkpoints_convert.fields import ACTIVATIONS, MAX_LAYERS, Fields
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig


def read_config(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    d_model, n_heads = fields.size("n_embd", "hidden_size"), fields.size("n_head", "num_attention_heads")
    if d_model % n_heads:
        raise fields.refuse(f"n_embd must be a multiple of n_head, {n_heads}", d_model)
    config = ModelConfig(
        family="gpt2",
        n_layers=fields.size("n_layer", "num_hidden_layers", most=MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_model=d_model,
        d_mlp=fields.size("n_inner", default=4 * d_model),
        vocab_size=fields.size("vocab_size"),
        max_positions=fields.size("n_positions", "max_position_embeddings", default=1024),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", default=1e-5),
        rotary=None,
        activation=fields.choice("activation_function", table=ACTIVATIONS, default="gelu_new"),
        gated_mlp=False,
        parallel_residual=False,
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        scores_by_layer=fields.flag("scale_attn_by_inverse_layer_idx", default=False),
    )
    fields.finish(head_dim=d_model // n_heads, num_key_value_heads=n_heads)
    return config, {}


GPT2 = Family(
    prefix="transformer.",
    read_config=read_config,
    rules=(
        Rule("transformer.wte.weight", ("embed.W_E",), "V D -> V D"),
        Rule("transformer.wpe.weight", ("embed.W_pos",), "P D -> P D"),
        Rule("transformer.h.{l}.ln_1.weight", ("blocks.ln1.scale",), "D -> D"),
        Rule("transformer.h.{l}.ln_1.bias", ("blocks.ln1.bias",), "D -> D"),
        Rule(
            "transformer.h.{l}.attn.c_attn.weight",
            ("blocks.attn.W_Q", "blocks.attn.W_K", "blocks.attn.W_V"),
            "D (3 H K) -> 3 D H K",
        ),
        Rule(
            "transformer.h.{l}.attn.c_attn.bias",
            ("blocks.attn.b_Q", "blocks.attn.b_K", "blocks.attn.b_V"),
            "(3 H K) -> 3 H K",
        ),
        Rule("transformer.h.{l}.attn.c_proj.weight", ("blocks.attn.W_O",), "(H K) D -> H K D"),
        Rule("transformer.h.{l}.attn.c_proj.bias", ("blocks.attn.b_O",), "D -> D"),
        Rule("transformer.h.{l}.ln_2.weight", ("blocks.ln2.scale",), "D -> D"),
        Rule("transformer.h.{l}.ln_2.bias", ("blocks.ln2.bias",), "D -> D"),
        Rule("transformer.h.{l}.mlp.c_fc.weight", ("blocks.mlp.W_in",), "D F -> D F"),
        Rule("transformer.h.{l}.mlp.c_fc.bias", ("blocks.mlp.b_in",), "F -> F"),
        Rule("transformer.h.{l}.mlp.c_proj.weight", ("blocks.mlp.W_out",), "F D -> F D"),
        Rule("transformer.h.{l}.mlp.c_proj.bias", ("blocks.mlp.b_out",), "D -> D"),
        Rule("transformer.ln_f.weight", ("ln_final.scale",), "D -> D"),
        Rule("transformer.ln_f.bias", ("ln_final.bias",), "D -> D"),
        Rule("lm_head.weight", ("unembed.rows",), "V D -> V D"),
    ),
    zeros=("unembed.b_U",),
    buffers=("transformer.h.{l}.attn.bias", "transformer.h.{l}.attn.masked_bias"),
)
