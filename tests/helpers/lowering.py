"""Shapes and models that kernels are lowered for."""

import jax
import jax.numpy as jnp

from kernels.head_attention import head_attention
from kernels.variant_decode import variant_decode
from kernels.vocab_rank import vocab_rank

# name -> H, G, K, D, V
MODELS = {
    "GPT-2 xl": (25, 25, 64, 1600, 50257),
    "Pythia 12B": (40, 40, 128, 5120, 50688),
    "Phi-2": (32, 32, 80, 2560, 51200),
    "Llama-3.1 70B": (64, 8, 128, 8192, 128256),
}


def shape(*sizes: int, dtype="float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))


def attention(model: str, implementation: str, dtype: str):
    """All options at once, 2 prompts of 1000 positions."""
    H, G, K, _, _ = MODELS[model]
    B, S = 2, 1000
    options = {
        "valid": shape(B, S, dtype=bool),
        "gain": shape(B, 1, H),
        "replacement": shape(1, S, H, K),
        "knock_out": shape(1, S, H, 2, dtype="int32"),
        "forced": shape(B, S, 1, dtype="int32"),
    }
    tensors = shape(B, S, H, K, dtype=dtype), shape(B, S, G, K, dtype=dtype), shape(B, S, G, K, dtype=dtype)

    def call(q, k, v, options):
        return head_attention(q, k, v, **options, precision="highest", implementation=implementation)

    return call, (*tensors, options)


def decode(model: str, implementation: str, dtype: str):
    """1,200 variants against a cache of 24 prompts of 16 positions."""
    H, G, K, _, _ = MODELS[model]
    M, B, S = 1200, 24, 16
    shapes = ((M, B, H, K), (B, S, G, K), (B, S, G, K), (M, B, G, K), (M, B, G, K))
    arguments = [shape(*sizes, dtype=dtype) for sizes in shapes]

    def call(q, k, v, k_new, v_new, valid):
        return variant_decode(
            q, k, v, k_new, v_new, valid=valid, precision="highest", implementation=implementation
        )

    return call, (*arguments, shape(B, S, dtype=bool))


def rank(model: str, implementation: str, dtype: str):
    """2,000 pairs under every head with a cap, then the log-probabilities of 300 residuals."""
    H, _, K, D, V = MODELS[model]
    arguments = {
        "q": shape(H, 2000, K, dtype=dtype),
        "W_O": shape(H, K, D, dtype=dtype),
        "x": shape(1, 300, D, dtype=dtype),
        "unembed": shape(V, D, dtype=dtype),
        "bias": shape(V),
        "target": shape(2000, dtype="int32"),
    }

    def call(a):
        how = {"precision": "highest", "implementation": implementation}
        hits = vocab_rank(a["q"], a["unembed"], a["target"], W_O=a["W_O"], cap=a["target"], **how)
        logprobs = vocab_rank(
            a["x"], a["unembed"], a["target"][:300], bias=a["bias"], with_lse=True, with_argmax=True, **how
        )
        return hits.above, hits.below, logprobs

    return call, (arguments,)


OPS = {"head_attention": attention, "variant_decode": decode, "vocab_rank": rank}
