"""Local density of each row among its neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["local_density", "mean_distance"]

_BLOCK = 65_536
# Reach distances are no smaller, so that sets of equal rows have a finite density.
_LEAST = 1e-6


def mean_distance(similarities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mean of 1 - cosine over each row's neighbours ``[N]``; NaN for a row without any (-inf)."""
    result = np.empty(len(similarities), np.float32)
    for start in range(0, len(similarities), _BLOCK):
        cosines = similarities[start : start + _BLOCK].astype(np.float64)
        found = np.isfinite(cosines)
        counts = found.sum(axis=1)
        means = np.where(found, cosines, 0.0).sum(axis=1) / np.maximum(counts, 1)
        result[start : start + _BLOCK] = np.where(counts > 0, 1.0 - means, np.nan)
    return result


def local_density(indices: npt.NDArray[np.int64], similarities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """ln of each row's density over the mean density of its neighbours: 0 as dense, below 0 sparser (an outlier).

    Density is the local reachability density of Breunig, Kriegel, Ng and Sander (LOF, SIGMOD 2000): 1 over the mean of
    max(distance to o, distance of o to its k-th neighbour) over the neighbours o, distance 1 - cosine, at least 1e-6.
    So the figure is -ln of the local outlier factor. ``indices`` and ``similarities`` ``[N, k]`` are lists of a
    self-join (-1, -inf: fewer); NaN ``[N]`` for a row without neighbours.
    """
    rows, k = indices.shape
    if not k:
        return np.full(rows, np.nan, np.float32)
    reach = np.empty(rows)
    for start in range(0, rows, _BLOCK):
        block = similarities[start : start + _BLOCK]
        reach[start : start + _BLOCK] = 1.0 - np.where(np.isfinite(block), block, np.inf).min(axis=1)
    density = np.empty(rows)
    for start, found, near in _blocks(indices):
        distances = 1.0 - similarities[start : start + len(found)].astype(np.float64)
        reached = np.maximum(np.maximum(distances, reach[near]), _LEAST)
        density[start : start + len(found)] = 1.0 / _mean(reached, found)
    result = np.empty(rows, np.float32)
    for start, found, near in _blocks(indices):
        others = _mean(density[near], found)
        result[start : start + len(found)] = np.log(density[start : start + len(found)] / others)
    return result


def _blocks(
    indices: npt.NDArray[np.int64],
) -> Iterator[tuple[int, npt.NDArray[np.bool_], npt.NDArray[np.int64]]]:
    """Blocks of rows: the first, which places hold a neighbour, and the neighbours (0 where none)."""
    for start in range(0, len(indices), _BLOCK):
        block = indices[start : start + _BLOCK]
        yield start, block >= 0, np.maximum(block, 0)


def _mean(values: npt.NDArray[np.float64], found: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    counts = found.sum(axis=1)
    total = np.where(found, values, 0.0).sum(axis=1)
    result: npt.NDArray[np.float64] = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    return result
