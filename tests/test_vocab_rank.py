"""`vocab_rank`: every implementation against the reference over one table of cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from headjax.kernels.vocab_rank import IMPLEMENTATIONS, pallas_mosaic_gpu, pallas_mosaic_tpu, vocab_rank, xla
from jax.sharding import PartitionSpec

from headjax.kernels import hopper, platform
from tests.helpers.kernel_checks import allowing, over_heads
from tests.helpers.tolerances import assert_close

# name -> H, N, K, D, V; the vocabulary is never a multiple of a tile
CASES = {
    "one query": (1, 1, 3, 5, 7),
    "more queries than K": (2, 19, 7, 11, 101),
    "fewer queries than K": (3, 5, 24, 29, 53),
    "more queries than a tile": (1, 131, 5, 7, 139),
}
TESTED = sorted(set(IMPLEMENTATIONS) - {"reference"})


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch):
    """So that small cases have several tiles, ragged ones among them."""
    monkeypatch.setitem(xla.TILE, "cpu", (8, 16))
    monkeypatch.setattr(pallas_mosaic_tpu, "BLOCK", 128)


def inputs(case: str, dtype="float32", whole_numbers=False):
    """With whole numbers every product is exact, so that ties are ties in any order of summation."""
    H, N, K, D, V = CASES[case]
    rng = np.random.default_rng(0)

    def draw(*shape: int):
        values = rng.integers(-2, 3, size=shape) if whole_numbers else rng.normal(size=shape)
        return jnp.asarray(values, dtype)

    target = jnp.asarray(rng.integers(0, V, size=N), jnp.int32)
    arguments = {"q": draw(H, N, K), "unembed": draw(V, D), "target": target, "W_O": draw(H, K, D)}
    return arguments | {"bias": draw(V).astype(jnp.float32)}


def run(implementation: str, *, precision="highest", with_lse=False, **arguments):
    def rank(arguments):
        return vocab_rank(
            **arguments,
            with_lse=with_lse,
            precision=precision,
            implementation=implementation,
        )

    with allowing(implementation):
        return jax.jit(rank)(arguments)


def assert_same(actual, expected):
    for name in actual._fields:
        if getattr(expected, name) is None:
            assert getattr(actual, name) is None
        elif name in ("logit", "lse"):
            assert_close(getattr(actual, name), getattr(expected, name))
        else:
            np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), name)


@pytest.mark.parametrize("implementation", TESTED)
class TestEveryImplementation:
    @pytest.mark.parametrize("case", CASES)
    def test_equals_the_reference(self, case: str, implementation: str):
        arguments = inputs(case) | {"with_lse": True}
        assert_same(run(implementation, **arguments), run("reference", **arguments))

    @pytest.mark.parametrize("case", ["more queries than K", "fewer queries than K"])
    def test_bfloat16_with_float32_sums(self, case: str, implementation: str):
        """Whole numbers, which bfloat16 holds exactly however the products are ordered."""
        arguments = inputs(case, "bfloat16", whole_numbers=True)
        arguments |= {"W_O": jnp.sign(arguments["W_O"]), "with_lse": True}
        assert_same(run(implementation, **arguments), run("reference", **arguments))

    def test_a_comparison_with_nan_counts_on_both_sides(self, implementation: str):
        arguments = inputs("more queries than K")
        token = np.setdiff1d(np.arange(101), arguments["target"])[7]  # nobody's target
        arguments["unembed"] = arguments["unembed"].at[token].set(jnp.nan)
        arguments["q"] = arguments["q"].at[1, 4].set(jnp.nan)
        rank, expected = run(implementation, **arguments), run("reference", **arguments)
        for counts in (rank, expected):
            assert counts.above[1, 4] == counts.below[1, 4] == 100
            np.testing.assert_array_equal((counts.above + counts.below)[0], 101)
        np.testing.assert_array_equal(rank.above, expected.above)

    @pytest.mark.parametrize("capped", [False, True])
    def test_under_shard_map_over_heads(self, capped: bool, implementation: str):
        arguments = inputs("more queries than K")
        cap = jnp.full(19, 3) if capped else None

        def rank(q, W_O):
            how = {"cap": cap, "precision": "highest", "implementation": implementation}
            return vocab_rank(q, arguments["unembed"], arguments["target"], W_O=W_O, **how).above

        heads = PartitionSpec("heads")
        with allowing(implementation):
            above = over_heads(implementation, rank, heads, heads)(arguments["q"], arguments["W_O"])
        expected = run("reference", **arguments | {"bias": None, "cap": cap}).above
        np.testing.assert_array_equal(above, expected)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_tied_tokens_are_neither_above_nor_below(self, dtype: str, implementation: str):
        arguments = inputs("more queries than K", dtype, whole_numbers=True)
        arguments["W_O"] = jnp.zeros_like(arguments["W_O"]).at[:, :, 3].set(1)  # hundreds of ties
        arguments["bias"] = None
        expected = run("reference", **arguments)
        assert (expected.above + expected.below < 100 - 5).all()
        assert_same(run(implementation, **arguments), expected)

    def test_a_copy_of_the_target_does_not_beat_it(self, implementation: str):
        """Every token is there twice, far apart; only a logit from another product could differ.

        Interpreted on a CPU, XLA sums up the products of a GPU kernel, for the targets and for all tokens not
        always in the same order: there the numbers are whole, and with them every sum is exact.
        """
        exact = implementation == "pallas_mosaic_gpu" and jax.default_backend() == "cpu"
        arguments = inputs("more queries than K", whole_numbers=exact) | {"bias": None}
        arguments["unembed"] = jnp.tile(arguments["unembed"], (2, 1))
        rank, expected = run(implementation, **arguments), run("reference", **arguments)
        assert (rank.above % 2 == 0).all()
        np.testing.assert_array_equal(rank.above + rank.below, expected.above + expected.below)
        assert exact or (expected.above + expected.below == 200).all()

    @pytest.mark.parametrize("case", ["more queries than K", "fewer queries than K"])
    def test_a_cap_leaves_what_lies_below_it_exact(self, case: str, implementation: str):
        arguments = inputs(case)
        cap = jnp.arange(CASES[case][1]) % 7
        expected = run("reference", **arguments)
        rank = run(implementation, **arguments, cap=cap)
        np.testing.assert_array_equal(rank.above, np.minimum(expected.above, cap[None]))
        np.testing.assert_array_equal(rank.below, np.minimum(expected.below, cap[None]))

    def test_decided_blocks_skip_the_rest_of_the_vocabulary(self, implementation: str, monkeypatch):
        """The first tile decides every query; of the rest, all above the target, little is counted."""
        monkeypatch.setattr(pallas_mosaic_gpu, "BLOCKS", 1)  # more would each have a tile of their own
        levels = np.concatenate([[2], np.resize([1, 3], 127), np.full(512, 9)])
        arguments = {
            "q": jnp.asarray(np.random.default_rng(0).integers(1, 3, size=(1, 19, 11)), jnp.float32),
            "unembed": jnp.asarray(np.tile(levels[:, None], (1, 11)), jnp.float32),
            "target": jnp.zeros(19, jnp.int32),
        }
        others = dict.fromkeys(("W_O", "bias", "precision")) | {"with_lse": False}

        def counted(cap) -> np.ndarray:
            """As the implementation gives it, past the cap."""
            with allowing(implementation):
                rank = jax.jit(lambda x: IMPLEMENTATIONS[implementation](**x, **others, cap=cap))(arguments)
            return np.asarray(rank[0])

        assert (counted(None) == 63 + 512).all()
        assert (counted(jnp.full(19, 3)) <= 63).all()

    def test_log_probabilities(self, implementation: str):
        """Of residuals that live in the unembedding's space already, as ablation metrics have them."""
        arguments = inputs("fewer queries than K")
        x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 29)), jnp.float32)
        rank = run(
            implementation,
            q=x,
            unembed=arguments["unembed"],
            target=arguments["target"],
            bias=arguments["bias"],
            with_lse=True,
        )
        logits = np.asarray(x[0], np.float64) @ np.asarray(arguments["unembed"], np.float64).T
        logits += np.asarray(arguments["bias"], np.float64)
        by_hand = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        assert_close(rank.logit[0] - rank.lse[0], by_hand[np.arange(5), arguments["target"]])

    def test_both_orders_of_products_agree(self, implementation: str):
        """19 queries a head go through W_O U, the first 5 of them through D."""
        arguments = inputs("more queries than K")
        many = run(implementation, **arguments)
        few = run(
            implementation,
            **arguments | {"q": arguments["q"][:, :5], "target": arguments["target"][:5]},
        )
        np.testing.assert_array_equal(many.above[:, :5], few.above)
        assert_close(many.logit[:, :5], few.logit)


