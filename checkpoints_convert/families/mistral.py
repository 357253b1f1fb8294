"""Mistral 7B, Nemo and Small: Llama without biases; the first 7B sees a window of positions."""

from checkpoints_convert.families.llama import (
    ATTENTION_BIASES,
    BUFFERS,
    MLP_BIASES,
    NORM_BIASES,
    WEIGHTS,
    read_llama_like,
    read_whole_rotary,
)
from checkpoints_convert.fields import Fields
from checkpoints_convert.rules import Family
from headjax.config import ModelConfig


def read_config(fields: Fields) -> tuple[ModelConfig, dict[str, bool]]:
    # Without the field a window of 4,096, with null none: so transformers reads it.
    window = fields.size_or_null("sliding_window", default=4096)
    own = read_llama_like(fields, "mistral", num_key_value_heads=8, max_position_embeddings=131_072)
    config = ModelConfig(**own, rotary=read_whole_rotary(fields, own), window=window)
    fields.finish()
    return config, {}


MISTRAL = Family(
    prefix="model.",
    read_config=read_config,
    rules=WEIGHTS,
    zeros=(*NORM_BIASES, *MLP_BIASES, *ATTENTION_BIASES),
    buffers=BUFFERS,
)
