"""Choosing n of N rows: for coverage, for spread, or by score. The first m of n chosen are the choice of m."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from obverse import _core
from obverse.engine.diversity.groups import Duplicates, checked_scores, priority
from obverse.engine.diversity.quantise import checked_rows, num_threads
from obverse.engine.errors import InputError

__all__ = ["Selection", "facility_location", "graph_k_center", "k_center", "top_by_score"]

Indices = npt.NDArray[np.integer[Any]]
Progress = Callable[[int], None]

# Rows between two looks at the keyboard.
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows in the order in which they were chosen, fewer than asked for where there are no more."""

    rows: npt.NDArray[np.int64]
    """``[n]``, distinct."""
    gains: npt.NDArray[np.float64]
    """``[n]``: what each added when it was chosen. Facility location: to the objective; k-center: its distance to the
    rows before it, infinite for the first; by score: its score."""
    method: str
    facts: Mapping[str, int | float]
    """The objective reached, and how."""


class _Chooser(Protocol):
    def choose(self, count: int) -> tuple[Any, Any]: ...


def facility_location(
    indices: Indices,
    similarities: npt.NDArray[np.float32],
    n: int,
    *,
    weight: npt.ArrayLike | None = None,
    quality: npt.ArrayLike | None = None,
    on_progress: Progress | None = None,
) -> Selection:
    """Choose rows so that every row has a similar one among them: greedy facility location on a neighbour graph.

    Maximises f(S) = sum over i of w_i max(0, max over j in S of q_j s_ij), s_ii = 1, where s_ij is known for rows
    that list each other in either direction (``indices [N, k]``, ``similarities [N, k]``; -1: none) and 0 elsewhere.
    ``weight [N]`` w says how much a row counts when it is covered, ``quality [N]`` q how well it covers; both >= 0,
    by default 1. The result is that of the plain greedy rule in float64, equal gains to the lower row, and reaches at
    least 1 - 1/e of the best f of n rows (Nemhauser, Wolsey and Fisher 1978); found lazily (Minoux 1978). ``facts``:
    ``objective``, its share ``coverage`` of f of all rows, and ``evaluated`` gains.

    Memory: 16 k + 40 bytes a row. Raises `InputError` for n < 1 and for lists, weights or qualities out of range.
    """
    graph = _graph(indices, similarities)
    weights = None if weight is None else checked_scores(weight, len(graph), "weight", least=0.0)
    qualities = None if quality is None else checked_scores(quality, len(graph), "quality", least=0.0)
    chooser = _core.FacilityLocation(graph, weight=weights, quality=qualities)
    rows, gains = _choose(chooser, n, len(graph), on_progress)
    objective = float(gains.sum())
    facts = {
        "objective": objective,
        "coverage": objective / chooser.total if chooser.total else 1.0,
        "evaluated": chooser.num_evaluated,
    }
    return Selection(rows, gains, "facility", facts)


def k_center(
    x: npt.NDArray[Any],
    n: int,
    *,
    first: int = 0,
    threads: int = 0,
    on_progress: Progress | None = None,
) -> Selection:
    """Choose rows of ``x [N, d]`` so that none is far from all of them: farthest-first traversal (Gonzalez 1985).

    Starts at row ``first``; equally far rows by number. Distances are chords sqrt(2 - 2 cosine); the ``radius`` in
    ``facts``, the greatest distance of a row to its nearest chosen one, is at most twice the least that n rows can
    reach. Exact, in n passes over x: for large n see `graph_k_center`.

    Raises `InputError` for n < 1 and for vectors that can't be used, naming the row.
    """
    _check_count(n)
    checked_rows(x, threads=threads)
    _check_first(first, len(x))
    chooser = _core.VectorCenters(x, first=first, threads=num_threads(threads))
    block = max(1, (1 << 28) // max(x.size, 1))
    rows, cosines = _choose(chooser, n, len(x), on_progress, block)
    gains = np.sqrt(np.maximum(2.0 - 2.0 * cosines.astype(np.float64), 0.0))
    gains[:1] = np.inf
    radius = float(np.sqrt(max(2.0 - 2.0 * chooser.least_similarity, 0.0)))
    return Selection(rows, gains, "k-center", {"radius": radius, "least_similarity": chooser.least_similarity})


def graph_k_center(
    indices: Indices,
    similarities: npt.NDArray[np.float32],
    n: int,
    *,
    first: int = 0,
    on_progress: Progress | None = None,
) -> Selection:
    """As `k_center` in the metric of shortest paths of a neighbour graph, an edge's length being its chord.

    The graph joins rows that list each other in either direction. The radius is at most twice the least possible in
    that metric; rows without a path to a chosen one are infinitely far and so come first, by number. For very many
    rows and large n. Raises `InputError` for n < 1 and for lists out of range.
    """
    graph = _graph(indices, similarities)
    _check_first(first, len(graph))
    chooser = _core.GraphCenters(graph, first)
    rows, gains = _choose(chooser, n, len(graph), on_progress)
    return Selection(rows, gains, "k-center", {"radius": chooser.radius})


def top_by_score(scores: npt.ArrayLike, n: int, *, duplicates: Duplicates | None = None) -> Selection:
    """The n rows of the highest ``scores [N]``, equal ones by row, of those that ``duplicates`` keeps.

    ``duplicates`` should come of the same scores, so that of near-copies the best one stays. Raises `InputError` for
    n < 1, scores that aren't finite, and duplicates of another number of rows.
    """
    _check_count(n)
    values = checked_scores(scores, int(np.size(scores)), "scores")
    order = priority(values, len(values))
    rows = np.arange(0) if order is None else order
    if duplicates is not None:
        if len(duplicates.kept) != len(values):
            raise InputError(f"duplicates of {len(values):,} rows", field="duplicates", seen=len(duplicates.kept))
        rows = rows[duplicates.kept[rows]]
    rows = rows[:n]
    return Selection(rows, values[rows], "score", {"mean_score": float(values[rows].mean()) if len(rows) else 0.0})


def _choose(
    chooser: _Chooser, n: int, total: int, on_progress: Progress | None, block: int = _BLOCK
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Rows and gains in parts, so that progress shows and Ctrl-C is answered."""
    _check_count(n)
    parts = []
    for start in range(0, max(min(n, total), 1), block):
        parts.append(chooser.choose(min(block, n - start)))
        if on_progress is not None:
            on_progress(len(parts[-1][0]))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _check_count(n: int) -> None:
    if n < 1:
        raise InputError("at least one row to choose", field="n", seen=n)


def _check_first(first: int, rows: int) -> None:
    if rows and not 0 <= first < rows:
        raise InputError(f"a row below {rows:,}", field="first", seen=first)


def _graph(indices: Indices, similarities: npt.NDArray[np.float32]) -> _core.NeighbourGraph:
    if indices.ndim != 2 or indices.shape != similarities.shape:
        shapes = f"{indices.shape} and {similarities.shape}"
        raise InputError("indices and similarities of one shape [N, k]", field="indices", seen=shapes)
    kind: Any = np.int32 if indices.dtype == np.int32 else np.int64
    try:
        return _core.NeighbourGraph(np.ascontiguousarray(indices, kind), np.ascontiguousarray(similarities, np.float32))
    except ValueError as error:
        raise InputError(f"neighbour lists ({error})", field="indices") from error
