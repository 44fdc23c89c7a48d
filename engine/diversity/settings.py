"""Settings of the diversity stage."""

from __future__ import annotations

from typing import Literal

import pydantic

from obverse.engine.records.settings import StageSettings

__all__ = ["ScoreSettings"]


class ScoreSettings(StageSettings):
    """How nearest neighbours and clusters are found."""

    neighbours: int = pydantic.Field(default=10, ge=1, le=1024)
    """Nearest other rows kept for each row."""
    index: Literal["auto", "flat", "ivf", "hnsw"] = "auto"
    """``flat`` is exact, ``ivf`` and ``hnsw`` approximate; ``auto`` is flat up to ``flat_limit`` rows, then ivf."""
    flat_limit: int = pydantic.Field(default=200_000, ge=0)
    """Rows up to which ``auto`` searches exactly (its time grows with the square)."""
    probes: int = pydantic.Field(default=32, ge=1)
    """Lists that ivf visits for each row, of about 4 sqrt(N): more is slower and misses less."""
    clusters: int = pydantic.Field(default=0, ge=0)
    """Clusters of the k-means; 0 takes sqrt(N) / 2, at most 1024."""
    cluster_iterations: int = pydantic.Field(default=20, ge=1)
    """Iterations of the k-means."""
    recall_sample: int = pydantic.Field(default=1000, ge=0)
    """Rows whose neighbours are searched again exactly, to measure the index; 0 leaves that out."""
    threads: int = pydantic.Field(default=0, ge=0)
    """Threads for search and clustering; 0 takes all that FAISS would."""
