"""One clean forward pass over the prompts, keeping what every sweep starts from."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from headjax.axes import Residual, TokenMask, Tokens
from headjax.engine.mesh import DATA_AXIS, ROWS
from headjax.kernels import dispatch
from headjax.model import Block, Transformer, mask_positions


class Prefill(NamedTuple):
    """A clean run. P is 1 (the last position, where left-padded prompts end) or S (all).

    Attributes:
      positions: [B S], the position of every token, 0 on padding.
      valid: [B S], False on padding.
      k, v: [L B S G K], the key/value cache.
      residual: [L+1 B P D], the residual entering each layer and, last, the final norm.
      z: [L B P H K], every head's output before W_O.
    """

    positions: Int[Array, "B S"]
    valid: Bool[Array, "B S"]
    k: Float[Array, "L B S G K"]
    v: Float[Array, "L B S G K"]
    residual: Float[Array, "L1 B P D"]
    z: Float[Array, "L B P H K"]


# How each of them is split over the devices of a mesh: by prompts.
SPECS = Prefill(ROWS, ROWS, *[PartitionSpec(None, DATA_AXIS)] * 4)


@partial(dispatch.jit, static_argnames="keep")
def prefill(model: Transformer, tokens: Tokens, mask: TokenMask, *, keep: Literal["last", "all"]) -> Prefill:
    """Runs the model once. `keep` says at which positions residual and z are kept."""
    positions, valid = mask_positions(mask), jnp.asarray(mask)
    kept = slice(-1, None) if keep == "last" else slice(None)

    def layer(x: Residual, block: Block) -> tuple[Residual, tuple[Array, ...]]:
        q, k, v = block.project(x, positions)
        z = block.attn.attend(q, k, v, valid)
        return block.finish(x, z), (k, v, x[:, kept], z[:, kept])

    final, (k, v, residual, z) = jax.lax.scan(layer, model.embed(tokens, positions), model.blocks)
    return Prefill(positions, valid, k, v, jnp.concatenate([residual, final[None, :, kept]]), z)
