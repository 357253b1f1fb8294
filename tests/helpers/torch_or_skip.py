"""`torch`, the oracle. Where it is not installed, a test is skipped as soon as it reaches for it."""

import pytest

try:
    import torch
except ModuleNotFoundError:

    class _Absent:
        """Has what the signatures of tests and helpers name; everything else skips."""

        Tensor = object

        def no_grad(self):
            return lambda function: function

        def __getattr__(self, name: str):
            if name.startswith(("_", "pytest")):  # pytest looks at all that a module has
                raise AttributeError(name)
            return pytest.importorskip("torch", reason="needs torch, whose models are the oracle")

    torch = _Absent()

__all__ = ["torch"]
