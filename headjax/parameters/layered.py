"""A model whose layers are read one at a time: what runs where the model does not fit."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from headjax.config import ModelConfig
from headjax.model import Block, Transformer, build_model, one_block, parameter_shapes
from headjax.parameters import Parameters, each_layer


class LayeredModel(NamedTuple):
    """Two layers at most are in memory at a time.

    Attributes:
      outer: embeddings, final norm and unembedding: the model with none of its layers.
      layers: starts reading and gives each layer once, in order, while the next one is read.
    """

    config: ModelConfig
    outer: Transformer
    layers: Callable[[], Iterator[Block]]


def layered_model(parameters: Parameters, dtype: DTypeLike | None = None) -> LayeredModel:
    """A model around parameters that are read when a layer's turn comes, in `dtype` or as stored.

    Reading raises InputError where a file is missing or damaged.
    """
    config = parameters.config
    outer_config = dataclasses.replace(config, n_layers=0)
    of_layers = sorted(name for name in parameter_shapes(config) if name.startswith("blocks."))
    outer = parameters.read([name for name in parameter_shapes(config) if name not in of_layers], None, dtype)
    own = outer["embed.W_E"].dtype
    none = {name: jnp.zeros(parameter_shapes(outer_config)[name], own) for name in of_layers}
    return LayeredModel(
        config, build_model(outer_config, outer | none), partial(_blocks, parameters, of_layers, dtype)
    )


def _blocks(parameters: Parameters, names: list[str], dtype: DTypeLike | None) -> Iterator[Block]:
    for layer, arrays in enumerate(each_layer(parameters, names, dtype)):
        block = one_block(parameters.config, arrays, layer)
        del arrays
        yield block
        del block
