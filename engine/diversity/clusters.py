"""Clusters of rows by cosine: seeded spherical k-means, numbered by size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse.engine.diversity import faiss
from obverse.engine.diversity.estimate import sample_rows
from obverse.engine.diversity.vectors import unit_blocks, unit_rows

__all__ = ["cluster", "spread_seeds"]

_MOST = 1024
# Rows a cluster among which first centroids are drawn, and on which the centroids are trained.
_ROWS_PER_SEED = 32
_ROWS_PER_CENTROID = 256


def cluster(
    x: npt.NDArray[Any],
    wanted: int,
    iterations: int,
    seed: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> npt.NDArray[np.int32]:
    """Cluster numbers ``[N]`` of the rows ``x [N, d]``, the largest cluster first, equal sizes by first row.

    ``wanted`` is 0 for sqrt(N) / 2, at most 1024. Fewer clusters come back where fewer vectors differ. Centroids are
    trained on at most 256 rows a cluster, drawn by ``seed``; rows are read in blocks.
    """
    if not len(x):
        return np.empty(0, np.int32)
    count = min(max(wanted or min(round(math.sqrt(len(x)) / 2), _MOST), 1), len(x))
    part = unit_rows(x[sample_rows(len(x), _ROWS_PER_CENTROID * count, seed)])
    seeds = spread_seeds(part, count, np.random.default_rng(seed))
    index = faiss.kmeans(part, part[seeds], iterations, seed)
    assigned = np.empty(len(x), np.int64)
    for start, block in unit_blocks(x):
        assigned[start : start + len(block)] = index.search(block, 1)[1][:, 0]
        on_progress(len(block))
    _, first, inverse, sizes = np.unique(assigned, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int32)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes), dtype=np.int32)
    return rank[inverse.reshape(-1)]


def spread_seeds(base: npt.NDArray[np.float32], count: int, generator: np.random.Generator) -> npt.NDArray[np.intp]:
    """Rows of unit ``base [N, d]`` to start ``count`` clusters from, far apart: drawn by squared distance to the rest.

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
