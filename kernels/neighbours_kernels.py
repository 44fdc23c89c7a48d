# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# (Triton's decorator is untyped, and its kernels' arguments have no Python types.)
"""The Triton kernel of the exact join: products of a tile of pairs, compared and appended, never written out.

Importing this module imports Triton. `obverse.kernels.neighbours` launches it and says what is proved.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["emit_pairs_kernel"]


@triton.jit
def emit_pairs_kernel(
    x,  # int8 or float16 [>= num_x, DIM], contiguous, zeros behind the vectors' own columns
    y,  # the same [>= num_y, DIM]; x itself in a self-join
    low_x,  # int32 (of int8) or float32 [num_x]: a pair is wanted from here on by its row of x
    low_y,  # the same [num_y]: or by its row of y
    pairs_x,  # int32 [capacity]
    pairs_y,  # int32 [capacity]
    count,  # int32 [1]: pairs wanted so far, some of those beyond the capacity too
    num_x,
    num_y,
    first_x,  # row of x at which the band begins
    first_y,  # row of y at which it begins
    band_tiles,  # tiles of x in the band
    capacity,
    SELF: tl.constexpr,
    NEVER: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Append every pair (i, j) whose product is at least min(low_x[i], low_y[j]); in a self-join only those of i < j.

    Programs that run side by side share their columns (a tile of x is the fastest index), so a band's rows and the
    columns in work stay in the second-level cache. A band that has run over its capacity is given up early (the caller
    does it again in parts), so that the count can't pass it by more than the programs at work at one time hold.
    """
    program = tl.program_id(0)
    row = first_x + (program % band_tiles) * ROWS
    column = first_y + (program // band_tiles) * COLUMNS
    if SELF and column + COLUMNS <= row:
        return
    if tl.load(count) > capacity:
        return
    rows = row + tl.arange(0, ROWS)
    columns = column + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # Rows beyond the last are read as the last: their pairs are left out by their infinite thresholds.
    from_x = x + tl.minimum(rows, num_x - 1).to(tl.int64)[:, None] * DIM + depth[None, :]
    from_y = y + tl.minimum(columns, num_y - 1).to(tl.int64)[None, :] * DIM + depth[:, None]
    products = tl.zeros([ROWS, COLUMNS], low_x.dtype.element_ty)
    for _ in range(0, DIM, DEPTH):
        products = tl.dot(tl.load(from_x), tl.load(from_y), products, out_dtype=low_x.dtype.element_ty)
        from_x += DEPTH
        from_y += DEPTH
    wanted_x = tl.load(low_x + rows, mask=rows < num_x, other=NEVER)
    wanted_y = tl.load(low_y + columns, mask=columns < num_y, other=NEVER)
    # No row and no column beyond the last may pass by the other's threshold.
    inside = (rows < num_x)[:, None] & (columns < num_y)[None, :]
    hit = inside & (products >= tl.minimum(wanted_x[:, None], wanted_y[None, :]))
    if SELF:
        hit = hit & (rows[:, None] < columns[None, :])
    if tl.max(tl.reshape(hit.to(tl.int32), [ROWS * COLUMNS]), 0) > 0:
        nothing = tl.zeros([ROWS, COLUMNS], tl.int32)
        place = tl.atomic_add(count + nothing, nothing + 1, mask=hit, sem="relaxed")
        kept = hit & (place < capacity)
        tl.store(pairs_x + place, nothing + rows[:, None], mask=kept)
        tl.store(pairs_y + place, nothing + columns[None, :], mask=kept)
