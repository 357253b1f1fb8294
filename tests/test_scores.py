"""Screened counting against a slow, obvious count, on weights that are kind to it and that are not."""

from collections.abc import Callable, Iterator
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from headjax.engine import hits as scores
from headjax.engine.hits import Chunk, Hits, add_counts, no_counts, relation_hits, screening_stages
from tests.helpers.hit_oracle import normal, slow_hits

# Heads with few pairs (pooled), with many (crowded), and with both in turn; K, D and V in all orders.
SHAPES = {
    "pooled": dict(H=3, N=5, K=7, D=31, V=211),
    "crowded": dict(H=3, N=53, K=2, D=31, V=211),
    "mixed": dict(H=11, N=59, K=13, D=29, V=2003),
    "one pair": dict(H=2, N=1, K=3, D=5, V=101),
    "few tokens": dict(H=5, N=17, K=7, D=11, V=3),
    "wide heads": dict(H=2, N=23, K=19, D=11, V=503),
}
DRAWS = (7, 41)


def integers(seed: int, *shape: int) -> np.ndarray:
    """Few values, so that many logits tie, and all of them exact in float32."""
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float32)


def assert_same_hits(ours: Hits, q, W_O, unembed, targets, k) -> None:
    """Equal to the slow count, but where a logit ties with the target's within rounding."""
    possible = slow_hits(q, W_O, unembed, targets, k, tolerance=1e-5)
    certain = slow_hits(q, W_O, unembed, targets, k, tolerance=-1e-5)
    for kind, hits in ours._asdict().items():
        low, hits, high = getattr(certain, kind), np.asarray(hits), getattr(possible, kind)
        assert (low <= hits).all(), kind
        assert (hits <= high).all(), kind
        assert (low != high).mean() < 0.02, "the weights are too close to ties to test anything"


