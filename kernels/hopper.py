"""What the Mosaic GPU kernels for Hopper share: exact products of float32, shared memory, where they run."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Float

from . import platform

NAME = "pallas_mosaic_gpu"
# Shared memory of one block, in bytes (CUDA C++ Programming Guide, compute capability 9.0).
SHARED_MEMORY = 227 * 2**10
# A row of a tile in shared memory is 128 bytes, swizzled, which is what a warpgroup product reads fastest.
LINE = 64  # bfloat16s in it
ROW = plgpu.Layout.WGMMA.reduce(1)  # what belongs to a row of a product
COLUMN = plgpu.Layout.WGMMA.reduce(0)  # what belongs to a column


# JAX 0.10 must be told the index of a load, 0.11 deprecates it.
_WHOLE = ((),) if jax.__version_info__ < (0, 11) else ()


def load(ref, layout) -> Array:
    """A whole reference in device memory, into registers of this layout."""
    return plgpu.load(ref, *_WHOLE, layout=layout, optimized=False)


def check(*operands: Array) -> None:
    """Raises NotImplementedError unless a kernel can take these operands, and run, here."""
    platform.require(NAME)
    if platform.is_interpreted() and jax.__version_info__ < (0, 11):
        raise NotImplementedError(
            f"{NAME} is interpreted from JAX 0.11 on, whose interpreter has loads; this is {jax.__version__}"
        )
    if (
        not platform.is_interpreted()
        and not platform.is_lowered()
        and not jax.devices()[0].compute_capability.startswith("9.")
    ):
        raise NotImplementedError(
            f"{NAME} is for Hopper GPUs, compute capability 9; this one has "
            f"{jax.devices()[0].compute_capability}"
        )
    dtypes = [operand.dtype for operand in operands]
    if dtypes[0] not in (jnp.float32, jnp.bfloat16) or len(set(dtypes)) > 1:
        raise NotImplementedError(
            f"{NAME} takes float32 or bfloat16, one for all operands; got {', '.join(map(str, dtypes))}"
        )


def interpret() -> Any:
    """The argument of `plgpu.kernel` that says whether it is interpreted."""
    return plgpu.InterpretGPUParams() if platform.is_interpreted() else None


def add_product(total: Float[Array, "M N"], left: Any, right: Any) -> Float[Array, "M N"]:
    """``total + left @ right`` in a warpgroup's registers.

    Args:
      left: [M K] in registers or a reference to shared memory; right: [K N], always such a reference.
    """

    def accumulate(accumulator) -> None:
        plgpu.wgmma(accumulator, left, right)

    def interpreted(accumulator) -> Array:
        def from_shared_memory(copy) -> None:
            copy[...] = left[...]
            plgpu.wgmma(accumulator, copy, right)

        pl.run_scoped(from_shared_memory, plgpu.SMEM(left.shape, left.dtype))
        return accumulator[...]

    if platform.is_interpreted():  # there products start from 0 and from shared memory
        return total + pl.run_scoped(interpreted, plgpu.ACC(total.shape, jnp.float32))
    return pl.run_state(accumulate)(plgpu.ACC.init(total))


def check_shared_memory(needed: int, what: str) -> None:
    """Raises NotImplementedError if the tiles do not fit a block's shared memory."""
    if needed > SHARED_MEMORY:
        raise NotImplementedError(
            f"{NAME} holds its tiles in shared memory, {SHARED_MEMORY} bytes; {what} would take {needed}"
        )


def swizzled() -> tuple:
    """How a tile of bfloat16s lies in shared memory."""
    return plgpu.TilingTransform((8, LINE)), plgpu.SwizzleTransform(2 * LINE)


def split(x: Float[Array, "R C"], left: bool) -> Float[Array, "R 6*C"]:
    """float32 as bfloat16 factors whose product over the six times longer axis is that of the float32s.

    A Hopper tensor core multiplies bfloat16, or float32 cut to 10 bits. Three bfloat16s hold the 24 bits
    of a float32; of their nine products the six that reach 2^-24 are summed, smallest first (Henry, Tang
    and Heinecke 2019, "Leveraging the bfloat16 datatype for higher-precision computations").
    """
    high = x.astype(jnp.bfloat16)
    rest = x - high.astype(jnp.float32)
    middle = rest.astype(jnp.bfloat16)
    low = (rest - middle.astype(jnp.float32)).astype(jnp.bfloat16)
    if left:
        return jnp.concatenate([high, low, middle, high, middle, high], axis=1)
    return jnp.concatenate([low, high, middle, middle, high, high], axis=1)
