"""What the tests of all kernels share: how to run one anywhere."""

import contextlib

import jax
import pytest

from kernels import platform


def allowing(implementation: str) -> contextlib.AbstractContextManager:
    """Lets an implementation for other hardware run here, interpreted; the others run as they are.

    Skips where it cannot be: Mosaic GPU's interpret mode has no products that start from registers.
    """
    if implementation == "pallas_mosaic_gpu" and jax.default_backend() != "gpu":
        pytest.skip("needs a Hopper GPU: no interpret mode covers this kernel's primitives")
    return platform.interpreted() if implementation == "pallas_mosaic_tpu" else contextlib.nullcontext()
