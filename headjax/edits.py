"""HeadEdit: what is done to which heads at which positions."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from headjax.axes import Head
from headjax.config import ModelConfig
from headjax.errors import InputError


class HeadEdit(NamedTuple):
    """``z <- gain * z + (1 - gain) * replacement``, for every layer, prompt, position and head.

    An ordinary array argument of the forward pass, so that exact ablation (gain 0), its gradient
    (d/d gain at 1) and batches of edits share one compiled program. Axes of size 1 broadcast.

    A head is the slice of z *before* the output projection. Zeroing a slice of what comes after W_O
    is something else: W_O mixes all heads into every coordinate.
    """

    gain: Float[Array, " L #B #S H"]
    replacement: Float[Array, " L #B #S #H #K"]

    @classmethod
    def ablate(
        cls,
        config: ModelConfig,
        heads: "Iterable[Head | str | tuple[int, int]]",
        *,
        n_positions: int,
        positions: Literal["all", "last"] = "all",
        replacement: Float[Array, " L #B #S #H #K"] | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> "HeadEdit":
        """Replaces the heads' outputs (by zeros unless a replacement is given), all others untouched.

        Args:
          n_positions: S of the tokens that the edit will meet.
          positions: "last" is index S - 1, where left-padded prompts end.
        """
        gain = np.ones((config.n_layers, 1, n_positions, config.n_heads), np.float32)
        for label in heads:
            layer, head = check_head(Head.parse(label), config)
            gain[layer, 0, slice(None) if positions == "all" else -1, head] = 0
        if replacement is None:
            replacement = jnp.zeros((config.n_layers, 1, 1, 1, 1), dtype)
        return cls(jnp.asarray(gain, dtype), replacement)


def check_head(head: Head, config: ModelConfig) -> Head:
    """The head itself, if the model has it; else InputError."""
    if not (0 <= head.layer < config.n_layers and 0 <= head.head < config.n_heads):
        raise InputError(
            f"heads must exist: the model has {config.n_layers} layers of {config.n_heads} heads; got {head}"
        )
    return head


def apply_edit(
    z: Float[Array, "B S H K"],
    gain: Float[Array, "#B #S H"],
    replacement: Float[Array, "#B #S #H #K"],
) -> Float[Array, "B S H K"]:
    """One layer's part of a HeadEdit."""
    gain = gain[..., None].astype(z.dtype)
    return gain * z + (1 - gain) * replacement.astype(z.dtype)