def problem(shape: dict[str, int], draw=normal, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of one layer; some pairs share their target, every pair has its own k."""
    H, N, K, D, V = (shape[axis] for axis in "HNKDV")
    rng = np.random.default_rng(seed)
    return {
        "q": draw(seed + 1, H, N, K),
        "W_O": draw(seed + 2, H, K, D),
        "unembed": draw(seed + 3, V, D),
        "targets": rng.integers(0, V, N).astype(np.int32),
        "k": rng.choice([1, 3, 10], N).astype(np.int32),
    }


def screened_hits(q, W_O, unembed, targets, k, draws=DRAWS, seed: int = 0) -> Hits:
    stages = screening_stages(jnp.asarray(unembed), targets, draws, seed)
    return compiled(scores.CHUNKS["cpu"])(jnp.asarray(q), jnp.asarray(W_O), stages, jnp.asarray(k))


@cache
def compiled(chunk: Chunk) -> Callable[..., Hits]:
    """One compilation for each setting of CHUNKS, which jax.jit alone would not tell apart."""
    return jax.jit(lambda *arrays: relation_hits(*arrays))


@pytest.fixture(params=["small chunks", "usual chunks"])
def chunks(request, monkeypatch):
    """Small ones, so that every loop runs many times and ends in a chunk that is not full."""
    if request.param == "small chunks":
        monkeypatch.setitem(scores.CHUNKS, "cpu", Chunk(rows=3, logits=1))


@pytest.mark.usefixtures("chunks")
class TestHits:
    @pytest.mark.parametrize("name", SHAPES)
    def test_equal_the_slow_count(self, name):
        inputs = problem(SHAPES[name])
        assert_same_hits(screened_hits(**inputs), **inputs)

    @pytest.mark.parametrize("name", SHAPES)
    def test_equal_it_exactly_where_many_logits_tie(self, name):
        inputs = problem(SHAPES[name], integers)
        ours, theirs = screened_hits(**inputs), slow_hits(**inputs)
        np.testing.assert_array_equal(ours.plain, theirs.plain)
        np.testing.assert_array_equal(ours.suppression, theirs.suppression)

    @pytest.mark.parametrize("name", SHAPES)
    def test_are_all_pairs_when_all_logits_tie(self, name):
        """W_O = 0: nothing lies above or below, so every pair survives every stage."""
        inputs = problem(SHAPES[name])
        inputs["W_O"][:] = 0
        hits = screened_hits(**inputs)
        assert hits.plain.all()
        assert hits.suppression.all()

    @pytest.mark.parametrize("sign", [1, -1])
    def test_of_heads_that_put_every_target_first_or_last(self, sign):
        H, N, D, V = 3, 53, 17, 307
        unembed = normal(3, V, D)
        unembed /= np.linalg.norm(unembed, axis=1, keepdims=True)
        targets = np.random.default_rng(0).integers(0, V, N).astype(np.int32)
        inputs = {
            "q": np.repeat(sign * unembed[None, targets], H, axis=0),
            "W_O": np.repeat(np.eye(D, dtype=np.float32)[None], H, axis=0),
            "unembed": unembed,
            "targets": targets,
            "k": np.ones(N, np.int32),
        }
        hits = screened_hits(**inputs)
        assert hits.plain.all() == (sign == 1)
        assert hits.suppression.all() == (sign == -1)
        assert_same_hits(hits, **inputs)

    def test_are_all_pairs_when_k_reaches_the_vocabulary(self):
        inputs = problem(SHAPES["mixed"])
        inputs["k"][:] = SHAPES["mixed"]["V"]
        hits = screened_hits(**inputs)
        assert hits.plain.all()
        assert hits.suppression.all()

    def test_of_one_crowded_head_among_empty_ones(self):
        """True hits of one head only: it takes its own path, the others the pooled one."""
        inputs = problem(SHAPES["mixed"])
        aim = inputs["unembed"][inputs["targets"]] @ inputs["W_O"][4].T
        inputs["q"][4] = 30 * aim
        assert_same_hits(screened_hits(**inputs), **inputs)


def test_hits_do_not_depend_on_what_was_drawn():
    inputs = problem(SHAPES["mixed"], integers)
    first, other, none = (screened_hits(**inputs, **how) for how in ({"seed": 0}, {"seed": 1}, {"draws": ()}))
    for kind in Hits._fields:
        np.testing.assert_array_equal(getattr(first, kind), getattr(none, kind))
        np.testing.assert_array_equal(getattr(other, kind), getattr(none, kind))


def test_a_vocabulary_larger_than_the_usual_stages():
    inputs = problem(dict(H=2, N=37, K=3, D=5, V=35_051))
    stages = screening_stages(jnp.asarray(inputs["unembed"]), inputs["targets"])
    assert [len(stage.rows) for stage in stages][1:] == [512, 2560 - 512, 7680 - 2560, 35_051]
    assert_same_hits(screened_hits(**inputs, draws=scores.DRAWS), **inputs)


@pytest.mark.parametrize("limits", [{}, {"SMALL": 0, "TILE": 29 * 101, "HELD_LOGITS": 2003 * 70}])
def test_half_precision_weights_are_scored_in_float32(limits, monkeypatch):
    """Widened at once, or in tiles that do not divide the vocabulary."""
    for name, value in limits.items():
        monkeypatch.setattr(scores, name, value)
    compiled.cache_clear()
    inputs = problem(SHAPES["mixed"])
    narrow = {name: jnp.asarray(inputs[name], jnp.bfloat16) for name in ("q", "W_O", "unembed")}
    wide = {name: np.asarray(array, np.float32) for name, array in narrow.items()}
    ours, expected = screened_hits(**inputs | narrow), screened_hits(**inputs | wide)
    np.testing.assert_array_equal(ours.plain, expected.plain)
    np.testing.assert_array_equal(ours.suppression, expected.suppression)


@pytest.mark.parametrize("where", ["q", "W_O", "unembed"])
def test_numbers_that_are_none_make_no_hits(where):
    inputs = problem(SHAPES["mixed"])
    inputs[where][...] = np.nan
    hits = screened_hits(**inputs)
    assert not hits.plain.any()
    assert not hits.suppression.any()


def test_early_stages_share_no_token_and_the_first_of_all_holds_every_target():
    inputs = problem(SHAPES["mixed"])
    unembed = np.arange(2003 * 2, dtype=np.float32).reshape(2003, 2)  # rows tell their token
    stages = screening_stages(jnp.asarray(unembed), inputs["targets"], (19, 307), seed=5)
    targets, first, second, last = (np.asarray(stage.rows[:, 0]) / 2 for stage in stages)
    np.testing.assert_array_equal(targets, np.unique(inputs["targets"]))
    assert [len(tokens) for tokens in (first, second, last)] == [19, 307 - 19, 2003]
    assert len(np.unique(np.concatenate([first, second]))) == 307
    np.testing.assert_array_equal(last, np.arange(2003))
    np.testing.assert_array_equal(targets[np.asarray(stages[0].target)], inputs["targets"])
    np.testing.assert_array_equal(stages[-1].target, inputs["targets"])
    assert all((np.asarray(stage.target) == -1).all() for stage in stages[1:-1])


def test_few_targets_are_counted_over_in_the_first_stage():
    """No more of them than a row is long."""
    unembed, targets = normal(0, 2003, 23), np.arange(23, dtype=np.int32)[::-1] * 7
    first, second, _ = screening_stages(jnp.asarray(unembed), targets, (19, 307), seed=5)
    assert not isinstance(first, scores.Targets)
    assert [len(stage.rows) for stage in (first, second)] == [23 + 19, 307 - 19]
    np.testing.assert_array_equal(first.rows[first.target], unembed[targets])
    more = screening_stages(jnp.asarray(unembed), np.append(targets, np.int32(3)), (19, 307), seed=5)
    assert isinstance(more[0], scores.Targets)
    assert [len(stage.rows) for stage in more[:3]] == [24, 19, 307 - 19]


def test_stages_are_left_out_where_they_spare_nothing():
    targets = np.array([2, 0, 2], np.int32)
    assert [len(s.rows) for s in screening_stages(jnp.asarray(normal(0, 3, 5)), targets)] == [3]
    assert [len(s.rows) for s in screening_stages(jnp.asarray(normal(0, 1029, 5)), targets)] == [514, 1029]


def test_a_stage_is_one_program(count_compiles):
    """Not one for each of its operations, as it would be outside of any program."""
    unembed, targets = jnp.asarray(normal(0, 2003, 29)), np.arange(31)
    jax.clear_caches()
    with count_compiles() as compiled:
        stages = screening_stages(unembed, targets, draws=DRAWS)
    assert set(compiled) == {"jit(_gather)", "jit(_largest_norm)"}
    assert len(compiled) <= len(stages)


@pytest.mark.usefixtures("chunks")
def test_every_undecided_pair_is_counted_however_many_a_head_has():
    """None, one, as many as are pooled, one more, and all."""
    shape = dict(H=5, N=23, K=7, D=11, V=101)
    inputs = problem(shape, integers)
    undecided = np.arange(23)[::-1] < np.array([0, 1, 7, 8, 23])[:, None]
    stage = screening_stages(jnp.asarray(inputs["unembed"]), inputs["targets"])[-1]
    arrays = (jnp.asarray(inputs["q"]), jnp.asarray(inputs["W_O"]), stage, jnp.asarray(undecided))
    counts = scores.count_undecided(*arrays, jnp.zeros((5, 23)), no_counts((5, 23)), "highest")
    logits = inputs["q"] @ inputs["W_O"] @ inputs["unembed"].T
    own = np.take_along_axis(logits, inputs["targets"][None, :, None], axis=2)
    np.testing.assert_array_equal(counts.above[undecided], (logits > own).sum(axis=2)[undecided])
    np.testing.assert_array_equal(counts.below[undecided], (logits < own).sum(axis=2)[undecided])


@pytest.mark.parametrize("n_pairs", [5, 61])
def test_own_logits_are_the_targets_whichever_way_is_cheaper(n_pairs: int):
    """Fewer pairs than distinct targets (of other pairs), and more."""
    inputs = problem(dict(H=3, N=n_pairs, K=7, D=11, V=101), integers)
    tokens = np.arange(40, 60, dtype=np.int32)
    inputs["targets"] = np.random.default_rng(0).choice(tokens, n_pairs)
    rows, slots = jnp.asarray(inputs["unembed"][tokens]), jnp.asarray(inputs["targets"] - 40)
    q, W_O = jnp.asarray(inputs["q"]), jnp.asarray(inputs["W_O"])
    counts = scores.own_logits(q, W_O, scores.Targets(rows, slots, jnp.ones(())), "highest")
    logits = inputs["q"] @ inputs["W_O"] @ inputs["unembed"].T
    np.testing.assert_array_equal(counts.own, logits[:, np.arange(n_pairs), inputs["targets"]])
    assert not (counts.above | counts.below).any()


def test_few_pairs_see_the_whole_vocabulary():
    """For random weights about 2 k / T of the pairs outlive a stage of T tokens."""
    H, N, K, D, V, T, k = 7, 131, 11, 41, 20_011, 2048, 5
    inputs = problem(dict(H=H, N=N, K=K, D=D, V=V)) | {"k": np.full(N, k, np.int32)}
    q, W_O = jnp.asarray(inputs["q"]), jnp.asarray(inputs["W_O"])
    targets, stage, _ = screening_stages(jnp.asarray(inputs["unembed"]), inputs["targets"], (T,))
    margin = scores.rounding_margin(q, W_O, stage.largest)
    own = scores.own_logits(q, W_O, targets, "highest")
    counts = scores.count_undecided(q, W_O, stage, jnp.ones((H, N), bool), margin, own, "highest")
    left = np.mean((counts.above < k) | (counts.below < k))
    assert left < 2 * (2 * k / T)


def test_the_last_stage_tells_apart_what_rounding_could_explain():
    """Two tokens whose logits are neighbouring numbers: within the margin, and still above and below."""
    unembed = np.linspace(-1, 1, 211, dtype=np.float32)[:, None] * np.float32(0.5)
    unembed[17], unembed[18] = 1, np.nextafter(np.float32(1), np.float32(2))
    targets = np.array([17, 18], np.int32)
    hits = screened_hits(np.ones((1, 2, 1)), np.ones((1, 1, 1)), unembed, targets, np.array([1, 1]))
    assert hits.plain.tolist() == [[False, True]]


def test_counts_are_strict_and_respect_the_margin():
    logits = jnp.asarray([[0.0, 1.0, 2.0, 2.0, 3.0], [5.0, 1.0, 4.0, 2.0, 3.0]])
    target = jnp.asarray([2, 4])
    exact = add_counts(logits, target, jnp.zeros(2), no_counts((2,)))
    assert (exact.above.tolist(), exact.below.tolist()) == ([1, 2], [2, 2])
    wide = add_counts(logits, target, jnp.asarray([1.0, 1.5]), no_counts((2,)))
    assert (wide.above.tolist(), wide.below.tolist()) == ([0, 1], [1, 1])
    more = add_counts(
        logits, jnp.asarray([-1, -1]), jnp.zeros(2), exact._replace(own=jnp.asarray([0.5, 9.0]))
    )
    assert (more.above.tolist(), more.below.tolist()) == ([1 + 4, 2], [2 + 1, 2 + 5])
    assert more.own.tolist() == [0.5, 9.0]


def test_margin_covers_the_rounding_of_both_ways_to_multiply():
    """(q W_O) u and q (W_O u) round differently; the margin is wider, and not absurdly so."""
    q, W_O, unembed = normal(0, 2, 61, 64), normal(1, 2, 64, 512), normal(2, 1024, 512)
    largest = jnp.asarray(np.linalg.norm(unembed, axis=1).max())
    margin = np.asarray(scores.rounding_margin(jnp.asarray(q), jnp.asarray(W_O), largest))
    exact = q.astype(np.float64) @ W_O.astype(np.float64) @ unembed.T.astype(np.float64)
    for logits in ((q @ W_O) @ unembed.T, q @ (W_O @ unembed.T)):
        assert (2 * np.abs(logits - exact).max(axis=2) < margin).all()
    assert (margin < 0.05 * exact.std(axis=2)).all()


def equations(jaxpr) -> Iterator:
    """All equations of a traced function, those of its loops and branches included."""
    for equation in jaxpr.eqns:
        yield equation
        for sub in jaxprs_in_params(equation.params):
            yield from equations(sub)


@pytest.mark.parametrize(
    ("precision", "expected"), [("highest", jax.lax.Precision.HIGHEST), ("high", jax.lax.Precision.HIGH)]
)
def test_precision_reaches_every_product(precision, expected):
    inputs = {name: jnp.asarray(array) for name, array in problem(SHAPES["mixed"]).items()}
    stages = screening_stages(inputs["unembed"], np.asarray(inputs["targets"]), DRAWS)
    traced = jax.make_jaxpr(relation_hits, static_argnums=4)(
        inputs["q"], inputs["W_O"], stages, inputs["k"], precision
    )
    products = [e for e in equations(traced.jaxpr) if e.primitive.name == "dot_general"]
    # One for the pairs' own logits; in every stage of one head two, of the pooled ones one and, for each size
    # of chunk, another.
    assert len(products) == 1 + (2 + 1 + 3) * (len(stages) - 1)
    assert all(e.params["precision"] == (expected, expected) for e in products)


def test_heads_do_not_depend_on_each_other():
    """Any split of the heads over devices gives the same hits."""
    inputs = problem(SHAPES["mixed"], integers)
    whole = screened_hits(**inputs)
    for part in (slice(0, 4), slice(4, 11)):
        hits = screened_hits(**inputs | {"q": inputs["q"][part], "W_O": inputs["W_O"][part]})
        np.testing.assert_array_equal(hits.plain, whole.plain[part])
        np.testing.assert_array_equal(hits.suppression, whole.suppression[part])
