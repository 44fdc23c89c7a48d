"""`evaluate`: one predictions table in, one dictionary of numbers out."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from obverse.engine.errors import InputError
from obverse.engine.evaluate.classification import evaluate_classification
from obverse.engine.evaluate.extraction import evaluate_extraction
from obverse.engine.evaluate.settings import EvaluateSettings, Task

__all__ = ["evaluate"]


def evaluate(
    predictions: pa.Table,
    settings: EvaluateSettings | None = None,
    *,
    task: Task,
    seed: int,
    catalogue_share: float | None = None,
) -> dict[str, Any]:
    """Score a PREDICTIONS table; the result is JSON-ready and depends on neither the order of rows nor threads.

    All scores are shares in [0, 1]; an interval is ``{"value", "low", "high"}``, the percentile bootstrap over
    records. Both tasks give ``task``, ``records``, ``correct``, ``resamples``, ``confidence``.

    Extraction (columns ``gold``, ``predicted``): ``gold``, ``predicted`` (distinct triplets), ``matching``;
    ``micro`` (sums over records, then P/R/F1), ``macro`` (mean over relations in gold or prediction: a relation that
    the model invents counts as 0) and ``macro_gold`` (mean over relations in gold), each with ``precision``,
    ``recall``, ``f1`` and the macro ones with ``relations``; F1 is the mean of F1s. This is SynthIE's metric
    (arXiv 2303.04132, section 4.2). ``exact_match``: records whose whole set is right. ``by_triplets``: micro scores
    of the records with n gold triplets. ``per_relation``: counts and scores, most frequent in gold first, with
    ``relations_left_out`` beyond ``settings.relation_rows``. ``catalogue_share``: share of predicted triplets made of
    catalogue names alone, passed through when given.

    Classification (columns ``gold_label``, ``predicted_label``): ``accuracy``, ``macro`` (over labels in gold or
    prediction), ``per_class``, ``confusion`` (``labels``, ``counts`` with gold in rows, ``unlabelled``).

    Intervals of macro means are centred on the value (`bootstrap.centre` says why). All others are plain percentiles.

    Raises `InputError` for an empty table, missing columns, repeated ids, null or no gold.
    """
    settings = settings or EvaluateSettings()
    if catalogue_share is not None and not 0.0 <= catalogue_share <= 1.0:
        raise InputError("a share between 0 and 1", field="catalogue_share", seen=catalogue_share)
    if task not in ("extraction", "classification"):
        raise InputError("'extraction' or 'classification'", field="task", seen=task)
    score = evaluate_extraction if task == "extraction" else evaluate_classification
    result: dict[str, Any] = {"task": task, "resamples": settings.resamples, "confidence": settings.confidence}
    result |= score(predictions, settings, seed=seed)
    return result if catalogue_share is None else result | {"catalogue_share": float(catalogue_share)}
