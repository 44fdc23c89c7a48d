"""The percentile bootstrap over records, vectorised: integer weights of records times sparse counts.

Resample b draws N records with replacement; ``weights[n, b]`` says how often record n came. Every statistic here is a
function of sums of counts over records, so a resample's sums are one product of weights and counts, exact in integers
(no rounding, hence the same digits for any number of threads). Cost: O(B * (N + E)) integer additions for B resamples,
N records and E non-zero (record, group) entries; memory is bounded by the block of resamples, not by B.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obverse.engine.evaluate.counts import Entries
from obverse.engine.records.keys import derive_seed

__all__ = ["centre", "group_sums", "interval", "macro", "prf", "weight_blocks"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Weights = NDArray[np.int32]

# Numbers in flight per block: 4M int32 is 16 MB, inside the last-level cache's reach and far below any memory.
_BLOCK_NUMBERS = 4_000_000


def weight_blocks(num_records: int, resamples: int, seed: int, *, num_entries: int = 0) -> Iterator[Weights]:
    """Blocks int32 [N, C] of how often each record is drawn; column b depends on (seed, b, N) alone."""
    width = max(1, min(resamples, _BLOCK_NUMBERS // max(num_records, num_entries)))
    for start in range(0, resamples, width):
        stop = min(start + width, resamples)
        block = np.empty((num_records, stop - start), np.int32)
        for b in range(start, stop):
            rng = np.random.default_rng(derive_seed(seed, "evaluate/bootstrap", b))
            drawn = rng.integers(0, num_records, size=num_records)
            block[:, b - start] = np.bincount(drawn, minlength=num_records)
        yield block


def group_sums(weights: Weights, entries: Entries) -> Ints:
    """[3, G, C] sums of correct, predicted and gold in each group under each column of ``weights`` [N, C]."""
    width, columns = weights.shape[1], entries.counts.shape[1]
    out = np.zeros((columns, entries.num_groups, width), np.int64)
    for column in range(columns):
        counts = entries.counts[:, column]
        used = np.flatnonzero(counts)
        if not len(used):
            continue
        taken = weights[entries.record[used]]
        if counts[used].max() > 1:
            taken = taken * counts[used, None].astype(np.int32)
        group = np.searchsorted(entries.starts, used, side="right") - 1
        present, first = np.unique(group, return_index=True)
        out[column, present] = np.add.reduceat(taken, first, axis=0, dtype=np.int64)
    return out


def prf(sums: Ints) -> Floats:
    """[3, ...] precision, recall, F1 of [3, ...] correct, predicted, gold; 0 where a denominator is 0."""
    correct, predicted, gold = sums.astype(np.float64)
    precision = np.divide(correct, predicted, out=np.zeros_like(correct), where=predicted > 0)
    recall = np.divide(correct, gold, out=np.zeros_like(correct), where=gold > 0)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(correct), where=total > 0)
    return np.stack([precision, recall, f1])


def macro(sums: Ints, *, gold_only: bool) -> Floats:
    """[3, C] plain means of precision, recall and F1 over the groups of ``sums`` [3, G, C] in gold (or prediction).

    A group absent from a resample is no part of that resample's mean: the same statistic on other data. Rare groups,
    which score low, are absent often, so the resamples' mean lies above the value; `centre` takes that out.
    """
    present = sums[2] > 0 if gold_only else (sums[2] > 0) | (sums[1] > 0)
    means: Floats = (prf(sums) * present).sum(axis=1) / np.maximum(present.sum(axis=0), 1)
    return means


def centre(value: float, samples: Floats, *, low: float = 0.0, high: float = 1.0) -> Floats:
    """``samples`` [B] of a macro mean moved so that their mean is ``value``, kept inside [``low``, ``high``].

    Measured on halves of SynthIE's text set (250 records, about 450 relations): the macro-F1 of one half against
    another's has a standard deviation of 0.016. Resamples of one half have 0.014 but lie 0.023 too high, wholly above
    the value; holding the set of relations fixed (as resampling inside each relation does) gives 0.006.
    """
    moved: Floats = np.clip(samples - samples.mean() + value, low, high)
    return moved


def interval(value: float, samples: Floats, confidence: float) -> dict[str, Any]:
    """``{"value", "low", "high"}``: the percentile interval of ``samples`` [B] (nan: statistic undefined there)."""
    defined = samples[~np.isnan(samples)]
    tail = (1.0 - confidence) / 2.0
    if not len(defined):
        return {"value": float(value), "low": None, "high": None}
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return {"value": float(value), "low": float(low), "high": float(high)}
