# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False
# (Triton's decorator is untyped, and its kernels' arguments have no Python types.)
"""What a Triton program does with rows of logits; `weighted_ce_kernels` holds the kernels made of it.

Every sum is float32, whatever the logits' dtype; addresses are int64. csrc/include/obverse/weighted_ce.hpp defines
the fields of a row and the gradient.

A program works on a tile of logits [ROWS, COLUMNS], in one of two ways. Narrow: a row of the tile is a row of the
logits, whole. WIDE: a program has one row of logits, and the tile walks over it; each of the ROWS lanes keeps a
running maximum and sums of its own, and the lanes are joined when the row is done. A lane is as wide as one
thread's load, so that no thread waits for another inside the loop.
"""

from __future__ import annotations

import triton
import triton.language as tl

from obverse.kernels.weighted_ce_parts import (
    _exp,
    _finite,
    _join,
    _lanes,
    _load_classes,
    _log1p_small,
    _tau,
)

_IMP = tl.constexpr(2)
_DIMP = tl.constexpr(3)
_FOCAL = tl.constexpr(4)


@triton.jit
def _add_hard(
    z,
    mask,
    has_target,
    at_target,
    z_y,
    c,
    top,
    others,
    spread,
    classes,
    HAS_CLASS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
):
    # others: sum of exp(z_j - top) over j != y; spread: sum of c_j (z_j - z_y); classes: sum of c_j.
    new_top = tl.maximum(top, tl.max(z, axis=1))
    base = _finite(new_top)
    e = _exp(z - base[:, None])
    if has_target:  # a branch: a choice for each logit would cost a fifth of the loop's instructions
        e = tl.where(at_target, 0.0, e)
    others = others * _exp(top - base) + tl.sum(e, axis=1)
    if SMOOTH:
        apart = z - z_y[:, None]
        if HAS_CLASS_WEIGHT:
            apart = c * tl.where(c == 0.0, 0.0, apart)  # a class of no weight hides even -inf
            classes += tl.sum(c, axis=1)
        spread += tl.sum(tl.where(mask, apart, 0.0), axis=1)
    return new_top, others, spread, classes, e


@triton.jit
def _below(factors, z, base):
    # Sum of f_j (base - z_j), in which a factor of 0 hides even -inf.
    return tl.sum(factors * tl.where(factors == 0.0, 0.0, base[:, None] - z), axis=1)


@triton.jit
def _add_soft(z, t, tau, c, top, total, mass, below, tau_mass, tau_below, share, PLAIN: tl.constexpr):
    # total: sum of exp(z_j - top); mass and below: sums of t_j and of t_j (top - z_j), and the same of tau;
    # share: sum of c_j t_j. Where PLAIN, tau is t.
    new_top = tl.maximum(top, tl.max(z, axis=1))
    base = _finite(new_top)
    rise = base - _finite(top)
    e = _exp(z - base[:, None])
    total = total * _exp(top - base) + tl.sum(e, axis=1)
    below += mass * rise + _below(t, z, base)
    # The choices change nothing, for a row with +inf is NaN all the same. But a plain sum over a loop whose result
    # is used twice stops Triton 3.7's OptimizeThreadLocality by an assertion.
    mass = tl.where(base == float("inf"), mass, mass + tl.sum(t, axis=1))
    if not PLAIN:
        tau_below += tau_mass * rise + _below(tau, z, base)
        tau_mass = tl.where(base == float("inf"), tau_mass, tau_mass + tl.sum(tau, axis=1))
        share += tl.sum(c * t, axis=1)
    return new_top, total, mass, below, tau_mass, tau_below, share, e


