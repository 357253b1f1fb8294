"""Where weights come from: one protocol, three sources.

InMemory(model) is a model that is there; Converted(directory) our own checkpoint, read as it is used;
HuggingFace(source) files as they come, matched by the converter's tables and read as they are used.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Int

from headjax.config import ModelConfig
from headjax.model import Transformer, model_parameters
from headjax.parameters.read_ahead import read_ahead


@runtime_checkable
class Parameters(Protocol):
    """A model's parameters by the names of `headjax.model.model_parameters`, read when they are asked for.

    Attributes:
      provenance: where they come from, as run.json holds it.
    """

    config: ModelConfig
    provenance: dict[str, Any]

    def read(
        self, names: Iterable[str], layer: int | None = None, dtype: DTypeLike | None = None
    ) -> dict[str, Array]:
        """Name -> array on the device of one layer's parameters, without the L axis (None: of those outside
        the layers), in `dtype` or as stored. Raises InputError for files that are missing or damaged."""
        ...

    def rows(self, name: str, ids: Int[np.ndarray, "..."]) -> Array:
        """Rows of a parameter outside the layers, float32; no others need be read."""
        ...


class InMemory:
    """The parameters of a model that is there."""

    def __init__(self, model: Transformer):
        self.config = model.config
        self.provenance: dict[str, Any] = {}
        self._arrays = model_parameters(model)

    def read(
        self, names: Iterable[str], layer: int | None = None, dtype: DTypeLike | None = None
    ) -> dict[str, Array]:
        arrays = {name: self._arrays[name] if layer is None else self._arrays[name][layer] for name in names}
        return arrays if dtype is None else {name: array.astype(dtype) for name, array in arrays.items()}

    def rows(self, name: str, ids: Int[np.ndarray, "..."]) -> Array:
        return self._arrays[name][ids].astype(jnp.float32)


class TokenRows:
    """A parameter [V D] that is only ever indexed, with token ids of any shape; `len` is V."""

    def __init__(self, parameters: Parameters, name: str):
        self._parameters, self._name = parameters, name

    def __len__(self) -> int:
        return self._parameters.config.vocab_size

    def __getitem__(self, ids: Int[np.ndarray, "..."]) -> Array:
        return self._parameters.rows(self._name, np.asarray(ids))


def unembedding(config: ModelConfig) -> str:
    """The parameter that holds the unembedding: the embedding itself where the two are tied."""
    return "embed.W_E" if config.tied_embeddings else "unembed.rows"


def each_layer(
    parameters: Parameters, names: Iterable[str], dtype: DTypeLike | None = None, backwards: bool = False
) -> Iterator[dict[str, Array]]:
    """Parameters of every layer, from the first or from the last, each read while the one before is used."""
    read = partial(parameters.read, tuple(names), dtype=dtype)
    layers = range(parameters.config.n_layers)
    return read_ahead(lambda layer: read(layer=layer), layers[::-1] if backwards else layers)
