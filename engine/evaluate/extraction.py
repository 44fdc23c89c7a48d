"""Precision, recall and F1 of extracted triplets: micro, macro, by number of triplets, per relation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from obverse.engine.evaluate.bootstrap import centre, group_sums, interval, macro, prf, weight_blocks
from obverse.engine.evaluate.counts import UNLINKED, Entries, TripletCounts, count_triplets
from obverse.engine.evaluate.settings import EvaluateSettings

__all__ = ["EXTRACTION_METRICS", "evaluate_extraction", "extraction_samples", "extraction_values"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PARTS = ("precision", "recall", "f1")
EXTRACTION_METRICS = (
    *(f"{mean}_{part}" for mean in ("micro", "macro", "macro_gold") for part in _PARTS),
    "exact_match",
)


def evaluate_extraction(predictions: pa.Table, settings: EvaluateSettings, *, seed: int) -> dict[str, Any]:
    """The whole extraction result; see `evaluate` for its keys."""
    counts = count_triplets(predictions, linked=settings.linked)
    sizes, by_size = _by_size(counts)
    listed = _listed(counts.by_relation.totals(), settings.relation_rows)
    samples, size_samples, relation_samples = _resample(counts, by_size, listed, settings, seed)
    values = extraction_values(counts)
    level = settings.confidence
    correct, predicted, gold = (int(n) for n in counts.per_record.sum(axis=0))
    result: dict[str, Any] = {
        "records": len(counts.ids),
        "gold": gold,
        "predicted": predicted,
        "correct": correct,
        "matching": "uri" if settings.linked else "surface form",
    }
    for name in (n for n in EXTRACTION_METRICS if n.startswith("macro")):
        samples[name] = centre(values[name], samples[name])
    for mean in ("micro", "macro", "macro_gold"):
        names = {part: f"{mean}_{part}" for part in _PARTS}
        result[mean] = {part: interval(values[n], samples[n], level) for part, n in names.items()}
    totals = counts.by_relation.totals()
    result["macro"]["relations"] = int(((totals[:, 1] > 0) | (totals[:, 2] > 0)).sum())
    result["macro_gold"]["relations"] = int((totals[:, 2] > 0).sum())
    result["exact_match"] = interval(values["exact_match"], samples["exact_match"], level)
    result["by_triplets"] = _size_rows(sizes, counts, by_size, size_samples, level)
    result["per_relation"] = _relation_rows(counts, listed, relation_samples, level)
    result["relations_left_out"] = counts.by_relation.num_groups - len(listed)
    return result


def extraction_values(counts: TripletCounts) -> dict[str, float]:
    """Every scalar of `EXTRACTION_METRICS` on the data as it is."""
    ones = np.ones((len(counts.ids), 1), np.int32)
    return {name: float(sample[0]) for name, sample in extraction_samples(counts, ones).items()}


def extraction_samples(
    counts: TripletCounts, weights: NDArray[np.int32], relation_sums: Ints | None = None
) -> dict[str, Floats]:
    """Every scalar of `EXTRACTION_METRICS` for each column of ``weights`` [N, C]; each [C]."""
    sums = relation_sums if relation_sums is not None else group_sums(weights, counts.by_relation)
    exact = (counts.per_record == counts.per_record[:, :1]).all(axis=1)
    means = {
        "micro": prf(sums.sum(axis=1)),  # every triplet has one relation, so relations add up to the whole
        "macro": macro(sums, gold_only=False),
        "macro_gold": macro(sums, gold_only=True),
    }
    out = {f"{mean}_{part}": row for mean, rows in means.items() for part, row in zip(_PARTS, rows, strict=True)}
    out["exact_match"] = weights[exact].sum(axis=0, dtype=np.int64) / weights.sum(axis=0, dtype=np.int64)
    return out


def _resample(
    counts: TripletCounts, by_size: Entries, listed: Ints, settings: EvaluateSettings, seed: int
) -> tuple[dict[str, Floats], Floats, Floats]:
    """Scalars [B] each; P/R/F1 by size [3, S, B]; F1 of the listed relations [L, B], nan where one is absent."""
    scalars: dict[str, list[Floats]] = {name: [] for name in EXTRACTION_METRICS}
    by_group, by_relation = [], []
    entries = len(counts.by_relation.record)
    for weights in weight_blocks(len(counts.ids), settings.resamples, seed, num_entries=entries):
        sums = group_sums(weights, counts.by_relation)
        for name, sample in extraction_samples(counts, weights, sums).items():
            scalars[name].append(sample)
        by_group.append(_defined(group_sums(weights, by_size)))
        by_relation.append(_defined(sums[:, listed])[2].astype(np.float32))
    joined = {name: np.concatenate(parts) for name, parts in scalars.items()}
    return joined, np.concatenate(by_group, axis=-1), np.concatenate(by_relation, axis=-1).astype(np.float64)


def _defined(sums: Ints) -> Floats:
    """`prf`, with nan for a group that has neither gold nor prediction in a resample."""
    scores = prf(sums)
    scores[:, (sums[1] == 0) & (sums[2] == 0)] = np.nan
    return scores


def _by_size(counts: TripletCounts) -> tuple[Ints, Entries]:
    """The distinct numbers of gold triplets [S] and the records of each as one group."""
    gold = counts.per_record[:, 2]
    order = np.argsort(gold, kind="stable")
    sizes, starts = np.unique(gold[order], return_index=True)
    return sizes, Entries(order.astype(np.int64), starts.astype(np.int64), counts.per_record[order])


def _listed(totals: Ints, limit: int) -> Ints:
    """Relations for the table: most gold first, then most predicted, then by name (their index)."""
    return np.lexsort((np.arange(len(totals)), -totals[:, 1], -totals[:, 2]))[:limit]


def _size_rows(
    sizes: Ints, counts: TripletCounts, groups: Entries, samples: Floats, level: float
) -> list[dict[str, Any]]:
    totals = groups.totals()
    scores = prf(totals.T)
    records = np.diff(np.append(groups.starts, len(counts.ids)))
    return [
        {"triplets": int(size), "records": int(records[g])}
        | _count_dict(totals[g])
        | {part: interval(scores[p, g], samples[p, g], level) for p, part in enumerate(_PARTS)}
        for g, size in enumerate(sizes)
    ]


def _relation_rows(counts: TripletCounts, listed: Ints, samples: Floats, level: float) -> list[dict[str, Any]]:
    totals = counts.by_relation.totals()
    scores = prf(totals.T)
    rows = []
    for place, g in enumerate(listed.tolist()):
        key = counts.relations[g]
        row: dict[str, Any] = {"relation": counts.relation_names.get(key, key)}
        if counts.relation_names:
            row["uri"] = None if key.startswith(UNLINKED) else key
        row |= _count_dict(totals[g])
        row |= {part: float(scores[p, g]) for p, part in enumerate(_PARTS[:2])}
        rows.append(row | {"f1": interval(scores[2, g], samples[place], level)})
    return rows


def _count_dict(counts: Ints) -> dict[str, int]:
    correct, predicted, gold = (int(n) for n in counts)
    return {"gold": gold, "predicted": predicted, "correct": correct}
