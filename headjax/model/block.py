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
    """One layer: `ln1` and `ln2` before attention and MLP, `ln1_post` and `ln2_post` after them, as far as
    the config has norms there. `ln2` is the MLP's own, also where attention and MLP run side by side.
    """

    def __init__(self, config: ModelConfig, init: nnx.Initializer, stack: tuple[int, ...], rngs: nnx.Rngs):
        self.config = config
        self.attn = Attention(config, init, stack, rngs)
        self.mlp = MLP(config, init, stack, rngs)
        for name in norm_names(config):
            setattr(self, name, Norm(config, stack, self.attn.W_Q.dtype))

    def __call__(
        self,
        x: Residual,
        positions: Int[Array, "B S"],
        valid: Bool[Array, "B S"] | None,
        edit: HeadEdit | None,
    ) -> tuple[Residual, HeadOutputs]:
        """The residual after this layer, and z as edited. `edit` is this layer's slice of a HeadEdit."""
        z = self.attn.attend(*self.project(x, positions), valid, edit)
        return self.finish(x, z), z

    # --- what heads read and write --------------------------------------------------------------------

    def read(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """What this layer's heads read of the residual: it, through the norm before attention."""
        return self.ln1(x) if hasattr(self, "ln1") else x

    def project(
        self, x: Residual, positions: Int[Array, "B S"]
    ) -> tuple[HeadOutputs, Float[Array, "B S G K"], Float[Array, "B S G K"]]:
        """Queries, keys and values of the residual before this layer (`Attention.project`)."""
        return self.attn.project(self.read(x), positions)

    def write(self, z: HeadOutputs) -> Residual:
        """What the heads together write to the residual: their output, through the norm after attention."""
        return self.after_attention(self.attn.output(z))

    def after_attention(self, output: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """The output of attention through the norm that follows it, where one does."""
        return self.ln1_post(output) if hasattr(self, "ln1_post") else output

    @property
    def writes(self) -> tuple[Float[Array, "*L H K D"], Float[Array, "*L D"]]:
        """What a head writes is ``z W_O``, times the gain of the norm after attention where there is one,
        and times `write_scale`, one positive number a position: the former W_O, and b_O likewise."""
        W_O, b_O = self.attn.W_O[...], self.attn.b_O[...]
        return (W_O, b_O) if not hasattr(self, "ln1_post") else gained(W_O, b_O, self.ln1_post.scale[...])

    def write_scale(self, z: HeadOutputs) -> Float[Array, "B S 1"]:
        """What the norm after attention multiplies its input by where the heads' outputs are z; 1 without."""
        if not hasattr(self, "ln1_post"):
            return jnp.ones((*z.shape[:2], 1), jnp.float32)
        return self.ln1_post.inverse_size(self.attn.output(z).astype(jnp.float32))

    # --- and what becomes of it -----------------------------------------------------------------------

    def finish(self, x: Residual, z: HeadOutputs) -> Residual:
        """The residual after this layer, given the residual before it and its heads' outputs."""
        return self.add(x, self.write(z))

    def add(self, x: Float[Array, "*rows D"], written: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """The residual after this layer, given the residual before it and what its heads write."""
        after_attention = x + written
        return after_attention + self.mlp_write(x if self.config.parallel_residual else after_attention)

    def mlp_write(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """What the MLP adds to the residual, given the residual that it reads: norms included."""
        output = self.mlp(self.ln2(x) if hasattr(self, "ln2") else x)
        return self.ln2_post(output) if hasattr(self, "ln2_post") else output


def norm_names(config: ModelConfig) -> tuple[str, ...]:
    """The norms of a block, in the order of the forward pass."""
    before, after = config.norms != "after", config.norms != "before"
    return ("ln1",) * before + ("ln1_post",) * after + ("ln2",) * before + ("ln2_post",) * after


def gained(
    W_O: Float[Array, "*L H K D"], b_O: Float[Array, "*L D"], gain: Float[Array, "*L D"]
) -> tuple[Float[Array, "*L H K D"], Float[Array, "*L D"]]:
    """W_O and b_O, float32, times the gain of the norm after attention."""
    gain = gain.astype(jnp.float32)
    return W_O.astype(jnp.float32) * jnp.expand_dims(gain, (-3, -2)), b_O.astype(jnp.float32) * gain
