"""Area under the ROC curve, its p-value and precision, on grids where they are known."""

import numpy as np
import pytest
import scipy.stats

from headjax.axes import Head
from headjax.circuits.prediction import area_under_curve, precision_at, predictions
from headjax.circuits.published import Circuit
from headjax.grid import GridSet, HeadGrid

SHAPE = (5, 7)


def mask(*places: tuple[int, int]) -> np.ndarray:
    inside = np.zeros(SHAPE, bool)
    inside[tuple(np.array(places).T)] = True
    return inside


def test_a_perfect_a_reversed_and_a_useless_score():
    inside = mask((0, 1), (4, 6), (2, 2))
    auc, p = area_under_curve(inside.astype(np.float32), inside)
    assert auc == 1
    assert p <= 0.001  # one of 6,545 sets of three
    auc, p = area_under_curve(-inside.astype(np.float32), inside)
    assert (auc, p) == (0, 1)
    assert area_under_curve(np.full(SHAPE, 0.3, np.float32), inside) == (0.5, 1)


@pytest.mark.parametrize("n_values", [3, 10**6])  # with ties and without
def test_equals_counting_pairs_and_scipy(n_values: int):
    rng = np.random.default_rng(0)
    inside = rng.random(SHAPE) < 0.3
    scores = (rng.integers(0, n_values, SHAPE) + 0.3 * inside * n_values).astype(np.float32)
    auc, p = area_under_curve(scores, inside)
    own, other = scores[inside], scores[~inside]
    pairs = (own[:, None] > other) + 0.5 * (own[:, None] == other)
    assert auc == pytest.approx(pairs.mean())
    exact = scipy.stats.mannwhitneyu(own, other, alternative="greater", method="asymptotic")
    assert auc == pytest.approx(exact.statistic / (len(own) * len(other)))
    assert p == pytest.approx(exact.pvalue, abs=0.02)
    assert area_under_curve(scores, inside) == (auc, p)  # the seed decides
    assert area_under_curve(scores, inside, seed=1)[1] != p


def test_p_values_of_noise_are_uniform():
    """A score that knows nothing is below p in a share p of the cases."""
    rng = np.random.default_rng(3)
    inside = mask((0, 0), (1, 3), (2, 5), (4, 1))
    found = [area_under_curve(rng.random(SHAPE), inside, n_draws=499)[1] for _ in range(300)]
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01
    assert min(found) >= 1 / 500


def test_nothing_to_tell_apart_is_nan():
    scores = np.arange(35.0).reshape(SHAPE)
    for inside in (np.zeros(SHAPE, bool), np.ones(SHAPE, bool)):
        assert np.isnan(area_under_curve(scores, inside)).all()
    assert np.isnan(precision_at(scores, np.zeros(SHAPE, bool), 0))


def test_precision_counts_ties_as_expected():
    scores = np.zeros(SHAPE, np.float32)
    scores[0, :4] = 1
    inside = mask((0, 0), (0, 1), (3, 3))
    assert precision_at(scores, inside, 1) == 0.5  # one of four equals, of which two are inside
    assert precision_at(scores, inside, 4) == 0.5
    assert precision_at(scores, inside, 35) == pytest.approx(3 / 35)
    assert precision_at(scores, inside, 6) == pytest.approx((2 + 2 * 1 / 31) / 6)
    rng = np.random.default_rng(0)  # any order of the equals is as likely
    drawn = [inside.ravel()[np.lexsort((rng.random(35), -scores.ravel()))[:6]].mean() for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(precision_at(scores, inside, 6), abs=0.01)


def test_rows_of_every_circuit_role_relation_and_kind():
    rng = np.random.default_rng(0)
    movers, others = (Head(0, 1), Head(4, 6)), (Head(2, 2),)
    circuit = Circuit("", "", "", {"Movers": movers, "Others": others})
    best = mask(*movers).astype(np.float32)
    none = rng.random(SHAPE)
    grids = GridSet(
        (
            HeadGrid(best, "M", "copying", "Algorithmic", "static", 5),
            HeadGrid(none, "M", "capital", "Knowledge", "static", 5),
            HeadGrid(3 * best - none, "M", "copying", "Algorithmic", "dynamic", 5, "context", template="a"),
            HeadGrid(none, "M", "copying", "Algorithmic", "dynamic", 5, "context", template="b"),
            HeadGrid(best, "M", "copying", "Algorithmic", "ablation", 5, metric="logprob"),
            HeadGrid(best, "Another", "copying", "Algorithmic", "static", 5),
        )
    )
    rows = predictions(grids, "M", {"one": circuit, "two": Circuit("", "", "", {"All": others})})
    keys = [(row.circuit, row.role, row.relation, row.kind) for row in rows]
    assert len(set(keys)) == len(keys) == 3 * (3 + 2)
    assert [key[0] for key in keys] == ["one"] * 9 + ["two"] * 6
    found = dict(zip(keys, rows, strict=True))
    row = found["one", "Movers", "copying", "static"]
    assert (row.model, row.n_heads, row.auc, row.precision) == ("M", 2, 1, 1)
    assert found["one", "Movers", "copying", "dynamic_context"].auc == 1  # of the templates' mean
    assert found["one", "Others", "copying", "static"].auc == pytest.approx((32 / 2) / 34)
    assert found["one", "all", "copying", "static"].n_heads == 3
    assert predictions(GridSet(), "M", {"one": circuit}) == []
