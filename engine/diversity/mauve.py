"""MAUVE: how close a set of texts is to another, as the area under a divergence frontier of their histograms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse.engine.diversity.clusters import spread_seeds
from obverse.engine.diversity.vectors import check_values
from obverse.engine.errors import InputError
from obverse.engine.records.keys import derive_seed

__all__ = ["divergence_frontier", "frontier_area", "mauve", "quantise_jointly"]

Matrix = npt.NDArray[Any]
Wide = npt.NDArray[np.float64]

_MOST_BUCKETS = 500
_ROWS_PER_BUCKET = 64  # rows of the k-means' sample for each bucket
_BLOCK = 4096
# Products of unit rows on this grid are multiples of 2^-52 that sum to at most 1: exact in float64, in any order.
_GRID = 2.0**26
# Mixtures on the frontier, their odds from e^-40 to e^40: histograms that share no bucket change to the very ends.
_MIXTURES = 641
_LOG_ODDS = 40.0


def mauve(
    real: Matrix,
    synthetic: Matrix,
    *,
    buckets: int = 0,
    scale: float = 5.0,
    smoothing: float = 0.0,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda _: None,
) -> float:
    """MAUVE of embeddings ``real [N, d]`` and ``synthetic [M, d]`` (Pillutla et al., arXiv 2102.01454, 2212.14578).

    Both sets are quantised together by spherical k-means into ``buckets`` (0: 500, or a tenth of the smaller set where
    that is less), and the area under the divergence frontier of the two histograms is taken: 1 for equal histograms;
    1 / binom(2 scale, scale), 0.004 at the paper's ``scale`` of 5, for histograms without a common bucket.
    ``smoothing`` is added to every count first (1/2: Krichevsky and Trofimov's, which arXiv 2212.14578 finds best for
    small sets).

    The number of buckets moves the value, so compare figures of equal ``buckets`` and like sizes only. Other choices
    than the paper's code may make: rows are taken at length 1 and not reduced by PCA, k-means runs once, 20 rounds over
    a sample of 64 rows a bucket. Linear in N + M; reads memory maps in blocks; the same from any number of threads.
    ``on_progress`` gets numbers of rows newly assigned, N + M in all.

    Raises `InputError` for an empty set, other dimensions, values that aren't finite, a row of zeros, and settings out
    of range.
    """
    counts = quantise_jointly(real, synthetic, buckets, seed=seed, on_progress=on_progress)
    if not 0 <= smoothing < np.inf:
        raise InputError("0 or more", field="smoothing", seen=smoothing)
    smooth = [count + smoothing for count in counts]
    return frontier_area(smooth[0] / smooth[0].sum(), smooth[1] / smooth[1].sum(), scale)


def frontier_area(p: npt.ArrayLike, q: npt.ArrayLike, scale: float = 5.0) -> float:
    """The area under `divergence_frontier` of two distributions over the same buckets: MAUVE of histograms."""
    x, y, slope = _frontier(p, q, scale)
    # By the log-odds of the mixture the integrand is analytic and falls off at both ends, so that the trapezoid rule
    # converges exponentially. Beyond its ends the frontier goes on straight, to (0, 1) and to (1, 0).
    heights = y * slope
    inner = (heights.sum() - (heights[0] + heights[-1]) / 2) * (2 * _LOG_ODDS / (_MIXTURES - 1))
    return float(x[0] * (1 + y[0]) / 2 + inner + (1 - x[-1]) * y[-1] / 2)


def divergence_frontier(p: npt.ArrayLike, q: npt.ArrayLike, scale: float = 5.0) -> tuple[Wide, Wide]:
    """Points (exp(-c KL(q | r)), exp(-c KL(p | r))) for mixtures r of ``p [K]`` and ``q [K]``, by rising first value.

    ``scale`` is c. Raises `InputError` unless both are distributions over the same buckets and c > 0.
    """
    return _frontier(p, q, scale)[:2]


def _frontier(p: npt.ArrayLike, q: npt.ArrayLike, scale: float) -> tuple[Wide, Wide, Wide]:
    """Both values of the frontier's points, and the first one's derivative by the odds' logarithm (of q to p)."""
    one, other = (_distribution(values, name) for values, name in ((p, "p"), (q, "q")))
    if one.shape != other.shape:
        raise InputError("distributions over the same buckets", field="q", seen=other.shape)
    if not 0 < scale < np.inf:
        raise InputError("a scale above 0", field="scale", seen=scale)
    held = (one > 0) | (other > 0)
    one, other = one[held], other[held]
    x, y, slope = np.empty(_MIXTURES), np.empty(_MIXTURES), np.empty(_MIXTURES)
    for i, odds in enumerate(np.linspace(-_LOG_ODDS, _LOG_ODDS, _MIXTURES)):
        # Both shares from the odds: 1 - share would lose the small one.
        share, rest = 1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))
        mixture = share * one + rest * other
        x[i] = np.exp(-scale * _divergence(other, mixture))
        y[i] = np.exp(-scale * _divergence(one, mixture))
        slope[i] = scale * x[i] * float((other * (other - one) / mixture).sum()) * share * rest
    return x, y, slope


