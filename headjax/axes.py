"""The axis legend: one letter per axis, the same letter in every einsum and every signature.

    B  prompts              H  query heads          V  vocabulary
    S  positions            G  key/value heads      N  pairs of a relation
    T  cached positions     K  d_head               R  relations
    L  layers               D  d_model              M  variants of a sweep
                            F  d_mlp

Signatures spell these out with jaxtyping (``Float[Array, "B S D"]``); they are checked when the tests
run and cost nothing elsewhere.
"""

import re
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from headjax.errors import InputError, shown

Tokens = Int[Array | np.ndarray, "B S"]
TokenMask = Bool[Array | np.ndarray, "B S"]
Residual = Float[Array, "B S D"]
HeadOutputs = Float[Array, "B S H K"]
Logits = Float[Array, "B S V"]

_HEAD = re.compile(
    r"\s*(?:L(\d{1,9})H(\d{1,9})|(\d{1,9})\.(\d{1,9})|\(\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\))\s*", re.IGNORECASE
)


class Head(NamedTuple):
    """One attention head. Written ``L9H6``; ``9.6`` and ``(9, 6)`` are read too."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, label: "str | tuple[int, int]") -> "Head":
        """Reads a head from any of its spellings. Raises InputError for anything else."""
        if isinstance(label, tuple) and len(label) == 2:
            return cls(int(label[0]), int(label[1]))
        match = _HEAD.fullmatch(label) if isinstance(label, str) else None
        if match is None:
            raise InputError(f"a head is written L9H6, 9.6 or (9, 6); got {shown(label)}")
        return cls(*(int(group) for group in match.groups() if group is not None))
