"""`self_join`, `join` and `pairs_above`: nearest neighbours by cosine, exact or with their error measured."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse.engine.diversity import exact
from obverse.engine.diversity.engines import Choice, Engine, Job, Outcome, choose, run_engine
from obverse.engine.diversity.estimate import Estimate, estimate_recall, estimate_score_error, sample_rows
from obverse.engine.diversity.quantise import checked_rows
from obverse.engine.errors import InputError
from obverse.engine.records.keys import derive_seed

__all__ = ["ApproximationWarning", "Neighbours", "join", "pairs_above", "self_join"]

Matrix = npt.NDArray[Any]
Progress = Callable[[int], None]


class ApproximationWarning(UserWarning):
    """Neighbours that were asked for by an engine's name are further from the exact ones than was asked for."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Neighbour lists, and how good they are."""

    indices: npt.NDArray[np.int64]
    """``[N, k]``, nearest first, equal similarities by row number; -1 where there are fewer."""
    similarities: npt.NDArray[np.float32]
    """``[N, k]``: cosines of the stored rows, computed in float64 and rounded once; -inf where there are fewer."""
    engine: str
    reason: str
    """Why that engine, and which others were tried."""
    parameters: dict[str, Any]
    certificate: exact.Certificate | None
    """What the exact engine proved, else None."""
    recall: Estimate | None
    """Of an approximate engine, at k, by similarity; None where exact or without a sample."""
    score_error: Estimate | None
    """Of an approximate engine: the 99th percentile of the error of the mean cosine of a row's k neighbours."""
    seconds: float
    """Of the join; measuring it not counted."""

    @property
    def is_exact(self) -> bool:
        """Whether the lists are proved or known to be the exact ones."""
        return self.engine == "exact"


