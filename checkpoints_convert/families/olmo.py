"""OLMo 2 and 3: Llama with norms after attention and MLP in place of before them, and one norm over all
queries, one over all keys. OLMo 3 has windows in three of four layers."""

from checkpoints_convert.families.llama import (
    BUFFERS,
    MATRICES,
    MLP_BIASES,
    NORM_BIASES,
    output_bias,
    qkv_biases,
    read_llama_like,
    read_whole_rotary,
)
from checkpoints_convert.fields import Fields, read_rotaries, read_window
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig

DEFAULTS = {
    **{"vocab_size": 50_304, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "rms_norm_eps": 1e-5},
}
OLMO_3_BASE = 500_000.0


def read_olmo2(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    own = read_llama_like(fields, "olmo2", **DEFAULTS)
    config = ModelConfig(**own, rotary=read_whole_rotary(fields, own), norms="after", qk_norm="joint")
    return config, finish(fields)


def read_olmo3(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    own = read_llama_like(fields, "olmo3", **DEFAULTS)
    n_layers = own["n_layers"]
    kinds = ["sliding_attention" if (layer + 1) % 4 else "full_attention" for layer in range(n_layers)]
    window = fields.size_or_null("sliding_window", default=4096)
    # Versions of transformers do not agree on what another base outside of rope_parameters means for layers
    # with a window.
    if (base := fields.values.get("rope_theta", OLMO_3_BASE)) != OLMO_3_BASE:
        raise fields.refuse(f"rope_theta must be {OLMO_3_BASE:g}, or stand in rope_parameters", base)
    rotary, in_window = read_rotaries(fields, own["d_head"], own["max_positions"], OLMO_3_BASE, OLMO_3_BASE)
    config = ModelConfig(
        **own,
        rotary=rotary,
        rotary_in_window=in_window,
        window=read_window(fields, n_layers, window, kinds),
        norms="after",
        qk_norm="joint",
    )
    return config, finish(fields)


def finish(fields: Fields) -> dict[str, bool]:
    """The switches; refuses what nobody took."""
    switches = {"attention_bias": fields.flag("attention_bias", default=False)}
    fields.finish()
    return switches


RULES = (
    *MATRICES,
    Rule("model.layers.{l}.post_attention_layernorm.weight", ("blocks.ln1_post.scale",), "D -> D"),
    Rule("model.layers.{l}.post_feedforward_layernorm.weight", ("blocks.ln2_post.scale",), "D -> D"),
    Rule("model.layers.{l}.self_attn.q_norm.weight", ("blocks.attn.q_norm.scale",), "(H K) -> H K"),
    Rule("model.layers.{l}.self_attn.k_norm.weight", ("blocks.attn.k_norm.scale",), "(G K) -> G K"),
    Rule("model.norm.weight", ("ln_final.scale",), "D -> D"),
    *qkv_biases("attention_bias"),
    output_bias("attention_bias"),
)
ZEROS = (*NORM_BIASES, *MLP_BIASES)

OLMO2 = Family("model.", read_olmo2, RULES, ZEROS, BUFFERS)
OLMO3 = Family("model.", read_olmo3, RULES, ZEROS, BUFFERS)