@triton.jit
def _hard_terms(
    logits,
    target,
    class_weight,
    rows,
    shape,
    ignore_index,
    smoothing,
    HAS_CLASS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    num_rows, num_columns, row_stride, _ = shape
    start = logits + rows * row_stride
    inside = rows < num_rows
    y = tl.load(target + rows, mask=inside, other=ignore_index)
    counted = inside & (y != ignore_index)
    # A target outside [0, V) can't be reported from here without stopping the device: it makes its row NaN.
    known = counted & (y >= 0) & (y < num_columns)
    z_y = tl.load(start + y, mask=known, other=float("nan")).to(tl.float32)
    y = tl.where(known, y, -1).to(tl.int32)

    WANTED: tl.constexpr = HAS_CLASS_WEIGHT and SMOOTH
    lanes = _lanes(ROWS, COLUMNS, WIDE)
    steps = tl.arange(0, COLUMNS)[None, :]
    top = tl.full([ROWS], float("-inf"), tl.float32)
    others = tl.zeros([ROWS], tl.float32)
    spread = tl.zeros([ROWS], tl.float32)
    classes = tl.zeros([ROWS], tl.float32)
    if WIDE:
        alone = tl.sum(y, axis=0)  # a number, to branch on
        for first in range(0, num_columns, ROWS * COLUMNS):
            columns = first + lanes + steps
            mask = counted[:, None] & (columns < num_columns)
            z = tl.load(start[:, None] + columns, mask=mask, other=float("-inf"), eviction_policy="evict_last")
            z = z.to(tl.float32)
            c = _load_classes(class_weight, columns, num_columns, WANTED)
            at_target = steps == y[:, None] - first - lanes
            has_target = (alone >= first) & (alone < first + ROWS * COLUMNS)
            top, others, spread, classes, e = _add_hard(
                z, mask, has_target, at_target, z_y, c, top, others, spread, classes, HAS_CLASS_WEIGHT, SMOOTH
            )
        lane_top = top
        top = tl.max(top, axis=0) + tl.zeros([1], tl.float32)
        others = _join(others * _exp(lane_top - _finite(top)))
        spread = _join(spread)
        classes = _join(classes)
        e = tl.zeros([1, 1], tl.float32)
    else:
        mask = counted[:, None] & (steps < num_columns)
        z = tl.load(start[:, None] + steps, mask=mask, other=float("-inf")).to(tl.float32)
        c = _load_classes(class_weight, steps, num_columns, WANTED)
        top, others, spread, classes, e = _add_hard(
            z, mask, True, steps == y[:, None], z_y, c, top, others, spread, classes, HAS_CLASS_WEIGHT, SMOOTH
        )

    top = tl.where(counted, top, 0.0)
    e_y = tl.where(known, tl.exp(z_y - top), 0.0)
    total = tl.where(counted, others + e_y, 1.0)
    log_sum = tl.log(total)
    sure = (e_y > 0.0) & (others <= 0.5 * e_y)
    odds = tl.where(sure, others, 0.0) / tl.where(sure, e_y, 1.0)
    nll = tl.where(sure, _log1p_small(odds), (top - z_y) + log_sum)
    nll = tl.where(known, nll, float("nan"))
    miss = tl.where(known, others / total, float("nan"))
    c_y = tl.where(known, 1.0, float("nan"))
    if HAS_CLASS_WEIGHT:
        c_y = tl.load(class_weight + y, mask=known, other=float("nan"))
    tau_mass = c_y
    base = c_y * nll
    off_target = tl.zeros_like(nll)
    if SMOOTH:
        if not HAS_CLASS_WEIGHT:
            classes = tl.zeros_like(nll) + num_columns
        tau_mass = c_y + smoothing * (classes / num_columns - c_y)
        base = tau_mass * nll - smoothing * (spread / num_columns)
        base = tl.where(z_y == float("-inf"), tl.where(c_y > 0.0, float("inf"), float("nan")), base)
        off_target = smoothing * ((classes - c_y) / num_columns)
    return counted, y, e, total, top, log_sum, base, nll, miss, e_y / total, tau_mass, c_y, off_target


@triton.jit
def _soft_terms(
    logits,
    target,
    class_weight,
    rows,
    shape,
    smoothing,
    HAS_CLASS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    num_rows, num_columns, row_stride, target_stride = shape
    start = logits + rows * row_stride
    target_start = target + rows * target_stride
    counted = rows < num_rows
    PLAIN: tl.constexpr = not (HAS_CLASS_WEIGHT or SMOOTH)
    lanes = _lanes(ROWS, COLUMNS, WIDE)
    steps = tl.arange(0, COLUMNS)[None, :]
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    below = tl.zeros([ROWS], tl.float32)
    tau_mass = tl.zeros([ROWS], tl.float32)
    tau_below = tl.zeros([ROWS], tl.float32)
    share = tl.zeros([ROWS], tl.float32)
    if WIDE:
        for first in range(0, num_columns, ROWS * COLUMNS):
            columns = first + lanes + steps
            mask = counted[:, None] & (columns < num_columns)
            z = tl.load(start[:, None] + columns, mask=mask, other=float("-inf"), eviction_policy="evict_last")
            t = tl.load(target_start[:, None] + columns, mask=mask, other=0.0, eviction_policy="evict_last")
            t = t.to(tl.float32)
            c = _load_classes(class_weight, columns, num_columns, HAS_CLASS_WEIGHT)
            tau = tl.where(mask, _tau(t, c, smoothing, num_columns, HAS_CLASS_WEIGHT, SMOOTH), 0.0)
            top, total, mass, below, tau_mass, tau_below, share, e = _add_soft(
                z.to(tl.float32), t, tau, c, top, total, mass, below, tau_mass, tau_below, share, PLAIN
            )
        lane_base = _finite(top)
        lane_top = top
        top = tl.max(top, axis=0) + tl.zeros([1], tl.float32)
        base = _finite(top)
        total = _join(total * _exp(lane_top - base))
        below = _join(below + mass * (base - lane_base))
        mass = _join(mass)
        tau_below = _join(tau_below + tau_mass * (base - lane_base))
        tau_mass = _join(tau_mass)
        share = _join(share)
        e = tl.zeros([1, 1], tl.float32)
    else:
        mask = counted[:, None] & (steps < num_columns)
        z = tl.load(start[:, None] + steps, mask=mask, other=float("-inf")).to(tl.float32)
        t = tl.load(target_start[:, None] + steps, mask=mask, other=0.0).to(tl.float32)
        c = _load_classes(class_weight, steps, num_columns, HAS_CLASS_WEIGHT)
        tau = tl.where(mask, _tau(t, c, smoothing, num_columns, HAS_CLASS_WEIGHT, SMOOTH), 0.0)
        top, total, mass, below, tau_mass, tau_below, share, e = _add_soft(
            z, t, tau, c, top, total, mass, below, tau_mass, tau_below, share, PLAIN
        )
    top = tl.where(counted, top, 0.0)
    total = tl.where(counted, total, 1.0)
    log_sum = tl.log(total)
    nll = below + mass * log_sum
    base = nll
    if PLAIN:
        tau_mass = mass
        share = mass
    else:
        base = tau_below + tau_mass * log_sum
    none = tl.zeros_like(nll)
    y = none.to(tl.int32) - 1
    return counted, y, e, total, top, log_sum, base, nll, none, none, tau_mass, share, none


@triton.jit
def _row_results(
    logits,
    target,
    inputs,
    rows,
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
    # Three tuples: what is stored of each row (nine fields, clipped); which rows count, their targets (else -1); and,
    # narrow only, the tile of exp(z - top), 0 at a hard target, with its rows' whole sums.
    sample_weight, log_quality, log_diversity, class_weight = inputs
    ignore_index, gamma, log_low, log_high, smoothing, z_loss = rule
    if SOFT:
        terms = _soft_terms(
            logits, target, class_weight, rows, shape, smoothing, HAS_CLASS_WEIGHT, SMOOTH, WIDE, ROWS, COLUMNS
        )
    else:
        terms = _hard_terms(
            logits,
            target,
            class_weight,
            rows,
            shape,
            ignore_index,
            smoothing,
            HAS_CLASS_WEIGHT,
            SMOOTH,
            WIDE,
            ROWS,
            COLUMNS,
        )
    counted, y, e, total, top, log_sum, base, nll, miss, p_y, tau_mass, share, off_target = terms
    lse = top + log_sum
    # Not left to a factor of 0: the square of a large lse is infinite, and 0 times that is NaN.
    base += tl.where(z_loss > 0.0, z_loss * lse * lse, 0.0)
    w = tl.full(nll.shape, 1.0, tl.float32)
    if HAS_SAMPLE_WEIGHT:
        w = tl.load(sample_weight + rows, mask=counted, other=0.0)
    clipped = tl.zeros(nll.shape, tl.int8)
    focal = tl.zeros_like(nll)
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
        w *= tl.exp(tl.where(high, log_high, tl.where(low, log_low, log_weight)))
    if SCHEME == _FOCAL:
        power = tl.exp(gamma * tl.log(tl.where(miss > 0.0, miss, 1.0)))
        power = tl.where((miss > 0.0) | (gamma == 0.0), power, 0.0)
        power = tl.where(miss == miss, power, miss)
        w *= power
        if not FOCAL_DETACHED:
            ratio = base / tl.where(miss > 0.0, miss, 1.0)  # where 1 - p is 0, so is the weight
            focal = gamma * w * (1.0 - miss) * ratio
    pull = w * tau_mass + focal
    push = 2.0 * z_loss * lse * w
    a = tl.where(counted, pull + push, 0.0)
    t = tl.where(counted, w * off_target + push * p_y - pull * miss, 0.0)
    loss = tl.where(counted, w * base, 0.0)
    weight = tl.where(counted, w * share, 0.0)
    log_prob = tl.where(counted, -nll, 0.0)
    lse = tl.where(counted, lse, 0.0)
    w = tl.where(counted, w, 0.0)
    clipped = tl.where(counted, clipped, 0)
    return (loss, weight, log_prob, lse, top, log_sum, a, t, w, clipped), (counted, y), (e, total)


@triton.jit
def _store_rows(fields, clipped_out, rows, num_rows, results):
    loss, weight, log_prob, lse, top, log_sum, a, t, w, clipped = results
    inside = rows < num_rows
    slot = fields + rows
    tl.store(slot, loss, mask=inside)
    slot += num_rows
    tl.store(slot, weight, mask=inside)
    slot += num_rows
    tl.store(slot, log_prob, mask=inside)
    slot += num_rows
    tl.store(slot, lse, mask=inside)
    slot += num_rows
    tl.store(slot, top, mask=inside)
    slot += num_rows
    tl.store(slot, log_sum, mask=inside)
    slot += num_rows
    tl.store(slot, a, mask=inside)
    slot += num_rows
    tl.store(slot, t, mask=inside)
    slot += num_rows
    tl.store(slot, w, mask=inside)
    tl.store(clipped_out + rows, clipped, mask=inside)


@triton.jit
def _gradient(
    p,
    has_target,
    at_target,
    soft,
    c,
    slopes,
    smoothing,
    num_columns,
    SOFT: tl.constexpr,
    HAS_CLASS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
):
    # Of a tile. The slopes a, t and w have the row's upstream gradient in them already, and are 0, as p is, in an
    # ignored row.
    a, t, w = slopes
    d = a[:, None] * p
    if SOFT:
        d -= w[:, None] * _tau(soft, c, smoothing, num_columns, HAS_CLASS_WEIGHT, SMOOTH)
    else:
        if SMOOTH:
            d -= (w * (smoothing / num_columns))[:, None] * c
        if has_target:
            d = tl.where(at_target, t[:, None], d)
    return d
