"""OPT but for the 350M, whose norms stand elsewhere: GPT-2 with ReLU, its first two positions not used."""

from checkpoints_convert.fields import ACTIVATIONS, MAX_LAYERS, Fields
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig


def read_config(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    d_model, n_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if d_model % n_heads:
        raise fields.refuse(f"hidden_size must be a multiple of num_attention_heads, {n_heads}", d_model)
    config = ModelConfig(
        family="opt",
        n_layers=fields.size("num_hidden_layers", most=MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_model=d_model,
        d_mlp=fields.size("ffn_dim", default=3072),
        vocab_size=fields.size("vocab_size", default=50_272),
        max_positions=fields.size("max_position_embeddings", default=2048),
        norm="layer",
        norm_eps=1e-5,
        rotary=None,
        activation=fields.choice("activation_function", table=ACTIVATIONS, default="relu"),
        gated_mlp=False,
        parallel_residual=False,
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
    )
    switches = {"enable_bias": fields.flag("enable_bias", default=True)}
    fields.finish(
        do_layer_norm_before=True,
        _remove_final_layer_norm=False,
        layer_norm_elementwise_affine=True,
        word_embed_proj_dim=d_model,
        head_dim=d_model // n_heads,
        num_key_value_heads=n_heads,
    )
    return config, switches


def linear(tensor: str, weight: str, layout: str, bias: str, of_bias: str) -> tuple[Rule, Rule]:
    """A linear layer: its matrix, and the bias that `enable_bias` says is there."""
    name = f"model.decoder.layers.{{l}}.{tensor}"
    return (
        Rule(f"{name}.weight", (f"blocks.{weight}",), layout),
        Rule(f"{name}.bias", (f"blocks.{bias}",), of_bias, when="enable_bias"),
    )


OPT = Family(
    prefix="model.",
    read_config=read_config,
    rules=(
        Rule("model.decoder.embed_tokens.weight", ("embed.W_E",), "V D -> V D"),
        Rule("model.decoder.embed_positions.weight", ("embed.W_pos",), "2+P D -> P D"),
        *(
            Rule(f"model.decoder.layers.{{l}}.{theirs}.{stored}", (f"{ours}.{part}",), "D -> D")
            for theirs, ours in (("self_attn_layer_norm", "blocks.ln1"), ("final_layer_norm", "blocks.ln2"))
            for stored, part in (("weight", "scale"), ("bias", "bias"))
        ),
        *linear("self_attn.q_proj", "attn.W_Q", "(H K) D -> D H K", "attn.b_Q", "(H K) -> H K"),
        *linear("self_attn.k_proj", "attn.W_K", "(G K) D -> D G K", "attn.b_K", "(G K) -> G K"),
        *linear("self_attn.v_proj", "attn.W_V", "(G K) D -> D G K", "attn.b_V", "(G K) -> G K"),
        *linear("self_attn.out_proj", "attn.W_O", "D (H K) -> H K D", "attn.b_O", "D -> D"),
        *linear("fc1", "mlp.W_in", "F D -> D F", "mlp.b_in", "F -> F"),
        *linear("fc2", "mlp.W_out", "D F -> F D", "mlp.b_out", "D -> D"),
        Rule("model.decoder.final_layer_norm.weight", ("ln_final.scale",), "D -> D"),
        Rule("model.decoder.final_layer_norm.bias", ("ln_final.bias",), "D -> D"),
        Rule("lm_head.weight", ("unembed.rows",), "V D -> V D"),
    ),
    zeros=("unembed.b_U",),
)
