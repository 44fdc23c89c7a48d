"""Exact nearest neighbours by cosine: every pair is ruled out by a proved bound or evaluated in float64.

The cosine of two rows is taken of the values as stored, in float64, and rounded once to float32; lists are in falling
order of it, equal ones by row number; a row is never its own neighbour, equal rows are each other's. Results are the
same bits on any number of threads and any processor. docs/exactness.md has the method, the bound and its proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from obverse import _core
from obverse.engine.diversity.exact_checkpoint import JoinCheckpoint, JoinState, content_key
from obverse.engine.diversity.exact_pairs import Balls, Pairs, ball_counts, pairs_above
from obverse.engine.diversity.exact_sides import Kernel, Side, kernel_number, prepare
from obverse.engine.diversity.quantise import Quantised, Rows, checked_rows, num_threads, quantise
from obverse.engine.errors import InputError

__all__ = [
    "Balls",
    "Certificate",
    "Kernel",
    "Pairs",
    "Quantised",
    "ball_counts",
    "join",
    "pairs_above",
    "quantise",
    "rank_candidates",
    "self_join",
]

Indices: TypeAlias = npt.NDArray[np.int64]
Similarities: TypeAlias = npt.NDArray[np.float32]
# Measured on 65k real sentence embeddings: more trees cost more than the lower thresholds of fewer.
_TREES, _ROUNDS = 3, 1


@dataclass(frozen=True)
class Certificate:
    """What was proved of a join, in pairs of distinct rows (bit-equal rows count as one).

    Of ``pairs``, all but ``passed_prefix`` were ruled out by a prefix of their int8 rows, all but ``passed_rows`` by
    the whole rows, each by an upper bound of the cosine below what the pair would have to reach; ``evaluated`` cosines
    were taken in float64 (those of the start among them). ``error_bound`` is the largest ``|cosine - int8 estimate|``
    that the bounds allow for, ``mean_prefix`` the mean number of values that the first sieve read.
    """

    pairs: int
    passed_prefix: int
    passed_rows: int
    evaluated: int
    mean_prefix: float
    error_bound: float
    distinct_rows: int
    kernel: str


def _certificate(counts: dict[str, float], sides: list[Side], isa: int) -> Certificate:
    """From the core's counts."""
    tops = [float(side.quantised.error.max(initial=0.0)) for side in sides]
    return Certificate(
        pairs=int(counts["pairs"]),
        passed_prefix=int(counts["passed_prefix"]),
        passed_rows=int(counts["passed_rows"]),
        evaluated=int(counts["evaluated"]),
        mean_prefix=counts["prefix_values"] / max(counts["pairs"], 1),
        error_bound=tops[0] + tops[-1],
        distinct_rows=sum(len(side.distinct) for side in sides),
        kernel=("portable", "avx2", "avx512vnni")[min(isa, _core.best_vector_isa())],
    )


_COUNTS = ("pairs", "passed_prefix", "passed_rows", "evaluated", "prefix_values")


def _lists(
    sides: list[Side],
    k: int,
    *,
    seeds: npt.NDArray[np.int32] | None,
    threads: int,
    checkpoint: JoinCheckpoint | None,
    on_progress: Callable[[int], None] | None,
    isa: int,
) -> tuple[npt.NDArray[np.int32], Similarities, dict[str, float]]:
    """Lists between distinct rows, ``[N, k]`` (rows that are not the first of their kind: -1), and the counts."""
    rows, other = sides[0].distinct, sides[1:]
    columns = other[0].distinct if other else np.empty(0, np.int32)
    base = other[0].arrays if other else None
    work = _core.TopKJoin(sides[0].arrays, base, sides[0].quantised.scale, rows, columns, k, threads, isa)
    before = checkpoint.load() if checkpoint else None
    if before is not None:
        work.restore(before.order, before.indices, before.similarities)
        done, counts = before.done, before.counts
    else:
        if seeds is None:
            work.seed_by_trees(_TREES, _ROUNDS, 0)
        else:
            work.seed(seeds)
        work.start()
        done, counts = np.zeros(work.steps, np.bool_), dict.fromkeys(_COUNTS, 0.0)

    def state() -> JoinState:
        now = {name: counts[name] + work.counts[name] for name in _COUNTS}
        return JoinState(work.order, work.indices, work.similarities, done, now)

    total = len(rows) * (len(rows) - 1) // 2 if not other else len(rows) * len(columns)
    told = 0
    try:
        for band in np.flatnonzero(~done):
            work.step(int(band))
            done[band] = True
            share = (counts["pairs"] + work.counts["pairs"]) / max(total, 1)
            if on_progress is not None:
                on_progress(int(share * len(sides[0].x)) - told)
            told = int(share * len(sides[0].x))
            if checkpoint and (checkpoint.due() or done.all()):
                checkpoint.save(state)
    except KeyboardInterrupt:
        if checkpoint:
            checkpoint.save(state)
        raise
    return work.indices, work.similarities, state().counts


