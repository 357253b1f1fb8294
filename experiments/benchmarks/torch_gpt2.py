"""A random GPT-2 twice, as our model and as Hugging Face's in torch: what benchmarks compare."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from jax import Array

from experiments.benchmarks.measure import matmul_rate, usable_cores
from headjax.config import ModelConfig
from headjax.model import Transformer, build_model

GPT2_SMALL = ModelConfig(
    family="gpt2",
    n_layers=12,
    n_heads=12,
    n_kv_heads=12,
    d_head=64,
    d_model=768,
    d_mlp=3072,
    vocab_size=50257,
    max_positions=1024,
    norm="layer",
    norm_eps=1e-5,
    rotary=None,
    activation="gelu_tanh",
    gated_mlp=False,
    parallel_residual=False,
    tied_embeddings=True,
)
GPT2_MEDIUM = dataclasses.replace(
    GPT2_SMALL, n_layers=24, n_heads=16, n_kv_heads=16, d_model=1024, d_mlp=4096
)
SHAPES = {"GPT-2 small": GPT2_SMALL, "GPT-2 medium": GPT2_MEDIUM}


def smallest_ratio(compare: Callable[[str, float], float]) -> float:
    """Of comparisons at all SHAPES, which are given the rate of a large product; printed last."""
    torch.set_num_threads(usable_cores())
    device = jax.devices()[0]
    print(f"device: {device.platform}, {device.device_kind}; torch threads: {torch.get_num_threads()}")
    rate = matmul_rate()
    print(f"float32 product of 4096 x 4096: {rate / 1e9:.0f} GFLOP/s")
    ratio = min(compare(name, rate) for name in SHAPES)
    print(f"ratio {ratio:.1f}x")
    return ratio


def gpt2_twins(config: ModelConfig, seed: int = 0) -> tuple[Transformer, transformers.GPT2LMHeadModel]:
    """The same random float32 weights in both."""
    torch.manual_seed(seed)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_embd=config.d_model,
            n_inner=config.d_mlp,
            n_positions=config.max_positions,
            vocab_size=config.vocab_size,
            layer_norm_epsilon=config.norm_eps,
            activation_function="gelu_new",
            attn_implementation="eager",
        )
    ).eval()
    weights = {name: weight.numpy() for name, weight in theirs.transformer.state_dict().items()}
    L, D, H, K = config.n_layers, config.d_model, config.n_heads, config.d_head

    def stacked(name: str) -> np.ndarray:
        return np.stack([weights[f"h.{layer}.{name}"] for layer in range(L)])

    def norm(ours: str, name: str, read=stacked) -> dict[str, np.ndarray]:
        return {f"{ours}.scale": read(f"{name}.weight"), f"{ours}.bias": read(f"{name}.bias")}

    W_QKV, b_QKV = stacked("attn.c_attn.weight"), stacked("attn.c_attn.bias")
    parameters: dict[str, Array | np.ndarray] = {
        "embed.W_E": weights["wte.weight"],
        "embed.W_pos": weights["wpe.weight"],
        **norm("blocks.ln1", "ln_1"),
        **norm("blocks.ln2", "ln_2"),
        **norm("ln_final", "ln_f", weights.__getitem__),
        "blocks.attn.W_O": stacked("attn.c_proj.weight").reshape(L, H, K, D),
        "blocks.attn.b_O": stacked("attn.c_proj.bias"),
        "blocks.mlp.W_in": stacked("mlp.c_fc.weight"),
        "blocks.mlp.b_in": stacked("mlp.c_fc.bias"),
        "blocks.mlp.W_out": stacked("mlp.c_proj.weight"),
        "blocks.mlp.b_out": stacked("mlp.c_proj.bias"),
        "unembed.b_U": np.zeros(config.vocab_size, np.float32),
    }
    for i, part in enumerate("QKV"):
        parameters[f"blocks.attn.W_{part}"] = W_QKV[..., i * D : (i + 1) * D].reshape(L, D, H, K)
        parameters[f"blocks.attn.b_{part}"] = b_QKV[..., i * D : (i + 1) * D].reshape(L, H, K)
    return build_model(config, {name: jnp.asarray(value) for name, value in parameters.items()}), theirs
