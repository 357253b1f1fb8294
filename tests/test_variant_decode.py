"""`variant_decode`: every implementation against the reference over one table of cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from headjax.kernels.head_attention import head_attention, pallas_mosaic_tpu
from headjax.kernels.variant_decode import IMPLEMENTATIONS, variant_decode
from jax.sharding import PartitionSpec

from headjax.kernels import platform
from tests.helpers.kernel_checks import allowing, attention_dtype, over_heads
from tests.helpers.tolerances import assert_close

# name -> M, B, S, H, G, K
CASES = {
    "one variant, one position": (1, 2, 1, 3, 3, 5),
    "MHA": (7, 2, 13, 5, 5, 24),
    "GQA 8:1": (3, 2, 11, 16, 2, 7),
    "MQA, head dim 80": (5, 3, 7, 5, 1, 80),
    "128 positions, head dim 128": (11, 1, 128, 4, 2, 128),
    "1000 positions": (3, 1, 1000, 2, 1, 24),
    "more variants than positions": (131, 2, 3, 2, 1, 64),
}
# A scale away from 1 / sqrt(K), a cap that bends every score, a window shorter than every prompt.
SCORES = {"scale": 0.7, "soft_cap": 1.5, "window": 4}
TESTED = sorted(set(IMPLEMENTATIONS) - {"reference"})


def inputs(case: str, dtype="float32", ragged=True):
    """The five arrays, with NaN behind the mask, and the mask."""
    M, B, S, H, G, K = CASES[case]
    rng = np.random.default_rng(0)
    shapes = ((M, B, H, K), (B, S, G, K), (B, S, G, K), (M, B, G, K), (M, B, G, K))
    q, k, v, k_new, v_new = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    padding = rng.integers(0, S, size=B) if ragged else np.zeros(B, int)
    valid = jnp.arange(S)[None, :] >= jnp.asarray(padding)[:, None]
    k, v = (jnp.where(valid[:, :, None, None], x, jnp.nan) for x in (k, v))
    return (q, k, v, k_new, v_new), valid


def run(implementation: str, **static):
    """One compiled call; a new function each time, so that no trace outlives its `allowing`."""
    return jax.jit(
        lambda *args, **kwargs: variant_decode(
            *args, precision="highest", implementation=implementation, **static, **kwargs
        )
    )


@functools.cache
def reference_answer(case: str, dtype: str, **scores):
    args, valid = inputs(case, dtype)
    return run("reference", **scores)(*args, valid=valid)


@pytest.mark.parametrize("implementation", TESTED)
class TestEveryImplementation:
    @pytest.mark.parametrize("case", CASES)
    def test_equals_the_reference(self, case: str, implementation: str):
        self.check(case, implementation, attention_dtype(implementation))

    @pytest.mark.parametrize("case", ["MHA", "GQA 8:1", "more variants than positions"])
    def test_bfloat16_with_float32_sums(self, case: str, implementation: str):
        self.check(case, implementation, "bfloat16")

    def check(self, case: str, implementation: str, dtype: str, **scores):
        args, valid = inputs(case, dtype)
        with allowing(implementation):
            actual = run(implementation, **scores)(*args, valid=valid)
        expected = reference_answer(case, dtype, **scores)
        assert actual.dtype == expected.dtype == jnp.dtype(dtype)
        assert_close(actual, expected, dtype)

    @pytest.mark.parametrize("case", ["MHA", "GQA 8:1", "MQA, head dim 80", "more variants than positions"])
    def test_scale_soft_cap_and_window(self, case: str, implementation: str):
        self.check(case, implementation, attention_dtype(implementation), **SCORES)

    def test_scores_in_bfloat16(self, implementation: str):
        self.check("GQA 8:1", implementation, "bfloat16", **SCORES)

    def test_one_program_for_every_window(self, implementation: str, monkeypatch):
        """Given as an array: alone with the own position, shorter than the cache, as long, longer."""
        monkeypatch.setattr(pallas_mosaic_tpu, "BLOCK", 4)
        dtype = attention_dtype(implementation)
        args, valid = inputs("MHA", dtype)
        program = run(implementation)
        for window in (1, 2, 5, 13, 2**31 - 1):
            with allowing(implementation):
                actual = program(*args, valid=valid, window=jnp.int32(window))
            assert_close(actual, reference_answer("MHA", dtype, window=window), dtype)
        assert program._cache_size() == 1

    @pytest.mark.parametrize("traced", [False, True])
    def test_what_lies_before_the_window_is_not_read(self, traced: bool, implementation: str, monkeypatch):
        """NaNs lie there, of values that a weight of zero would not hide, up to where a block begins."""
        monkeypatch.setattr(pallas_mosaic_tpu, "BLOCK", 8)
        if implementation == "xla" and traced:
            pytest.skip("XLA's shapes cannot follow an array: it reads and masks")
        dtype = attention_dtype(implementation)
        rng = np.random.default_rng(0)
        sizes = ((3, 1, 4, 8), (1, 150, 2, 8), (1, 150, 2, 8), (3, 1, 2, 8), (3, 1, 2, 8))
        q, k, v, *new = (jnp.asarray(rng.normal(size=size), dtype) for size in sizes)
        behind = [x.at[:, :128].set(jnp.nan) for x in (k, v)]
        with allowing(implementation):
            if traced:
                actual = run(implementation)(q, *behind, *new, window=jnp.int32(22))
            else:
                actual = run(implementation, window=22)(q, *behind, *new)
        assert_close(actual, run("reference", window=22)(q, k, v, *new), dtype)

    def test_without_a_mask_every_position_counts(self, implementation: str):
        dtype = attention_dtype(implementation)
        args, valid = inputs("GQA 8:1", dtype, ragged=False)
        with allowing(implementation):
            actual = run(implementation)(*args, valid=None)
        assert_close(actual, run("reference")(*args, valid=valid), dtype)

    def test_the_replaced_position_is_not_read(self, implementation: str):
        """Not the cache's last key and value, nor whether they count as valid."""
        dtype = attention_dtype(implementation)
        (q, k, v, *new), valid = inputs("MHA", dtype)
        k, v = (x.at[:, -1].set(jnp.nan) for x in (k, v))
        with allowing(implementation):
            actual = run(implementation)(q, k, v, *new, valid=valid.at[:, -1].set(False))
        assert_close(actual, reference_answer("MHA", dtype), dtype)

    def test_under_shard_map_over_heads(self, implementation: str):
        dtype = attention_dtype(implementation)
        args, valid = inputs("GQA 8:1", dtype)

        def decode(*args):
            return variant_decode(
                *args[:5], valid=args[5], precision="highest", implementation=implementation
            )

        heads = PartitionSpec(None, None, "heads")
        with allowing(implementation):
            actual = over_heads(implementation, decode, (*[heads] * 5, PartitionSpec()), heads)(*args, valid)
        assert_close(actual, reference_answer("GQA 8:1", dtype), dtype)


