"""`compare`: is one model better than another on the same records?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from obverse.engine.errors import InputError
from obverse.engine.evaluate.bootstrap import centre, interval, weight_blocks
from obverse.engine.evaluate.classification import CLASSIFICATION_METRICS, classification_samples
from obverse.engine.evaluate.counts import LabelCounts, TripletCounts, count_labels, count_triplets
from obverse.engine.evaluate.extraction import EXTRACTION_METRICS, extraction_samples
from obverse.engine.evaluate.settings import EvaluateSettings, Task

__all__ = ["METRICS", "compare"]

METRICS: dict[str, tuple[str, ...]] = {"extraction": EXTRACTION_METRICS, "classification": CLASSIFICATION_METRICS}

_DEFAULT = {"extraction": ("micro_f1", "macro_f1"), "classification": ("accuracy", "macro_f1")}

Counts = TripletCounts | LabelCounts


def compare(
    a: pa.Table,
    b: pa.Table,
    settings: EvaluateSettings | None = None,
    *,
    task: Task,
    seed: int,
    metrics: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The paired bootstrap difference a - b of each metric: both models on the same resamples of records.

    Gives a row per metric: ``metric``, ``value_a``, ``value_b``, ``difference``, ``low``, ``high``, ``p_value``,
    ``records``. ``metrics`` defaults to micro and macro F1 (accuracy and macro-F1 for labels); all names are in
    `METRICS`. The two-sided p-value inverts the percentile interval: twice the smaller share of resamples on either
    side of 0, zeros on both, with one added to counts and resamples so that it is never 0 (Davison & Hinkley 1997,
    section 4.2.3). Raises `InputError` when the tables differ in ids or in gold.
    """
    settings = settings or EvaluateSettings()
    if task not in METRICS:
        raise InputError("'extraction' or 'classification'", field="task", seen=task)
    names = list(metrics) if metrics is not None else list(_DEFAULT[task])
    for name in names:
        if name not in METRICS[task]:
            raise InputError(f"one of {', '.join(METRICS[task])}", field="metrics", seen=name)
    left, right = (_count(table, settings, task) for table in (a, b))
    _require_same_records(left, right)
    ones = np.ones((len(left.ids), 1), np.int32)
    here = [_samples(counts, ones) for counts in (left, right)]
    gaps = _differences(left, right, names, settings, seed)
    rows = []
    for name in names:
        value_a, value_b = float(here[0][name][0]), float(here[1][name][0])
        if name.startswith("macro"):
            gaps[name] = centre(value_a - value_b, gaps[name], low=-1.0)
        gap = interval(value_a - value_b, gaps[name], settings.confidence)
        row = {"metric": name, "value_a": value_a, "value_b": value_b, "difference": gap["value"]}
        row |= {"low": gap["low"], "high": gap["high"], "p_value": _p_value(gaps[name])}
        rows.append(row | {"records": len(left.ids)})
    return rows


def _count(table: pa.Table, settings: EvaluateSettings, task: Task) -> Counts:
    if task == "extraction":
        return count_triplets(table, linked=settings.linked)
    return count_labels(table)


def _samples(counts: Counts, weights: NDArray[np.int32]) -> dict[str, NDArray[np.float64]]:
    if isinstance(counts, TripletCounts):
        return extraction_samples(counts, weights)
    return classification_samples(counts, weights)


def _differences(
    left: Counts, right: Counts, names: Sequence[str], settings: EvaluateSettings, seed: int
) -> dict[str, NDArray[np.float64]]:
    """[B] differences a - b of each metric."""
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    entries = max((len(c.by_relation.record) for c in (left, right) if isinstance(c, TripletCounts)), default=0)
    for weights in weight_blocks(len(left.ids), settings.resamples, seed, num_entries=entries):
        one, other = _samples(left, weights), _samples(right, weights)
        for name in names:
            parts[name].append(one[name] - other[name])
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def _p_value(gaps: NDArray[np.float64]) -> float:
    below, above = int((gaps <= 0).sum()), int((gaps >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(gaps) + 1))


def _require_same_records(left: Counts, right: Counts) -> None:
    if not np.array_equal(left.ids, right.ids):
        only = np.setxor1d(left.ids, right.ids)
        side = "first" if only[0] in left.ids else "second"
        seen = f"{len(only)} ids in one table only, such as {only[0]} in the {side}"
        raise InputError("the same ids in both predictions tables", field="id", seen=seen)
    one, other = _gold(left), _gold(right)
    differing = [row for row, (x, y) in enumerate(zip(one, other, strict=True)) if x != y]
    if differing:
        seen = f"{len(differing)} records that differ, such as id {left.ids[differing[0]]}"
        raise InputError("the same gold in both predictions tables", field="gold", seen=seen)


def _gold(counts: Counts) -> Sequence[str]:
    if isinstance(counts, TripletCounts):
        return counts.gold_keys
    return [counts.labels[k] for k in counts.gold.tolist()]
