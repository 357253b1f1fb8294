"""HeadEdit: what is done to which heads at which positions."""

from collections.abc import Iterable
from typing import Any, NamedTuple, SupportsIndex

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from headjax.axes import Head
from headjax.config import ModelConfig
from headjax.errors import InputError, shown
from headjax.inputs import as_array, check_count, check_options, check_shape


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
        heads: Iterable[Any],
        *,
        n_positions: SupportsIndex,
        positions: str = "all",
        replacement: Any = None,
        dtype: DTypeLike = jnp.float32,
    ) -> "HeadEdit":
        """Replaces the heads' outputs (by zeros unless a replacement is given), all others untouched.

        Args:
          heads: in any spelling of `Head.parse`, each once.
          n_positions: S of the tokens that the edit will meet.
          positions: "all", or "last": index S - 1, where left-padded prompts end.
          replacement: [L B S H K], or 1 in place of B, S, H or K; an array, a torch tensor or lists.

        Raises InputError for a head that the model does not have or that is named twice, and for other
        positions and shapes.
        """
        check_options(positions=positions)
        S = check_count("n_positions", n_positions, config.max_positions)
        gain = np.ones((config.n_layers, 1, S, config.n_heads), np.float32)
        if isinstance(heads, str | Head):
            raise InputError(f"heads must be a list of heads; got the single {shown(heads)}")
        chosen = [check_head(Head.parse(label), config) for label in heads]
        for i, (layer, head) in enumerate(chosen):
            if chosen[i] in chosen[:i]:
                raise InputError(f"heads must be named once each; {chosen[i]} is named twice")
            gain[layer, 0, slice(None) if positions == "all" else -1, head] = 0
        if replacement is None:
            replacement = jnp.zeros((config.n_layers, 1, 1, 1, 1), dtype)
        replacement = as_array(replacement, "replacement")
        sizes = (config.n_layers, None, S, config.n_heads, config.d_head)
        check_shape(replacement, "replacement", "L B S H K", sizes, exact="L")
        return cls(jnp.asarray(gain, dtype), jnp.asarray(replacement))


def check_head(head: Head, config: ModelConfig) -> Head:
    """The head itself, if the model has it; else InputError."""
    if not (0 <= head.layer < config.n_layers and 0 <= head.head < config.n_heads):
        raise InputError(
            f"heads must exist: the model has {config.n_layers} layers of {config.n_heads} heads; got {head}"
        )
    return head


def check_edit(edit: Any, shape: tuple[int, ...], config: ModelConfig) -> HeadEdit:
    """The edit, as arrays. Raises InputError where it does not fit tokens of this shape [B S]."""
    if not isinstance(edit, HeadEdit):
        raise InputError(f"an edit must be a HeadEdit, as HeadEdit.ablate makes it; got {shown(edit)}")
    arrays = HeadEdit(*(as_array(part, name) for part, name in zip(edit, edit._fields, strict=True)))
    L, H, K, (B, S) = config.n_layers, config.n_heads, config.d_head, shape
    check_shape(arrays.gain, "gain", "L B S H", (L, B, S, H), exact="LH")
    check_shape(arrays.replacement, "replacement", "L B S H K", (L, B, S, H, K), exact="L")
    return arrays


def apply_edit(
    z: Float[Array, "B S H K"],
    gain: Float[Array, "#B #S H"],
    replacement: Float[Array, "#B #S #H #K"],
) -> Float[Array, "B S H K"]:
    """One layer's part of a HeadEdit."""
    gain = gain[..., None].astype(z.dtype)
    return gain * z + (1 - gain) * replacement.astype(z.dtype)
