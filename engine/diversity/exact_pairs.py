"""Exact joins by given thresholds: all pairs above one, and counts of rows in balls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from obverse import _core
from obverse.engine.diversity.exact_sides import Kernel, Side, kernel_number, prepare
from obverse.engine.diversity.quantise import Rows, num_threads
from obverse.engine.errors import InputError

__all__ = ["Balls", "Pairs", "ball_counts", "pairs_above"]

Counts: TypeAlias = npt.NDArray[np.int64]
OnProgress: TypeAlias = Callable[[int], None] | None


class Pairs(NamedTuple):
    """Pairs ``(i, j)`` by rising i, then j, with their cosines."""

    i: npt.NDArray[np.int64]
    j: npt.NDArray[np.int64]
    similarities: npt.NDArray[np.float32]


class Balls(NamedTuple):
    """``inside_y [M]``: rows i of x with s_ij >= radius_x[i]; ``inside_x [N]``: rows j of y with s_ij >= radius_x[i];
    ``reached_x [N]``: rows j of y with s_ij >= radius_y[j]."""

    inside_y: Counts
    inside_x: Counts
    reached_x: Counts


def _empty() -> Pairs:
    return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def _walk(work: Any, rows: int, on_progress: OnProgress, stop: Callable[[], bool] = lambda: False) -> None:
    """All bands, telling of ``rows`` rows in all; later bands of a self-join are shorter, but nearly as dear."""
    told = 0
    for band in range(work.steps):
        work.step(band)
        if stop():
            return
        now = rows * (band + 1) // work.steps
        if on_progress is not None:
            on_progress(now - told)
        told = now


def pairs_above(
    x: Rows,
    y: Rows | float,
    threshold: float | None = None,
    *,
    max_pairs: int = 100_000_000,
    threads: int = 0,
    on_progress: OnProgress = None,
    kernel: Kernel = "auto",
) -> Pairs:
    """All pairs of a cosine of at least ``threshold`` (rounded to float32, as the cosines are).

    ``pairs_above(x, threshold)``: of rows i < j of ``x [N, d]``; ``pairs_above(x, y, threshold)``: of rows i of ``x``
    and j of ``y [M, d]``. Bit-equal rows are compared once, and every pair of them is listed. Memory beside the rows:
    N P bytes for their int8 form (P = d rounded up to a multiple of 64) and at most 80 bytes a pair.

    Raises `InputError` for rows that `checked_rows` refuses, a threshold outside [-1, 1], and where there are more
    than ``max_pairs``: it names the row that is in most of those found.
    """
    if isinstance(y, np.ndarray):
        parts: tuple[Rows, ...] = (x, y)
        least = threshold
    else:
        parts, least = (x,), y if threshold is None else threshold
    if least is None or not -1.0 <= float(least) <= 1.0:
        raise InputError("a cosine in [-1, 1]", field="threshold", seen=least)
    isa, threads = kernel_number(kernel), num_threads(threads)
    sides = prepare(*parts, threads=threads, isa=isa)
    if len(x) == 0 or len(parts[-1]) == 0:
        return _empty()
    own = len(sides) == 1
    rows, columns = sides[0].distinct, np.empty(0, np.int32) if own else sides[1].distinct
    base = None if own else sides[1].arrays
    scale = sides[0].quantised.scale
    limit = np.float32(least)
    work = _core.ThresholdJoin(
        sides[0].arrays, base, scale, rows, columns, float(limit), max(max_pairs, 0), threads, isa
    )
    _walk(work, len(x), on_progress, stop=lambda: work.total > max_pairs)
    _check_total(work, sides, limit, max_pairs)
    return _listed(work.pairs(), sides, bool(limit <= np.float32(1.0)))


def _sizes(side: Side) -> Counts:
    """Of each first row's group of equal rows, 0 for other rows."""
    return np.bincount(side.first, minlength=len(side.first)).astype(np.int64)


