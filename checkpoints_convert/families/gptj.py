"""GPT-J: attention and MLP side by side behind one norm; what is rotated together are neighbours."""

import numpy as np

from checkpoints_convert.fields import ACTIVATIONS, MAX_LAYERS, Fields
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig, Rotary


def read_config(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    d_model, n_heads = fields.size("n_embd", "hidden_size"), fields.size("n_head", "num_attention_heads")
    if d_model % n_heads:
        raise fields.refuse(f"n_embd must be a multiple of n_head, {n_heads}", d_model)
    d_head = d_model // n_heads
    dim = fields.size_or_null("rotary_dim", default=64) or d_head
    if dim % 2 or dim > d_head:
        raise fields.refuse(f"rotary_dim must be an even part of {d_head}", dim)
    config = ModelConfig(
        family="gptj",
        n_layers=fields.size("n_layer", "num_hidden_layers", most=MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_model=d_model,
        d_mlp=fields.size("n_inner", default=4 * d_model),
        vocab_size=fields.size("vocab_size", default=50_400),
        max_positions=fields.size("n_positions", "max_position_embeddings", default=2048),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", default=1e-5),
        rotary=Rotary(dim=dim, theta=10_000.0),
        activation=fields.choice("activation_function", table=ACTIVATIONS, default="gelu_new"),
        gated_mlp=False,
        parallel_residual=True,
        tied_embeddings=fields.flag("tie_word_embeddings", default=False),
    )
    fields.finish(rotary=True, head_dim=d_head, num_key_value_heads=n_heads)
    return config, {}


def halves(weights: np.ndarray, config: ModelConfig) -> np.ndarray:
    """W_Q or W_K with the pairs (2i, 2i + 1) of what is rotated moved to (i, i + half).

    Of both alike, so that every product of a query and a key, and with it every score, stays as it is.
    """
    dim = config.rotary.dim
    order = [*range(0, dim, 2), *range(1, dim, 2), *range(dim, config.d_head)]
    return np.ascontiguousarray(weights[..., order])


def rotated(tensor: str, parameter: str, layout: str) -> Rule:
    """A matrix that makes what is rotated."""
    return Rule(tensor, (parameter,), layout, reorder=halves)


GPTJ = Family(
    prefix="transformer.",
    read_config=read_config,
    rules=(
        Rule("transformer.wte.weight", ("embed.W_E",), "V D -> V D"),
        Rule("transformer.h.{l}.ln_1.weight", ("blocks.ln1.scale", "blocks.ln2.scale"), "D -> D"),
        Rule("transformer.h.{l}.ln_1.bias", ("blocks.ln1.bias", "blocks.ln2.bias"), "D -> D"),
        rotated("transformer.h.{l}.attn.q_proj.weight", "blocks.attn.W_Q", "(H K) D -> D H K"),
        rotated("transformer.h.{l}.attn.k_proj.weight", "blocks.attn.W_K", "(G K) D -> D G K"),
        Rule("transformer.h.{l}.attn.v_proj.weight", ("blocks.attn.W_V",), "(G K) D -> D G K"),
        Rule("transformer.h.{l}.attn.out_proj.weight", ("blocks.attn.W_O",), "D (H K) -> H K D"),
        Rule("transformer.h.{l}.mlp.fc_in.weight", ("blocks.mlp.W_in",), "F D -> D F"),
        Rule("transformer.h.{l}.mlp.fc_in.bias", ("blocks.mlp.b_in",), "F -> F"),
        Rule("transformer.h.{l}.mlp.fc_out.weight", ("blocks.mlp.W_out",), "D F -> F D"),
        Rule("transformer.h.{l}.mlp.fc_out.bias", ("blocks.mlp.b_out",), "D -> D"),
        Rule("transformer.ln_f.weight", ("ln_final.scale",), "D -> D"),
        Rule("transformer.ln_f.bias", ("ln_final.bias",), "D -> D"),
        Rule("lm_head.weight", ("unembed.rows",), "V D -> V D"),
        Rule("lm_head.bias", ("unembed.b_U",), "V -> V"),
    ),
    zeros=tuple(f"blocks.attn.b_{part}" for part in "QKVO"),
    buffers=(
        "transformer.h.{l}.attn.bias",
        "transformer.h.{l}.attn.masked_bias",
        "transformer.h.{l}.attn.embed_positions",
    ),
)