def _distribution(values: npt.ArrayLike, name: str) -> Wide:
    result = np.asarray(values, np.float64)
    if result.ndim != 1 or not len(result) or not (result >= 0).all() or abs(float(result.sum()) - 1) > 1e-9:
        raise InputError("values of 0 or more that sum to 1", field=name, seen=result.tolist())
    return result


def _divergence(p: Wide, r: Wide) -> float:
    held = p > 0
    return max(float((p[held] * np.log(p[held] / r[held])).sum()), 0.0)


def quantise_jointly(
    real: Matrix,
    synthetic: Matrix,
    buckets: int = 0,
    *,
    seed: int = 0,
    iterations: int = 20,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[Wide, Wide]:
    """Counts ``[buckets]`` of the rows of each set by the buckets of one spherical k-means over both."""
    sets = (real, synthetic)
    for name, rows in (("real", real), ("synthetic", synthetic)):
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != real.shape[1]:
            raise InputError(f"at least one vector of {real.shape[-1]} values", field=name, seen=rows.shape)
    if buckets < 0:
        raise InputError("0 (chosen by size) or more", field="buckets", seen=buckets)
    count = buckets or min(_MOST_BUCKETS, max(1, min(len(real), len(synthetic)) // 10))
    generator = np.random.default_rng(derive_seed(seed, "mauve"))
    centroids = _train(_sample(sets, count * _ROWS_PER_BUCKET, generator), count, iterations, generator)
    counts = []
    for rows in sets:
        total = np.zeros(len(centroids))
        for block in _unit_blocks(rows):
            total += np.bincount(_nearest(block, centroids), minlength=len(centroids))
            on_progress(len(block))
        counts.append(total)
    return counts[0], counts[1]


def _sample(sets: tuple[Matrix, Matrix], most: int, generator: np.random.Generator) -> Wide:
    """At most ``most`` rows of both sets at random, of length 1."""
    sizes = [len(rows) for rows in sets]
    chosen = np.arange(sum(sizes))
    if len(chosen) > most:
        chosen = np.sort(generator.choice(sum(sizes), most, replace=False))
    parts = [sets[0][chosen[chosen < sizes[0]]], sets[1][chosen[chosen >= sizes[0]] - sizes[0]]]
    return np.concatenate([block for part in parts for block in _unit_blocks(part)])


def _train(sample: Wide, count: int, iterations: int, generator: np.random.Generator) -> Wide:
    seeds = spread_seeds(sample.astype(np.float32), min(count, len(sample)), generator)
    centroids = sample[seeds]
    for _ in range(iterations):
        assigned = np.concatenate(
            [_nearest(sample[low : low + _BLOCK], centroids) for low in range(0, len(sample), _BLOCK)]
        )
        order = np.argsort(assigned, kind="stable")
        held, first = np.unique(assigned[order], return_index=True)
        sums = np.add.reduceat(sample[order], first, axis=0)
        norms = np.sqrt(np.einsum("kd,kd->k", sums, sums))
        # A centroid without rows, or whose rows cancel out, stays where it is.
        held, sums, norms = held[norms > 0], sums[norms > 0], norms[norms > 0]
        moved = centroids.copy()
        moved[held] = np.rint(sums / norms[:, None] * _GRID) / _GRID
        if (moved == centroids).all():
            break
        centroids = moved
    return centroids


def _unit_blocks(rows: Matrix) -> Iterator[Wide]:
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        check_values(part, np.arange(start, start + len(part)), start)
        unit = part.astype(np.float64)
        unit /= np.sqrt(np.einsum("nd,nd->n", unit, unit))[:, None]
        yield np.rint(unit * _GRID) / _GRID


def _nearest(rows: Wide, centroids: Wide) -> npt.NDArray[np.intp]:
    found: npt.NDArray[np.intp] = np.argmax(rows @ centroids.T, axis=1)
    return found
