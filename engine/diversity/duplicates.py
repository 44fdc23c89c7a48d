"""Near-duplicate vectors by cosine, over all pairs of a set and not only within clusters of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse import _core
from obverse.engine.diversity import exact
from obverse.engine.diversity.groups import Duplicates, checked_threshold, make_duplicates, priority
from obverse.engine.diversity.quantise import checked_rows, num_threads
from obverse.engine.diversity.vectors import gather
from obverse.engine.errors import InputError

__all__ = ["listed_near_duplicates", "near_duplicates"]


def near_duplicates(
    x: npt.NDArray[Any],
    threshold: float = 0.95,
    *,
    scores: npt.ArrayLike | None = None,
    max_pairs: int = 100_000_000,
    threads: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Duplicates:
    """Groups of rows of ``x [N, d]`` with a cosine of at least ``threshold``, and which rows stay.

    ``x`` is float16 or float32, C-contiguous, of any length but 0; the cosine is that of `exact`, so every pair
    within the threshold counts and no other. Rows of higher ``scores [N]`` take priority, else lower rows. Rows with
    equal bytes count once where they are many. Memory beside the rows: that of `exact.pairs_above`, and 60 bytes a row.
    ``on_progress`` hears of rows done.

    Raises `InputError` for vectors and scores that can't be used, naming the row, and for more pairs than
    ``max_pairs``, naming the row that is in most.
    """
    checked_threshold(threshold)
    started = time.perf_counter()
    checked_rows(x, threads=threads)
    order = priority(scores, len(x))
    first = _core.first_equal_rows(x, order=order, threads=num_threads(threads))
    rows = np.flatnonzero(first == np.arange(len(x)))
    # A few equal rows make a few more pairs; many would make their square. The rest is put together only then.
    sizes = np.bincount(first)
    few = int((sizes * (sizes - 1) // 2).sum()) <= len(x)
    try:
        i, j, similarities = exact.pairs_above(
            x if few else gather(x, rows), threshold, max_pairs=max_pairs, threads=threads, on_progress=on_progress
        )
    except InputError as error:
        if few or error.row is None:
            raise
        raise InputError(error.expected, row=int(rows[error.row]), field=error.field, seen=error.seen) from None
    if not few:
        i, j = rows[i], rows[j]
    found = _core.group_pairs(
        len(x), i.astype(np.int64), j.astype(np.int64), similarities, order=order, first=None if few else first
    )
    facts: dict[str, int | float | str] = {
        "distinct": len(rows),
        "pairs": len(i),
        "threshold": threshold,
        "seconds": time.perf_counter() - started,
    }
    return make_duplicates(found, facts)


def listed_near_duplicates(
    indices: npt.NDArray[np.integer[Any]],
    similarities: npt.NDArray[np.float32],
    threshold: float = 0.95,
    *,
    scores: npt.ArrayLike | None = None,
) -> Duplicates:
    """As `near_duplicates`, over the pairs that neighbour lists ``[N, k]`` name (-1: none), in either direction.

    A row with more than k near-duplicates may not list all of them, and an approximate list may lack some; such
    pairs don't count here. Raises `InputError` as `near_duplicates`.
    """
    checked_threshold(threshold)
    if indices.ndim != 2 or indices.shape != similarities.shape:
        shapes = f"{indices.shape} and {similarities.shape}"
        raise InputError("indices and similarities of one shape [N, k]", field="indices", seen=shapes)
    rows, places = np.nonzero((similarities >= threshold) & (indices >= 0))
    others = indices[rows, places].astype(np.int64)
    if len(others) and others.max() >= len(indices):
        row = int(rows[others.argmax()])
        raise InputError(f"rows below {len(indices):,}", row=row, field="indices", seen=int(others.max()))
    apart = rows != others
    rows, others, values = rows[apart], others[apart], similarities[rows, places][apart]
    order = priority(scores, len(indices))
    found = _core.group_pairs(len(indices), rows.astype(np.int64), others, values.astype(np.float32), order=order)
    return make_duplicates(found, {"pairs": len(rows), "threshold": threshold})
