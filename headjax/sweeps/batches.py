"""Running one compiled step over many prompts, a batch at a time."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

# track(items, total, label) -> items, showing on the way how far it is; `untracked` shows nothing.
Track = Callable[..., Iterable]


def untracked(items: Iterable, total: int | None = None, label: str = "") -> Iterable:
    """The items as they are."""
    return items


def prompt_chunks(n_prompts: int, batch_size: int) -> list[Int[np.ndarray, "rows"]]:
    """Rows of all prompts in order, in as few equal chunks as may be; the last row fills up the last one."""
    n_chunks = -(-n_prompts // batch_size)
    size = -(-n_prompts // n_chunks)
    return [np.minimum(np.arange(i, i + size), n_prompts - 1) for i in range(0, n_prompts, size)]


def map_prompts(
    step: Callable[..., Any],
    arrays: tuple[np.ndarray, ...],
    batch_size: int,
    track: Track = untracked,
    label: str = "",
) -> Any:
    """``step(*rows of every array)`` for all rows, some at a time, put together again as numpy arrays.

    Every array, and every array in what `step` returns, has the prompts as its first axis. All batches
    have the same size, so that `step` compiles once.
    """
    n_prompts = len(arrays[0])
    chunks = prompt_chunks(n_prompts, batch_size)
    parts = [
        jax.device_get(step(*(array[rows] for array in arrays))) for rows in track(chunks, len(chunks), label)
    ]
    return jax.tree.map(lambda *part: np.concatenate(part)[:n_prompts], *parts)
