"""Which rows go into which step: a function of (lengths, batch size, seed, epoch) and of nothing else."""

from __future__ import annotations

import numpy as np

from obverse.engine.records.keys import derive_seed

__all__ = ["epoch_batches", "sorted_batches"]

# Rows are sorted by length within pools of this many batches: little padding, and still other company each epoch.
POOL = 50


def epoch_batches(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Row indices of each step of ``epoch``: every row once, rows of like length together, steps shuffled.

    Args:
        lengths: [N] tokens per row.
        batch_size: rows a step; the last step may have fewer.
        seed: the run's seed.
        epoch: 0 for the first.
    """
    rng = np.random.default_rng(derive_seed(seed, "train/order", epoch))
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), batch_size * POOL):
        pool = order[start : start + batch_size * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Row indices in batches of like length, longest first (so that the greatest memory is needed at once)."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
