"""Settings of the evaluate stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from obverse.engine.records.settings import StageSettings

__all__ = ["EvaluateSettings", "Task"]

Task = Literal["extraction", "classification"]


class EvaluateSettings(StageSettings):
    """How predictions are scored."""

    resamples: int = Field(default=1000, ge=10, le=1_000_000)
    """Bootstrap resamples of the records behind every interval and p-value."""

    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    """Share of the bootstrap distribution inside an interval (percentile method)."""

    linked: bool = False
    """Match subjects, relations and objects by uri, not by surface form; a predicted name without a uri is wrong."""

    relation_rows: int = Field(default=1000, ge=0)
    """Rows of the per-relation table, most frequent in gold first; the rest is counted, not listed."""
