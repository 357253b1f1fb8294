"""Mistral 7B, Nemo and Small: Llama without biases; the first 7B sees a window of positions."""

from checkpoints_convert.families.llama import BUFFERS, MLP_BIASES, NORM_BIASES, WEIGHTS, read_llama_like
from checkpoints_convert.fields import Fields
from checkpoints_convert.rules import Family
from headjax.config import ModelConfig


def read_config(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    # Without the field a window of 4,096, with null none: so transformers reads it.
    window = fields.size_or_null("sliding_window", default=4096)
    config = read_llama_like(fields, "mistral", n_kv_heads=8, max_positions=131_072, window=window)
    fields.finish()
    return config, {}


MISTRAL = Family(
    prefix="model.",
    read_config=read_config,
    rules=WEIGHTS,
    zeros=(
        *NORM_BIASES,
        *MLP_BIASES,
        *("blocks.attn.b_Q", "blocks.attn.b_K", "blocks.attn.b_V", "blocks.attn.b_O"),
    ),
    buffers=BUFFERS,
)
