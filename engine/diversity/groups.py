"""What the searches for duplicates, of vectors and of texts, have in common: priorities, and their result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse.engine.errors import InputError

__all__ = ["Duplicates", "checked_scores", "checked_threshold", "make_duplicates", "priority"]

Facts = Mapping[str, int | float | str]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Near-duplicates among N rows.

    A row stays unless an earlier row, by priority, that stays is within the threshold. So of a chain whose ends are
    further apart both ends stay; no two rows that stay are within the threshold (as far as pairs were found); and
    every other row names one that stays and is within it.
    """

    group: npt.NDArray[np.int64]
    """``[N]``: the lowest row that a chain of near-duplicates leads to; its own number for a row without any."""
    kept: npt.NDArray[np.bool_]
    """``[N]``: whether the row stays."""
    duplicate_of: npt.NDArray[np.int64]
    """``[N]``: the first row by priority that stays and is within the threshold; -1 where the row itself stays."""
    similarity: npt.NDArray[np.float32]
    """``[N]``: cosine or Jaccard similarity to ``duplicate_of``; 1 where the row stays."""
    facts: Facts
    """How the search went: counts of rows, groups and pairs, and of texts the recall to be expected."""


def checked_threshold(threshold: float) -> float:
    """``threshold`` as it is. Raises `InputError` unless it lies in (0, 1]."""
    if not 0.0 < threshold <= 1.0:
        raise InputError("a threshold in (0, 1]", field="threshold", seen=threshold)
    return threshold


def checked_scores(scores: npt.ArrayLike, rows: int, name: str, *, least: float = -np.inf) -> npt.NDArray[np.float64]:
    """``scores [N]`` as float64.

    Raises `InputError` for another length and for a value that isn't finite or is below ``least``, naming its row.
    """
    values = np.ascontiguousarray(scores, np.float64)
    if values.shape != (rows,):
        raise InputError(f"one value a row, {rows:,}", field=name, seen=f"shape {values.shape}")
    bad = ~np.isfinite(values) | (values < least)
    if bad.any():
        row = int(bad.argmax())
        expected = "a finite number" + (f" of at least {least:g}" if least > -np.inf else "")
        raise InputError(expected, row=row, field=name, seen=float(values[row]))
    return values


def priority(scores: npt.ArrayLike | None, rows: int) -> npt.NDArray[np.int64] | None:
    """Rows by falling score ``[N]``, equal scores by row; None, for row order, without scores."""
    if scores is None:
        return None
    return np.argsort(-checked_scores(scores, rows, "scores"), kind="stable").astype(np.int64, copy=False)


def make_duplicates(found: tuple[Any, ...], facts: dict[str, int | float | str]) -> Duplicates:
    """The result from what the core gives, its counts added to ``facts``."""
    group, kept, duplicate_of, similarity = found
    sizes = np.bincount(group, minlength=1)
    counts: dict[str, int | float | str] = {
        "rows": len(group),
        "kept": int(kept.sum()),
        "groups": int((sizes > 1).sum()),
        "largest_group": int(sizes.max()) if len(group) else 0,
    }
    return Duplicates(group, kept.astype(np.bool_), duplicate_of, similarity, {**counts, **facts})
