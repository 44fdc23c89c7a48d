# mypy: disallow-untyped-calls=False
# (Triton's kernels are untyped.)
"""Exact nearest neighbours by cosine on a device: one pass over half of all pairs, memory O(N k).

``similarity(i, j)`` is the cosine of the stored rows, computed in float64 and rounded once to float32; the result is
what sorting all of them gives (ties to the lower row). How it comes about without computing all of them so:

1. Every row gets a threshold: its k-th similarity among candidates from a few rounds of random clusters.
2. One pass over the upper triangle of pairs, in int8 (float16 where that leaves too many), compares each product
   with the lower of its two rows' thresholds, less what the few bits may be off by (`neighbours_rows.margin_of`), and
   appends the few that reach it (`emit_pairs_kernel`): nothing else is written.
3. Appended pairs are computed in float64, and merged into the rows' lists, band after band: thresholds only rise.

A pair that is left out has a similarity below both thresholds, thus below both final lists: the result is exact.
FlashLib and FAISS make all N^2 products and select in or after the kernel; symmetry halves that work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from obverse.kernels.launch import triton_installed, triton_interprets
from obverse.kernels.neighbours_lists import NO_KEY, exact_keys, indices_of, merge_pairs, similarities_of
from obverse.kernels.neighbours_rows import (
    Precision,
    Quick,
    Rows,
    low_thresholds,
    margin_of,
    quick_rows,
    read_rows,
    take_rows,
)
from obverse.kernels.neighbours_seeds import expand_groups, first_keys, group_rows

__all__ = ["Filter", "JoinCounts", "Joined", "join", "self_join"]

Filter = Literal["auto", "triton", "torch"]

_CAPACITY = 1 << 22
"""Pairs that a band may append: 32 MB of indices, and about ten times that while they are merged."""
_SAMPLE = 64
"""Rows compared with all others to choose the precision."""


class JoinCounts(NamedTuple):
    """What a join did."""

    compared: int
    """Pairs whose product the pass made."""
    appended: int
    """Pairs at or above a threshold, computed in float64."""
    bands: int
    """Launches, those done again in parts included."""
    precision: Precision
    """Of the products."""
    margin: float
    """By how much a product may be below a threshold and its pair still be looked at."""


class Joined(NamedTuple):
    """``indices`` int64 [N, k], ``similarities`` float32 [N, k], nearest first."""

    indices: Tensor
    similarities: Tensor
    counts: JoinCounts


class _Options(NamedTuple):
    precision: Precision | Literal["auto"]
    filter: Filter
    seed: int
    capacity: int


def self_join(
    x: Tensor,
    k: int,
    *,
    precision: Precision | Literal["auto"] = "auto",
    filter: Filter = "auto",
    seed: int = 0,
    capacity: int = _CAPACITY,
) -> Joined:
    """The ``k`` other rows nearest to each row of ``x [N, d]`` by cosine; N - 1 of them where k >= N.

    ``x``: float32, float16 or bfloat16. ``filter``: the pass in Triton (CUDA) or in torch, a tile at a time
    (anywhere). Bit-equal rows are compared once and stand for each other. Memory beyond x: D (int8) or 2 D bytes, D = d
    rounded up, and 16 k a row, and some hundred MB that don't grow. ``precision`` and ``seed`` change what is done,
    not what comes out. Raises ValueError for k < 1, another shape or dtype, and a row not finite or all zeros.
    """
    options = _checked(k, precision, filter, seed, capacity)
    rows = read_rows(x)
    k = max(0, min(k, len(x) - 1))
    groups = group_rows(x) if k else None
    kept = rows if groups is None else take_rows(rows, groups.firsts)
    wide = min(k, len(kept.stored) - 1)
    if wide <= 0:
        keys = torch.full((len(kept.stored), 0), NO_KEY, device=x.device)
        counts = JoinCounts(0, 0, 0, "int8", 0.0)
    else:
        (rough,) = quick_rows([kept], "int8", seed)
        keys = first_keys(kept.stored, kept.inverse_norms, rough.values, wide, seed)
        keys, counts = _pass(kept, None, [rough], keys, options)
    return _joined(keys if groups is None else expand_groups(keys, groups, k), counts)


def join(
    x: Tensor,
    y: Tensor,
    k: int,
    *,
    precision: Precision | Literal["auto"] = "auto",
    filter: Filter = "auto",
    seed: int = 0,
    capacity: int = _CAPACITY,
) -> Joined:
    """The ``k`` rows of ``y [M, d]`` nearest to each row of ``x [N, d]`` by cosine; all M where k >= M.

    As `self_join`, with all N M products, and without its care for equal rows.
    """
    options = _checked(k, precision, filter, seed, capacity)
    if x.shape[1:] != y.shape[1:] or x.device != y.device:
        raise ValueError(f"y: expected rows of {x.shape[1]} columns on {x.device}, saw {tuple(y.shape)} on {y.device}")
    left, right = read_rows(x), read_rows(y)
    k = min(k, len(y))
    if k == 0 or len(x) == 0:
        empty = torch.full((len(x), k), NO_KEY, device=x.device)
        return _joined(empty, JoinCounts(0, 0, 0, "int8", 0.0))
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(y), generator=generator)[: max(4 * k, 64)].sort().values.to(x.device)
    keys = _first_of_sample(left, right, sample, k)
    return _joined(*_pass(left, right, quick_rows([left, right], "int8", seed), keys, options))


def _checked(k: int, precision: Precision | Literal["auto"], filter: Filter, seed: int, capacity: int) -> _Options:
    if k < 1:
        raise ValueError(f"k: expected at least 1, saw {k}")
    if precision not in ("auto", "int8", "float16"):
        raise ValueError(f"precision: expected auto, int8 or float16, saw {precision!r}")
    if filter not in ("auto", "triton", "torch"):
        raise ValueError(f"filter: expected auto, triton or torch, saw {filter!r}")
    if capacity < 1:
        raise ValueError(f"capacity: expected at least 1 pair, saw {capacity}")
    return _Options(precision, filter, seed, capacity)


def _first_of_sample(left: Rows, right: Rows, sample: Tensor, k: int) -> Tensor:
    """Lists from a random sample of the rows of y: thresholds to begin with, which rise from band to band."""
    parts = []
    step = max(1, (1 << 25) // (len(sample) * left.stored.shape[1]))
    for low in range(0, len(left.stored), step):
        rows = torch.arange(low, min(low + step, len(left.stored)), device=sample.device)
        pairs = torch.cartesian_prod(rows, sample)
        keys = exact_keys(left, right, pairs[:, 0], pairs[:, 1]).view(len(rows), len(sample))
        parts.append(keys.sort(dim=1, descending=True).values[:, :k])
    return torch.cat(parts)


def _joined(keys: Tensor, counts: JoinCounts) -> Joined:
    return Joined(indices_of(keys), similarities_of(keys), counts)


def _fitting(x: Rows, y: Rows, rough: list[Quick], keys: Tensor, seed: int) -> Precision:
    """int8, unless its margin lets so many more pairs through than float16's that they cost more than it saves.

    On an H200 an appended pair costs about 6 ns (two rows read, four sorts) and a product of int8 saves d / 1e15 s: an
    estimate from its data sheet, not measured.
    """
    generator = torch.Generator().manual_seed(seed)
    which = torch.randperm(len(keys), generator=generator)[:_SAMPLE].to(keys.device)
    low = similarities_of(keys[which, -1]).double()
    units = x.stored[which].double() * x.inverse_norms[which, None]
    more, margin = 0, margin_of(rough[0], rough[-1])
    for start in range(0, len(y.stored), 1 << 14):
        block = y.stored[start : start + (1 << 14)].double() * y.inverse_norms[start : start + (1 << 14), None]
        cosines = units @ block.T
        more += int(((cosines >= low[:, None] - margin) & (cosines < low[:, None] - 1e-3)).sum())
    saved = len(y.stored) * x.stored.shape[1] / 1e15
    return "int8" if more / len(which) * 6e-9 <= saved + 1e-6 else "float16"


class _Work:
    """One pass over all pairs (``y`` None: of different rows of x), by bands of rows."""

    def __init__(self, x: Rows, y: Rows | None, quick: list[Quick], keys: Tensor, capacity: int, emit: _Emit) -> None:
        self.x, self.y, self.keys, self.capacity, self.emit = x, y, keys, capacity, emit
        self.quick_x, self.quick_y = quick[0], quick[-1]
        self.margin = margin_of(self.quick_x, self.quick_y)
        values = self.quick_y.values
        kind = torch.int32 if values.dtype == torch.int8 else torch.float32
        self.never: float = torch.iinfo(kind).max if kind == torch.int32 else torch.inf
        self.low_y = torch.full((len(values),), self.never, dtype=kind, device=keys.device)
        self.pairs = torch.empty((2, capacity), dtype=torch.int32, device=keys.device)
        self.count = torch.zeros(1, dtype=torch.int32, device=keys.device)
        self.appended = self.bands = 0

    def band(self, rows: range, columns: range) -> None:
        """All pairs of some rows of x and columns of y; in two halves where more are appended than there is room."""
        last = similarities_of(self.keys[:, -1])
        low_x = low_thresholds(last, self.margin, self.quick_x.scale, self.quick_x.values.dtype)
        self.count.zero_()
        self.bands += 1
        self.emit(self, low_x, low_x if self.y is None else self.low_y, rows, columns)
        found = int(self.count.item())
        if found > self.capacity:
            for part in _halves(rows, columns):
                self.band(*part)
            return
        self.appended += found
        if found:
            merge_pairs(self.keys, self.x, self.y, self.pairs[0, :found].long(), self.pairs[1, :found].long())


_Emit = Callable[[_Work, Tensor, Tensor, range, range], None]


def _halves(rows: range, columns: range) -> list[tuple[range, range]]:
    if len(columns) > 1:
        middle = columns.start + len(columns) // 2
        return [(rows, range(columns.start, middle)), (rows, range(middle, columns.stop))]
    middle = rows.start + len(rows) // 2
    return [(range(rows.start, middle), columns), (range(middle, rows.stop), columns)]


_ROWS = 128
_BAND_TILES = 256
"""Tiles of rows a launch: 32,768 rows, whose 13 MB at 384 columns of int8 stay in the second-level cache; a merge, some
thirty small launches and a wait for the host, comes only as often."""


def _columns_of_tile(device: torch.device) -> int:
    """On sm_90 128 x 256 products take 128 registers of each of 256 threads and nothing is spilled; a tile half as
    wide reads half as much again from the second-level cache a product. Elsewhere the wide one spills.
    """
    return 256 if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9 else 128


def _emit_triton(work: _Work, low_x: Tensor, low_y: Tensor, rows: range, columns: range) -> None:
    import triton

    from obverse.kernels.neighbours_kernels import emit_pairs_kernel

    tiles, width = triton.cdiv(len(rows), _ROWS), _columns_of_tile(low_x.device)
    values = work.quick_x.values
    with torch.cuda.device_of(low_x):
        emit_pairs_kernel[(tiles * triton.cdiv(len(columns), width),)](
            values,
            work.quick_y.values,
            low_x,
            low_y,
            work.pairs[0],
            work.pairs[1],
            work.count,
            rows.stop,
            columns.stop,
            rows.start,
            columns.start,
            tiles,
            work.capacity,
            SELF=work.y is None,
            NEVER=work.never,
            DIM=values.shape[1],
            ROWS=_ROWS,
            COLUMNS=width,
            DEPTH=128 // values.element_size(),
            num_warps=8,
            num_stages=3,
        )


def _emit_torch(work: _Work, low_x: Tensor, low_y: Tensor, rows: range, columns: range) -> None:
    """The same by the library's products, a tile at a time in memory. In float64, for int8 products may pass 2^24."""
    total, side = 0, 2048
    for i in range(rows.start, rows.stop, side):
        left = work.quick_x.values[i : min(i + side, rows.stop)].double()
        for j in range(columns.start, columns.stop, side):
            right = work.quick_y.values[j : min(j + side, columns.stop)].double()
            hit = left @ right.T >= torch.minimum(low_x[i : i + len(left), None], low_y[None, j : j + len(right)])
            if work.y is None:
                numbers = torch.arange(j, j + len(right), device=hit.device)
                hit &= torch.arange(i, i + len(left), device=hit.device)[:, None] < numbers
            found = hit.nonzero()
            kept = found[: max(0, work.capacity - total)]
            work.pairs[0, total : total + len(kept)] = kept[:, 0] + i
            work.pairs[1, total : total + len(kept)] = kept[:, 1] + j
            total += len(found)
    work.count.fill_(total)


