"""The norms of a transformer: of the residual stream, and of queries and keys."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from headjax.config import ModelConfig


class Norm(nnx.Module):
    """Layer norm, or root-mean-square norm (whose bias stays zero), of the last axes; computed in float32.

    `shape` is that of these axes, one of d_model if not given.
    """

    def __init__(
        self,
        config: ModelConfig,
        stack: tuple[int, ...],
        dtype: DTypeLike,
        shape: tuple[int, ...] | None = None,
    ):
        self.config = config
        shape = (config.d_model,) if shape is None else shape
        self.axes = tuple(range(-len(shape), 0))
        self.scale = nnx.Param(jnp.ones((*stack, *shape), dtype))
        self.bias = nnx.Param(jnp.zeros((*stack, *shape), dtype))

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        x32 = x.astype(jnp.float32)
        if self.config.norm == "layer":
            x32 = x32 - x32.mean(axis=self.axes, keepdims=True)
        x32 = x32 * self.inverse_size(x32)
        leading = tuple(range(x.ndim - len(self.axes)))
        scale, bias = (
            jnp.expand_dims(part[...].astype(jnp.float32), leading) for part in (self.scale, self.bias)
        )
        return (x32 * scale + bias).astype(x.dtype)

    def inverse_size(self, x: Float[Array, "*rows D"]) -> Float[Array, "*reduced"]:
        """What the norm multiplies a (centred) x by, before its gain: one over its root mean square. The axes
        that are normed have size 1 in it."""
        power = jnp.mean(x * x, axis=self.axes, keepdims=True)
        return jax.lax.rsqrt(power + self.config.norm_eps)
