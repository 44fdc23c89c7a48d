"""The diversity stage: each row's neighbours, density, novelty, duplicates and cluster."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.diversity import faiss
from obverse.engine.diversity.clusters import cluster
from obverse.engine.diversity.density import local_density, mean_distance
from obverse.engine.diversity.duplicates import near_duplicates
from obverse.engine.diversity.estimate import Estimate
from obverse.engine.diversity.groups import Duplicates
from obverse.engine.diversity.neighbours import Neighbours, join, self_join
from obverse.engine.diversity.score_table import Scores
from obverse.engine.diversity.settings import ScoreSettings
from obverse.engine.diversity.vectors import Rows, gather, open_vectors
from obverse.engine.errors import InputError
from obverse.engine.records.keys import derive_seed
from obverse.engine.records.schemas import SCORES, require_columns

__all__ = ["ScoreReport", "Task", "score_diversity", "score_rows", "score_with_report"]

Matrix = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Progress = Callable[[int], None]
Task = Callable[[str, int | None, str], AbstractContextManager[Progress]]
"""``Progress.task``: name, total and unit of a piece of work; its context gives what to call with units done."""


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """How the scores came about, and how far they are from exact ones."""

    engine: str
    """The engine that ran: exact, faiss or descent."""
    reason: str
    """Why that one."""
    parameters: dict[str, Any]
    rows: int
    dim: int
    neighbours: int
    """k as used: less than asked for in a set of fewer than k + 1 rows."""
    clusters: int
    certificate: dict[str, Any] | None
    """What an exact join proved."""
    recall: Estimate | None
    """Of an approximate engine, at k, measured; None where exact or without a sample."""
    score_error: Estimate | None
    """99th percentile of the absolute error of ``mean_knn_distance``, measured likewise."""
    duplicates: dict[str, Any] | None
    """Threshold, pairs, groups of more than one row, and rows kept; None where not asked for."""
    seconds: dict[str, float]
    """By part."""
    peak_memory: int
    """The process's largest resident set so far, in bytes, files that are mapped counted in."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return dataclasses.asdict(self)


@contextmanager
def _silent(_name: str, _total: int | None, _unit: str) -> Iterator[Progress]:
    yield lambda _: None


def score_diversity(
    vectors: pa.Table,
    settings: ScoreSettings,
    *,
    seed: int,
    real: pa.Table | None = None,
    labels: pa.Table | None = None,
    on_progress: Progress | None = None,
) -> pa.Table:
    """Score a ``vectors`` table (one row an id, unit length or not); gives a table of schema SCORES, in its order.

    ``mean_knn_distance`` is the mean of 1 - cosine over the k nearest other rows, ``local_density`` see
    `obverse.engine.diversity.density`, ``novelty`` 1 - the largest cosine to a row of ``real`` (a ``vectors`` table),
    ``label_mean_knn_distance`` as the first over the k nearest of the same label of ``labels`` (id, label).
    Columns are null where there is nothing to tell: for a single row, or without ``real``, ``labels``, duplicates.
    Raises `InputError` for bad vectors and `MissingPackageError` without FAISS.
    """
    return score_with_report(vectors, settings, seed=seed, real=real, labels=labels, on_progress=on_progress)[0]


def score_with_report(
    vectors: pa.Table,
    settings: ScoreSettings,
    *,
    seed: int,
    real: pa.Table | None = None,
    labels: pa.Table | None = None,
    on_progress: Progress | None = None,
) -> tuple[pa.Table, ScoreReport]:
    """As `score_diversity`, with the engine chosen, the reason, and its error measured on a random sample."""

    @contextmanager
    def task(name: str, total: int | None, unit: str) -> Iterator[Progress]:
        yield on_progress if on_progress and name == "score" else (lambda _: None)

    require_columns(vectors, "id", "vector", what="vectors")
    if not vectors.num_rows:
        dim = getattr(vectors.schema.field("vector").type, "list_size", 0)
        return SCORES.empty_table(), _report(Rows(np.empty(0, np.int64), np.empty((0, dim), np.float32)), None, 0, {})
    real_rows = None if real is None else open_vectors(real).matrix
    scores, report = score_rows(open_vectors(vectors), settings, seed=seed, real=real_rows, labels=labels, task=task)
    return scores.table(), report


