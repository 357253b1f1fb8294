"""The clean run of all prompts through a model that is read layer by layer: one pass, each layer once.

Between layers the host holds the residual stream; the device holds two layers (the one at work and the one
being read), one batch of prompts in that layer, and what a sweep adds to it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.axes import Residual
from headjax.engine.batches import Track
from headjax.kernels import dispatch
from headjax.model import Block, Transformer, mask_positions
from headjax.parameters.layered import LayeredModel


class Chunk(NamedTuple):
    """Prompts that run at once, as the sweep handed them in, and their positions."""

    tokens: Int[np.ndarray, "B S"]
    mask: Bool[np.ndarray, "B S"]
    positions: Int[np.ndarray, "B S"]


class CleanLayer(NamedTuple):
    """A chunk in one layer. Residual and z are those of the last position; k and v of all."""

    before: Float[Array, "B D"]
    z: Float[Array, "B H K"]
    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G K"]
    after: Float[Array, "B D"]


def visit_layers(
    model: LayeredModel, prompts: list[tuple[np.ndarray, np.ndarray]], track: Track, label: str
) -> Iterator[tuple[int, Block, Iterator[CleanLayer]]]:
    """Every layer once, with the clean run of each chunk of prompts in it, to be consumed in order.

    `prompts` are (tokens [B S], mask [B S]) of each chunk, all of one shape.
    """
    chunks = [Chunk(tokens, mask, np.asarray(mask_positions(mask))) for tokens, mask in prompts]
    residuals = [np.asarray(_embed(model.outer, chunk.tokens, chunk.positions)) for chunk in chunks]

    def run_chunks(block: Block) -> Iterator[CleanLayer]:
        for i, chunk in enumerate(chunks):
            clean, after = _clean_layer(block, residuals[i], chunk.positions, chunk.mask)
            residuals[i] = np.asarray(after)
            del after
            yield clean

    for layer, block in enumerate(track(model.layers(), model.config.n_layers, label)):
        yield layer, block, run_chunks(block)
        del block  # or it would stay while the next one is waited for


@dispatch.jit
def _embed(outer: Transformer, tokens: Int[Array, "B S"], positions: Int[Array, "B S"]) -> Residual:
    return outer.embed(tokens, positions)


@dispatch.jit
def _clean_layer(
    block: Block, x: Residual, positions: Int[Array, "B S"], valid: Bool[Array, "B S"]
) -> tuple[CleanLayer, Residual]:
    q, k, v = block.project(x, positions)
    z = block.attn.attend(q, k, v, valid)
    after = block.finish(x, z)
    return CleanLayer(x[:, -1], z[:, -1], k, v, after[:, -1]), after
