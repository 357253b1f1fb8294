"""`head_attention`: every implementation against the reference over one table of cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kernels import platform
from kernels.head_attention import IMPLEMENTATIONS, head_attention, pallas_mosaic_tpu
from tests.kernel_checks import allowing, attention_dtype, over_heads
from tests.tolerances import assert_close

# name -> B, S, T, H, G, K
CASES = {
    "one position": (2, 1, 1, 3, 3, 24),
    "MHA": (2, 7, 7, 5, 5, 64),
    "GQA 8:1": (1, 13, 13, 16, 2, 5),
    "MQA": (3, 11, 11, 5, 1, 7),
    "decode": (2, 1, 17, 6, 3, 8),
    "suffix": (2, 3, 19, 4, 2, 80),
    "128 positions": (1, 128, 128, 2, 1, 24),
    "1000 positions": (1, 1000, 1000, 2, 1, 128),
}
SLOW = ("1000 positions",)
TESTED = sorted(set(IMPLEMENTATIONS) - {"reference"})
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
ALL_AT_ONCE = ("valid", "gain", "replacement")


def inputs(case: str, dtype="float32"):
    B, S, T, H, G, K = CASES[case]
    rng = np.random.default_rng(0)
    shapes = ((B, S, H, K), (B, T, G, K), (B, T, G, K))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def options(case: str, names=ALL_AT_ONCE):
    """What can be asked for besides attention: ragged padding, gains 0, 1 and a fraction, ..."""
    B, S, T, H, _, K = CASES[case]
    rng = np.random.default_rng(1)
    every = {
        "valid": jnp.arange(T)[None, :] >= jnp.asarray(rng.integers(0, 3, size=(B, 1))),
        "gain": jnp.asarray(rng.choice([0, 1, 0.3], size=(B, 1, H)), jnp.float32),
        "replacement": jnp.asarray(rng.normal(size=(1, S, H, K)), jnp.float32),
    }
    return {name: every[name] for name in names}


def both(case: str, implementation: str, dtype="float32", **kwargs):
    """The implementation's answer and the reference's."""
    q, k, v = inputs(case, dtype)
    with allowing(implementation):
        actual = run(implementation)(q, k, v, **kwargs)
    return actual, reference_answer(case, dtype, tuple(kwargs))


@functools.cache
def reference_answer(case: str, dtype: str, names: tuple[str, ...]):
    return run("reference")(*inputs(case, dtype), **options(case, names))


def run(implementation: str):
    """One compiled call; a new function each time, so that no trace outlives its `allowing`."""
    return jax.jit(
        lambda *args, **kwargs: head_attention(
            *args, precision="highest", implementation=implementation, **kwargs
        )
    )


def assert_same(actual, expected, dtype="float32"):
    assert actual.z.dtype == expected.z.dtype == jnp.dtype(dtype)
    assert_close(actual.z.astype(jnp.float32), expected.z.astype(jnp.float32), dtype)
    attends = np.isfinite(expected.lse)
    np.testing.assert_array_equal(np.isneginf(actual.lse), ~attends)
    assert_close(np.asarray(actual.lse)[attends], np.asarray(expected.lse)[attends], dtype)


@pytest.mark.parametrize("implementation", TESTED)
class TestEveryImplementation:
    @pytest.mark.parametrize("case", NAMES)
    def test_equals_the_reference(self, case: str, implementation: str):
        assert_same(
            *both(case, implementation, attention_dtype(implementation)), attention_dtype(implementation)
        )

    @pytest.mark.parametrize("case", ["MHA", "suffix"])
    def test_bfloat16_with_float32_sums(self, case: str, implementation: str):
        assert_same(*both(case, implementation, "bfloat16"), "bfloat16")

    @pytest.mark.parametrize("case", ["GQA 8:1", "MQA", "suffix", "128 positions"])
    def test_all_options_at_once(self, case: str, implementation: str):
        assert_same(
            *both(case, implementation, attention_dtype(implementation), **options(case)),
            attention_dtype(implementation),
        )

    @pytest.mark.parametrize("name", ["valid", "gain"])
    def test_each_option_alone(self, name: str, implementation: str):
        assert_same(
            *both("decode", implementation, attention_dtype(implementation), **options("decode", (name,))),
            attention_dtype(implementation),
        )

    def test_nothing_behind_the_mask_reaches_a_result(self, implementation: str):
        q, k, v = inputs("GQA 8:1", attention_dtype(implementation))
        valid = jnp.arange(13)[None, :] >= 4
        padded = [x.at[:, :4].set(jnp.nan) for x in (k, v)]
        with allowing(implementation):
            z, lse = head_attention(
                q, *padded, valid=valid, precision="highest", implementation=implementation
            )
        alone = head_attention(q[:, 4:], k[:, 4:], v[:, 4:], implementation="reference")
        assert_close(z[:, 4:], alone.z, attention_dtype(implementation))
        assert_close(lse[:, 4:], alone.lse, attention_dtype(implementation))
        # A query that may attend to nothing gets zeros.
        assert (z[:, :4] == 0).all()
        assert (lse[:, :4] == -jnp.inf).all()

    def test_gain_1_is_a_no_op_and_gain_0_the_replacement(self, implementation: str):
        q, k, v = inputs("decode", attention_dtype(implementation))
        replacement = options("decode")["replacement"].astype(q.dtype)
        gain = jnp.arange(6, dtype=jnp.float32)[None, None] % 2
        with allowing(implementation):
            plain = head_attention(q, k, v, implementation=implementation).z
            z = head_attention(q, k, v, gain=gain, replacement=replacement, implementation=implementation).z
        np.testing.assert_array_equal(z[:, :, 1::2], plain[:, :, 1::2])
        np.testing.assert_array_equal(z[:, :, ::2], jnp.broadcast_to(replacement, z.shape)[:, :, ::2])

    def test_a_row_of_the_pattern_comes_back_from_the_log_sum_exp(self, implementation: str):
        q, k, v = inputs("suffix", attention_dtype(implementation))
        with allowing(implementation):
            z, lse = head_attention(q, k, v, precision="highest", implementation=implementation)
        q, k, v, z = (x.astype(jnp.float32) for x in (q, k, v, z))
        row = jnp.exp(k[1, :, 0] @ q[1, -1, 1] / 80**0.5 - lse[1, -1, 1])
        assert_close(row.sum(), 1, attention_dtype(implementation))
        assert_close(row @ v[1, :, 0], z[1, -1, 1], attention_dtype(implementation))

    def test_gradients_equal_the_reference(self, implementation: str):
        q, k, v = inputs("suffix", attention_dtype(implementation))
        extras = options("suffix")
        k, v = (x.at[0, 0].set(jnp.nan) for x in (k, v))  # behind the mask
        valid = extras.pop("valid").at[:, 0].set(False)
        weight = jnp.asarray(np.random.default_rng(2).normal(size=q.shape), jnp.float32)

        def loss(q, k, v, extras, implementation: str):
            out = head_attention(
                q, k, v, valid=valid, **extras, precision="highest", implementation=implementation
            )
            return jnp.sum(weight * out.z.astype(jnp.float32)) + jnp.sum(
                jnp.where(jnp.isfinite(out.lse), out.lse, 0)
            )

        gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
        with allowing(implementation):
            actual = gradient(q, k, v, extras, implementation)
        expected = gradient(q, k, v, extras, "reference")
        for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert_close(one, other, attention_dtype(implementation))

    def test_under_jit_and_vmap(self, implementation: str):
        q, k, v = (jnp.stack([x, 2 * x]) for x in inputs("decode", attention_dtype(implementation)))

        def attend(q, k, v):
            return head_attention(q, k, v, precision="highest", implementation=implementation)

        with allowing(implementation):
            z, lse = jax.jit(jax.vmap(attend))(q, k, v)
        for i in range(2):
            expected = head_attention(q[i], k[i], v[i], implementation="reference")
            assert_close(z[i], expected.z, attention_dtype(implementation))
            assert_close(lse[i], expected.lse, attention_dtype(implementation))

    def test_under_shard_map_over_heads(self, implementation: str):
        q, k, v = inputs("suffix", attention_dtype(implementation))
        heads = PartitionSpec(None, None, "heads")

        def attend(q, k, v):
            return tuple(head_attention(q, k, v, precision="highest", implementation=implementation))

        with allowing(implementation):
            z, lse = over_heads(implementation, attend, heads, heads)(q, k, v)
        expected = head_attention(q, k, v, implementation="reference")
        assert_close(z, expected.z, attention_dtype(implementation))
        assert_close(lse, expected.lse, attention_dtype(implementation))


def test_the_reference_is_softmax_attention():
    """By hand, one head, one query: the reference itself is checked once."""
    q, k, v = inputs("decode")
    scores = np.asarray(k)[1, :, 2] @ np.asarray(q)[1, 0, 5] / np.sqrt(8)
    weights = np.exp(scores - scores.max())
    by_hand = weights / weights.sum() @ np.asarray(v)[1, :, 2]
    z, lse = head_attention(q, k, v, implementation="reference")
    assert_close(z[1, 0, 5], by_hand)
    assert_close(lse[1, 0, 5], np.log(np.exp(scores).sum()))


@pytest.mark.parametrize("case", ["suffix", "MQA"])
def test_the_tpu_kernel_over_several_blocks(case: str, monkeypatch: pytest.MonkeyPatch):
    """Blocks of 8, so that small cases have several, ragged at both ends."""
    monkeypatch.setattr(pallas_mosaic_tpu, "BLOCK", 8)
    assert_same(*both(case, "pallas_mosaic_tpu", **options(case)))


def test_wrong_calls_are_refused():
    q, k, v = inputs("GQA 8:1")
    with pytest.raises(ValueError, match="H must be a multiple of G; got H=7 and G=2"):
        head_attention(q[:, :, :7], k, v)
    with pytest.raises(ValueError, match="got S=13 of T=5"):
        head_attention(q, k[:, :5], v[:, :5])
    with pytest.raises(ValueError, match="got a replacement and no gain"):
        head_attention(q, k, v, replacement=q)
    with pytest.raises(ValueError, match=r"must be one of \['pallas_mosaic_.*'xla'\]; got 'cudnn'"):
        head_attention(q, k, v, implementation="cudnn")


def test_what_the_tpu_kernel_cannot_do_it_says():
    q, k, v = inputs("GQA 8:1")
    with pytest.raises(NotImplementedError, match="runs on a TPU; this process computes on CPU"):
        head_attention(q, k, v, implementation="pallas_mosaic_tpu")
    with platform.interpreted():
        with pytest.raises(NotImplementedError, match="one for all operands; got float16, float32, float32"):
            head_attention(q.astype(jnp.float16), k, v, implementation="pallas_mosaic_tpu")
        with pytest.raises(NotImplementedError, match=r"knows the precisions .* got 'high'"):
            head_attention(q, k, v, precision="high", implementation="pallas_mosaic_tpu")


def test_what_the_gpu_kernel_cannot_do_it_says():
    q, k, v = inputs("GQA 8:1")
    if jax.default_backend() != "gpu":
        with pytest.raises(NotImplementedError, match="runs on a GPU; this process computes on CPU"):
            head_attention(q, k, v, implementation="pallas_mosaic_gpu")
    with platform.lowered(), pytest.raises(NotImplementedError, match="only bfloat16; got float32"):
        head_attention(q, k, v, implementation="pallas_mosaic_gpu")
    if jax.__version_info__ < (0, 11):
        with platform.interpreted(), pytest.raises(NotImplementedError, match="interpreted from JAX"):
            head_attention(q, k, v, implementation="pallas_mosaic_gpu")
