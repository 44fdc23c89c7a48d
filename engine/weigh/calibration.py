"""Calibration of a checker: whether what it gives 80% is right 80% of the time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from obverse.engine.errors import InputError

__all__ = ["Calibration", "expected_calibration_error"]


class Calibration(NamedTuple):
    """Expected calibration error and what it is made of; empty bins are left out."""

    error: float
    """Mean over rows of |accuracy - confidence| of their bin, 0 to 1."""
    confidence: list[float]
    """Mean confidence of each bin that holds a row, in rising order."""
    accuracy: list[float]
    """Share of right rows in each such bin."""
    rows: list[int]
    """Rows in each such bin."""


def expected_calibration_error(probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int = 15) -> Calibration:
    """Expected calibration error over ``bins`` equal-width bins of the top class's probability.

    ``probabilities`` [N, K] with rows that sum to 1, ``labels`` [N] int in [0, K). The definition is that of
    Guo et al. 2017, arXiv 1706.04599, equation 3. Raises `InputError` naming the first bad row.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    y = np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or not np.issubdtype(y.dtype, np.integer) or len(y) == 0:
        seen = f"{list(p.shape)} and {y.dtype} {list(y.shape)}"
        raise InputError("probabilities [N, K] and integer labels [N], N > 0", field="probabilities", seen=seen)
    if bins < 1:
        raise InputError("at least one bin", field="bins", seen=bins)
    wrong = np.flatnonzero(~((p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) < 1e-3)))
    if len(wrong):
        raise InputError("probabilities that sum to 1", row=int(wrong[0]), field="probabilities", seen=p[wrong[0]])
    outside = np.flatnonzero((y < 0) | (y >= p.shape[1]))
    if len(outside):
        seen_label = int(y[outside[0]])
        raise InputError(f"a class from 0 to {p.shape[1] - 1}", row=int(outside[0]), field="labels", seen=seen_label)
    top = np.minimum(p.max(axis=1), 1.0)
    right = p.argmax(axis=1) == y
    # Bins are (a, b], as in the paper.
    place = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    held = np.flatnonzero(count)
    confidence = np.bincount(place, weights=top, minlength=bins)[held] / count[held]
    accuracy = np.bincount(place, weights=right, minlength=bins)[held] / count[held]
    error = float(np.sum(count[held] / len(y) * np.abs(accuracy - confidence)))
    return Calibration(error, confidence.tolist(), accuracy.tolist(), count[held].tolist())
