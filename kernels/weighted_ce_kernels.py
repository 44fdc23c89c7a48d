# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# (Triton's decorator is untyped, and its kernels' arguments have no Python types.)
"""Triton kernels of the weighted cross-entropy; `weighted_ce` launches them.

Nothing is added by atomics: results repeat bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from obverse.kernels.weighted_ce_parts import _exp, _lanes, _load_classes, _load_soft
from obverse.kernels.weighted_ce_rows import _gradient, _row_results, _store_rows


@triton.jit
def forward_kernel(
    logits,
    target,
    sample_weight,
    log_quality,
    log_diversity,
    class_weight,
    fields,  # float32 [9, N]
    clipped_out,  # int8 [N]
    row_stride,
    target_stride,
    num_rows,
    num_columns,
    ignore_index,
    gamma,
    log_low,
    log_high,
    smoothing,
    z_loss,
    SOFT: tl.constexpr,
    SCHEME: tl.constexpr,
    FOCAL_DETACHED: tl.constexpr,
    HAS_SAMPLE_WEIGHT: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The fields of every row."""
    if WIDE:
        rows = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    else:
        rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    results, _, _ = _row_results(
        logits,
        target,
        (sample_weight, log_quality, log_diversity, class_weight),
        rows,
        (num_rows, num_columns, row_stride, target_stride),
        (ignore_index, gamma, log_low, log_high, smoothing, z_loss),
        SOFT,
        SCHEME,
        FOCAL_DETACHED,
        HAS_SAMPLE_WEIGHT,
        HAS_CLASS_WEIGHT,
        SMOOTH,
        WIDE,
        ROWS,
        COLUMNS,
    )
    _store_rows(fields, clipped_out, rows, num_rows, results)


