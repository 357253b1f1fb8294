"""Tiny models of every shape whose tensors all tell."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from headjax.config import Llama3Scaling, ModelConfig, Rotary
from headjax.model import Transformer, build_model, parameter_shapes

GPT2 = ModelConfig(
    family="gpt2",
    n_layers=3,
    n_heads=5,
    n_kv_heads=5,
    d_head=7,
    d_model=23,
    d_mlp=29,
    vocab_size=53,
    max_positions=19,
    norm="layer",
    norm_eps=1e-4,
    rotary=None,
    activation="gelu_tanh",
    gated_mlp=False,
    parallel_residual=False,
    tied_embeddings=True,
)


LLAMA = dataclasses.replace(
    GPT2,
    family="llama",
    n_heads=6,
    n_kv_heads=2,
    d_head=10,
    norm="rms",
    rotary=Rotary(dim=10, theta=1e4, scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192)),
    activation="silu",
    gated_mlp=True,
    tied_embeddings=False,
)


NEOX = dataclasses.replace(GPT2, family="gpt_neox", rotary=Rotary(dim=4, theta=1e4), parallel_residual=True)


CONFIGS = {"gpt2": GPT2, "llama": LLAMA, "gpt_neox": NEOX}


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 53, (2, 11)))


def informative_model(config: ModelConfig) -> Transformer:
    """Random parameters of which none is at its initial value."""
    rng = np.random.default_rng(1)
    return build_model(
        config,
        {
            name: jnp.asarray(
                name.endswith("scale") + rng.normal(0, 0.3, shape) * (4 / shape[-1] ** 0.5), jnp.float32
            )
            for name, shape in parameter_shapes(config).items()
        },
    )