@pytest.mark.parametrize("scores", [{}, SCORES], ids=["plain", "capped in a window"])
def test_the_reference_is_ordinary_attention_over_a_variants_own_cache(scores: dict):
    (q, k, v, k_new, v_new), valid = inputs("GQA 8:1")
    z = run("reference", **scores)(q, k, v, k_new, v_new, valid=valid)
    for m in range(len(q)):
        cache = k.at[:, -1].set(k_new[m]), v.at[:, -1].set(v_new[m])
        alone = head_attention(q[m][:, None], *cache, valid=valid, **scores, implementation="reference").z
        assert_close(z[m], alone[:, 0])


def test_no_cache_is_copied_for_a_variant():
    """Nothing in the program is as large as the cache times the variants."""
    (q, k, v, *new), valid = inputs("more variants than positions")
    lowered = run("xla").lower(q, k, v, *new, valid=valid)
    text = lowered.as_text()
    sizes = [
        np.prod([int(n) for n in shape.split("x")[:-1]])
        for shape in set(part.split(">")[0] for part in text.split("tensor<")[1:])
        if "x" in shape
    ]
    assert max(sizes) < len(q) * k.size


def test_the_defaults_are_the_usual_scores_bit_for_bit():
    args, valid = inputs("GQA 8:1")
    plain = run("xla")(*args, valid=valid)
    for scores in ({"scale": 7**-0.5}, {"window": 11}, {"window": jnp.int32(11)}):
        np.testing.assert_array_equal(run("xla", **scores)(*args, valid=valid), plain)


def test_wrong_calls_are_refused():
    (q, k, v, *new), _ = inputs("GQA 8:1")
    with pytest.raises(ValueError, match="H must be a multiple of G; got H=15 and G=2"):
        variant_decode(q[:, :, :15], k, v, *new)
    with pytest.raises(ValueError, match="got S=0"):
        variant_decode(q, k[:, :0], v[:, :0], *new)
    with pytest.raises(ValueError, match="a soft cap must be above 0; got -1"):
        variant_decode(q, k, v, *new, soft_cap=-1.0)
    with pytest.raises(ValueError, match="at least the query's own position; got 0"):
        variant_decode(q, k, v, *new, window=0)
    with pytest.raises(ValueError, match=r"must be one of .*; got 'cudnn'"):
        variant_decode(q, k, v, *new, implementation="cudnn")


def test_what_a_kernel_cannot_do_it_says():
    (q, *rest), valid = inputs("GQA 8:1")
    for implementation, where in platform.PLATFORMS.items():
        if jax.default_backend() != where:
            with pytest.raises(
                NotImplementedError, match=f"{implementation} runs on a {where.upper()}; this"
            ):
                variant_decode(q, *rest, valid=valid, implementation=implementation)
    with (
        platform.interpreted(),
        pytest.raises(NotImplementedError, match="one for all operands; got bfloat16"),
    ):
        variant_decode(q.astype(jnp.bfloat16), *rest, implementation="pallas_mosaic_tpu")
    with platform.lowered(), pytest.raises(NotImplementedError, match="only bfloat16; got float32"):
        variant_decode(q, *rest, implementation="pallas_mosaic_gpu")
