"""What a family's table is made of: rules from checkpoint tensors to our parameters, and layouts."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from checkpoints_convert.fields import Fields
from headjax.config import ModelConfig


class Rule(NamedTuple):
    """One tensor of the checkpoint, the parameters it fills, and how it is laid out.

    `tensor` is its name without the family's prefix; ``{l}`` stands for the layer, ``a|b`` for two
    spellings. `layout` states the stored axes and the parameter's, in the letters of headjax.axes:
    ``"D (3 H K) -> 3 D H K"`` is one matrix that holds three, and its three parts fill the parameters in
    turn; in ``"(H|G|G K) D -> D * K"`` they are of different sizes, `*` stands for each one's own letter; of
    ``"2+P D -> P D"`` the first two rows are not used. Without such parts every parameter gets the whole.
    `when` names the field of config.json that says whether the tensor exists; where it does not, its
    parameters are zeros. `plus` is added to what is stored, in float32; `reorder` is the last step.
    """

    tensor: str
    parameters: tuple[str, ...]
    layout: str
    when: str | None = None
    plus: float = 0.0
    reorder: Callable[[np.ndarray, ModelConfig], np.ndarray] | None = None


@dataclass(frozen=True)
class Family:
    """One table: how to read a `model_type`'s config.json and its tensors.

    Attributes:
      prefix: of the tensors of the base model, where the file has the head as well.
      read_config: takes the fields; returns the config and, by name, the switches that `Rule.when` uses.
      zeros: parameters that the architecture lacks.
      buffers: tensors that are no weights (masks, rotary tables), named like a rule's.
      others: how the names of tensors begin that belong to what else the file holds (an image's encoder).
    """

    prefix: str
    read_config: Callable[[Fields], tuple[ModelConfig, dict[str, bool]]]
    rules: tuple[Rule, ...]
    zeros: tuple[str, ...]
    buffers: tuple[str, ...] = field(default=())
    others: tuple[str, ...] = field(default=())


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """Axis letter -> size; a number in a layout is its own size."""
    return {
        "3": 3,
        "H": config.n_heads,
        "G": config.n_kv_heads,
        "K": config.d_head,
        "D": config.d_model,
        "F": config.d_mlp,
        "V": config.vocab_size,
        "P": config.max_positions,
    }


def _stored_axes(layout: str) -> list[list[str]]:
    """``"D (3 H K) -> ..."`` -> [["D"], ["3", "H", "K"]]."""
    stored, _ = layout.split(" -> ")
    return [axis.strip("()").split() for axis in re.findall(r"\([^)]*\)|\S+", stored)]


def _size(letter: str, sizes: dict[str, int]) -> int:
    """The size of a stored axis: of one letter, of several side by side (H|G|G), or of more rows (2+P)."""
    return sum(sizes.get(part) or int(part) for part in re.split(r"[|+]", letter))


def stored_shape(layout: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape that the tensor must have in the file."""
    return tuple(math.prod(_size(letter, sizes) for letter in axis) for axis in _stored_axes(layout))


def split_layout(values: np.ndarray, layout: str, sizes: dict[str, int], n_parts: int) -> list[np.ndarray]:
    """The parameters' contiguous arrays, from a tensor as stored."""
    letters = [letter for axis in _stored_axes(layout) for letter in axis]
    # As integers: numpy moves the bytes of its own types faster than those of bfloat16.
    bits = values.view(f"u{values.itemsize}").reshape([_size(letter, sizes) for letter in letters])
    wanted = layout.split(" -> ")[1].split()

    def arrange(part: np.ndarray, letters: list[str]) -> np.ndarray:
        return part.transpose([letters.index(letter) for letter in wanted])

    if wanted[0].isdigit():
        parts = list(arrange(bits, letters))
    elif "*" in wanted:
        at = next(i for i, letter in enumerate(letters) if "|" in letter)
        ends = np.cumsum([sizes[letter] for letter in letters[at].split("|")])[:-1]
        parts = [arrange(part, [*letters[:at], "*", *letters[at + 1 :]]) for part in np.split(bits, ends, at)]
    else:
        for at, letter in enumerate(letters):
            if "+" in letter:
                skipped, letters[at] = letter.split("+")
                bits = bits[(slice(None),) * at + (slice(int(skipped), None),)]
        parts = [arrange(bits, letters)]
    parts = [_contiguous(part).view(values.dtype) for part in parts]
    return parts if len(parts) > 1 else parts * n_parts


def _contiguous(view: np.ndarray) -> np.ndarray:
    """The view itself where it is contiguous already, else a copy.

    A copy along rows of what is stored by columns misses the cache at every entry; in strips of one
    cache line it is several times as fast.
    """
    if view.strides[-1] == view.itemsize:
        return np.ascontiguousarray(view)
    if view.ndim > 2 and view.strides[-2] == view.strides[-1] * view.shape[-1]:  # two axes that are one
        return _contiguous(view.reshape(*view.shape[:-2], -1)).reshape(view.shape)
    copy, strip = np.empty(view.shape, view.dtype), 32 // view.itemsize
    for start in range(0, view.shape[-1], strip):
        copy[..., start : start + strip] = view[..., start : start + strip]
    return copy
