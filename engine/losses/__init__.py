"""Losses that weigh each synthetic sample: functional, and as modules for rows and for whole sequences."""

from __future__ import annotations

from obverse.engine.losses.functional import (
    Diagnostics,
    weighted_cross_entropy,
    weighted_cross_entropy_with_diagnostics,
)
from obverse.engine.losses.modules import WeightedCrossEntropy
from obverse.engine.losses.sequence import SequenceDiagnostics, SequenceWeightedCrossEntropy

__all__ = [
    "Diagnostics",
    "SequenceDiagnostics",
    "SequenceWeightedCrossEntropy",
    "WeightedCrossEntropy",
    "weighted_cross_entropy",
    "weighted_cross_entropy_with_diagnostics",
]
