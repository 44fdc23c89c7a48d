"""Accuracy, precision, recall and F1 of labels, and the confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from obverse.engine.evaluate.bootstrap import centre, interval, macro, prf, weight_blocks
from obverse.engine.evaluate.counts import LabelCounts, count_labels
from obverse.engine.evaluate.settings import EvaluateSettings

__all__ = ["CLASSIFICATION_METRICS", "classification_samples", "evaluate_classification"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PARTS = ("precision", "recall", "f1")
CLASSIFICATION_METRICS = ("accuracy", *(f"macro_{part}" for part in _PARTS))


def evaluate_classification(predictions: pa.Table, settings: EvaluateSettings, *, seed: int) -> dict[str, Any]:
    """The whole classification result; see `evaluate` for its keys."""
    counts = count_labels(predictions)
    scalars: dict[str, list[Floats]] = {name: [] for name in CLASSIFICATION_METRICS}
    classes = []
    for weights in weight_blocks(len(counts.ids), settings.resamples, seed):
        block, sums = _samples(counts, weights)
        for name, part in block.items():
            scalars[name].append(part)
        scores = prf(sums)
        scores[:, (sums[1] == 0) & (sums[2] == 0)] = np.nan
        classes.append(scores)
    ones = np.ones((len(counts.ids), 1), np.int32)
    values, totals = _samples(counts, ones)
    level = settings.confidence
    found = {}
    for name, (value,) in values.items():
        sample = np.concatenate(scalars[name])
        found[name] = interval(value, centre(value, sample) if name.startswith("macro") else sample, level)
    return {
        "records": len(counts.ids),
        "correct": int(totals[0].sum()),
        "accuracy": found["accuracy"],
        "macro": {part: found[f"macro_{part}"] for part in _PARTS},
        "per_class": _class_rows(counts, totals[:, :, 0], np.concatenate(classes, axis=-1), level),
        "confusion": _confusion(counts),
    }


def classification_samples(counts: LabelCounts, weights: NDArray[np.int32]) -> dict[str, Floats]:
    """Every scalar of `CLASSIFICATION_METRICS` for each column of ``weights`` [N, C]; each [C].

    Macro means are over the classes in gold or prediction, as scikit-learn's ``f1_score(average="macro")``.
    """
    return _samples(counts, weights)[0]


def _samples(counts: LabelCounts, weights: NDArray[np.int32]) -> tuple[dict[str, Floats], Ints]:
    """The scalars, and [3, K, C] correct, predicted, gold of each class."""
    hits = counts.gold == counts.predicted
    correct = np.where(hits, counts.gold, len(counts.labels))
    codes = (correct, counts.predicted, counts.gold)
    sums = np.stack([_class_sums(code, counts, weights) for code in codes])
    means = macro(sums, gold_only=False)
    out = {"accuracy": weights[hits].sum(axis=0, dtype=np.int64) / weights.sum(axis=0, dtype=np.int64)}
    return out | {f"macro_{part}": row for part, row in zip(_PARTS, means, strict=True)}, sums


def _class_sums(code: Ints, counts: LabelCounts, weights: NDArray[np.int32]) -> Ints:
    """[K, C] weight of the rows whose ``code`` is k; a code of K counts nowhere."""
    order = np.argsort(code, kind="stable")
    present, first = np.unique(code[order], return_index=True)
    out = np.zeros((len(counts.labels) + 1, weights.shape[1]), np.int64)
    out[present] = np.add.reduceat(weights[order], first, axis=0, dtype=np.int64)
    return out[:-1]


def _class_rows(counts: LabelCounts, totals: Ints, samples: Floats, level: float) -> list[dict[str, Any]]:
    scores = prf(totals)
    rows: list[dict[str, Any]] = []
    for k, label in enumerate(counts.labels):
        correct, predicted, gold = (int(n) for n in totals[:, k])
        row: dict[str, Any] = {"label": label, "gold": gold, "predicted": predicted, "correct": correct}
        rows.append(row | {part: interval(scores[p, k], samples[p, k], level) for p, part in enumerate(_PARTS)})
    return rows


def _confusion(counts: LabelCounts) -> dict[str, Any]:
    """Counts [K, K]: rows are gold, columns predicted; and [K] rows that got no label."""
    num = len(counts.labels)
    table = np.bincount(counts.gold * (num + 1) + counts.predicted, minlength=num * (num + 1))
    table = table.reshape(num, num + 1)
    return {"labels": counts.labels, "counts": table[:, :num].tolist(), "unlabelled": table[:, num].tolist()}