def _check_total(work: Any, sides: list[Side], limit: np.float32, max_pairs: int) -> None:
    row, count = work.fullest()
    total = work.total
    if total <= max_pairs and any(len(side.distinct) < len(side.first) for side in sides):
        i, j, _ = work.pairs()
        sizes, others = _sizes(sides[0]), _sizes(sides[-1])
        # Above 1e8 pairs of groups nothing more is needed; below, sums of products fit easily.
        total = int((sizes[i] * others[j]).sum())
        if len(sides) == 1:
            total += int((sizes * (sizes - 1) // 2).sum())
            if sizes.max() > count:
                row, count = int(sizes.argmax()), int(sizes.max()) - 1
    if total > max_pairs:
        raise InputError(
            f"at most {max_pairs:,} pairs of a cosine of {limit:.7g} or more (this row alone is in {count:,}): raise "
            "the threshold, take duplicates out first, or raise max_pairs",
            row=row,
            field="x",
            seen=f"{total:,} pairs or more",
        )


def _listed(found: tuple[Any, Any, Any], sides: list[Side], with_equal: bool) -> Pairs:
    """Pairs between distinct rows, with those of rows equal to them, sorted."""
    i, j, similarities = found
    own = len(sides) == 1
    if any(len(side.distinct) < len(side.first) for side in sides):
        i, j, similarities = _expanded(i.astype(np.int64), j.astype(np.int64), similarities, sides)
        if own and with_equal:
            equal = _equal_pairs(sides[0].first)
            i, j = np.concatenate([i, equal[0]]), np.concatenate([j, equal[1]])
            similarities = np.concatenate([similarities, np.ones(len(equal[0]), np.float32)])
    # One number a pair, so that no more than it and its order are held beside the result.
    width = len(sides[-1].first)
    place = (np.minimum(i, j) if own else i).astype(np.int64)
    place *= width
    place += np.maximum(i, j) if own else j
    del i, j
    order = np.argsort(place)
    similarities, place = similarities[order], place[order]
    del order
    return Pairs(place // width, place % width, similarities)


def _members(first: Counts) -> tuple[Counts, Counts]:
    """Rows by group, and for each first row where its group starts."""
    members = np.argsort(first, kind="stable")
    starts = np.searchsorted(first[members], np.arange(len(first)))
    return members, starts


def _expanded(i: Counts, j: Counts, similarities: npt.NDArray[np.float32], sides: list[Side]) -> tuple[Any, Any, Any]:
    """Every pair of groups as all pairs of their members."""
    left, right = _sizes(sides[0])[i], _sizes(sides[-1])[j]
    times = left * right
    pair = np.repeat(np.arange(len(i)), times)
    place = np.arange(len(pair)) - np.repeat(np.cumsum(times) - times, times)
    members_x, starts_x = _members(sides[0].first)
    members_y, starts_y = _members(sides[-1].first)
    rows = members_x[starts_x[i[pair]] + place // right[pair]]
    return rows, members_y[starts_y[j[pair]] + place % right[pair]], similarities[pair]


def _equal_pairs(first: Counts) -> tuple[Counts, Counts]:
    """All pairs within groups of equal rows."""
    members, starts = _members(first)
    sizes = np.bincount(first, minlength=len(first))
    place = np.arange(len(members)) - starts[first[members]]
    # The member at place p of its group goes with the p before it.
    later = np.repeat(np.arange(len(members)), place)
    offset = np.arange(len(later)) - np.repeat(np.cumsum(place) - place, place)
    assert int((sizes * (sizes - 1) // 2).sum()) == len(later)
    return members[starts[first[members[later]]] + offset], members[later]


def _checked_radius(radius: npt.NDArray[Any], rows: int, name: str) -> npt.NDArray[np.float32]:
    if not isinstance(radius, np.ndarray) or radius.shape != (rows,) or radius.dtype.kind != "f":
        seen = f"{radius.dtype} {radius.shape}" if isinstance(radius, np.ndarray) else type(radius).__name__
        raise InputError(f"cosines, one a row ({rows})", field=name, seen=seen)
    bad = np.flatnonzero(np.isnan(radius))
    if len(bad):
        raise InputError("a cosine", row=int(bad[0]), field=name, seen=float("nan"))
    return np.ascontiguousarray(radius, np.float32)


def _balls_of(side: Side, radius: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], Counts, Counts]:
    """One row for each distinct (vector, radius), by rising radius; each row's, and how many rows it stands for."""
    keys = np.empty(len(radius), [("first", np.int64), ("radius", np.float32)])
    keys["first"], keys["radius"] = side.first, radius + np.float32(0)
    _, lead, inverse = np.unique(keys, return_index=True, return_inverse=True)
    owner = lead[inverse.reshape(-1)].astype(np.int64)
    weights = np.bincount(owner, minlength=len(radius)).astype(np.int64)
    order = np.argsort(radius[lead], kind="stable")
    return lead[order].astype(np.int32), owner, weights


def ball_counts(
    x: Rows,
    y: Rows,
    radius_x: npt.NDArray[np.float32],
    radius_y: npt.NDArray[np.float32],
    *,
    threads: int = 0,
    on_progress: OnProgress = None,
    kernel: Kernel = "auto",
) -> Balls:
    """How many rows lie in balls around ``x [N, d]`` and ``y [M, d]``; radii ``[N]`` and ``[M]`` are cosines.

    A row is in a ball where its cosine is at least the radius. O(N + M) memory beside the int8 rows. Raises
    `InputError` for rows that `checked_rows` refuses, and radii that are not one cosine a row.
    """
    isa, threads = kernel_number(kernel), num_threads(threads)
    sides = prepare(x, y, threads=threads, isa=isa)
    radii = _checked_radius(radius_x, len(x), "radius_x"), _checked_radius(radius_y, len(y), "radius_y")
    if len(x) == 0 or len(y) == 0:
        return Balls(np.zeros(len(y), np.int64), np.zeros(len(x), np.int64), np.zeros(len(x), np.int64))
    (rows, owner_x, weight_x), (columns, owner_y, weight_y) = (
        _balls_of(side, radius) for side, radius in zip(sides, radii, strict=True)
    )
    work = _core.BallJoin(
        sides[0].arrays, sides[1].arrays, sides[0].quantised.scale, rows, columns, radii, (weight_x, weight_y), threads,
        isa,
    )  # fmt: skip
    _walk(work, len(x), on_progress)
    inside_y, inside_x, reached_x = work.balls()
    return Balls(inside_y[owner_y], inside_x[owner_x], reached_x[owner_x])
