"""One layer of a transformer: its MLP, and the block that joins it with norms and attention."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.axes import HeadOutputs, Residual
from headjax.config import ModelConfig
from headjax.model.attention import Attention
from headjax.model.edits import HeadEdit
from headjax.model.norm import Norm

ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class MLP(nnx.Module):
    """W_in [D F], W_out [F D]; gated ones add W_gate [D F] (Shazeer 2020): act(x W_gate) * (x W_in)."""

    def __init__(self, config: ModelConfig, init: nnx.Initializer, stack: tuple[int, ...], rngs: nnx.Rngs):
        self.config = config
        D, F = config.d_model, config.d_mlp
        self.W_in = nnx.Param(init(rngs.params(), (*stack, D, F)))
        self.W_out = nnx.Param(init(rngs.params(), (*stack, F, D)))
        self.b_in = nnx.Param(jnp.zeros((*stack, F), self.W_in.dtype))
        self.b_out = nnx.Param(jnp.zeros((*stack, D), self.W_in.dtype))
        if config.gated_mlp:
            self.W_gate = nnx.Param(init(rngs.params(), (*stack, D, F)))
            self.b_gate = nnx.Param(jnp.zeros((*stack, F), self.W_in.dtype))

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        def linear(x: Array, weight: nnx.Param, bias: nnx.Param) -> Array:
            product = jnp.einsum("...i,ij->...j", x, weight[...], precision=self.config.precision)
            return product + jnp.expand_dims(bias[...], tuple(range(x.ndim - 1)))

        activation = ACTIVATIONS[self.config.activation]
        if self.config.gated_mlp:
            hidden = activation(linear(x, self.W_gate, self.b_gate)) * linear(x, self.W_in, self.b_in)
        else:
            hidden = activation(linear(x, self.W_in, self.b_in))
        return linear(hidden, self.W_out, self.b_out)


class Block(nnx.Module):
    """One layer. `ln2` is the MLP's own norm, also where attention and MLP run side by side."""

    def __init__(self, config: ModelConfig, init: nnx.Initializer, stack: tuple[int, ...], rngs: nnx.Rngs):
        self.config = config
        self.attn = Attention(config, init, stack, rngs)
        self.mlp = MLP(config, init, stack, rngs)
        self.ln1 = Norm(config, stack, self.attn.W_Q.dtype)
        self.ln2 = Norm(config, stack, self.attn.W_Q.dtype)

    def __call__(
        self,
        x: Residual,
        positions: Int[Array, "B S"],
        valid: Bool[Array, "B S"] | None,
        edit: HeadEdit | None,
    ) -> tuple[Residual, HeadOutputs]:
        """The residual after this layer, and z as edited. `edit` is this layer's slice of a HeadEdit."""
        q, k, v = self.attn.project(self.ln1(x), positions)
        z = self.attn.attend(q, k, v, valid, edit)
        return self.finish(x, z), z

    def finish(self, x: Residual, z: HeadOutputs) -> Residual:
        """The residual after this layer, given the residual before it and its heads' outputs."""
        return self.add(x, self.attn.output(z))

    def add(self, x: Float[Array, "*rows D"], attention: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """The residual after this layer, given the residual before it and what its attention writes."""
        after_attention = x + attention
        mlp_input = x if self.config.parallel_residual else after_attention
        return after_attention + self.mlp(self.ln2(mlp_input))
