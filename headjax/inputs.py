"""Checks of what a user hands in: arrays of any library in, arrays that fit the model out, or InputError.

Wrong input never gives a plausible number. JAX by itself clamps an index that is out of range and broadcasts
what nearly fits, so everything that comes from outside passes through here first. What is traced (inside
`jax.jit` or `jax.grad`) has shapes but no values: its shapes are checked.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from headjax.axes import TokenMask, Tokens
from headjax.config import ModelConfig
from headjax.errors import InputError, shown
from headjax.kernels.head_attention import IMPLEMENTATIONS  # every kernel has the same ones

DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("highest", "high", "default")
# Of the named options of sweeps: what they may be. None: a whole number of at least 1.
OPTIONS: dict[str, tuple[str, ...] | None] = {
    "positions": ("last", "all"),
    "mean_over": ("prompts", "tokens"),
    "batch_size": None,
    "variant_batch": None,
}


def as_array(values: Any, name: str) -> Array | np.ndarray:
    """JAX arrays as they are; arrays of other libraries (torch tensors, on any device) and lists as numpy's.

    Raises InputError for anything that is no array of numbers.
    """
    if isinstance(values, Array):
        return values
    try:
        if hasattr(values, "detach"):  # a torch tensor, which may need a gradient or lie on a GPU
            values = values.detach().cpu()
            values = values.float() if "bfloat16" in str(values.dtype) else values
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name} must be an array, its rows of one length; {shown(error)}") from error
    if array.dtype.kind not in "biufV" or (array.dtype.kind == "V" and array.dtype.names):
        raise InputError(f"{name} must be numbers; got {shown(values)}")
    return array


def check_tokens(tokens: Any, mask: Any, config: ModelConfig) -> tuple[Tokens, TokenMask | None]:
    """Tokens [B S] and their mask [B S] (True: a real token), as arrays that the model can be given.

    Raises InputError for token ids that are no whole numbers, not in the vocabulary or more than the model
    has positions, and for a mask of another shape or of anything but True and False (or 1 and 0).
    """
    tokens = as_array(tokens, "tokens")
    if tokens.dtype.kind not in "iu" and tokens.size:
        raise InputError(f"tokens must be whole numbers, the ids of a tokenizer; got {tokens.dtype}")
    if tokens.ndim != 2 or tokens.size == 0:
        rule = "tokens must be [prompts, positions], at least one of each"
        raise InputError(f"{rule}; got the shape {list(tokens.shape)}")
    if mask is not None:
        mask = as_array(mask, "mask")
        if mask.shape != tokens.shape:
            found = f"{list(mask.shape)} and {list(tokens.shape)}"
            raise InputError(f"a mask must have the shape of its tokens; got {found}")
        if mask.dtype.kind != "b":
            host = _values(mask)
            if mask.dtype.kind not in "iu" or (host is not None and not np.isin(host, (0, 1)).all()):
                raise InputError(f"a mask must be of True and False, or of 1 and 0; got {shown(mask.dtype)}")
            mask = mask.astype(bool)
    real = None if mask is None else _values(mask)
    if real is not None and not real.any(axis=1).all():
        prompt = int(np.argmin(real.any(axis=1)))
        raise InputError(f"every prompt must have a token; the mask of prompt {prompt} has none")
    if mask is None or real is not None:
        longest = tokens.shape[1] if mask is None else int(real.sum(axis=1).max())
        if longest > config.max_positions:
            rule = f"a prompt must have at most {config.max_positions} tokens, the model's positions"
            raise InputError(f"{rule}; got {longest}")
    ids = _values(tokens)
    if ids is not None and (mask is None or real is not None):
        check_ids(ids if mask is None else ids[real], "token ids", config.vocab_size)
    return tokens if isinstance(tokens, Array) else tokens.astype(np.int32), mask


def check_ids(ids: np.ndarray, name: str, vocab_size: int) -> None:
    """Raises InputError for a token id that the vocabulary does not have."""
    wrong = (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        rule = f"{name} must be from 0 to {vocab_size - 1}, the vocabulary"
        raise InputError(f"{rule}; got {int(ids[wrong][0])}")


def check_shape(
    array: Array | np.ndarray, name: str, axes: str, sizes: tuple[int | None, ...], exact: str
) -> None:
    """Raises InputError for an array of other axes; those not in `exact` may have size 1. None: any size."""
    letters = axes.split()
    fits = array.ndim == len(sizes) and all(
        size is None or found == size or (found == 1 and letter not in exact)
        for letter, found, size in zip(letters, array.shape, sizes, strict=True)
    )
    if not fits or array.dtype.kind in "biu":
        wanted = ", ".join(
            f"{letter}={'any' if size is None else size}" + ("" if letter in exact else " or 1")
            for letter, size in zip(letters, sizes, strict=True)
        )
        found = f"{array.dtype} {list(array.shape)}"
        raise InputError(f"{name} must be floating-point numbers [{axes}] with {wanted}; got {found}")


def check_options(**options: Any) -> None:
    """Raises InputError for an option of a sweep that is not what OPTIONS says; a number may be None."""
    for name, value in options.items():
        choices = OPTIONS[name]
        if choices is not None and not (isinstance(value, str) and value in choices):
            raise InputError(f"field {name!r} must be one of {', '.join(choices)}; got {shown(value)}")
        if choices is None and value is not None:
            check_count(name, value)


def check_count(name: str, value: Any, most: int | None = None) -> int:
    """The value as an int. Raises InputError unless it is a whole number from 1 to `most`."""
    try:
        number = 0 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or (most is not None and number > most):
        bound = "of at least 1" if most is None else f"from 1 to {most}"
        raise InputError(f"{name!r} must be a whole number {bound}; got {shown(value)}")
    return number


def check_settings(dtype: DTypeLike, precision: str, implementation: str | None) -> None:
    """Raises InputError for names that `load_model` does not know."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = None
    if name not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}; got {shown(dtype)}")
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}; got {shown(precision)}")
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        names = ", ".join(IMPLEMENTATIONS)
        raise InputError(f"implementation must be one of {names}, or None; got {shown(implementation)}")


def _values(array: Array | np.ndarray) -> np.ndarray | None:
    """The numbers on the host; None where there are none, or not all of them here."""
    if isinstance(array, jax.core.Tracer) or (isinstance(array, Array) and not array.is_fully_addressable):
        return None
    return np.asarray(array)
