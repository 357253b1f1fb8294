"""What the tests of all kernels share: how to run one anywhere, in which dtype, and sharded over heads."""

import contextlib
from collections.abc import Callable

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from headjax.kernels import platform


def allowing(implementation: str) -> contextlib.AbstractContextManager:
    """Lets an implementation for other hardware run here, interpreted; the others run as they are.

    Skips where it cannot be: before JAX 0.11 Mosaic GPU's interpret mode has no loads.
    """
    needed = platform.PLATFORMS.get(implementation, jax.default_backend())
    if needed == jax.default_backend():
        return contextlib.nullcontext()
    if implementation == "pallas_mosaic_gpu" and jax.__version_info__ < (0, 11):
        pytest.skip("needs a Hopper GPU, or JAX 0.11, whose interpret mode covers this kernel's primitives")
    return platform.interpreted()


def attention_dtype(implementation: str) -> str:
    """What attention is held to: float32 where there is one, which a Hopper tensor core has not."""
    return "bfloat16" if implementation == "pallas_mosaic_gpu" else "float32"


def over_heads(implementation: str, function: Callable, in_specs, out_specs: PartitionSpec) -> Callable:
    """The function with the axis "heads" of its arguments over two devices, or one if there is but one."""
    n_devices = 1 if implementation == "pallas_mosaic_gpu" else 2  # its interpreter knows only one
    mesh = Mesh(np.array(jax.devices()[:n_devices]), ("heads",))
    # Pallas' interpret mode does not say over which axes its results vary.
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    )
