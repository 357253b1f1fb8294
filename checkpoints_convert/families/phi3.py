"""Phi-3: Llama with queries, keys and values in one matrix, and the two inner matrices of the MLP in one."""

from checkpoints_convert.families.llama import (
    ATTENTION_BIASES,
    BUFFERS,
    MATRICES,
    MLP_BIASES,
    NORM_BIASES,
    NORMS,
    read_llama_like,
)
from checkpoints_convert.fields import Fields, read_rotary
from checkpoints_convert.rules import Family, Rule
from headjax.config import ModelConfig

DEFAULTS = {
    **{"vocab_size": 32_064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
}


def read_config(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    own = read_llama_like(fields, "phi3", **DEFAULTS)
    window = fields.size_or_null("sliding_window", default=None)
    rotary = read_rotary(fields, own["d_head"], own["max_positions"])
    config = ModelConfig(**own, rotary=rotary, window=window)
    fields.finish()
    return config, {}


FUSED = (
    Rule(
        "model.layers.{l}.self_attn.qkv_proj.weight",
        ("blocks.attn.W_Q", "blocks.attn.W_K", "blocks.attn.W_V"),
        "(H|G|G K) D -> D * K",
    ),
    Rule(
        "model.layers.{l}.mlp.gate_up_proj.weight", ("blocks.mlp.W_gate", "blocks.mlp.W_in"), "F|F D -> D *"
    ),
)
PHI3 = Family(
    prefix="model.",
    read_config=read_config,
    rules=(
        *(rule for rule in MATRICES if rule.parameters[0] not in {p for f in FUSED for p in f.parameters}),
        *FUSED,
        *NORMS,
    ),
    zeros=(*NORM_BIASES, *MLP_BIASES, *ATTENTION_BIASES),
    buffers=BUFFERS,
)
