"""The diversity stage: neighbours, clusters, and figures of a whole set."""

from __future__ import annotations

from obverse.engine.diversity.score import ScoreReport, score_diversity, score_with_report
from obverse.engine.diversity.set_metrics import set_metrics
from obverse.engine.diversity.settings import ScoreSettings

__all__ = ["ScoreReport", "ScoreSettings", "score_diversity", "score_with_report", "set_metrics"]
