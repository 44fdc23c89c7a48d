"""Measured quality of an approximate answer: recall and error of the score on a random sample, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Estimate", "estimate_recall", "estimate_score_error", "quantile_interval", "sample_rows", "wilson"]


# The normal distribution's 97.5% point: intervals hold 95%.
_Z = 1.959963984540054
# No mean cosine is further than this from another.
_WORST = 2.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure measured on a random sample of rows, and its 95% interval."""

    value: float
    low: float
    high: float
    sample: int
    """Rows that it was measured on; all of them give an interval of no width."""


def sample_rows(rows: int, wanted: int, seed: int) -> npt.NDArray[np.int64]:
    """``min(wanted, rows)`` different row numbers, in order, drawn by ``seed``."""
    generator = np.random.default_rng(seed)
    return np.sort(generator.choice(rows, min(wanted, rows), replace=False)).astype(np.int64)


def wilson(share: float, trials: float) -> tuple[float, float]:
    """The 95% interval of a share found in ``trials`` independent trials (E. B. Wilson, JASA 1927)."""
    centre = (share + _Z * _Z / (2 * trials)) / (1 + _Z * _Z / trials)
    half = _Z / (1 + _Z * _Z / trials) * math.sqrt(share * (1 - share) / trials + _Z * _Z / (4 * trials * trials))
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)


def estimate_recall(found: npt.NDArray[np.float32], truth: npt.NDArray[np.float32], *, whole: bool = False) -> Estimate:
    """Recall of lists with similarities ``found [S, k]`` whose true ones are ``truth [S, k]``, best first.

    By similarity: one found counts where it is at least the true k-th, so that any of several equally near rows
    does. A list's places stand and fall together, so rows are clusters: the Wilson interval is taken at the
    effective number of trials, S k over the design effect (Kish 1965), never more than S k nor fewer than S; where
    every list is whole, S. ``whole`` says that the sample is every row, and the figure no estimate.
    """
    rows, k = truth.shape
    shares = (found >= truth[:, -1:]).mean(axis=1, dtype=np.float64)
    value = float(shares.mean())
    if whole:
        return Estimate(value, value, value, rows)
    spread = float(shares.var(ddof=1)) if rows > 1 else 0.0
    trials = float(rows)
    if spread > 0:
        trials = min(max(rows * value * (1 - value) / spread, rows), rows * k)
    return Estimate(value, *wilson(value, trials), rows)


def estimate_score_error(
    found: npt.NDArray[np.float32], truth: npt.NDArray[np.float32], *, whole: bool = False
) -> Estimate:
    """The 99th percentile of |mean of a row of ``found [S, k]`` - mean of that row of ``truth [S, k]``|.

    The error of ``mean_knn_distance``, in cosine. The interval is of order statistics, without assumptions on the
    distribution; where the sample is too small to bound it from above (S < 368), it ends at 2, the most there is.
    """
    means = [values.mean(axis=1, dtype=np.float64) for values in (found, truth)]
    errors = np.sort(np.abs(means[0] - means[1]))
    rank = max(math.ceil(0.99 * len(errors)), 1)
    value = float(errors[rank - 1])
    if whole:
        return Estimate(value, value, value, len(errors))
    low, high = quantile_interval(len(errors), 0.99)
    return Estimate(
        value,
        float(errors[low - 1]) if low else 0.0,
        float(errors[high - 1]) if high <= len(errors) else _WORST,
        len(errors),
    )


def quantile_interval(count: int, share: float) -> tuple[int, int]:
    """Ranks (from 1) of the order statistics between which the quantile ``share`` lies with at least 95%.

    The number of values below the quantile is binomial (David and Nagaraja, Order Statistics, 7.1). Rank 0 stands
    for no lower bound and ``count`` + 1 for no upper one.
    """
    places = np.arange(count + 1, dtype=np.float64)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    density = logs[-1] - logs - logs[::-1] + places * math.log(share) + (count - places) * math.log1p(-share)
    below = np.cumsum(np.exp(density))
    # P(quantile < X_(low)) = P(B < low) <= 2.5%, and P(quantile > X_(high)) = P(B >= high) <= 2.5%.
    low = int(np.searchsorted(below, 0.025, side="right"))
    high = int(np.searchsorted(below, 0.975, side="left")) + 1
    return low, min(high, count + 1)
