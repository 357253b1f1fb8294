"""The norms of a transformer: of the residual stream, and of queries and keys."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from headjax.config import ModelConfig


class Norm(nnx.Module):
    """Layer norm, or root-mean-square norm (whose bias stays zero), of the last axis; computed in float32.

    `size` is that axis's, d_model if not given.
    """

    def __init__(
        self, config: ModelConfig, stack: tuple[int, ...], dtype: DTypeLike, size: int | None = None
    ):
        self.config = config
        shape = (*stack, config.d_model if size is None else size)
        self.scale = nnx.Param(jnp.ones(shape, dtype))
        self.bias = nnx.Param(jnp.zeros(shape, dtype))

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        x32 = x.astype(jnp.float32)
        if self.config.norm == "layer":
            x32 = x32 - x32.mean(axis=-1, keepdims=True)
        power = jnp.mean(x32 * x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(power + self.config.norm_eps)
        leading = tuple(range(x.ndim - 1))
        scale, bias = (
            jnp.expand_dims(part[...].astype(jnp.float32), leading) for part in (self.scale, self.bias)
        )
        return (x32 * scale + bias).astype(x.dtype)
