"""A model whose layers are read from disk one at a time: what runs where the model does not fit."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from headjax.config import ModelConfig
from headjax.model import Block, Transformer, build_model, one_block, parameter_shapes
from headjax.parameters.converted import read_layer, read_parameters
from headjax.parameters.read_ahead import read_ahead

# read(names, layer): name -> array without the L axis; layer None: of parameters outside the layers.
Read = Callable[[Iterable[str], int | None], dict[str, Array]]


class LayeredModel(NamedTuple):
    """Two layers at most are in memory at a time.

    Attributes:
      outer: embeddings, final norm and unembedding: the model with none of its layers.
      layers: starts reading and gives each layer once, in order, while the next one is read.
    """

    config: ModelConfig
    outer: Transformer
    layers: Callable[[], Iterator[Block]]


def layered_model(config: ModelConfig, read: Read) -> LayeredModel:
    """A model around a function that reads parameters."""
    outer_config = dataclasses.replace(config, n_layers=0)
    of_layers = {name for name in parameter_shapes(config) if name.startswith("blocks.")}
    outer = read([name for name in parameter_shapes(config) if name not in of_layers], None)
    dtype = outer["embed.W_E"].dtype
    none = {name: jnp.zeros(parameter_shapes(outer_config)[name], dtype) for name in of_layers}
    return LayeredModel(
        config, build_model(outer_config, outer | none), partial(_layers, config, read, sorted(of_layers))
    )


def _layers(config: ModelConfig, read: Read, names: list[str]) -> Iterator[Block]:
    for parameters in read_ahead(partial(read, names), range(config.n_layers)):
        block = one_block(config, parameters)
        del parameters
        yield block
        del block


def layered_checkpoint(directory: Path, config: ModelConfig, dtype: DTypeLike) -> LayeredModel:
    """A converted checkpoint that is read layer by layer.

    Reading raises InputError where a file is missing or damaged.
    """

    def read(names: Iterable[str], layer: int | None) -> dict[str, Array]:
        if layer is None:
            return read_parameters(directory, list(names), dtype)
        return read_layer(directory, layer, list(names), dtype)

    return layered_model(config, read)
