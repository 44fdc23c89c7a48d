"""Vectors as the exact join's pass reads them: unit rows in few bits, and what that may be off by.

Two forms. int8: rows turned by a random rotation, which spreads every row evenly over its columns, times one scale;
integer products are exact, at twice the rate and half the traffic of 16 bits. float16: closer to the truth by far,
for data in which int8 can't tell a row's neighbours from thousands of others.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Precision", "Quick", "Rows", "low_thresholds", "margin_of", "quick_rows", "read_rows", "take_rows"]

Precision = Literal["int8", "float16"]

_BLOCK = 1 << 16
_STEP = 128
"""Bytes of a row that one product step of the kernel reads; rows are padded with zeros to a multiple."""


class Rows(NamedTuple):
    """Vectors as given."""

    stored: Tensor
    """[N, d]."""
    inverse_norms: Tensor
    """float64 [N]."""


class Quick(NamedTuple):
    """Unit rows ``u`` in few bits ``q``: |u - scale q| <= error for every row."""

    values: Tensor
    """[N, D] int8 or float16; zeros from column d on."""
    scale: float
    error: float


def read_rows(x: Tensor) -> Rows:
    """Check ``x [N, d]``, float32, float16 or bfloat16 on any device, and take its norms.

    Raises ValueError for another shape or dtype, and for a row that is not finite or all zeros, by its number.
    """
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"x: expected [N, d] float32, float16 or bfloat16, saw {tuple(x.shape)} {x.dtype}")
    inverse = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for low in range(0, len(x), _BLOCK):
        norms = torch.linalg.vector_norm(x[low : low + _BLOCK].double(), dim=1)
        bad = ~(torch.isfinite(norms) & (norms > 0))
        if bool(bad.any()):
            row = int(bad.int().argmax())
            raise ValueError(f"row {low + row}: expected a finite vector, not all zeros, saw one of norm {norms[row]}")
        inverse[low : low + _BLOCK] = 1 / norms
    return Rows(x, inverse)


def take_rows(rows: Rows, which: Tensor) -> Rows:
    """Some of the rows."""
    return Rows(rows.stored[which], rows.inverse_norms[which])


def quick_rows(sets: list[Rows], precision: Precision, seed: int) -> list[Quick]:
    """All ``sets`` of rows in one form: the same rotation and scale, so that their products mean the same."""
    dim, device = sets[0].stored.shape[1], sets[0].stored.device
    if precision == "float16":
        return [_half(rows) for rows in sets]
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q.to(device)
    largest = torch.zeros((), dtype=torch.float64, device=device)
    for rows in sets:
        for low in range(0, len(rows.stored), _BLOCK):
            if len(block := _units(rows, low)):
                largest = torch.maximum(largest, (block @ turn).abs().max())
    scale = float(largest) / 127 if largest > 0 else 1.0
    return [_eight_bits(rows, turn, scale) for rows in sets]


def _units(rows: Rows, low: int) -> Tensor:
    return rows.stored[low : low + _BLOCK].double() * rows.inverse_norms[low : low + _BLOCK, None]


def _empty(rows: Rows, dtype: torch.dtype) -> Tensor:
    width = _STEP // dtype.itemsize
    columns = -(-rows.stored.shape[1] // width) * width
    return torch.zeros((len(rows.stored), columns), dtype=dtype, device=rows.stored.device)


def _half(rows: Rows) -> Quick:
    values = _empty(rows, torch.float16)
    error = torch.zeros((), dtype=torch.float64, device=values.device)
    for low in range(0, len(values), _BLOCK):
        unit = _units(rows, low)
        short = unit.half()
        values[low : low + _BLOCK, : unit.shape[1]] = short
        error = torch.maximum(error, torch.linalg.vector_norm(unit - short.double(), dim=1).max())
    return Quick(values, 1.0, float(error))


def _eight_bits(rows: Rows, turn: Tensor, scale: float) -> Quick:
    values = _empty(rows, torch.int8)
    error = torch.zeros((), dtype=torch.float64, device=values.device)
    for low in range(0, len(values), _BLOCK):
        unit = _units(rows, low) @ turn
        whole = (unit / scale).round().clamp(-127, 127)
        values[low : low + _BLOCK, : unit.shape[1]] = whole.to(torch.int8)
        error = torch.maximum(error, torch.linalg.vector_norm(unit - scale * whole, dim=1).max())
    return Quick(values, scale, float(error))


def margin_of(x: Quick, y: Quick) -> float:
    """An upper bound on a cosine less ``scale^2`` times the product of its quick rows.

    With u = a + e and v = b + f: <u, v> - <a, b> = <e, b> + <u, f> <= |e| (1 + |f|) + |f|. A rotation in float64
    changes a cosine by some 1e-15. Integer products are exact. Of float16 each term is exact in float32 and their
    absolute values sum to at most |a| |b|; tensor cores align and truncate, for which four units in the last place of
    that sum are allowed a term, where rounding to nearest takes a half. The similarity is rounded to float32, and so
    is the threshold it is held against: 2^-23 each, at most.
    """
    rounding = x.error * (1 + y.error) + y.error + 1e-12
    terms = 0 if x.values.dtype == torch.int8 else x.values.shape[1]
    sums = 4 * terms * 2.0**-23 * (1 + x.error) * (1 + y.error)
    return rounding + sums + 2.0**-22


def low_thresholds(similarities: Tensor, margin: float, scale: float, dtype: torch.dtype) -> Tensor:
    """The product from which on a pair must be looked at, for rows with ``similarities`` as thresholds.

    int32 for int8 rows, rounded down; float32 for float16 rows. ``similarities`` may be -inf: everything.
    """
    low = similarities.double() - margin
    if dtype != torch.int8:
        return low.float()  # rounding is within the margin
    return torch.clamp((low / scale**2).floor(), min=-(2.0**31)).to(torch.int32)