def self_join(
    x: Matrix,
    k: int = 10,
    *,
    engine: Engine = "auto",
    recall: float = 0.99,
    max_score_error: float = 0.01,
    sample: int = 2000,
    threads: int = 0,
    seed: int = 0,
    faiss_index: str = "auto",
    checkpoint: Path | str | None = None,
    on_progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Neighbours:
    """The ``min(k, N - 1)`` other rows nearest to each row of ``x [N, d]``, by cosine.

    ``x`` is float16 or float32 (an array or a memory map), not necessarily of unit rows. Engines: ``exact``; ``faiss``
    (``faiss_index``: flat, ivf, rabitq or hnsw, cagra on GPUs; auto chooses by rows, memory and ``recall``);
    ``descent``. ``auto`` is exact while the time predicted for it is within 15 minutes, else faiss where there is a
    GPU, else descent; the result says which and why.

    Of an approximate engine, recall and the p99 error of the score (the mean cosine of a row's neighbours) are
    measured on ``sample`` random rows against exact ones. Where they miss ``recall`` or ``max_score_error``, auto
    does the exact join instead and says so; an engine asked for by name gives an `ApproximationWarning`.

    ``checkpoint``: a folder in which an exact join can be stopped and gone on with. ``on_progress`` is called with
    numbers of rows newly done, ``say`` with a line on the engine chosen or given up. The result depends on ``x``,
    ``k``, the engine and ``seed``, not on ``threads``.

    Raises `InputError` for an ``x`` of another type or shape, empty, or with a row that isn't finite or all zeros.
    """
    _check(x, k, threads)
    tell = on_progress or (lambda _: None)
    folder = None if checkpoint is None else Path(checkpoint)
    job = Job(x, min(k, len(x) - 1), recall, threads, derive_seed(seed, "neighbours"), faiss_index, folder, tell)
    if not job.k:
        nothing = Outcome(np.empty((len(x), 0), np.int64), np.empty((len(x), 0), np.float32))
        return _result(nothing, Choice("exact", "one row has no neighbours"), None, 0.0)
    choice, say = choose(engine, job), say or (lambda _: None)
    say(f"{choice.engine}: {choice.reason}")
    started = time.perf_counter()
    outcome = run_engine(choice.engine, job)
    seconds = time.perf_counter() - started
    measured = None if choice.engine == "exact" else _measure(job, outcome, sample)
    missed = _missed(measured, recall, max_score_error)
    if missed and engine != "auto":
        warnings.warn(f"neighbours by {choice.engine}: {missed}", ApproximationWarning, stacklevel=2)
    elif missed:
        choice = Choice("exact", f"{choice.reason}; but {choice.engine} had {missed}, so the join was done exactly")
        say(f"{choice.engine}: {choice.reason}")
        outcome, measured = run_engine("exact", job), None
        seconds = time.perf_counter() - started
    return _result(outcome, choice, measured, seconds)


def _check(x: Matrix, k: int, threads: int, name: str = "x") -> None:
    checked_rows(x, name=name, threads=threads)
    if not len(x):
        raise InputError("at least one vector", field=name)
    if k < 1:
        raise InputError("at least 1", field="k", seen=k)


def _measure(job: Job, outcome: Outcome, sample: int) -> tuple[Estimate, Estimate] | None:
    """Recall and score error on a random sample of rows, against an exact join of these rows with all."""
    if not sample:
        return None
    rows = sample_rows(len(job.x), sample, derive_seed(job.seed, "measure"))
    indices, values, _ = exact.join(job.x[rows], job.x, job.k + 1, threads=job.threads)
    own = indices == rows[:, None]
    own[~own.any(axis=1), -1] = True  # more than k are as near and have lower numbers
    truth = values[~own].reshape(len(rows), job.k)
    # A place without a neighbour is as bad as the opposite direction.
    found = np.maximum(outcome.similarities[rows], np.float32(-1))
    whole = len(rows) == len(job.x)
    return estimate_recall(found, truth, whole=whole), estimate_score_error(found, truth, whole=whole)


def _missed(measured: tuple[Estimate, Estimate] | None, recall: float, max_score_error: float) -> str:
    """What the measured figures miss, in words; empty where they meet what was asked."""
    if measured is None:
        return ""
    found, error = measured
    parts = []
    if found.value < recall:
        parts.append(f"a recall of {found.value:.4f} [{found.low:.4f}, {found.high:.4f}] where {recall:g} was asked")
    if error.value > max_score_error:
        told = f"{error.value:.4f} [{error.low:.4f}, {error.high:.4f}]"
        parts.append(f"a p99 error of the score of {told} where {max_score_error:g} was asked")
    return " and ".join(parts) + f" (measured on {found.sample:,} rows)" if parts else ""


def _result(outcome: Outcome, choice: Choice, measured: tuple[Estimate, Estimate] | None, seconds: float) -> Neighbours:
    recall, error = measured or (None, None)
    return Neighbours(
        outcome.indices,
        outcome.similarities,
        choice.engine,
        choice.reason,
        outcome.parameters,
        outcome.certificate,
        recall,
        error,
        seconds,
    )


def join(x: Matrix, y: Matrix, k: int = 10, *, threads: int = 0, on_progress: Progress | None = None) -> Neighbours:
    """The ``min(k, M)`` rows of ``y [M, d]`` nearest to each row of ``x [N, d]``, by cosine, exactly.

    Types, order and errors are those of `self_join`; `InputError` too where the two differ in dimensions.
    """
    _check(x, k, threads)
    _check(y, k, threads, "y")
    if x.shape[1] != y.shape[1]:
        raise InputError(f"rows of {x.shape[1]} values, as in x", field="y", seen=y.shape)
    started = time.perf_counter()
    tell = on_progress or (lambda _: None)
    indices, values, certificate = exact.join(*_same_dtype(x, y), k, threads=threads, on_progress=tell)
    outcome = Outcome(indices, values, certificate=certificate)
    return _result(outcome, Choice("exact", "joins of two sets are exact"), None, time.perf_counter() - started)


def pairs_above(
    x: Matrix,
    threshold: float,
    y: Matrix | None = None,
    *,
    max_pairs: int = 100_000_000,
    threads: int = 0,
    on_progress: Progress | None = None,
) -> exact.Pairs:
    """All pairs of rows with a cosine of at least ``threshold``, exactly: ``i``, ``j`` and ``similarities``.

    Of rows i < j of ``x [N, d]``, or of rows i of ``x`` and j of ``y [M, d]`` where it is given, by rising i, then j.
    Raises `InputError` as `join` does, for a threshold outside [-1, 1], and where there are more than ``max_pairs``.
    """
    _check(x, 1, threads)
    pairs = functools.partial(exact.pairs_above, max_pairs=max_pairs, threads=threads, on_progress=on_progress)
    if y is None:
        return pairs(x, threshold)
    _check(y, 1, threads, "y")
    return pairs(*_same_dtype(x, y), threshold)


def _same_dtype(x: Matrix, y: Matrix) -> tuple[Matrix, Matrix]:
    """Both as float32 where only one is: float16 loses nothing by it."""
    if x.dtype == y.dtype:
        return x, y
    return x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)
