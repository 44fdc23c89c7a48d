"""Losses that weigh each synthetic sample: functions and modules, over logits, a linear head, whole sequences."""

from __future__ import annotations

from obverse.engine.losses.functional import (
    Diagnostics,
    weighted_cross_entropy,
    weighted_cross_entropy_with_diagnostics,
)
from obverse.engine.losses.linear import (
    linear_weighted_cross_entropy,
    linear_weighted_cross_entropy_with_diagnostics,
)
from obverse.engine.losses.modules import LinearWeightedCrossEntropy, WeightedCrossEntropy
from obverse.engine.losses.sequence import SequenceDiagnostics, SequenceWeightedCrossEntropy
from obverse.engine.losses.settings import LossSettings
from obverse.engine.losses.trainer import WeightedLossMixin, compute_loss_func, weighted_trainer
from obverse.engine.losses.vocab_parallel import (
    count_items,
    vocab_parallel_weighted_cross_entropy,
    vocab_parallel_weighted_cross_entropy_with_diagnostics,
)

__all__ = [
    "Diagnostics",
    "LinearWeightedCrossEntropy",
    "LossSettings",
    "SequenceDiagnostics",
    "SequenceWeightedCrossEntropy",
    "WeightedCrossEntropy",
    "WeightedLossMixin",
    "compute_loss_func",
    "count_items",
    "linear_weighted_cross_entropy",
    "linear_weighted_cross_entropy_with_diagnostics",
    "vocab_parallel_weighted_cross_entropy",
    "vocab_parallel_weighted_cross_entropy_with_diagnostics",
    "weighted_cross_entropy",
    "weighted_cross_entropy_with_diagnostics",
    "weighted_trainer",
]
