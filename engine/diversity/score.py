"""The diversity stage: neighbours, mean distance to them, and clusters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from obverse.engine.diversity import faiss
from obverse.engine.diversity.clusters import cluster
from obverse.engine.diversity.engines import choose
from obverse.engine.diversity.neighbours import Neighbours, exact_rows, nearest, similarities
from obverse.engine.diversity.settings import ScoreSettings
from obverse.engine.diversity.vectors import unit_matrix
from obverse.engine.records.keys import derive_seed
from obverse.engine.records.schemas import SCORES

__all__ = ["ScoreReport", "score_diversity", "score_with_report"]

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """How the scores came about, and how far they are from exact ones."""

    index: str
    """The engine that ran: flat, ivf or hnsw."""
    reason: str
    """Why that one."""
    parameters: dict[str, int]
    """Of the engine (lists and probes of ivf)."""
    rows: int
    distinct_vectors: int
    dim: int
    neighbours: int
    """k as used: less than asked for in a set of fewer than k + 1 rows."""
    clusters: int
    recall: float | None
    """Share of the sample's true k nearest that were found (ties count as found); None without a sample."""
    p99_error: float | None
    """99th percentile over the sample of the absolute error of ``mean_knn_distance``."""
    sample: int
    """Rows searched again exactly for the two."""
    completed_rows: int
    """Rows for which the engine found too few neighbours, searched again exactly."""
    search_seconds: float
    cluster_seconds: float
    threads: int
    faiss: str


def score_diversity(
    vectors: pa.Table,
    settings: ScoreSettings,
    *,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Score a ``vectors`` table (one row an id, unit length or not); gives a table of schema SCORES, in its order.

    ``mean_knn_distance`` is the mean of 1 - cosine over the k nearest other rows; null for a single row.
    Raises `InputError` for bad vectors and `MissingPackageError` without FAISS.
    """
    return score_with_report(vectors, settings, seed=seed, on_progress=on_progress)[0]


def score_with_report(
    vectors: pa.Table,
    settings: ScoreSettings,
    *,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[pa.Table, ScoreReport]:
    """As `score_diversity`, with the engine chosen, the reason, and its error measured on a random sample."""
    ids, base = unit_matrix(vectors)
    k = min(settings.neighbours, max(len(base) - 1, 0))
    choice = choose(settings, len(base))
    tell = on_progress or (lambda _: None)
    with faiss.threads(settings.threads) as threads:
        started = time.perf_counter()
        found = nearest(base, k, choice, seed=derive_seed(seed, "score.index"), on_rows=tell) if k else None
        searched = time.perf_counter()
        clusters = cluster(base, settings.clusters, settings.cluster_iterations, derive_seed(seed, "score.clusters"))
        clustered = time.perf_counter()
    recall, error, sample = _measure(base, found, settings.recall_sample, seed)
    report = ScoreReport(
        index=choice.index,
        reason=choice.reason,
        parameters=choice.parameters,
        rows=len(base),
        distinct_vectors=found.distinct if found else len(base),
        dim=base.shape[1],
        neighbours=k,
        clusters=int(clusters.max()) + 1 if len(clusters) else 0,
        recall=recall,
        p99_error=error,
        sample=sample,
        completed_rows=found.completed if found else 0,
        search_seconds=searched - started,
        cluster_seconds=clustered - searched,
        threads=threads,
        faiss=faiss.version(),
    )
    return _table(ids, found, clusters), report


def _measure(base: Vectors, found: Neighbours | None, sample: int, seed: int) -> tuple[float | None, float | None, int]:
    """Recall at k, p99 of the error of the mean distance, and the size of the random sample they come from."""
    if found is None or not sample:
        return None, None, 0
    generator = np.random.default_rng(derive_seed(seed, "score.recall"))
    rows = np.sort(generator.choice(len(base), min(sample, len(base)), replace=False))
    k = found.indices.shape[1]
    others = exact_rows(base, rows, k + 1)
    # A row with more than k duplicates may be missing from its own list: then the last is one too many.
    own = others == rows[:, None]
    own[~own.any(axis=1), -1] = True
    truth = np.concatenate(
        [similarities(base, rows[low : low + 256], others[low : low + 256]) for low in range(0, len(rows), 256)]
    )
    truth = np.sort(truth[~own].reshape(len(rows), k), axis=1)
    scores = found.similarities[rows]
    # By similarity, so that one of several equally near rows counts as found.
    recall = (scores >= truth[:, :1] - 1e-6).mean()
    error = np.abs(truth.mean(axis=1, dtype=np.float64) - scores.mean(axis=1, dtype=np.float64))
    return float(recall), float(np.quantile(error, 0.99)), len(rows)


def _table(ids: npt.NDArray[np.int64], found: Neighbours | None, clusters: npt.NDArray[np.int32]) -> pa.Table:
    k = found.indices.shape[1] if found else 0
    offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * k)
    indices = found.indices.reshape(-1) if found else np.empty(0, np.int64)
    values = found.similarities if found else np.empty((len(ids), 0), np.float32)
    if found:
        distance = pa.array((1.0 - values.mean(axis=1, dtype=np.float64)).astype(np.float32))
    else:
        distance = pa.nulls(len(ids), pa.float32())
    columns = {
        "id": ids,
        "neighbour_ids": pa.ListArray.from_arrays(offsets, pa.array(ids[indices])),
        "neighbour_similarities": pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1))),
        "mean_knn_distance": distance,
        "cluster": clusters,
    }
    return pa.table(columns, schema=SCORES)
