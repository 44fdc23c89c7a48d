"""All that Obverse asks of FAISS: self-joins, and k-means. The only module that imports it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse.engine.errors import MissingPackageError

__all__ = ["ivf_lists", "kmeans", "search_flat", "search_hnsw", "search_ivf", "threads", "version"]

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Progress = Callable[[int], None]

# Rows of one call: bounds what a call holds and how often progress shows.
_BLOCK = 8192


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError("faiss-cpu", needed_for="the diversity stage", extra="cpu") from error
    return faiss


def version() -> str:
    """The version of FAISS."""
    return str(_faiss().__version__)


@contextmanager
def threads(count: int) -> Iterator[int]:
    """Give FAISS ``count`` threads (0: as many as it has now) inside the block; yields the number in force."""
    faiss = _faiss()
    before = int(faiss.omp_get_max_threads())
    inside = count if count else before
    faiss.omp_set_num_threads(inside)
    try:
        yield inside
    finally:
        faiss.omp_set_num_threads(before)


def search_flat(base: Vectors, k: int, on_rows: Progress) -> Indices:
    """The ``k`` rows with the greatest inner product to each row of ``base [N, D]``, itself among them: exact."""
    faiss = _faiss()
    found = np.empty((len(base), k), np.int64)
    for start in range(0, len(base), _BLOCK):
        block = base[start : start + _BLOCK]
        found[start : start + _BLOCK] = faiss.knn(block, base, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
        on_rows(len(block))
    return found


def ivf_lists(rows: int) -> int:
    """Lists of an inverted file over ``rows`` rows: 4 sqrt(N), as FAISS's guide advises, of at least 39 rows each."""
    return max(1, min(round(4 * math.sqrt(rows)), rows // 39))


def search_ivf(base: Vectors, k: int, probes: int, seed: int, on_rows: Progress) -> Indices:
    """As `search_flat` over the ``probes`` nearest inverted lists only; -1 where these hold too few rows."""
    faiss = _faiss()
    lists = ivf_lists(len(base))
    quantizer = faiss.IndexFlatIP(base.shape[1])
    index = faiss.IndexIVFFlat(quantizer, base.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed
    index.cp.spherical = True
    index.train(base)
    index.add(base)
    index.nprobe = min(probes, lists)
    return _search(index, base, k, on_rows)


def search_hnsw(base: Vectors, k: int, on_rows: Progress) -> Indices:
    """As `search_flat` by a navigable small-world graph (M 32, efConstruction 80, efSearch 64 or more).

    The graph is built by one thread: with several it differs from run to run.
    """
    faiss = _faiss()
    index = faiss.IndexHNSWFlat(base.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    index.hnsw.efSearch = max(64, 2 * k)
    with threads(1):
        index.add(base)
    return _search(index, base, k, on_rows)


def _search(index: Any, base: Vectors, k: int, on_rows: Progress) -> Indices:
    found = np.empty((len(base), k), np.int64)
    for start in range(0, len(base), _BLOCK):
        block = base[start : start + _BLOCK]
        found[start : start + _BLOCK] = index.search(block, k)[1]
        on_rows(len(block))
    return found


def kmeans(base: Vectors, centroids: Vectors, iterations: int, seed: int) -> Indices:
    """The cluster of each row of ``base [N, D]`` by spherical k-means from ``centroids [K, D]``.

    Trains on at most 256 rows a cluster.
    """
    faiss = _faiss()
    settings = faiss.ClusteringParameters()
    settings.niter, settings.seed, settings.spherical = iterations, seed, True
    settings.min_points_per_centroid = 1  # fewer is no error here, and FAISS would warn on standard error
    clustering = faiss.Clustering(base.shape[1], len(centroids), settings)
    faiss.copy_array_to_vector(centroids.reshape(-1), clustering.centroids)
    index = faiss.IndexFlatIP(base.shape[1])
    clustering.train(base, index)
    assigned: Indices = index.search(base, 1)[1][:, 0]
    return assigned
