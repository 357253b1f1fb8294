"""The one tolerance table: how far two implementations of the same float arithmetic may differ.

Relative to the largest number compared. Needing more than this is a defect to explain, not a number
to change.
"""

import numpy as np

RELATIVE = {"float32": 2e-5, "bfloat16": 5e-2, "float16": 6e-3}


def assert_close(actual, expected, dtype: str = "float32") -> None:
    """Every entry within RELATIVE[dtype] of the largest expected magnitude; NaN never passes."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all()
    worst = np.abs(actual - expected).max() / np.abs(expected).max()
    assert worst <= RELATIVE[dtype], (
        f"differs by {worst:.2e} of the largest magnitude; {RELATIVE[dtype]:.0e} allowed"
    )
