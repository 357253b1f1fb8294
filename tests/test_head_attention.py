"""`head_attention`: every implementation against the reference over one table of cases."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.head_attention import IMPLEMENTATIONS, head_attention
from tests.tolerances import assert_close

# name -> B, S, T, H, G, K
CASES = {
    "one position": (2, 1, 1, 3, 3, 5),
    "MHA": (2, 7, 7, 5, 5, 24),
    "GQA": (1, 13, 13, 8, 2, 11),
    "MQA": (3, 11, 11, 5, 1, 7),
    "decode": (2, 1, 17, 6, 3, 8),
    "suffix": (2, 3, 19, 4, 2, 8),
}
TESTED = sorted(set(IMPLEMENTATIONS) - {"reference"})


def inputs(case: str, dtype=jnp.float32):
    B, S, T, H, G, K = CASES[case]
    rng = np.random.default_rng(0)
    shapes = ((B, S, H, K), (B, T, G, K), (B, T, G, K))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("implementation", TESTED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case: str, dtype: str, implementation: str):
    q, k, v = inputs(case, dtype)
    actual = head_attention(q, k, v, precision="highest", implementation=implementation)
    expected = head_attention(q, k, v, implementation="reference")
    assert actual.dtype == q.dtype
    assert_close(actual.astype(jnp.float32), expected.astype(jnp.float32), dtype)


@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
def test_nothing_behind_the_mask_reaches_a_result(implementation: str):
    q, k, v = inputs("GQA")
    valid = jnp.arange(13)[None, :] >= 4
    padded = [x.at[:, :4].set(jnp.nan) for x in (k, v)]
    z = head_attention(q, *padded, valid=valid, precision="highest", implementation=implementation)
    alone = head_attention(q[:, 4:], k[:, 4:], v[:, 4:], implementation="reference")
    assert_close(z[:, 4:], alone)
    assert (z[:, :4] == 0).all()  # a query that may attend to nothing gets zeros


def test_the_reference_is_softmax_attention():
    """By hand, one head, one query: the reference itself is checked once."""
    q, k, v = inputs("decode")
    scores = np.asarray(k)[1, :, 2] @ np.asarray(q)[1, 0, 5] / np.sqrt(8)
    weights = np.exp(scores - scores.max())
    by_hand = weights / weights.sum() @ np.asarray(v)[1, :, 2]
    assert_close(head_attention(q, k, v, implementation="reference")[1, 0, 5], by_hand)


def test_wrong_calls_are_refused():
    q, k, v = inputs("GQA")
    with pytest.raises(ValueError, match="H must be a multiple of G; got H=7 and G=2"):
        head_attention(q[:, :, :7], k, v)
    with pytest.raises(ValueError, match="got S=13 of T=5"):
        head_attention(q, k[:, :5], v[:, :5])
    with pytest.raises(ValueError, match=r"must be one of \['reference', 'xla'\]; got 'cudnn'"):
        head_attention(q, k, v, implementation="cudnn")
