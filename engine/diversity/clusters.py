"""Clusters of unit vectors: seeded spherical k-means, numbered by size."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from obverse.engine.diversity import faiss

__all__ = ["cluster", "spread_seeds"]

Vectors = npt.NDArray[np.float32]

_MOST = 1024
# Rows a cluster among which first centroids are drawn.
_ROWS_PER_SEED = 32


def cluster(base: Vectors, wanted: int, iterations: int, seed: int) -> npt.NDArray[np.int32]:
    """Cluster numbers ``[N]`` of unit vectors ``base [N, D]``, the largest cluster first, equal sizes by first row.

    ``wanted`` is 0 for sqrt(N) / 2, at most 1024. Fewer clusters come back where fewer vectors differ.
    """
    if not len(base):
        return np.empty(0, np.int32)
    count = wanted or min(round(math.sqrt(len(base)) / 2), _MOST)
    seeds = spread_seeds(base, min(max(count, 1), len(base)), np.random.default_rng(seed))
    assigned = faiss.kmeans(base, base[seeds], iterations, seed)
    _, first, inverse, sizes = np.unique(assigned, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int32)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes), dtype=np.int32)
    return rank[inverse.reshape(-1)]


def spread_seeds(base: Vectors, count: int, generator: np.random.Generator) -> npt.NDArray[np.intp]:
    """Rows to start ``count`` clusters from, far apart: each drawn by its squared distance to those before.

    k-means++ (Arthur and Vassilvitskii, SODA 2007), over a random part of a large set. Fewer where fewer differ.
    """
    rows = np.arange(len(base))
    if len(base) > _ROWS_PER_SEED * count:
        rows = np.sort(generator.choice(len(base), _ROWS_PER_SEED * count, replace=False))
    part = base[rows]
    chosen = [int(generator.integers(len(part)))]
    distance = np.full(len(part), np.inf)
    while len(chosen) < count:
        # einsum, not a BLAS product: its sums don't depend on the number of threads.
        to_last = 2.0 - 2.0 * np.einsum("nd,d->n", part, part[chosen[-1]]).astype(np.float64)
        distance = np.minimum(distance, np.maximum(to_last, 0.0))
        distance[distance < 1e-6] = 0.0  # equal up to rounding
        total = np.cumsum(distance)
        if total[-1] == 0.0:
            break
        drawn = int(np.searchsorted(total, generator.random() * total[-1], side="right"))
        chosen.append(min(drawn, int(np.flatnonzero(distance)[-1])))
    return rows[chosen]
