"""The k nearest other rows of every row, by cosine, with ties in order of id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from obverse.engine.diversity.engines import Choice, candidates

__all__ = ["Neighbours", "exact_similarities", "nearest", "similarities"]

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

# Candidates beyond k that are ranked again by similarities computed here: they cover the row itself and what an
# engine's rounding (its blocks, its number of threads) might push over the edge.
_SPARE = 8
_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Neighbours:
    """``indices [N, k]`` (-1: no more rows) and ``similarities [N, k]`` (0 there), nearest first."""

    indices: Indices
    similarities: Vectors
    distinct: int
    """Different vectors among the N."""
    completed: int
    """Rows for which the engine found too few, searched again exactly."""


def nearest(
    base: Vectors, k: int, choice: Choice, *, seed: int, on_rows: Callable[[int], None] = lambda _: None
) -> Neighbours:
    """The ``k`` rows most similar to each row of unit vectors ``base [N, D]``, never the row itself.

    Equal vectors are searched once and stand for each other, so that any number of duplicates neither hides a
    row's other neighbours from the engine nor makes their order depend on it. Ties go to the lower row.
    """
    firsts, group = _groups(base)
    distinct = base[firsts] if len(firsts) < len(base) else base
    wide = min(k + _SPARE, len(distinct))
    sizes = np.bincount(group)
    found = _by_group(distinct, wide, choice, seed, on_rows, sizes)
    short = np.flatnonzero((found >= 0).sum(axis=1) < min(k + 1, len(distinct)))
    if len(short):
        found[short] = exact_rows(distinct, short, wide)
    # A row's duplicates are known without a search, so its own vector is always a candidate.
    own = np.arange(len(distinct))[:, None]
    named = (found == own).any(axis=1, keepdims=True)
    if not named.all():
        found = np.hstack([found, np.where(named, -1, own)])
    members = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    indices = np.full((len(base), k), -1, np.int64)
    values = np.zeros((len(base), k), np.float32)
    for low in range(0, len(base), _BLOCK):
        rows = np.arange(low, min(low + _BLOCK, len(base)))
        ranked, scores = _rank(distinct, group[rows], found[group[rows]])
        if len(firsts) < len(base):
            ranked, scores = _expand(ranked, scores, members, starts, k + 1)
        indices[rows], values[rows] = _without_self(rows, ranked, scores, k)
    return Neighbours(indices, values, len(firsts), len(short))


def _groups(base: Vectors) -> tuple[Indices, Indices]:
    """First rows of each distinct vector, in row order, and for each row the number of its distinct vector."""
    raw = np.ascontiguousarray(base + np.float32(0)).view(np.dtype((np.void, base.shape[1] * 4)))[:, 0]
    _, first, inverse = np.unique(raw, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.reshape(-1)]


def _by_group(
    distinct: Vectors,
    wide: int,
    choice: Choice,
    seed: int,
    on_rows: Callable[[int], None],
    sizes: npt.NDArray[np.int64],
) -> Indices:
    """The engine's candidates, with progress told in rows rather than in distinct vectors."""
    done = 0

    def told(count: int) -> None:
        nonlocal done
        on_rows(int(sizes[done : done + count].sum()))
        done += count

    return candidates(choice, distinct, wide, seed=seed, on_rows=told)


def similarities(base: Vectors, rows: Indices, found: Indices) -> Vectors:
    """Inner products of ``rows [R]`` with ``found [R, M]``, -inf where -1; the sums run in one fixed order."""
    values = np.einsum("rd,rmd->rm", base[rows], base[np.maximum(found, 0)]).astype(np.float32, copy=False)
    result: Vectors = np.where(found >= 0, np.clip(values, -1.0, 1.0), np.float32(-np.inf))
    return result


def _rank(base: Vectors, rows: Indices, found: Indices) -> tuple[Indices, Vectors]:
    scores = similarities(base, rows, found)
    order = np.lexsort((found, -scores), axis=1)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _expand(groups: Indices, scores: Vectors, members: Indices, starts: Indices, limit: int) -> tuple[Indices, Vectors]:
    """Groups ``[R, M]``, best first, to their first ``limit`` member rows ``[R, limit]``, equal scores by row."""
    rows = np.full((len(groups), limit), -1, np.int64)
    values = np.full((len(groups), limit), -np.inf, np.float32)
    for place, (row_groups, row_scores) in enumerate(zip(groups, scores, strict=True)):
        valid = row_groups[row_groups >= 0]
        counts = starts[valid + 1] - starts[valid]
        # Groups with a score that equals the last taken one must all be seen before rows are cut by number.
        enough = int(np.searchsorted(np.cumsum(counts), limit)) + 1
        if enough < len(valid):
            enough = int(np.searchsorted(-row_scores, -row_scores[enough - 1], side="right"))
        taken = [
            members[starts[one] : starts[one] + min(limit, size)]
            for one, size in zip(valid[:enough], counts, strict=False)
        ]
        flat = np.concatenate(taken)
        flat_scores = np.repeat(row_scores[: len(taken)], [len(part) for part in taken])
        order = np.lexsort((flat, -flat_scores))[:limit]
        rows[place, : len(order)] = flat[order]
        values[place, : len(order)] = flat_scores[order]
    return rows, values


def _without_self(own: Indices, found: Indices, scores: Vectors, k: int) -> tuple[Indices, Vectors]:
    """Drop each row's own index, by index and not by place, and keep the first ``k``; empty places last."""
    away = (found == own[:, None]) | (found < 0)
    order = np.argsort(away, axis=1, kind="stable")[:, :k]
    left = np.take_along_axis(away, order, axis=1)
    indices = np.where(left, -1, np.take_along_axis(found, order, axis=1))
    values = np.where(left, np.float32(0), np.take_along_axis(scores, order, axis=1))
    if indices.shape[1] < k:
        pad = ((0, 0), (0, k - indices.shape[1]))
        indices = np.pad(indices, pad, constant_values=-1)
        values = np.pad(values, pad)
    return indices, values


def exact_similarities(base: Vectors, rows: Indices) -> Iterator[tuple[int, Vectors]]:
    """Inner products of ``rows [R]`` with all of ``base``, in column blocks ``(first column, [R, C])``."""
    queries = base[rows]
    for start in range(0, len(base), 16_384):
        yield start, queries @ base[start : start + 16_384].T


def exact_rows(base: Vectors, rows: Indices, k: int) -> Indices:
    """The ``k`` rows nearest to each of ``rows``, exactly and without an index, itself among them."""
    result = np.empty((len(rows), k), np.int64)
    for low in range(0, len(rows), 1024):
        part = rows[low : low + 1024]
        best = np.empty((len(part), 0), np.int64)
        scores = np.empty((len(part), 0), np.float32)
        for start, block in exact_similarities(base, part):
            columns = np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)
            best, scores = np.hstack([best, columns]), np.hstack([scores, block])
            if best.shape[1] > k:
                keep = np.argpartition(-scores, k - 1, axis=1)[:, :k]
                best = np.take_along_axis(best, keep, axis=1)
                scores = np.take_along_axis(scores, keep, axis=1)
        result[low : low + len(part)] = best
    return result
