"""The self-join by FAISS: candidates from an index, or from GPUs, ranked again by the cosines of the stored rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse import _core
from obverse.engine.diversity import exact, faiss, faiss_gpu
from obverse.engine.diversity.faiss_index import FaissIndex, choose_kind
from obverse.engine.diversity.quantise import num_threads
from obverse.engine.diversity.vectors import gather, unit_blocks, unit_rows

__all__ = ["self_join"]

Matrix = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Similarities = npt.NDArray[np.float32]
Progress = Callable[[int], None]

# Candidates beyond k that are ranked again: they cover the row itself and what an engine's rounding (its codes, its
# blocks, its number of threads) might push over the edge.
_SPARE = 8
_BLOCK = 8192
# float32 rows of a flat search that stay in memory from block to block of queries.
_KEPT = 1 << 30


def self_join(
    x: Matrix, k: int, *, kind: str, recall: float, threads: int, seed: int, on_progress: Progress
) -> tuple[Indices, Similarities, dict[str, int | str]]:
    """The ``k < N`` rows likely nearest to each of ``x [N, d]``: indices, cosines ``[N, k]``, and what was used.

    Equal rows are searched once and stand for each other, so that any number of duplicates neither hides a row's
    other neighbours from an index nor makes their order depend on it. Rows for which an index finds too few are
    searched exactly.
    """
    first = _core.first_equal_rows(x, threads=num_threads(threads))
    firsts = np.flatnonzero(first == np.arange(len(x)))
    group = np.searchsorted(firsts, first)
    distinct = x if len(firsts) == len(x) else gather(x, firsts)
    facts: dict[str, int | str] = {"distinct": len(firsts)}
    few = min(k, len(firsts) - 1)
    if few:
        found, used = _candidates(distinct, few, kind, recall, threads, seed, on_progress)
        facts |= used
        indices, values = exact.rank_candidates(distinct, found, few, threads=threads)
        del found
        short = np.flatnonzero((indices >= 0).sum(axis=1) < few)
        if len(short):
            indices[short], values[short] = _others(distinct, short, few, threads)
        facts["completed_rows"] = len(short)
    else:
        indices, values = np.empty((1, 0), np.int64), np.empty((1, 0), np.float32)
    if len(firsts) < len(x):
        indices, values = _expand(indices, values, group, k)
    return indices.astype(np.int64, copy=False), values, facts


def _candidates(
    x: Matrix, k: int, kind: str, recall: float, threads: int, seed: int, on_progress: Progress
) -> tuple[npt.NDArray[Any], dict[str, int | str]]:
    wide = min(k + 1 + _SPARE, len(x))
    devices = faiss.num_gpus()
    if devices and kind in ("auto", "flat", "ivf", "cagra"):
        return faiss_gpu.candidates(x, wide, kind, devices, seed, on_progress)
    if kind == "auto":
        kind = choose_kind(len(x), x.shape[1], recall)[0]
    if kind == "flat":
        with faiss.threads(threads):
            return _flat(x, wide, on_progress), {"index": "flat"}
    index = FaissIndex.build(x, kind=kind, k=k, recall=recall, threads=threads, seed=seed)  # type: ignore[arg-type]
    wide = wide if index.kind != "rabitq" else min(4 * wide, len(x))
    return index.search(x, wide, threads=threads, on_progress=on_progress)[0], index.parameters


def _flat(x: Matrix, wide: int, on_progress: Progress) -> npt.NDArray[Any]:
    """Flat search with no more than ``_KEPT`` bytes of float32 rows at a time."""
    package = faiss.load()
    found = np.empty((len(x), wide), np.int32 if len(x) < 2**31 else np.int64)
    per_part = max(_KEPT // (4 * x.shape[1]), wide)
    if len(x) <= per_part:
        base = unit_rows(x)
        for start in range(0, len(x), _BLOCK):
            block = base[start : start + _BLOCK]
            found[start : start + _BLOCK] = package.knn(block, base, wide, metric=package.METRIC_INNER_PRODUCT)[1]
            on_progress(len(block))
        return found
    for start, queries in unit_blocks(x, 8 * _BLOCK):
        heap = package.ResultHeap(len(queries), wide, keep_max=True)
        for low in range(0, len(x), per_part // 8):
            part = unit_rows(x[low : low + per_part // 8])
            cosines, ids = package.knn(queries, part, min(wide, len(part)), metric=package.METRIC_INNER_PRODUCT)
            heap.add_result(cosines, ids + low)
        heap.finalize()
        found[start : start + len(queries)] = heap.I
        on_progress(len(queries))
    return found


def _others(x: Matrix, rows: Indices, k: int, threads: int) -> tuple[Indices, Similarities]:
    """The ``k`` rows nearest to each of ``rows``, exactly, the row itself left out."""
    indices, values, _ = exact.join(x[rows], x, k + 1, threads=threads)
    own = indices == rows[:, None]
    own[~own.any(axis=1), -1] = True  # more than k are as near and have lower numbers
    return indices[~own].reshape(len(rows), k), values[~own].reshape(len(rows), k)


def _expand(groups: npt.NDArray[Any], values: Similarities, group: Indices, k: int) -> tuple[Indices, Similarities]:
    """From lists of distinct rows ``[D, m]`` to lists ``[N, k]`` of all rows, equal similarities by row number."""
    sizes = np.bincount(group)
    members = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    # Of one group no more than its first k + 1 can be among a row's k nearest and the row itself.
    sizes = np.minimum(sizes, k + 1)
    indices = np.full((len(group), k), -1, np.int64)
    similarities = np.full((len(group), k), -np.inf, np.float32)
    for low in range(0, len(group), _BLOCK):
        own = group[low : low + _BLOCK]
        lists = np.hstack([own[:, None], groups[own]])
        cosines = np.hstack([np.ones((len(own), 1), np.float32), values[own]])
        counts = np.where(lists >= 0, sizes[lists], 0).reshape(-1)
        query = np.repeat(np.repeat(np.arange(len(own)), lists.shape[1]), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        ids = members[np.repeat(starts[lists.reshape(-1)], counts) + within]
        scores = np.repeat(cosines.reshape(-1), counts)
        kept = ids != query + low
        query, ids, scores = query[kept], ids[kept], scores[kept]
        order = np.lexsort((ids, -scores, query))
        query, ids, scores = query[order], ids[order], scores[order]
        place = np.arange(len(query)) - np.searchsorted(query, query)
        first = place < k
        indices[low + query[first], place[first]] = ids[first]
        similarities[low + query[first], place[first]] = scores[first]
    return indices, similarities