@triton.jit
def backward_kernel(
    logits,
    target,
    class_weight,
    fields,  # float32 [9, N], as a forward pass left them
    upstream,
    gradient,
    row_stride,
    target_stride,
    upstream_stride,
    gradient_stride,
    num_rows,
    num_columns,
    ignore_index,
    smoothing,
    SOFT: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of one tile."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = rows < num_rows
    counted = inside
    at_target = columns < 0
    within = columns < num_columns
    soft = _load_soft(target + (rows * target_stride)[:, None] + columns, inside[:, None] & within, SOFT)
    if not SOFT:
        y = tl.load(target + rows, mask=inside, other=ignore_index)
        counted = inside & (y != ignore_index)
        at_target = columns == y[:, None]
    slot = fields + rows
    for _ in tl.static_range(4):
        slot += num_rows
    top = tl.load(slot, mask=counted, other=0.0)
    slot += num_rows
    log_sum = tl.load(slot, mask=counted, other=0.0)
    slot += num_rows
    a = tl.load(slot, mask=counted, other=0.0)
    slot += num_rows
    t = tl.load(slot, mask=counted, other=0.0)
    slot += num_rows
    w = tl.load(slot, mask=counted, other=0.0)
    g = tl.load(upstream + rows * upstream_stride, mask=counted, other=0.0).to(tl.float32)
    c = _load_classes(class_weight, columns, num_columns, HAS_CLASS_WEIGHT and (SMOOTH or SOFT))

    mask = counted[:, None] & within
    z = tl.load(logits + (rows * row_stride)[:, None] + columns, mask=mask, other=float("-inf")).to(tl.float32)
    p = _exp((z - top[:, None]) - log_sum[:, None])
    d = _gradient(
        p, True, at_target, soft, c, (a * g, t * g, w * g), smoothing, num_columns, SOFT, HAS_CLASS_WEIGHT, SMOOTH
    )
    out = gradient + (rows * gradient_stride)[:, None] + columns
    tl.store(out, d.to(gradient.dtype.element_ty), mask=inside[:, None] & within)


@triton.jit
def _fused_rows(
    logits,
    target,
    inputs,
    gradient,
    gradient_stride,
    fields,
    clipped_out,
    rows,
    g,
    shape,
    rule,
    SOFT: tl.constexpr,
    SCHEME: tl.constexpr,
    FOCAL_DETACHED: tl.constexpr,
    HAS_SAMPLE_WEIGHT: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # Fields and gradient of the rows; returns their losses.
    results, targets, exponentials = _row_results(
        logits,
        target,
        inputs,
        rows,
        shape,
        rule,
        SOFT,
        SCHEME,
        FOCAL_DETACHED,
        HAS_SAMPLE_WEIGHT,
        HAS_CLASS_WEIGHT,
        SMOOTH,
        WIDE,
        ROWS,
        COLUMNS,
    )
    num_rows, num_columns, row_stride, target_stride = shape
    class_weight, smoothing = inputs[3], rule[4]
    _store_rows(fields, clipped_out, rows, num_rows, results)
    loss, _, _, _, top, log_sum, a, t, w, _ = results
    counted, y = targets
    g = tl.where(counted, g, 0.0)
    slopes = (a * g, t * g, w * g)
    # The gradient may overwrite the logits: every thread of the program must have read its own first.
    tl.debug_barrier()
    inside = (rows < num_rows)[:, None]
    kind: tl.constexpr = gradient.dtype.element_ty
    steps = tl.arange(0, COLUMNS)[None, :]
    out = gradient + (rows * gradient_stride)[:, None]
    soft_start = target + (rows * target_stride)[:, None]
    WANTED: tl.constexpr = HAS_CLASS_WEIGHT and (SMOOTH or SOFT)
    if WIDE:
        start = logits + (rows * row_stride)[:, None]
        lanes = _lanes(ROWS, COLUMNS, WIDE)
        # From the end, where the row was read last: what is still in the second-level cache is used before it goes.
        STEP: tl.constexpr = ROWS * COLUMNS
        last = (num_columns - 1) // STEP * STEP
        alone = tl.sum(y, axis=0)
        for back in range(0, num_columns, STEP):
            first = last - back
            columns = first + lanes + steps
            mask = inside & (columns < num_columns)
            z = tl.load(
                start + columns, mask=counted[:, None] & mask, other=float("-inf"), eviction_policy="evict_first"
            )
            z = z.to(tl.float32)
            soft = _load_soft(soft_start + columns, mask, SOFT)
            c = _load_classes(class_weight, columns, num_columns, WANTED)
            p = _exp((z - top[:, None]) - log_sum[:, None])
            at_target = steps == y[:, None] - first - lanes
            has_target = (alone >= first) & (alone < first + STEP)
            d = _gradient(
                p, has_target, at_target, soft, c, slopes, smoothing, num_columns, SOFT, HAS_CLASS_WEIGHT, SMOOTH
            )
            tl.store(out + columns, d.to(kind), mask=mask, eviction_policy="evict_first")
    else:
        mask = inside & (steps < num_columns)
        soft = _load_soft(soft_start + steps, mask, SOFT)
        c = _load_classes(class_weight, steps, num_columns, WANTED)
        e, total = exponentials
        p = e * (1.0 / total)[:, None]
        at_target = steps == y[:, None]
        d = _gradient(p, True, at_target, soft, c, slopes, smoothing, num_columns, SOFT, HAS_CLASS_WEIGHT, SMOOTH)
        tl.store(out + steps, d.to(kind), mask=mask)
    return loss


@triton.jit
def fused_kernel(
    logits,
    target,
    sample_weight,
    log_quality,
    log_diversity,
    class_weight,
    upstream,
    gradient,
    fields,
    clipped_out,
    row_stride,
    target_stride,
    upstream_stride,
    gradient_stride,
    num_rows,
    num_columns,
    ignore_index,
    gamma,
    log_low,
    log_high,
    smoothing,
    z_loss,
    DIVIDE: tl.constexpr,  # upstream is a divisor
    SOFT: tl.constexpr,
    SCHEME: tl.constexpr,
    FOCAL_DETACHED: tl.constexpr,
    HAS_SAMPLE_WEIGHT: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Fields and gradient of every row."""
    if WIDE:
        rows = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    else:
        rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    g = tl.load(upstream + rows * upstream_stride, mask=rows < num_rows, other=0.0).to(tl.float32)
    if DIVIDE:
        g = _share(1.0, g)
    _fused_rows(
        logits,
        target,
        (sample_weight, log_quality, log_diversity, class_weight),
        gradient,
        gradient_stride,
        fields,
        clipped_out,
        rows,
        g,
        (num_rows, num_columns, row_stride, target_stride),
        (ignore_index, gamma, log_low, log_high, smoothing, z_loss),
        SOFT,
        SCHEME,
        FOCAL_DETACHED,
        HAS_SAMPLE_WEIGHT,
        HAS_CLASS_WEIGHT,
        SMOOTH,
        WIDE,
        ROWS,
        COLUMNS,
    )


@triton.jit
def _share(part, whole):
    # part / whole, and 0 of nothing.
    return tl.where(whole == 0.0, 0.0, part / tl.where(whole == 0.0, 1.0, whole))


@triton.jit
def _count(target, num_rows, ignore_index, SOFT: tl.constexpr, COUNT: tl.constexpr):
    # Rows that are not ignored, at least 1 (there is a row). In integers: float32 would stop counting at 2^24.
    if SOFT:
        return tl.full([], 0.0, tl.float32) + num_rows
    else:
        found = tl.zeros([COUNT], tl.int64)
        for first in range(0, num_rows, COUNT):
            rows = first + tl.arange(0, COUNT)
            y = tl.load(target + rows, mask=rows < num_rows, other=ignore_index)
            found += (y != ignore_index).to(tl.int64)
        return tl.maximum(tl.sum(found, axis=0), 1).to(tl.float32)


@triton.jit
def count_kernel(target, denominator_out, num_rows, ignore_index, SOFT: tl.constexpr, COUNT: tl.constexpr):
    """The number of counted rows, at least 1."""
    tl.store(denominator_out, _count(target, num_rows, ignore_index, SOFT, COUNT))


@triton.jit
def total_kernel(loss, denominator, total_out, num_rows, COUNT: tl.constexpr):
    """The sum of the losses over the denominator."""
    found = tl.zeros([COUNT], tl.float32)
    for first in range(0, num_rows, COUNT):
        rows = first + tl.arange(0, COUNT)
        found += tl.load(loss + rows, mask=rows < num_rows, other=0.0)
    tl.store(total_out, _share(tl.sum(found, axis=0), tl.load(denominator)))


@triton.jit
def mean_kernel(
    logits,
    target,
    sample_weight,
    log_quality,
    log_diversity,
    class_weight,
    denominator,
    gradient,
    fields,
    clipped_out,
    total_out,
    row_stride,
    target_stride,
    gradient_stride,
    num_rows,
    num_columns,
    ignore_index,
    gamma,
    log_low,
    log_high,
    smoothing,
    z_loss,
    HAS_DENOMINATOR: tl.constexpr,
    SOFT: tl.constexpr,
    SCHEME: tl.constexpr,
    FOCAL_DETACHED: tl.constexpr,
    HAS_SAMPLE_WEIGHT: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
):
    """All there is to a small problem's mean, by one program: counts, then goes over the rows once."""
    if HAS_DENOMINATOR:
        whole = tl.load(denominator)
    else:
        whole = _count(target, num_rows, ignore_index, SOFT, COUNT)
    g = tl.zeros([ROWS], tl.float32) + _share(1.0, whole)
    found = tl.zeros([ROWS], tl.float32)
    for first in range(0, num_rows, ROWS):
        found += _fused_rows(
            logits,
            target,
            (sample_weight, log_quality, log_diversity, class_weight),
            gradient,
            gradient_stride,
            fields,
            clipped_out,
            first + tl.arange(0, ROWS).to(tl.int64),
            g,
            (num_rows, num_columns, row_stride, target_stride),
            (ignore_index, gamma, log_low, log_high, smoothing, z_loss),
            SOFT,
            SCHEME,
            FOCAL_DETACHED,
            HAS_SAMPLE_WEIGHT,
            HAS_CLASS_WEIGHT,
            SMOOTH,
            False,
            ROWS,
            COLUMNS,
        )
    tl.store(total_out, _share(tl.sum(found, axis=0), whole))


@triton.jit
def scale_kernel(
    gradient,
    factor,
    row_stride,
    num_rows,
    num_columns,
    COLUMNS: tl.constexpr,
):
    """gradient *= factor; nothing is touched where the factor is 1, as it is after a plain ``backward()``."""
    f = tl.load(factor)
    if f != 1.0:
        tiles_a_row = (tl.full([], COLUMNS - 1, tl.int64) + num_columns) // COLUMNS
        for tile in range(tl.program_id(0).to(tl.int64), tiles_a_row * num_rows, tl.num_programs(0)):
            columns = tile % tiles_a_row * COLUMNS + tl.arange(0, COLUMNS)
            place = gradient + tile // tiles_a_row * row_stride + columns
            mask = columns < num_columns
            d = tl.load(place, mask=mask, other=0.0).to(tl.float32) * f
            tl.store(place, d.to(gradient.dtype.element_ty), mask=mask)
