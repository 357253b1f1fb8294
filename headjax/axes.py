"""The axis legend: one letter per axis, the same letter in every einsum and every signature.

    B  prompts              H  query heads          V  vocabulary
    S  positions            G  key/value heads      N  pairs of a relation
    T  cached positions     K  d_head               R  relations
    L  layers               D  d_model              M  variants of a sweep
                            F  d_mlp

Signatures spell these out with jaxtyping (``Float[Array, "B S D"]``); they are checked when the tests
run and cost nothing elsewhere.
"""

import operator
import re
from typing import Any, NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.errors import InputError, shown

Tokens = Int[Array | np.ndarray, "B S"]
TokenMask = Bool[Array | np.ndarray, "B S"]
Residual = Float[Array, "B S D"]
HeadOutputs = Float[Array, "B S H K"]
Logits = Float[Array, "B S V"]

_N = r"([0-9]{1,9})"  # not \d, which also matches the digits of other scripts
_HEAD = re.compile(rf"\s*(?:L{_N}H{_N}|{_N}\.{_N}|\(\s*{_N}\s*,\s*{_N}\s*\))\s*", re.IGNORECASE)


class Head(NamedTuple):
    """One attention head. Written ``L9H6``; ``9.6`` and ``(9, 6)`` are read too."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, label: Any) -> "Head":
        """Reads a head from any of its spellings, or two whole numbers; InputError for all else."""
        numbers: tuple = ()
        if isinstance(label, tuple) and len(label) == 2:
            numbers = label
        elif isinstance(label, str) and (match := _HEAD.fullmatch(label)):
            numbers = tuple(int(group) for group in match.groups() if group is not None)
        try:
            if any(isinstance(number, bool | np.bool_) for number in numbers):
                raise TypeError
            layer, head = map(operator.index, numbers)
        except (TypeError, ValueError):
            raise _no_head(label) from None
        if not (0 <= layer < 10**9 and 0 <= head < 10**9):
            raise _no_head(label)
        return cls(layer, head)


def by_score(scores: Float[np.ndarray, "L H"], k: int | None = None) -> list[Head]:
    """The k heads (None: all) with the highest scores, best first; ties by layer, then head; NaN last."""
    order = np.argsort(-scores, axis=None, kind="stable")[:k]
    return [Head(*divmod(int(i), scores.shape[1])) for i in order]


def _no_head(label: object) -> InputError:
    return InputError(f"a head is written L9H6, 9.6 or (9, 6); got {shown(label)}")
