"""Settings of the diversity stage."""

from __future__ import annotations

from typing import Literal

import pydantic

from obverse.engine.records.settings import StageSettings

__all__ = ["ScoreSettings"]


class ScoreSettings(StageSettings):
    """How nearest neighbours, clusters and near-duplicates are found."""

    neighbours: int = pydantic.Field(default=10, ge=1, le=1024)
    """Nearest other rows kept for each row."""
    engine: Literal["auto", "exact", "faiss", "descent"] = "auto"
    """``auto`` is exact while that takes minutes, else the fastest that is good enough, measured."""
    faiss_index: Literal["auto", "flat", "ivf", "rabitq", "hnsw", "cagra"] = "auto"
    """Kind of the faiss engine's index; ``auto`` goes by rows, memory and recall, and never takes hnsw."""
    recall: float = pydantic.Field(default=0.99, gt=0, le=1)
    """Share of the true neighbours that an approximate engine must find, measured on a sample."""
    max_score_error: float = pydantic.Field(default=0.01, gt=0)
    """What the 99th percentile of an approximate engine's error of mean_knn_distance may be, measured likewise."""
    recall_sample: int = pydantic.Field(default=2000, ge=0)
    """Rows whose neighbours are searched again exactly, to measure an approximate engine; 0 leaves that out."""
    duplicates: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Cosine from which rows count as near-duplicates of each other, over all pairs; none leaves them out."""
    clusters: int = pydantic.Field(default=0, ge=0)
    """Clusters of the k-means; 0 takes sqrt(N) / 2, at most 1024."""
    cluster_iterations: int = pydantic.Field(default=20, ge=1)
    """Iterations of the k-means."""
    threads: int = pydantic.Field(default=0, ge=0)
    """Threads for search and clustering; 0 takes all."""
