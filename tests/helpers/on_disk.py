"""Models in memory that are read as if from disk."""

import jax.numpy as jnp
import numpy as np

from headjax.model import Transformer, model_parameters
from headjax.parameters import InMemory
from headjax.parameters.layered import LayeredModel, layered_model


class OnDisk(InMemory):
    """A model in memory, read as if from disk; `log` takes note of what is read."""

    def __init__(self, model: Transformer, log: list | None = None):
        super().__init__(model)
        self.log = [] if log is None else log
        self.values = {name: np.array(value) for name, value in model_parameters(model).items()}

    def read(self, names, layer=None, dtype=None):
        self.log.append(layer)
        return {
            name: jnp.asarray(self.values[name] if layer is None else self.values[name][layer])
            for name in names
        }


def from_memory(model: Transformer, log: list | None = None) -> LayeredModel:
    return layered_model(OnDisk(model, log))