def test_wrong_calls_are_refused():
    arguments = inputs("fewer queries than K")
    with pytest.raises(ValueError, match="got K=24 and D=29"):
        vocab_rank(**arguments | {"W_O": None})
    with pytest.raises(ValueError, match="a cap skips tiles"):
        vocab_rank(**arguments, cap=jnp.ones(5, jnp.int32), with_lse=True)
    with pytest.raises(ValueError, match="implementation must be one of"):
        vocab_rank(**arguments, implementation="cub")


def test_what_the_tpu_kernel_cannot_do_it_says():
    arguments = inputs("fewer queries than K")
    with pytest.raises(NotImplementedError, match="runs on a TPU; this process computes on CPU"):
        vocab_rank(**arguments, implementation="pallas_mosaic_tpu")
    with platform.interpreted(), pytest.raises(NotImplementedError, match="one for all operands"):
        vocab_rank(
            **arguments | {"q": arguments["q"].astype(jnp.bfloat16)}, implementation="pallas_mosaic_tpu"
        )
    with pytest.raises(NotImplementedError, match="only in blocks of 128; got 2049"):
        pallas_mosaic_tpu.contracted_block(2049)


def test_what_the_gpu_kernel_cannot_do_it_says():
    arguments = inputs("fewer queries than K")
    if jax.default_backend() != "gpu":
        with pytest.raises(NotImplementedError, match="runs on a GPU; this process computes on CPU"):
            vocab_rank(**arguments, implementation="pallas_mosaic_gpu")
    if jax.__version_info__ < (0, 11):
        with platform.interpreted(), pytest.raises(NotImplementedError, match="interpreted from JAX"):
            vocab_rank(**arguments, implementation="pallas_mosaic_gpu")


def test_three_bfloat16s_multiply_like_a_float32():
    """What the GPU kernel feeds its tensor cores for float32, with the sums in float64 here."""
    x, y = (jnp.asarray(np.random.default_rng(i).normal(size=(13, 101)), jnp.float32) for i in (0, 1))
    left, right = hopper.split(x, left=True), hopper.split(y, left=False)
    product = np.asarray(left, np.float64) @ np.asarray(right, np.float64).T
    exact = np.asarray(x, np.float64) @ np.asarray(y, np.float64).T
    assert left.dtype == right.dtype == jnp.bfloat16
    assert np.abs(product - exact).max() < 2.0**-22 * np.abs(exact).max()
