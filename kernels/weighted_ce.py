# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# (Triton's decorator is untyped, and its kernels' arguments have no Python types.)
"""Triton kernels of the weighted cross-entropy: one online-softmax pass forward, one pass backward.

Importing this module imports Triton. Every sum is float32, whatever the logits' dtype; addresses are int64.

The gradient of a row with upstream gradient g is ``g (a p_j - c)`` off the target and ``g t`` at it, with
``a = w + f``, ``c = w e / V``, ``t = w e - c - a (1 - p)``; f is the true focal loss's extra term (0 elsewhere)
and e the label smoothing. The forward pass knows a, w and t, so the backward pass needs four numbers a row.
``1 - p`` is the sum over the other classes: subtracting p from 1 would leave no digits once p is near 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from obverse.kernels.launch import row_blocks
from obverse.kernels.weight_rule import WeightRule

__all__ = ["backward_rows", "forward_rows"]

_IMP = tl.constexpr(2)
_DIMP = tl.constexpr(3)
_FOCAL = tl.constexpr(4)


@triton.jit
def _log1p_small(r):
    # log(1 + r) for 0 <= r <= 1/2 by 2 atanh(r / (2 + r)): full relative precision, as the hardware's fast
    # logarithm has not near 1 (series error below 1e-9 relative).
    t = r / (2.0 + r)
    q = t * t
    return 2.0 * t * (1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11))))))


@triton.jit
def _forward_kernel(
    logits,
    target,
    sample_weight,
    log_quality,
    log_diversity,
    rows_out,  # float32 [8, N]: loss, weight, log p, lse, row maximum, log of sum, a, t
    clipped_out,  # int8 [N]
    row_stride,
    num_rows,
    num_columns,
    ignore_index,
    gamma,
    log_low,
    log_high,
    smoothing,
    SCHEME: tl.constexpr,
    FOCAL_DETACHED: tl.constexpr,
    HAS_SAMPLE_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < num_rows
    y = tl.load(target + rows, mask=inside, other=ignore_index)
    counted = inside & (y != ignore_index)
    start_of_row = logits + rows * row_stride
    # A target outside [0, V) can't be reported from here without stopping the device: it makes its row NaN.
    known = counted & (y >= 0) & (y < num_columns)
    z_y = tl.load(start_of_row + y, mask=known, other=float("nan")).to(tl.float32)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    others = tl.zeros([ROWS], tl.float32)  # sum of exp(z_j - top) over j != y
    spread = tl.zeros([ROWS], tl.float32)  # sum of z_j - z_y
    for first in range(0, num_columns, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        mask = counted[:, None] & (columns < num_columns)[None, :]
        z = tl.load(start_of_row[:, None] + columns[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(z, axis=1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # -inf - -inf is NaN
        e = tl.exp(z - base[:, None])
        e = tl.where(columns[None, :] == y[:, None], 0.0, e)
        others = others * tl.exp(top - base) + tl.sum(e, axis=1)
        if SMOOTH:
            spread += tl.sum(tl.where(mask, z - z_y[:, None], 0.0), axis=1)
        top = new_top

    e_y = tl.exp(z_y - top)
    total = others + e_y
    log_sum = tl.log(total)
    sure = others <= 0.5 * e_y
    odds = tl.where(sure, others, 0.0) / tl.where(sure, e_y, 1.0)
    nll = tl.where(sure, _log1p_small(odds), (top - z_y) + log_sum)
    miss = others / total
    loss = nll
    if SMOOTH:
        loss = tl.where(z_y == float("-inf"), float("inf"), nll - smoothing * (spread / num_columns))

    weight = tl.full([ROWS], 1.0, tl.float32)
    if HAS_SAMPLE_WEIGHT:
        weight = tl.load(sample_weight + rows, mask=counted, other=0.0)
    clipped = tl.zeros([ROWS], tl.int8)
    focal = tl.zeros([ROWS], tl.float32)
    if SCHEME == _IMP or SCHEME == _DIMP:  # noqa: SIM109
        log_weight = tl.load(log_quality + rows, mask=counted, other=0.0)
        if SCHEME == _IMP:
            log_weight -= tl.load(log_diversity + rows, mask=counted, other=0.0)
        else:
            log_weight += nll
        log_weight *= gamma
        # Comparisons, not minimum and maximum: those would turn a NaN into a bound.
        low, high = log_weight < log_low, log_weight > log_high
        clipped = tl.where(high, 1, tl.where(low, -1, 0)).to(tl.int8)
        weight *= tl.exp(tl.where(high, log_high, tl.where(low, log_low, log_weight)))
    if SCHEME == _FOCAL:
        power = tl.exp(gamma * tl.log(tl.where(miss > 0.0, miss, 1.0)))
        power = tl.where((miss > 0.0) | (gamma == 0.0), power, 0.0)
        power = tl.where(miss == miss, power, miss)
        weight *= power
        if not FOCAL_DETACHED:
            ratio = loss / tl.where(miss > 0.0, miss, 1.0)  # goes to 1 as p does, and the weight to 0
            focal = gamma * weight * (1.0 - miss) * ratio

    a = weight + focal
    share = weight * smoothing
    t = share - share / num_columns - a * miss
    slot = rows_out + rows
    tl.store(slot, tl.where(counted, weight * loss, 0.0), mask=inside)
    slot += num_rows
    tl.store(slot, tl.where(counted, weight, 0.0), mask=inside)
    slot += num_rows
    tl.store(slot, tl.where(counted, -nll, 0.0), mask=inside)
    slot += num_rows
    tl.store(slot, tl.where(counted, top + log_sum, 0.0), mask=inside)
    slot += num_rows
    tl.store(slot, top, mask=inside)
    slot += num_rows
    tl.store(slot, log_sum, mask=inside)
    slot += num_rows
    tl.store(slot, a, mask=inside)
    slot += num_rows
    tl.store(slot, t, mask=inside)
    tl.store(clipped_out + rows, tl.where(counted, clipped, 0), mask=inside)


@triton.jit
def _backward_kernel(
    logits,
    target,
    rows_in,  # float32 [8, N], as the forward pass left it
    upstream,
    gradient,
    row_stride,
    upstream_stride,
    num_rows,
    num_columns,
    ignore_index,
    smoothing,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = rows < num_rows
    y = tl.load(target + rows, mask=inside, other=ignore_index)
    counted = inside & (y != ignore_index)
    slot = rows_in + rows + num_rows
    weight = tl.load(slot, mask=counted, other=0.0)
    slot += num_rows
    slot += num_rows
    slot += num_rows
    top = tl.load(slot, mask=counted, other=0.0)
    slot += num_rows
    log_sum = tl.load(slot, mask=counted, other=0.0)
    slot += num_rows
    a = tl.load(slot, mask=counted, other=0.0)
    slot += num_rows
    t = tl.load(slot, mask=counted, other=0.0)
    g = tl.load(upstream + rows * upstream_stride, mask=counted, other=0.0).to(tl.float32)

    within = (columns < num_columns)[None, :]
    place = rows[:, None] * row_stride + columns[None, :]
    z = tl.load(logits + place, mask=counted[:, None] & within, other=float("-inf")).to(tl.float32)
    p = tl.exp((z - top[:, None]) - log_sum[:, None])
    d = a[:, None] * p - (weight * smoothing / num_columns)[:, None]
    d = tl.where(columns[None, :] == y[:, None], t[:, None], d) * g[:, None]
    d = tl.where(counted[:, None], d, 0.0)
    out = gradient + rows[:, None] * num_columns + columns[None, :]
    tl.store(out, d.to(gradient.dtype.element_ty), mask=inside[:, None] & within)


def forward_rows(
    logits: Tensor,
    target: Tensor,
    rule: WeightRule,
    sample_weight: Tensor | None,
    log_quality: Tensor | None,
    log_diversity: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Per-row results as float32 [8, N] (see the kernel) and int8 [N]; ``logits`` [N, V] with unit column stride."""
    num_rows, num_columns = logits.shape
    out = torch.empty((8, num_rows), dtype=torch.float32, device=logits.device)
    clipped = torch.empty(num_rows, dtype=torch.int8, device=logits.device)
    if num_rows == 0:
        return out, clipped
    blocks = row_blocks(num_columns)
    grid = (triton.cdiv(num_rows, blocks.rows),)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        _forward_kernel[grid](
            logits,
            target,
            sample_weight,
            log_quality,
            log_diversity,
            out,
            clipped,
            logits.stride(0),
            num_rows,
            num_columns,
            rule.ignore_index,
            rule.gamma,
            rule.log_low,
            rule.log_high,
            rule.label_smoothing,
            SCHEME=rule.code,
            FOCAL_DETACHED=rule.focal_detached,
            HAS_SAMPLE_WEIGHT=sample_weight is not None,
            SMOOTH=rule.label_smoothing > 0,
            ROWS=blocks.rows,
            COLUMNS=blocks.columns,
            num_warps=blocks.num_warps,
        )
    return out, clipped


def backward_rows(logits: Tensor, target: Tensor, rule: WeightRule, rows: Tensor, upstream: Tensor) -> Tensor:
    """d loss / d logits [N, V] in the logits' dtype, given ``upstream`` [N] (any stride, zero too)."""
    num_rows, num_columns = logits.shape
    gradient = torch.empty((num_rows, num_columns), dtype=logits.dtype, device=logits.device)
    if num_rows == 0:
        return gradient
    blocks = row_blocks(num_columns)
    grid = (triton.cdiv(num_rows, blocks.rows), triton.cdiv(num_columns, blocks.columns))
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        _backward_kernel[grid](
            logits,
            target,
            rows,
            upstream,
            gradient,
            logits.stride(0),
            upstream.stride(0),
            num_rows,
            num_columns,
            rule.ignore_index,
            rule.label_smoothing,
            ROWS=blocks.rows,
            COLUMNS=blocks.columns,
            num_warps=blocks.num_warps,
        )
    return gradient
