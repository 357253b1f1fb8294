"""Models on meshes, and results that must be the same there."""

import jax
import numpy as np

from headjax.engine.mesh import make_mesh, parameter_sharding
from headjax.model import Transformer, build_model, model_parameters
from tests.helpers.tolerances import assert_close


def on_mesh(model: Transformer, shape: dict[str, int]) -> Transformer:
    """The model's parameters spread over all devices."""
    mesh = make_mesh(shape)
    placed = {
        name: jax.device_put(values, parameter_sharding(name, values.shape, mesh))
        for name, values in model_parameters(model).items()
    }
    return build_model(model.config, placed)


def assert_same(actual, expected) -> None:
    """Leaf by leaf within the tolerance; what is all zeros, or no float, exactly."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if np.any(other) and np.asarray(other).dtype.kind == "f":
            assert_close(one, other)
        else:
            np.testing.assert_array_equal(one, other)