def score_rows(
    rows: Rows,
    settings: ScoreSettings,
    *,
    seed: int,
    real: Matrix | None = None,
    labels: pa.Table | None = None,
    checkpoint: Path | None = None,
    scratch: Path | None = None,
    task: Task = _silent,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Scores, ScoreReport]:
    """As `score_with_report` for rows that `open_vectors` opened, in memory or mapped from a file.

    ``checkpoint`` is a folder in which an exact join is kept while it is at work, ``scratch`` one for nameless files;
    ``say`` gets a line on the engine chosen.
    """
    codes = None if labels is None else _codes(rows.ids, labels)
    seconds: dict[str, float] = {}
    with _timed(seconds, "join"), task("score", len(rows.ids), "rows") as advance:
        found = _self_join(rows.matrix, settings, derive_seed(seed, "score"), advance, checkpoint, say)
    with _timed(seconds, "density"):
        distance, density = mean_distance(found.similarities), local_density(found.indices, found.similarities)
    novelty = label_distance = None
    if real is not None:
        with _timed(seconds, "novelty"), task("novelty", len(rows.ids), "rows") as advance:
            nearest = join(rows.matrix, real, 1, threads=settings.threads, on_progress=advance)
            novelty = mean_distance(nearest.similarities)
    if codes is not None:
        with _timed(seconds, "labels"), task("labels", len(rows.ids), "rows") as advance:
            label_distance = _within_labels(rows.matrix, codes, settings, seed, scratch, advance)
    pairs: Duplicates | None = None
    if settings.duplicates is not None:
        with _timed(seconds, "duplicates"), task("duplicates", len(rows.ids), "rows") as advance:
            pairs = near_duplicates(rows.matrix, settings.duplicates, threads=settings.threads, on_progress=advance)
    with _timed(seconds, "clusters"), task("clusters", len(rows.ids), "rows") as advance:
        clusters = _clusters(rows.matrix, settings, derive_seed(seed, "score.clusters"), advance)
    scores = Scores(
        rows.ids,
        found.indices,
        found.similarities,
        distance,
        density,
        novelty,
        label_distance,
        clusters,
        pairs.group if pairs else None,
        pairs.kept if pairs else None,
    )
    return scores, _report(rows, found, int(clusters.max()) + 1, seconds, dict(pairs.facts) if pairs else None)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 3)


def _self_join(
    matrix: Matrix,
    settings: ScoreSettings,
    seed: int,
    on_progress: Progress = lambda _: None,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Neighbours:
    return self_join(
        matrix,
        settings.neighbours,
        engine=settings.engine,
        recall=settings.recall,
        max_score_error=settings.max_score_error,
        sample=settings.recall_sample,
        threads=settings.threads,
        seed=seed,
        faiss_index=settings.faiss_index,
        checkpoint=checkpoint,
        on_progress=on_progress,
        say=say,
    )


def _clusters(matrix: Matrix, settings: ScoreSettings, seed: int, on_progress: Progress) -> npt.NDArray[np.int32]:
    with faiss.threads(settings.threads):
        return cluster(matrix, settings.clusters, settings.cluster_iterations, seed, on_progress)


def _codes(ids: npt.NDArray[np.int64], labels: pa.Table) -> npt.NDArray[np.int32]:
    """A number ``[N]`` for each row's label, -1 for a null one; `InputError` for an id that ``labels`` lacks."""
    require_columns(labels, "id", "label", what="labels")
    place = pc.index_in(pa.array(ids), value_set=labels["id"].combine_chunks().cast(pa.int64()))
    if place.null_count:
        row = int(place.is_null().to_numpy(zero_copy_only=False).argmax())
        raise InputError("a label for every id of the vectors", field="label", seen=f"none for id {ids[row]}")
    column = labels["label"].take(place).combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    codes = column.dictionary_encode().indices
    result: npt.NDArray[np.int32] = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return result


def _within_labels(
    matrix: Matrix,
    codes: npt.NDArray[np.int32],
    settings: ScoreSettings,
    seed: int,
    scratch: Path | None,
    on_progress: Progress,
) -> Floats:
    """The mean of 1 - cosine over each row's k nearest rows of its own label ``[N]``; NaN where it is the only one."""
    result = np.full(len(codes), np.nan, np.float32)
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-2))
    for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True):
        rows = order[start:stop]
        if codes[rows[0]] >= 0 and len(rows) > 1:
            part = matrix if len(rows) == len(matrix) else gather(matrix, rows, scratch)
            found = _self_join(part, settings, derive_seed(seed, "score.labels"))
            result[rows] = mean_distance(found.similarities)
        on_progress(len(rows))
    return result


def _report(
    rows: Rows,
    found: Neighbours | None,
    clusters: int,
    seconds: dict[str, float],
    duplicates: dict[str, Any] | None = None,
) -> ScoreReport:
    certificate = found.certificate if found else None
    return ScoreReport(
        engine=found.engine if found else "exact",
        reason=found.reason if found else "there are no rows",
        parameters=found.parameters if found else {},
        rows=len(rows.ids),
        dim=rows.matrix.shape[1],
        neighbours=found.indices.shape[1] if found else 0,
        clusters=clusters,
        certificate=dataclasses.asdict(certificate) if certificate else None,
        recall=found.recall if found else None,
        score_error=found.score_error if found else None,
        duplicates=duplicates,
        seconds=seconds,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
