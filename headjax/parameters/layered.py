"""A model whose layers are read one at a time: what runs where the model does not fit."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from headjax.config import ModelConfig
from headjax.engine.mesh import model_mesh, parameter_sharding
from headjax.model import Block, Transformer, build_model, one_block, parameter_shapes
from headjax.parameters import Parameters, each_layer


class LayeredModel(NamedTuple):
    """Two layers at most are in memory at a time.

    Attributes:
      outer: embeddings, final norm and unembedding: the model with none of its layers.
      layers: starts reading and gives each layer once, from the first or (backwards=True) from the last,
        while the next one is read.
    """

    config: ModelConfig
    outer: Transformer
    layers: Callable[..., Iterator[Block]]

    @property
    def mesh(self) -> Mesh | None:
        """The devices on which its layers lie; None for a single one."""
        return model_mesh(self.outer)


def layered_model(
    parameters: Parameters, dtype: DTypeLike | None = None, mesh: Mesh | None = None
) -> LayeredModel:
    """A model around parameters that are read when a layer's turn comes, in `dtype` or as stored.

    On a mesh every copy of the model has a copy of the layer, split as a whole model would be. Reading raises
    InputError where a file is missing or damaged.
    """
    config = parameters.config
    outer_config = dataclasses.replace(config, n_layers=0)
    of_layers = sorted(name for name in parameter_shapes(config) if name.startswith("blocks."))
    outer = parameters.read([name for name in parameter_shapes(config) if name not in of_layers], None, dtype)
    own = outer["embed.W_E"].dtype
    none = {name: jnp.zeros(parameter_shapes(outer_config)[name], own) for name in of_layers}
    read = partial(_blocks, parameters, of_layers, dtype, mesh)
    return LayeredModel(config, build_model(outer_config, _placed(outer | none, mesh)), read)


def streamed_parameters(config: ModelConfig) -> int:
    """How many parameters are there at once: two layers, and all that is outside of layers."""
    sizes = {name: math.prod(shape) for name, shape in parameter_shapes(config).items()}
    of_layers = sum(n for name, n in sizes.items() if name.startswith("blocks."))
    return sum(sizes.values()) - of_layers + 2 * of_layers // config.n_layers


def _blocks(
    parameters: Parameters,
    names: list[str],
    dtype: DTypeLike | None,
    mesh: Mesh | None,
    backwards: bool = False,
) -> Iterator[Block]:
    layers = range(parameters.config.n_layers)
    for i, arrays in enumerate(each_layer(parameters, names, dtype, backwards)):
        block = one_block(parameters.config, _placed(arrays, mesh), layers[-1 - i if backwards else i])
        del arrays
        yield block
        del block


def _placed(arrays: dict[str, Array], mesh: Mesh | None) -> dict[str, Array]:
    """The parameters where they lie on the mesh."""
    if mesh is None:
        return arrays
    return {
        name: jax.device_put(array, parameter_sharding(name, array.shape, mesh))
        for name, array in arrays.items()
    }
