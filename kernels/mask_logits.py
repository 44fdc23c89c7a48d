# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# (Triton's decorator is untyped, and its kernels' arguments have no Python types.)
"""One Triton launch a decoding step: constraint states go on by the newest tokens, and logits are masked in place.

Importing this module imports Triton. Tables, states and what the launch must do: `obverse.kernels.mask_reference`.

A program has one row and a run of its columns. It redoes the row's step (a handful of dependent loads) instead of
waiting for another program, so that one launch is enough and no host is asked; the first program of a row keeps the new
state. Then it reads the logits of the few tokens that may follow, fills its columns with -inf without reading them,
and writes those few back. Only nodes with very many children (a trie's root) go through a bitmask.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from obverse.kernels import mask_reference as layout
from obverse.kernels.mask_automaton import LOW, LOW_AND_HIGH, PLAIN, find, key_at, pick, step, ways
from obverse.kernels.mask_reference import AutomatonTables, MaskRows, MaskStates, TrieTables

__all__ = ["column_tiles", "mask_logits"]

_WIDTH = tl.constexpr(layout.WIDTH)
_DENSE_ABOVE = tl.constexpr(layout.DENSE_ABOVE)
_MISSING_TOKENS = tl.constexpr(layout.MISSING_TOKENS)
_DEAD_END = tl.constexpr(layout.DEAD_END)

_FEW = tl.constexpr(layout.DENSE_ABOVE)  # children whose logits are held while the columns are filled
_HALVINGS = tl.constexpr(layout.DENSE_ABOVE.bit_length())
_BLOCK = tl.constexpr(1024)  # columns filled at once: 128 bits a thread of bfloat16
_DENSE_BLOCK = tl.constexpr(512)
_SLOW_BLOCK = tl.constexpr(128)

NUM_WARPS = 4
# Programs of 128 threads and 48 registers that the 132 SMs of an H100 or H200 hold at once: in one wave every program
# pays the latency of the row's step at the same time.
RESIDENT_PROGRAMS = 132 * 10


@triton.jit
def _children(begin, size, number, low, high, NUM: tl.constexpr, KIND: tl.constexpr):
    """Tokens of the first NUM children of ``number`` nodes, counted through; -1 behind the last."""
    lane = tl.arange(0, _WIDTH)
    place = tl.arange(0, NUM)
    node = tl.zeros([NUM], tl.int32)
    total = 0
    for w in range(0, number):
        node = tl.where(place >= total, pick(begin, lane, w) + place - total, node)
        total += pick(size, lane, w)
    return tl.where(place < total, key_at(low, high, node, place < total, KIND), -1)


@triton.jit
def _are_children(columns, start, end, low, high, KIND: tl.constexpr):
    """Which columns are the tokens of nodes start .. end, of which there are at most _DENSE_ABOVE: by halving."""
    first = columns * 0 + start
    last = columns * 0 + end
    for _ in range(0, _HALVINGS):
        middle = (first + last) >> 1
        below = (first < last) & (key_at(low, high, middle, first < last, KIND) < columns)
        first = tl.where(below, middle + 1, first)
        last = tl.where(below, last, middle)
    return (first < end) & (key_at(low, high, first, first < end, KIND) == columns)


@triton.jit
def _in_bits(columns, bits, vocab_size):
    words = tl.load(bits + (columns >> 5), mask=columns < vocab_size, other=0)
    return ((words >> (columns & 31)) & 1) != 0


@triton.jit
def _keep(line, columns, kept, last_column):
    values = tl.load(line + columns, mask=kept & (columns < last_column), other=float("-inf"))
    tl.store(line + columns, values, mask=columns < last_column)


@triton.jit
def _mask_kernel(
    logits,
    row_slots,
    row_positions,
    row_newest,
    row_drafts,
    history,
    positions,
    tags,
    flags_out,
    slots,
    low,
    high,
    offset,
    blocks,
    overflow,
    dense_nodes,
    dense_bits,
    parts,
    moves,
    row_stride,
    history_stride,
    history_columns,
    num_columns,
    vocab_size,
    num_dense,
    dense_words,
    done_part,
    eos,
    owner,
    tile_columns,
    HAS_DRAFTS: tl.constexpr,
    KIND: tl.constexpr,
    LANES: tl.constexpr,
):
    row = tl.program_id(0)
    slot = tl.load(row_slots + row).to(tl.int64)
    if slot < 0:
        return
    table = slots + slot * 4
    if tl.load(table) != owner:
        return
    limit = tl.load(table + 1)
    prompt = tl.load(table + 2)
    drafts = 0
    if HAS_DRAFTS:
        drafts = tl.load(row_drafts + row).to(tl.int32)
    committed = tl.maximum(tl.load(row_positions + row).to(tl.int32) + 1 - prompt - drafts, 0)

    # The state to go on from: of the entry that no program writes now, if it is one of this sequence.
    lane = tl.arange(0, _WIDTH)
    entry = (committed + 1) % 2
    tag = tl.load(tags + slot * 2 + entry)
    known = (tag >= 0) & (tag < committed)
    base = tl.where(known, tag, 0)
    place = positions + (slot * 2 + entry) * (_WIDTH * 3) + lane * 3
    start_index = tl.load(parts + (done_part - 1) * 8 + 1)
    part = tl.where(known, tl.load(place), tl.where(lane == 0, done_part - 1, -1))
    index = tl.where(known, tl.load(place + 1), tl.where(lane == 0, start_index, 0))
    count = tl.where(known, tl.load(place + 2), 0)

    flags = 0
    for t in range(base, committed + drafts):
        recent = t - (committed - 1)
        column = prompt + t
        token = tl.load(row_newest + row - drafts + recent, mask=recent >= 0, other=0).to(tl.int32)
        held = (recent < 0) & (column >= 0) & (column < history_columns)
        if recent < 0:
            token = tl.load(history + slot * history_stride + column, mask=held, other=0).to(tl.int32)
            part = tl.where(held, part, -1)
            flags = tl.where(held, flags, flags | _MISSING_TOKENS)
        part, index, count, wrong = step(
            part,
            index,
            count,
            token,
            limit,
            low,
            high,
            offset,
            blocks,
            overflow,
            parts,
            moves,
            eos,
            done_part,
            KIND,
            LANES,
        )
        flags = flags | wrong

    # What may follow. Logits are read before any column is filled.
    first_column = tl.program_id(1) * tile_columns
    last_column = tl.minimum(first_column + tile_columns, num_columns)
    line = logits + row.to(tl.int64) * row_stride
    number = tl.sum((part >= 0).to(tl.int32), axis=0)
    single_lane = tl.arange(0, 2 * _WIDTH * LANES)  # the last is for eos
    singles = tl.full([2 * _WIDTH * LANES], -1, tl.int32)
    lanes = tl.arange(0, LANES)
    choices = 0
    may_end = 0
    begin = tl.zeros([_WIDTH], tl.int32)  # each position's first child, and how many, if they are no bitmask
    size = tl.zeros([_WIDTH], tl.int32)
    dense = tl.full([_WIDTH], -1, tl.int32)  # else its line of dense_bits
    for w in range(0, number):
        at = pick(index, lane, w)
        single, _, there, _, ends, start, end = ways(
            pick(part, lane, w), at, pick(count, lane, w), limit, offset, blocks, overflow, parts, moves, LANES
        )
        for k in range(0, LANES):
            token = tl.sum(tl.where((lanes == k) & there, single + 1, 0), axis=0) - 1
            singles = tl.where(single_lane == w * LANES + k, token, singles)
        choices += tl.sum(there.to(tl.int32), axis=0) + end - start
        may_end = may_end | ends.to(tl.int32)
        if end - start > _DENSE_ABOVE:
            dense = tl.where(lane == w, find(dense_nodes, dense_nodes, at * 0, at * 0 + num_dense, at, PLAIN), dense)
        else:
            begin = tl.where(lane == w, start, begin)
            size = tl.where(lane == w, end - start, size)
    stuck = (number > 0) & (tl.max(part, axis=0) != done_part) & (choices == 0) & (may_end == 0)
    flags = tl.where(stuck, flags | _DEAD_END, flags)

    if (tl.program_id(1) == 0) & (drafts == 0):
        entry = committed % 2
        place = positions + (slot * 2 + entry) * (_WIDTH * 3) + lane * 3
        tl.store(place, part)
        tl.store(place + 1, tl.where(part >= 0, index, 0))
        tl.store(place + 2, tl.where(part >= 0, count, 0))
        tl.store(tags + slot * 2 + entry, committed)
        if committed == 0:  # whoever had the slot before left an entry
            tl.store(tags + slot * 2 + 1, -1)
        if (flags != 0) | (committed == 0):
            tl.store(flags_out + slot, flags)

    keep_eos = (may_end > 0) | (choices == 0)
    singles = tl.where((single_lane == 2 * _WIDTH * LANES - 1) & keep_eos, eos, singles)
    singles = tl.where((singles >= first_column) & (singles < last_column), singles, -1)
    single_logits = tl.load(line + singles, mask=singles >= 0, other=0.0)
    few = _children(begin, size, number, low, high, _FEW, KIND)
    few = tl.where((few >= first_column) & (few < last_column), few, -1)
    few_logits = tl.load(line + few, mask=few >= 0, other=0.0)

    tl.debug_barrier()  # every thread has read before any thread fills
    if tl.sum(size, axis=0) > _FEW:  # several nodes of many children at once: rare, so short and slow
        for column in range(first_column, last_column, _SLOW_BLOCK):
            columns = column + tl.arange(0, _SLOW_BLOCK)
            kept = columns < 0
            for w in range(0, number):
                bits = pick(dense + 1, lane, w) - 1
                if bits >= 0:
                    kept = kept | _in_bits(columns, dense_bits + bits.to(tl.int64) * dense_words, vocab_size)
                start = pick(begin, lane, w)
                kept = kept | _are_children(columns, start, start + pick(size, lane, w), low, high, KIND)
            _keep(line, columns, kept, last_column)
    elif tl.max(dense, axis=0) >= 0:
        for column in range(first_column, last_column, _DENSE_BLOCK):
            columns = column + tl.arange(0, _DENSE_BLOCK)
            kept = columns < 0
            for w in range(0, number):
                bits = pick(dense + 1, lane, w) - 1
                if bits >= 0:
                    kept = kept | _in_bits(columns, dense_bits + bits.to(tl.int64) * dense_words, vocab_size)
            _keep(line, columns, kept, last_column)
    else:
        nothing = tl.full([_BLOCK], float("-inf"), tl.float32).to(logits.dtype.element_ty)
        for column in range(first_column, last_column, _BLOCK):
            columns = column + tl.arange(0, _BLOCK)
            tl.store(line + columns, nothing, mask=columns < last_column)
    tl.debug_barrier()  # every column is filled before any logit comes back
    tl.store(line + singles, single_logits, mask=singles >= 0)
    tl.store(line + few, few_logits, mask=few >= 0)


def column_tiles(num_rows: int, num_columns: int) -> int:
    """Programs a row: enough to fill the device once, and no program without a whole block of columns."""
    blocks = triton.cdiv(num_columns, _BLOCK.value)
    return int(max(1, min(blocks, RESIDENT_PROGRAMS // max(num_rows, 1))))


def mask_logits(
    logits: Tensor,
    rows: MaskRows,
    tries: TrieTables,
    automaton: AutomatonTables,
    states: MaskStates,
    *,
    owner: int = 0,
    tiles: int | None = None,
) -> None:
    """Advance the states of ``rows`` by their newest tokens, and set all that may not follow to -inf, in place.

    A row whose slot has no state to go on from (its tags are -1: a sequence resumed after preemption, say) is replayed
    from ``rows.history``. A row of no generated token yet begins at the start, whatever its slot held before. A row
    that ended, or whose state is lost (see `MaskStates.flags`), keeps end-of-sequence only. Calling again with the same
    rows changes nothing more.

    Nothing is copied or waited for, so the launch can stand in a CUDA graph.

    Args:
        logits: [rows, columns] float32, bfloat16 or float16, columns together, any row stride; columns from
            ``vocab_size`` on are never allowed.
        rows: the rows' slots and newest tokens.
        tries, automaton: one constraint.
        states: the slots; only those whose number is ``owner`` are touched.
        owner: the number of this constraint in ``states.slots``.
        tiles: programs a row; by default `column_tiles`.

    Raises:
        ValueError: logits that the kernel can't take.
    """
    num_rows, num_columns = logits.shape
    if logits.stride(1) != 1 or num_columns < automaton.vocab_size:
        raise ValueError(
            f"logits: expected unit column stride and at least {automaton.vocab_size} columns, "
            f"got stride {logits.stride(1)} and {num_columns} columns"
        )
    if num_rows == 0:
        return
    count = tiles or column_tiles(num_rows, num_columns)
    tile_columns = triton.cdiv(triton.cdiv(num_columns, count), _BLOCK.value) * _BLOCK.value
    grid = (num_rows, triton.cdiv(num_columns, tile_columns))
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        _mask_kernel[grid](
            logits,
            rows.slots,
            rows.positions,
            rows.newest,
            rows.slots if rows.drafts is None else rows.drafts,
            rows.history,
            *states,
            *tries,
            automaton.parts,
            automaton.moves,
            logits.stride(0),
            rows.history.stride(0),
            rows.history.shape[1],
            num_columns,
            automaton.vocab_size,
            len(tries.dense_nodes),
            tries.dense_bits.stride(0),
            len(automaton.parts) - 1,
            automaton.eos,
            owner,
            tile_columns,
            HAS_DRAFTS=rows.drafts is not None,
            KIND=LOW_AND_HIGH.value if len(tries.high) else LOW.value,
            LANES=max(2, triton.next_power_of_2(automaton.max_edges)),
            num_warps=NUM_WARPS,
        )