def _mapped(seeds: npt.NDArray[Any], sides: list[Side]) -> npt.NDArray[np.int32]:
    """Candidates as distinct rows of the base, as the core takes them."""
    first = sides[-1].first
    n = len(sides[0].x)
    if seeds.ndim != 2 or len(seeds) != n or seeds.dtype.kind not in "iu":
        raise InputError(f"row numbers [{n}, m], -1 for none", field="seeds", seen=f"{seeds.dtype} {seeds.shape}")
    inside = (seeds >= 0) & (seeds < len(first))
    return np.where(inside, first[np.where(inside, seeds, 0)], -1).astype(np.int32)


def _top_k(
    sides: list[Side], k: int, isa: int, threads: int, seeds: npt.NDArray[Any] | None, **how: Any
) -> tuple[Indices, Similarities, Certificate]:
    """Lists between all rows from those between distinct ones."""
    own = len(sides) == 1
    mapped = None if seeds is None else _mapped(seeds, sides)
    distinct = len(sides[-1].distinct)
    listed = min(k, distinct - own)
    n = len(sides[0].x)
    if listed == 0 or n == 0:
        lists, values = np.empty((n, 0), np.int32), np.empty((n, 0), np.float32)
        counts = dict.fromkeys(_COUNTS, 0.0)
    else:
        lists, values, counts = _lists(sides, listed, seeds=mapped, threads=threads, isa=isa, **how)
    proved = _certificate(counts, sides, isa)
    if distinct == len(sides[-1].x) and len(sides[0].distinct) == n:
        return lists.astype(np.int64), values.copy(), proved
    base = None if own else sides[1].first
    indices, similarities = _core.expand_equal_rows(sides[0].first, base, lists, values, k, threads=threads)
    return indices, similarities, proved


def self_join(
    x: Rows,
    k: int,
    *,
    seeds: npt.NDArray[Any] | None = None,
    threads: int = 0,
    checkpoint: str | Path | None = None,
    on_progress: Callable[[int], None] | None = None,
    kernel: Kernel = "auto",
) -> tuple[Indices, Similarities, Certificate]:
    """The ``min(k, N - 1)`` nearest other rows of each row of ``x [N, d]``: indices, similarities and what was proved.

    ``seeds [N, m]``: candidates to start from (row numbers, -1 for none); they change the time, never the result.
    ``checkpoint``: a folder; what was done is saved there every 10 s or so, whole, and a second call with the same
    vectors and ``k`` goes on from it. ``on_progress`` is told of rows' worth of work done, N in all.

    Raises `InputError` where ``x`` is not what `checked_rows` asks for, ``k`` is negative, or the checkpoint is
    damaged or of another join.
    """
    isa, threads = kernel_number(kernel), num_threads(threads)
    if k < 0:
        raise InputError("k of 0 or more", field="k", seen=k)
    sides = prepare(x, threads=threads, isa=isa)
    k = min(k, max(len(x) - 1, 0))
    saved = JoinCheckpoint(Path(checkpoint), content_key(x, join="self", k=k)) if checkpoint is not None else None
    return _top_k(sides, k, isa, threads, seeds, checkpoint=saved, on_progress=on_progress)


def join(
    x: Rows,
    y: Rows,
    k: int,
    *,
    seeds: npt.NDArray[Any] | None = None,
    threads: int = 0,
    checkpoint: str | Path | None = None,
    on_progress: Callable[[int], None] | None = None,
    kernel: Kernel = "auto",
) -> tuple[Indices, Similarities, Certificate]:
    """The ``min(k, M)`` rows of ``y [M, d]`` nearest to each row of ``x [N, d]``; see `self_join`."""
    isa, threads = kernel_number(kernel), num_threads(threads)
    if k < 0:
        raise InputError("k of 0 or more", field="k", seen=k)
    sides = prepare(x, y, threads=threads, isa=isa)
    k = min(k, len(y))
    saved = JoinCheckpoint(Path(checkpoint), content_key(x, y, join="two", k=k)) if checkpoint is not None else None
    return _top_k(sides, k, isa, threads, seeds, checkpoint=saved, on_progress=on_progress)


def rank_candidates(
    x: Rows,
    indices: npt.NDArray[Any],
    k: int,
    *,
    y: Rows | None = None,
    threads: int = 0,
    kernel: Kernel = "auto",
) -> tuple[Indices, Similarities]:
    """The ``k`` best of the candidates ``indices [N, m]`` of each row, by exact cosine.

    Candidates are rows of ``y``, or other rows of ``x`` where it is None; those out of range, repeated ones and the row
    itself are left out. Empty places at the end hold -1 and -inf.
    """
    isa, threads = kernel_number(kernel), num_threads(threads)
    for part, name in ((x, "x"), (y, "y")):
        if part is not None:
            checked_rows(part, name=name, threads=threads, isa=isa)
    if indices.ndim != 2 or len(indices) != len(x) or indices.dtype.kind not in "iu":
        raise InputError(f"row numbers [{len(x)}, m]", field="indices", seen=f"{indices.dtype} {indices.shape}")
    given = np.ascontiguousarray(np.clip(indices, -1, 2**31 - 1), np.int32)
    ranked, values = _core.rank_candidates(x, given, k, y=y, threads=threads, isa=isa)
    return ranked.astype(np.int64), values
