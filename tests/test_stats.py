"""Intervals of shares and means, correlations, and p-values that are never 0."""

import math

import numpy as np
import pytest
import scipy.stats

from headjax.stats import LEAST_P, bootstrap_band, bounded_p, draws_band, p_text, pearson, wilson


def test_wilson_is_scipys():
    n = np.array([1, 7, 12, 61, 80, 340])
    for hits in (0, 1, 5, 12, 61, 80, 340):
        of = n[n >= hits]
        ours = wilson(hits / of, of)
        theirs = [
            scipy.stats.binomtest(hits, int(trials)).proportion_ci(0.95, method="wilson") for trials in of
        ]
        np.testing.assert_allclose(ours.T, [(one.low, one.high) for one in theirs], atol=1e-12)
    wide = scipy.stats.binomtest(5, 12).proportion_ci(0.99, method="wilson")
    np.testing.assert_allclose(wilson(5 / 12, 12, level=0.99), [wide.low, wide.high])


def test_wilson_at_the_ends():
    """As of the issue: 12 of 12 is no certainty, and 17 of 80 may lie on either side of 0.15."""
    low, high = wilson(1.0, 12)
    assert (round(float(low), 2), high) == (0.76, 1)
    low, high = wilson(0.0, 12)
    assert (low, round(float(high), 2)) == (0, 0.24)
    low, high = wilson(np.float32(17 / 80), 80)
    assert low < 0.15 < high
    np.testing.assert_array_equal(wilson(0.5, 0), [0, 1])
    assert wilson(np.full((3, 5), 0.5, np.float32), 40.0).shape == (2, 3, 5)


def test_bootstrap_bands_cover_the_mean():
    """Of 200 samples of 100 prompts some 95 % have the true mean in their band."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_band(rng.normal(3, 2, size=(1, 100)), seed)
        covered += bool(low[0] <= 3 <= high[0])
    assert 180 <= covered <= 198
    low, high = bootstrap_band(np.ones((2, 7)))
    np.testing.assert_allclose([low, high], 1)


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("n_draws", [3, 10])
def test_bands_of_draws_cover_the_mean_over_all_draws(shares: bool, n_draws: int):
    """Draws differ and so do prompts. A band of the mean over draws as if it were data misses far more."""
    rng = np.random.default_rng(1)
    covered = naive = 0
    for _ in range(300):
        latent = rng.normal(0, 1, (n_draws, 1, 1)) + rng.normal(0, 1, (1, 1, 30))
        latent = latent + rng.normal(0, 0.5, (n_draws, 1, 30))
        values = (latent > 0).astype(np.float32) if shares else latent.astype(np.float32)
        truth = 0.5 if shares else 0.0
        (low,), (high,) = draws_band(values, shares)
        covered += low <= truth <= high
        (low,), (high,) = bootstrap_band(values.mean(axis=0))
        naive += low <= truth <= high
    assert covered >= 0.92 * 300
    assert naive < 0.85 * 300


def test_bands_of_draws_where_nothing_varies():
    """As wide as for one draw of as many prompts; never narrower, however many draws there are."""
    certain = np.ones((20, 2, 12), np.float32)
    np.testing.assert_allclose(draws_band(certain, True), np.tile(wilson(1.0, 12)[:, None], (1, 2)))
    np.testing.assert_allclose(draws_band(certain - 3, False), -2)
    either = np.stack([np.ones((1, 100)), np.zeros((1, 100))]).astype(np.float32)
    (low,), (high,) = draws_band(either, True)
    assert low < 0.05
    assert high > 0.95


def test_pearson_and_its_p_value():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40))
    expected = scipy.stats.pearsonr(x, y)
    assert pearson(x.reshape(5, 8), y.reshape(5, 8)) == pytest.approx((expected.statistic, expected.pvalue))
    assert all(map(math.isnan, pearson(x, np.ones(40))))
    assert all(map(math.isnan, pearson(x[:2], y[:2])))
    r, p = pearson(np.arange(4000.0), np.arange(4000.0) + 1e-9 * rng.normal(size=4000))
    assert (round(r, 6), p) == (1, LEAST_P)


def test_no_p_value_is_0_in_text():
    assert [p_text(p) for p in (0.5, 0.04, 0.0099, 3.2e-12, 1e-300, LEAST_P)] == [
        *("0.50", "0.04", "1e-02", "3e-12", "<1e-300", "<1e-300")
    ]
    assert p_text(math.nan) == "-"
    assert bounded_p(0.0) == LEAST_P
    assert bounded_p(0.3) == 0.3
    assert math.isnan(bounded_p(math.nan))
