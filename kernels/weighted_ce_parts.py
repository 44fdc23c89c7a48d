# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# (Triton's decorator is untyped, and its kernels' arguments have no Python types.)
"""The small parts that Triton programs over rows of logits are made of, see `weighted_ce_rows`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _log1p_small(r):
    # log(1 + r) for 0 <= r <= 1/2 by 2 atanh(r / (2 + r)): full relative precision, as the hardware's fast
    # logarithm has not near 1 (series error below 1e-9 relative).
    t = r / (2.0 + r)
    q = t * t
    return 2.0 * t * (1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11))))))


@triton.jit
def _finite(top):
    # What to subtract in the place of a maximum: -inf - -inf is NaN.
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def _exp(x):
    # e^x for what there is one of per logit. tl.exp is this with three instructions more for results below 1e-38.
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def _lanes(ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    # Where each row of the tile begins, [ROWS, 1] (narrow: all at column 0, [1, 1]).
    if WIDE:
        return (tl.arange(0, ROWS) * COLUMNS)[:, None]
    else:
        return tl.zeros([1, 1], tl.int32)


@triton.jit
def _load_classes(class_weight, columns, num_columns, WANTED: tl.constexpr):
    if WANTED:
        return tl.load(class_weight + columns, mask=columns < num_columns, other=0.0)
    else:
        return 1.0


@triton.jit
def _load_soft(place, mask, SOFT: tl.constexpr):
    if SOFT:
        return tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    else:
        return 0.0


@triton.jit
def _tau(t, c, smoothing, num_columns, HAS_CLASS_WEIGHT: tl.constexpr, SMOOTH: tl.constexpr):
    # The target that the loss counts with, from the soft target.
    if SMOOTH:
        t = (1.0 - smoothing) * t + smoothing / num_columns
    if HAS_CLASS_WEIGHT:
        t *= c
    return t


@triton.jit
def _join(values):
    return tl.sum(values, axis=0) + tl.zeros([1], tl.float32)
