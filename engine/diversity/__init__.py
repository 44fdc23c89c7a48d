"""The diversity stage: neighbours, clusters, and figures of a whole set."""

from __future__ import annotations

from obverse.engine.diversity.coverage import label_coverage, label_metrics
from obverse.engine.diversity.mauve import frontier_area, mauve
from obverse.engine.diversity.neighbours import ApproximationWarning, Neighbours, join, self_join
from obverse.engine.diversity.ngram_metrics import (
    compression_ratio,
    distinct_ngrams,
    ngram_metrics,
    self_bleu,
    self_bleu_scores,
    tokenise,
)
from obverse.engine.diversity.prdc import prdc
from obverse.engine.diversity.score import ScoreReport, score_diversity, score_with_report
from obverse.engine.diversity.set_metrics import set_metrics
from obverse.engine.diversity.set_metrics_full import DataSet, full_metrics
from obverse.engine.diversity.settings import ScoreSettings
from obverse.engine.diversity.vectors import Rows, open_vectors
from obverse.engine.diversity.vendi import mean_cosine, vendi_score, vendi_scores

__all__ = [
    "ApproximationWarning",
    "DataSet",
    "Neighbours",
    "Rows",
    "ScoreReport",
    "ScoreSettings",
    "compression_ratio",
    "distinct_ngrams",
    "frontier_area",
    "full_metrics",
    "join",
    "label_coverage",
    "label_metrics",
    "mauve",
    "mean_cosine",
    "ngram_metrics",
    "open_vectors",
    "prdc",
    "score_diversity",
    "score_with_report",
    "self_bleu",
    "self_bleu_scores",
    "self_join",
    "set_metrics",
    "tokenise",
    "vendi_score",
    "vendi_scores",
]