def _emitter(filter: Filter, device: torch.device) -> _Emit:
    able = triton_installed() and (device.type == "cuda" or triton_interprets())
    if filter == "triton" and not able:
        raise ValueError("filter='triton' needs Triton and a CUDA tensor; filter='auto' picks what runs here")
    return _emit_triton if filter == "triton" or (filter == "auto" and able and device.type == "cuda") else _emit_torch


def _pass(x: Rows, y: Rows | None, rough: list[Quick], keys: Tensor, options: _Options) -> tuple[Tensor, JoinCounts]:
    """``rough``: the rows in int8, of x and, unless ``y`` is None, of y."""
    emit = _emitter(options.filter, keys.device)
    right = x if y is None else y
    precision = options.precision
    if precision == "auto":
        precision = _fitting(x, right, rough, keys, options.seed)
    sets = [x] if y is None else [x, y]
    quick = rough if precision == "int8" else quick_rows(sets, "float16", options.seed)
    work = _Work(x, y, quick, keys, options.capacity, emit)
    num_x, num_y = len(x.stored), len(right.stored)
    step = _ROWS * _BAND_TILES
    for low in range(0, num_x, step):
        # In a self-join nothing left of the diagonal.
        work.band(range(low, min(low + step, num_x)), range(low if y is None else 0, num_y))
    compared = num_x * (num_x - 1) // 2 if y is None else num_x * num_y
    return work.keys, JoinCounts(compared, work.appended, work.bands, precision, work.margin)
