"""Shapes and models that kernels are lowered for."""

import jax
import jax.numpy as jnp
from headjax.kernels.head_attention import head_attention
from headjax.kernels.variant_decode import variant_decode
from headjax.kernels.vocab_rank import vocab_rank

# name -> H, G, K, D, V
MODELS = {
    "GPT-2 xl": (25, 25, 64, 1600, 50257),
    "Pythia 12B": (40, 40, 128, 5120, 50688),
    "Phi-2": (32, 32, 80, 2560, 51200),
    "Llama-3.1 70B": (64, 8, 128, 8192, 128256),
    "Gemma-2 9B": (16, 8, 256, 3584, 256000),
}
SOFT_CAP = {"Gemma-2 9B": 50.0}  # of the models that have one; they have windows too


def shape(*sizes: int, dtype="float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))


def attention(model: str, implementation: str, dtype: str):
    """All of the model's options at once, 2 prompts of 1000 positions; a window is an array."""
    H, G, K, _, _ = MODELS[model]
    B, S = 2, 1000
    options = {
        "valid": shape(B, S, dtype=bool),
        "gain": shape(B, 1, H),
        "replacement": shape(1, S, H, K),
    }
    if model in SOFT_CAP:
        options["window"] = shape(dtype="int32")
    tensors = shape(B, S, H, K, dtype=dtype), shape(B, S, G, K, dtype=dtype), shape(B, S, G, K, dtype=dtype)

    def call(q, k, v, options):
        how = {"soft_cap": SOFT_CAP.get(model), "precision": "highest", "implementation": implementation}
        return head_attention(q, k, v, **options, **how)

    return call, (*tensors, options)


def decode(model: str, implementation: str, dtype: str):
    """1,200 variants against a cache of 24 prompts of 16 positions."""
    H, G, K, _, _ = MODELS[model]
    M, B, S = 1200, 24, 16
    shapes = ((M, B, H, K), (B, S, G, K), (B, S, G, K), (M, B, G, K), (M, B, G, K))
    arguments = [shape(*sizes, dtype=dtype) for sizes in shapes]

    def call(q, k, v, k_new, v_new, options):
        how = {"soft_cap": SOFT_CAP.get(model), "precision": "highest", "implementation": implementation}
        return variant_decode(q, k, v, k_new, v_new, **options, **how)

    options = {"valid": shape(B, S, dtype=bool)}
    if model in SOFT_CAP:
        options["window"] = shape(dtype="int32")
    return call, (*arguments, options)


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
        logprobs = vocab_rank(a["x"], a["unembed"], a["target"][:300], bias=a["bias"], with_lse=True, **how)
        return hits.above, hits.below, logprobs

    return call, (arguments,)


OPS = {"head_attention": attention, "variant_decode": decode, "vocab_rank": rank}
