"""What a number claims: intervals of shares and means, correlations, and p-values that are never 0."""

import math

import numpy as np
from jaxtyping import Float

N_BOOTSTRAP = 1000
# Nothing measured here supports a smaller p-value, and floating point ends soon after: smaller ones are given
# as this one and printed as less than it.
LEAST_P = 1e-300


Number = np.ndarray | np.number | float | int


def wilson(share: Number, n: Number, level: float = 0.95) -> np.ndarray:
    """Lower and upper limits [2 ..] of a share [..] of n independent trials (Wilson 1927, score interval).

    It keeps within 0 and 1 and has a width at both: 12 of 12 may come from any share above 0.76. All of
    [0, 1] where there were no trials.
    """
    from scipy.special import ndtri  # scipy takes a while to import; JAX needs it, so it is always there

    share, n = np.broadcast_arrays(np.asarray(share, np.float64), np.asarray(n, np.float64))
    z = ndtri((1 + level) / 2)
    known = np.maximum(n, 1e-9)
    center = (share + z**2 / (2 * known)) / (1 + z**2 / known)
    half = z / (1 + z**2 / known) * np.sqrt(share * (1 - share) / known + z**2 / (4 * known**2))
    limits = np.clip(np.stack([center - half, center + half]), 0, 1)
    # What rounding leaves of it at the ends.
    limits[0] = np.where((share == 0) | (n == 0), 0, limits[0])
    limits[1] = np.where((share == 1) | (n == 0), 1, limits[1])
    return limits


def bootstrap_band(
    values: Float[np.ndarray, "m B"], seed: int = 0, level: float = 0.95
) -> Float[np.ndarray, "2 m"]:
    """Limits of the mean over B prompts, by resampling the prompts (the percentile bootstrap, Efron 1979)."""
    n_prompts = values.shape[1]
    counts = np.random.default_rng(seed).multinomial(n_prompts, [1 / n_prompts] * n_prompts, N_BOOTSTRAP)
    means = values.astype(np.float64) @ (counts / n_prompts).T
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=1)


def draws_variance(
    values: Float[np.ndarray, "draws m B"],
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Variance of the mean over random draws and prompts, and its degrees of freedom.

    All draws are measured on the same prompts, so the mean has two sources of error: which draws there were
    and which prompts. The variance is the sum of both, each the variance of its means over their number; the
    degrees of freedom are Satterthwaite's (1946). What varies between draws for single prompts only is in
    both, so the variance is rather too large than too small. A single draw tells nothing of the first source,
    and a single prompt nothing of the second: they are then left out.
    """
    values = values.astype(np.float64)
    variance, pooled = np.zeros(values.shape[1:-1]), np.zeros(values.shape[1:-1])
    for means, axis in ((values.mean(axis=-1), 0), (values.mean(axis=0), -1)):
        n = means.shape[axis]
        if n > 1:
            of_mean = means.var(axis=axis, ddof=1) / n
            variance, pooled = variance + of_mean, pooled + of_mean**2 / (n - 1)
    freedom = variance**2 / np.where(pooled > 0, pooled, 1)
    return variance, np.where(pooled > 0, freedom, np.inf)


def draws_band(
    values: Float[np.ndarray, "draws m B"], shares: bool, level: float = 0.95
) -> Float[np.ndarray, "2 m"]:
    """Limits of the mean over draws and prompts, with the variance between draws in them (`draws_variance`).

    Of means: Student's t. Of shares, where `values` are 0 and 1: Wilson's interval for as many independent
    trials as would have this variance (Korn & Graubard 1998), and never for more than there are prompts.
    """
    from scipy.special import ndtri, stdtrit  # as in `wilson`

    variance, freedom = draws_variance(values)
    mean = values.mean(axis=(0, 2), dtype=np.float64)
    t = stdtrit(freedom, (1 + level) / 2)
    if not shares:
        half = t * np.sqrt(variance)
        return np.stack([mean - half, mean + half])
    n_prompts = np.full(mean.shape, values.shape[-1], np.float64)
    shrink = (ndtri((1 + level) / 2) / t) ** 2
    effective = shrink * mean * (1 - mean) / np.where(variance > 0, variance, 1)
    return wilson(mean, np.where(variance > 0, np.minimum(effective, n_prompts), n_prompts), level)


def pearson(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """Pearson's r of the points of two arrays, and its two-sided p-value; NaN where one is constant."""
    import scipy.stats  # it takes a second, so only when it is needed

    x, y = (np.asarray(values, np.float64).ravel() for values in (x, y))
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan, math.nan
    result = scipy.stats.pearsonr(x, y)
    return float(result.statistic), bounded_p(result.pvalue)


def bounded_p(p: float) -> float:
    """The p-value, or LEAST_P where it is smaller; NaN stays."""
    return float(np.maximum(p, LEAST_P))


def p_text(p: float) -> str:
    """A p-value as tables show it: two digits, small ones as a power of ten, never 0; a dash for NaN."""
    if math.isnan(p):
        return "-"
    if p <= LEAST_P:
        return f"<{LEAST_P:.0e}"
    return f"{p:.0e}" if p < 0.01 else f"{p:.2f}"
