"""FAISS itself: its threads, its devices, and k-means. Only this file and its neighbours ``faiss_*`` import it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse.engine.errors import MissingPackageError

__all__ = ["kmeans", "load", "num_gpus", "threads", "version"]

Vectors = npt.NDArray[np.float32]


def load() -> Any:
    """The package; `MissingPackageError` without it."""
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError("faiss-cpu", needed_for="the diversity stage", extra="cpu") from error
    return faiss


def version() -> str:
    """The version of FAISS."""
    return str(load().__version__)


def num_gpus() -> int:
    """GPUs that FAISS can use; 0 without FAISS too.

    Nothing else may ask: on a machine without a GPU, GPU resources of FAISS end the process instead of raising.
    """
    try:
        return int(load().get_num_gpus())
    except MissingPackageError:
        return 0


@contextmanager
def threads(count: int) -> Iterator[int]:
    """Give FAISS ``count`` threads (0: as many as it has now) inside the block; yields the number in force."""
    faiss = load()
    before = int(faiss.omp_get_max_threads())
    inside = count if count else before
    faiss.omp_set_num_threads(inside)
    try:
        yield inside
    finally:
        faiss.omp_set_num_threads(before)


def kmeans(rows: Vectors, centroids: Vectors, iterations: int, seed: int) -> Any:
    """Spherical k-means of unit ``rows [N, d]`` from ``centroids [K, d]``: a flat FAISS index over the last ones.

    Trains on at most 256 rows a cluster.
    """
    faiss = load()
    settings = faiss.ClusteringParameters()
    settings.niter, settings.seed, settings.spherical = iterations, seed, True
    settings.min_points_per_centroid = 1  # fewer is no error here, and FAISS would warn on standard error
    clustering = faiss.Clustering(rows.shape[1], len(centroids), settings)
    faiss.copy_array_to_vector(centroids.reshape(-1), clustering.centroids)
    index = faiss.IndexFlatIP(rows.shape[1])
    clustering.train(rows, index)
    return index
