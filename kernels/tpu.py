"""What the Mosaic TPU kernels share: matrix products, on-chip memory, and where they run."""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.pallas import tpu as pltpu

from . import platform

NAME = "pallas_mosaic_tpu"
PRECISIONS = {None: None, "default": None, "highest": lax.Precision.HIGHEST, "float32": lax.Precision.HIGHEST}
# VMEM of one core, from jax's table (`pltpu.get_tpu_info_for_chip`; v5e 128 MiB, v5p 64 MiB), less a
# quarter for the compiler.
VMEM = {"v5e": 96 * 2**20, "v5p": 48 * 2**20}


def check(precision: str | None, *operands: Array) -> None:
    """Raises NotImplementedError unless a kernel can take these operands, and run, here."""
    platform.require(NAME)
    dtypes = [operand.dtype for operand in operands]
    if dtypes[0] not in (jnp.float32, jnp.bfloat16) or len(set(dtypes)) > 1:
        raise NotImplementedError(
            f"{NAME} takes float32 or bfloat16, one for all operands; got {', '.join(map(str, dtypes))}"
        )
    if precision not in PRECISIONS:
        raise NotImplementedError(f"{NAME} knows the precisions {list(PRECISIONS)}; got {precision!r}")


def dot(x: Array, y: Array, precision: str | None) -> Array:
    """x [m n] times y [n p] with float32 sums; a product of bfloat16s is exact at any precision."""
    chosen = PRECISIONS[precision] if x.dtype == jnp.float32 else None
    return lax.dot_general(
        x, y, (((1,), (0,)), ((), ())), precision=chosen, preferred_element_type=jnp.float32
    )


def tile_bytes(rows: int, columns: int, itemsize: int) -> int:
    """VMEM of one array: rows in eights (of 32 bits), columns in lanes of 128."""
    packed = 8 * max(1, 4 // itemsize)
    return math.ceil(rows / packed) * packed * math.ceil(columns / 128) * 128 * itemsize


def check_vmem(needed: int, what: str) -> None:
    """Raises NotImplementedError if the tiles do not fit every chip's VMEM."""
    if needed > min(VMEM.values()):
        raise NotImplementedError(
            f"{NAME} holds its tiles in VMEM, {min(VMEM.values())} bytes; {what} would take {needed}"
        )


def settings(dimension_semantics: tuple[str, ...], vmem_bytes: int) -> dict[str, Any]:
    """The arguments of `pallas_call` that depend on where a kernel runs.

    Args:
      dimension_semantics: "parallel" or "arbitrary" (in order) for each axis of the grid.
      vmem_bytes: what the kernel was computed to need.
    """
    interpreting = platform.is_interpreted()
    return {
        # Under vmap the grid grows by an axis; the interpreter, unlike the compiler, then finds the
        # semantics one too short.
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=None if interpreting else dimension_semantics,
            vmem_limit_bytes=max(vmem_bytes, 16 * 2**20),
        ),
        "interpret": pltpu.InterpretParams() if interpreting else False,  # unwritten memory reads as NaN
    }
