"""`head_attention`: every implementation against the reference over one table of cases."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from headjax.kernels.head_attention import IMPLEMENTATIONS, head_attention, pallas_mosaic_tpu
from jax.sharding import PartitionSpec

from headjax.kernels import platform
from tests.helpers.kernel_checks import allowing, attention_dtype, over_heads
from tests.helpers.tolerances import assert_close
from tests.helpers.torch_or_skip import torch

# name -> B, S, T, H, G, K
CASES = {
    "one position": (2, 1, 1, 3, 3, 24),
    "MHA": (2, 7, 7, 5, 5, 64),
    "GQA 8:1": (1, 13, 13, 16, 2, 5),
    "MQA": (3, 11, 11, 5, 1, 7),
    "decode": (2, 1, 17, 6, 3, 8),
    "suffix": (2, 3, 19, 4, 2, 80),
    "few heads": (1, 5, 11, 2, 1, 8),
    "128 positions": (1, 128, 128, 2, 1, 24),
    "1000 positions": (1, 1000, 1000, 2, 1, 128),
}
SLOW = ("1000 positions",)
TESTED = sorted(set(IMPLEMENTATIONS) - {"reference"})
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
ALL_AT_ONCE = ("valid", "gain", "replacement")
# A scale away from 1 / sqrt(K), a cap that bends every score, a window shorter than every prompt.
SCORES = {"scale": 0.7, "soft_cap": 1.5, "window": 4}


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


def both(case: str, implementation: str, dtype="float32", scores=None, **kwargs):
    """The implementation's answer and the reference's."""
    q, k, v = inputs(case, dtype)
    scores = {} if scores is None else scores
    with allowing(implementation):
        actual = run(implementation, **scores)(q, k, v, **kwargs)
    return actual, reference_answer(case, dtype, tuple(scores.items()), tuple(kwargs))


@functools.cache
def reference_answer(case: str, dtype: str, scores: tuple[tuple[str, float], ...], names: tuple[str, ...]):
    return run("reference", **dict(scores))(*inputs(case, dtype), **options(case, names))


def run(implementation: str, **static):
    """One compiled call; a new function each time, so that no trace outlives its `allowing`."""
    return jax.jit(
        lambda *args, **kwargs: head_attention(
            *args, precision="highest", implementation=implementation, **static, **kwargs
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

    @pytest.mark.parametrize("case", ["GQA 8:1", "MQA", "suffix", "128 positions"])
    def test_scale_soft_cap_and_window(self, case: str, implementation: str):
        dtype = attention_dtype(implementation)
        actual, expected = both(case, implementation, dtype, SCORES, **options(case))
        assert_same(actual, expected, dtype)
        for name in SCORES:  # each of them matters
            others = tuple((other, value) for other, value in SCORES.items() if other != name)
            without = reference_answer(case, dtype, others, ALL_AT_ONCE)
            with pytest.raises(AssertionError):
                assert_same(without, expected, dtype)

    def test_scores_in_bfloat16(self, implementation: str):
        assert_same(*both("suffix", implementation, "bfloat16", SCORES, **options("suffix")), "bfloat16")

    def test_one_program_for_every_window(self, implementation: str, monkeypatch):
        """Given as an array: shorter than the prompt, as long, longer; over several blocks of keys."""
        monkeypatch.setattr(pallas_mosaic_tpu, "BLOCK", 4)
        case, dtype = "few heads", attention_dtype(implementation)
        arrays, extras = inputs(case, dtype), options(case, ("valid",))
        program = run(implementation)
        for window in (1, 2, 6, 11, 2**31 - 1):
            with allowing(implementation):
                actual = program(*arrays, **extras, window=jnp.int32(window))
            assert_same(actual, reference_answer(case, dtype, (("window", window),), ("valid",)), dtype)
        assert program._cache_size() == 1

    def test_layers_of_a_scan_differ_in_their_window(self, implementation: str):
        """Their outputs, and the gradient of all of them."""
        dtype = attention_dtype(implementation)
        q, k, v = inputs("suffix", dtype)
        weight = jnp.asarray(np.random.default_rng(2).normal(size=(2, *q.shape)), jnp.float32)

        def scanned(q):
            def layer(carry, window):
                how = {"precision": "highest", "implementation": implementation}
                return carry, head_attention(q, k, v, window=window, **how).z

            return jax.lax.scan(layer, None, jnp.asarray([4, 19], jnp.int32))[1].astype(jnp.float32)

        def one_by_one(q):
            z = [head_attention(q, k, v, window=n, implementation="reference").z for n in (4, None)]
            return jnp.stack(z).astype(jnp.float32)

        with allowing(implementation):
            z, backward = jax.vjp(jax.jit(scanned), q)
            (dq,) = backward(weight)
        expected, backward = jax.vjp(one_by_one, q)
        assert_close(z, expected, dtype)
        assert_close(dq.astype(jnp.float32), backward(weight)[0].astype(jnp.float32), dtype)

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

    @pytest.mark.parametrize("scores", [{}, SCORES], ids=["plain", "capped in a window"])
    def test_gradients_equal_the_reference(self, scores: dict, implementation: str):
        q, k, v = inputs("suffix", attention_dtype(implementation))
        extras = options("suffix")
        k, v = (x.at[0, 0].set(jnp.nan) for x in (k, v))  # behind the mask
        valid = extras.pop("valid").at[:, 0].set(False)
        weight = jnp.asarray(np.random.default_rng(2).normal(size=q.shape), jnp.float32)

        def loss(q, k, v, extras, implementation: str):
            out = head_attention(
                q, k, v, valid=valid, **extras, **scores, precision="highest", implementation=implementation
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

    @pytest.mark.parametrize("window", [None, 5])
    def test_under_jit_and_vmap(self, window: int | None, implementation: str):
        q, k, v = (jnp.stack([x, 2 * x]) for x in inputs("decode", attention_dtype(implementation)))

        def attend(q, k, v):
            how = {"precision": "highest", "implementation": implementation}
            return head_attention(q, k, v, window=window, **how)

        with allowing(implementation):
            z, lse = jax.jit(jax.vmap(attend))(q, k, v)
        for i in range(2):
            expected = head_attention(q[i], k[i], v[i], window=window, implementation="reference")
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


@pytest.mark.parametrize("implementation", ["pallas_mosaic_tpu", "pallas_mosaic_gpu"])
def test_blocks_outside_the_window_are_not_read(implementation: str, monkeypatch: pytest.MonkeyPatch):
    """NaNs lie in them, of values that a weight of zero would not hide."""
    monkeypatch.setattr(pallas_mosaic_tpu, "BLOCK", 8)
    S, T, window = 70, 200, 67
    seen = T - S - window + 1  # the first key that is: 64, where a block begins, of 8 keys and of 64
    rng = np.random.default_rng(0)
    dtype = attention_dtype(implementation)
    q, k, v = (jnp.asarray(rng.normal(size=(1, n, 1, 8)), dtype) for n in (S, T, T))
    behind = [x.at[:, :seen].set(jnp.nan) for x in (k, v)]
    with allowing(implementation):
        actual = run(implementation)(q, *behind, window=jnp.int32(window))
        # One key more, and the block before is read, also for the second query, which does not see it.
        wider = run(implementation)(q, *behind, window=jnp.int32(window + 1))
    assert_same(actual, head_attention(q, k, v, window=window, implementation="reference"), dtype)
    assert np.isnan(wider.z[0, 1].astype(jnp.float32)).all()


def test_the_defaults_are_the_usual_scores_bit_for_bit():
    for case, dtype in (("GQA 8:1", "float32"), ("suffix", "bfloat16")):
        (q, k, v), extras, T = inputs(case, dtype), options(case), CASES[case][2]
        plain = run("xla")(q, k, v, **extras)
        for scores in ({"scale": q.shape[3] ** -0.5}, {"window": T}, {"window": jnp.int32(T)}):
            for one, other in zip(run("xla", **scores)(q, k, v, **extras), plain, strict=True):
                np.testing.assert_array_equal(one, other)


def test_the_reference_by_hand_with_scale_soft_cap_and_window():
    """In numpy's float64, one query at a time over nothing but the keys that it sees."""
    q, k, v = (np.asarray(x, np.float64) for x in inputs("suffix"))
    valid = np.asarray(options("suffix")["valid"])
    B, S, T, H, G, _ = CASES["suffix"]
    z, lse = run("reference", **SCORES)(*inputs("suffix"), valid=jnp.asarray(valid))
    for b, s, h in np.ndindex(B, S, H):
        at, group = T - S + s, h // (H // G)
        keys = [t for t in range(at - 3, at + 1) if valid[b, t]]
        scores = 1.5 * np.tanh(k[b, keys, group] @ q[b, s, h] * 0.7 / 1.5)
        total = np.exp(scores).sum()
        assert_close(z[b, s, h], np.exp(scores) / total @ v[b, keys, group])
        assert_close(lse[b, s, h], np.log(total))


