"""Tokenizers of words, and what they make of them."""

import os

import numpy as np

from headjax.config import ModelConfig

CONFIG = ModelConfig(
    family="gpt2",
    n_layers=2,
    n_heads=3,
    n_kv_heads=3,
    d_head=5,
    d_model=15,
    d_mlp=17,
    vocab_size=1000,
    max_positions=23,
    norm="layer",
    norm_eps=1e-5,
    rotary=None,
    activation="gelu",
    gated_mlp=False,
    parallel_residual=False,
    tied_embeddings=True,
)


def spelled(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens([int(i) for i in np.ravel(ids)])


REAL_MODEL = os.environ.get("HEADJAX_REAL_MODEL") or None


def ids(tokenizer, text: str, special: bool) -> list[int] | None:
    """None for a text with a character that the vocabulary has no token for."""
    try:
        return tokenizer(text, add_special_tokens=special)["input_ids"]
    except Exception:
        return None
