"""Measured quality: intervals hold what they say, and hold it for rows that are clusters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from obverse.engine.diversity.estimate import (
    estimate_recall,
    estimate_score_error,
    quantile_interval,
    sample_rows,
    wilson,
)


def binomial(count: int, share: float) -> list[float]:
    """P(B = 0), P(B = 1), ... in exact integers and one product each."""
    return [math.comb(count, i) * share**i * (1 - share) ** (count - i) for i in range(count + 1)]


@pytest.mark.parametrize("count", [1, 2, 50, 367, 368, 369, 800])
def test_quantile_interval_is_the_tightest_that_holds(count: int) -> None:
    low, high = quantile_interval(count, 0.99)
    density = binomial(count, 0.99)
    assert sum(density[:low]) <= 0.025 + 1e-9
    assert sum(density[: low + 1]) > 0.025 - 1e-9
    # No upper bound where even the largest value is too often below the quantile: 0.99^n > 2.5%.
    assert (high == count + 1) == (count < 368)
    if high <= count:
        assert sum(density[high:]) <= 0.025 + 1e-9
        assert sum(density[high - 1 :]) > 0.025 - 1e-9


def test_wilson_by_hand() -> None:
    low, high = wilson(0.8, 10)  # the textbook's: 8 of 10
    assert (low, high) == (pytest.approx(0.4901625, abs=1e-6), pytest.approx(0.9433178, abs=1e-6))
    assert wilson(1.0, 100)[1] == 1.0
    assert wilson(1.0, 100)[0] == pytest.approx(1 / (1 + 1.959964**2 / 100), abs=1e-6)
    assert wilson(0.0, 5)[0] == 0.0


def test_recall_counts_by_similarity_and_places() -> None:
    truth = np.array([[0.9, 0.8, 0.5], [0.7, 0.7, 0.7]], np.float32)
    found = np.array([[0.9, 0.5, 0.4], [0.7, 0.7, 0.7]], np.float32)  # another of those at 0.5 counts
    whole = estimate_recall(found, truth, whole=True)
    assert (whole.low, whole.high, whole.sample) == (whole.value, whole.value, 2)
    assert whole.value == pytest.approx(5 / 6)
    part = estimate_recall(found, truth)
    assert part.low < part.value < part.high
    perfect = estimate_recall(truth, truth)
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(wilson(1.0, 2)[0])  # two rows, not six places


def test_score_error_is_the_99th_percentile_of_mean_differences() -> None:
    truth = np.full((1000, 4), 0.75, np.float32)
    found = truth.copy()
    found[:, 3] -= np.arange(1000, dtype=np.float32) / 4096  # errors of the mean: 0, 1/16384, ...
    got = estimate_score_error(found, truth)
    assert got.value == 989 / 16384
    low, high = quantile_interval(1000, 0.99)
    assert (got.low, got.high) == ((low - 1) / 16384, (high - 1) / 16384)
    small = estimate_score_error(found[:100], truth[:100])
    assert small.high == 2.0
    assert small.value == 98 / 16384


def test_intervals_hold_for_rows_that_are_clusters() -> None:
    """Lists that are all right or all wrong: an interval over places instead of rows would miss one time in three."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    generator = np.random.default_rng(seed)
    trials, rows, k, right = 400, 400, 10, 0.95
    truth = np.full((rows, k), 0.5, np.float32)
    inside = {"recall": 0, "error": 0}
    for _ in range(trials):
        wrong = generator.random(rows) > right
        found = truth - wrong[:, None].astype(np.float32)
        recall = estimate_recall(found, truth)
        inside["recall"] += recall.low <= right <= recall.high
        noise = np.abs(generator.normal(size=rows)).astype(np.float32) * 2**-6
        error = estimate_score_error(truth - noise[:, None], truth)
        inside["error"] += error.low <= 2.5758293 * 2**-6 <= error.high
    # 95% in truth (Wilson: 94.5% or so): below 90% of 400 trials is more than 4 standard deviations away.
    assert inside["recall"] >= 0.90 * trials, inside
    assert inside["error"] >= 0.90 * trials, inside


def test_samples_are_different_rows_by_seed() -> None:
    rows = sample_rows(1000, 50, 3)
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() == sample_rows(1000, 50, 3).tolist() != sample_rows(1000, 50, 4).tolist()
    assert sample_rows(5, 50, 0).tolist() == [0, 1, 2, 3, 4]