@pytest.mark.parametrize("family", ["gemma2", "mistral"])
def test_the_reference_is_what_transformers_computes(family: str, monkeypatch: pytest.MonkeyPatch):
    """Every layer's own call in a tiny model over left-padded prompts: sliding, full, capped layers."""
    torch.manual_seed(0)
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    name = {"gemma2": "Gemma2", "mistral": "Mistral"}[family]
    sizes = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 6}
    sizes |= {"intermediate_size": 7, "num_hidden_layers": 2, "vocab_size": 31, "pad_token_id": 0}
    if family == "gemma2":
        sizes |= {"attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 3}
    config = getattr(module, f"{name}Config")(
        **sizes, sliding_window=4, initializer_range=0.7, attn_implementation="eager"
    )
    eager, calls = module.eager_attention_forward, []

    def recorded(module, *tensors, **how):
        calls.append((tensors[:3], how, result := eager(module, *tensors, **how)))
        return result

    monkeypatch.setattr(module, "eager_attention_forward", recorded)
    mask = torch.ones(3, 13, dtype=torch.long)
    mask[1, :5] = mask[2, :10] = 0
    with torch.no_grad():
        getattr(module, f"{name}Model")(config).eval()(torch.randint(1, 31, mask.shape), attention_mask=mask)
    assert [how["sliding_window"] for _, how, _ in calls] == [4, None if family == "gemma2" else 4]
    valid = jnp.asarray(mask.numpy() > 0)
    for tensors, how, (theirs, _) in calls:
        z, _ = head_attention(
            *(jnp.asarray(x.transpose(1, 2).numpy()) for x in tensors),
            scale=how["scaling"],
            soft_cap=how.get("softcap"),
            window=how["sliding_window"],
            valid=valid,
            implementation="reference",
        )
        assert_close(np.asarray(z)[valid], theirs.numpy()[valid])


def test_wrong_calls_are_refused():
    q, k, v = inputs("GQA 8:1")
    with pytest.raises(ValueError, match="H must be a multiple of G; got H=7 and G=2"):
        head_attention(q[:, :, :7], k, v)
    with pytest.raises(ValueError, match="got S=13 of T=5"):
        head_attention(q, k[:, :5], v[:, :5])
    with pytest.raises(ValueError, match="got a replacement and no gain"):
        head_attention(q, k, v, replacement=q)
    with pytest.raises(ValueError, match="a soft cap must be above 0; got 0"):
        head_attention(q, k, v, soft_cap=0.0)
    with pytest.raises(ValueError, match="at least the query's own position; got 0"):
        head_attention(q, k, v, window=0)
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
