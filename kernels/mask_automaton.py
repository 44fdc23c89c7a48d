# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# (Triton's decorator is untyped, and its kernels' arguments have no Python types.)
"""A constraint's automaton and tries inside a Triton kernel: what may follow a position, and one step of a state.

A state is three vectors of `WIDTH` lanes (part, index, whole triplets), filled from lane 0 on, part -1 behind the last.
All else here is scalar, so that the usual state of one position costs no exchange between threads but for a search
among a node's children, 32 at a time. Importing this module imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

from obverse.kernels import mask_reference as layout

__all__ = ["LOW", "LOW_AND_HIGH", "PLAIN", "find", "key_at", "pick", "step", "ways"]

_WIDTH = tl.constexpr(layout.WIDTH)
_TOO_MANY_POSITIONS = tl.constexpr(layout.TOO_MANY_POSITIONS)
_NOT_ALLOWED = tl.constexpr(layout.NOT_ALLOWED)
_PROBES = tl.constexpr(32)

# How keys lie in memory: a token's low half; low half and high bits; plain int32.
LOW = tl.constexpr(0)
LOW_AND_HIGH = tl.constexpr(1)
PLAIN = tl.constexpr(2)


@triton.jit
def key_at(keys, high, place, mask, KIND: tl.constexpr):
    """The key at each place, 0 where masked; ``high`` is read for LOW_AND_HIGH alone."""
    found = tl.load(keys + place, mask=mask, other=0).to(tl.int32)
    if KIND != PLAIN:
        found = found & 0xFFFF
    if KIND == LOW_AND_HIGH:
        found = found | (tl.load(high + place, mask=mask, other=0).to(tl.int32) << 16)
    return found


@triton.jit
def find(keys, high, start, end, wanted, KIND: tl.constexpr):
    """Where ``wanted`` stands in keys[start:end], ascending; -1: nowhere.

    32 evenly spaced keys at once, so that 1,000 take two loads in a row where halving takes ten.
    """
    lanes = tl.arange(0, _PROBES)
    found = -1
    while start < end:
        stride = (end - start + (_PROBES - 1)) // _PROBES
        place = start + lanes * stride
        inside = place < end
        key = key_at(keys, high, place, inside, KIND)
        found = tl.max(tl.where(inside & (key == wanted), place, -1), axis=0)
        below = tl.sum((inside & (key < wanted)).to(tl.int32), axis=0)
        # The wanted key can only stand after the last key below it, and before the next probe.
        last = start + (below - 1) * stride
        more = (found < 0) & (below > 0) & (stride > 1)
        start = tl.where(more, last + 1, end)
        end = tl.where(more, tl.minimum(last + stride, end), end)
    return found


@triton.jit
def pick(values, lane, place):
    """The value in one lane, as a scalar."""
    return tl.sum(tl.where(lane == place, values, 0), axis=0)


@triton.jit
def _first_child(node, there, offset, blocks, overflow):
    base = tl.load(blocks + (node >> 6) * 4 + 3, mask=there, other=0)
    first = base + tl.load(offset + node, mask=there, other=0).to(tl.int32)
    if base < 0:
        first = tl.load(overflow + (base & 0x7FFFFFFF) + (node & 63))
    return first


@triton.jit
def ways(part, index, count, limit, offset, blocks, overflow, parts, moves, LANES: tl.constexpr):
    """What may follow a position: moves by single tokens [LANES], the nodes start .. end, the end of the sequence."""
    row = parts + part * 8
    cells = tl.load(row)
    length = tl.load(row + 1)
    edges = tl.load(row + 2)
    num_edges = tl.load(row + 3)
    can_end = tl.load(row + 4)
    in_trie = tl.load(row + 5) != 0
    completes = tl.load(row + 6)

    start = _first_child(index, in_trie, offset, blocks, overflow)
    end = _first_child(index + 1, in_trie, offset, blocks, overflow)
    word = tl.load(blocks + (index >> 6) * 4 + ((index >> 5) & 1), mask=in_trie, other=0)
    terminal = in_trie & (length < 0) & (((word >> (index & 31)) & 1) != 0)

    inside = index < length
    leaving = (index == length) | terminal
    after = tl.where(limit >= 0, count + tl.where(leaving, completes, 0), 0)
    lanes = tl.arange(0, LANES)
    move = moves + (tl.where(inside, cells + index, edges) + lanes) * 4
    there = lanes < tl.where(inside, 1, tl.where(leaving, num_edges, 0))
    token = tl.load(move, mask=there, other=-1)
    closed = tl.load(move + 3, mask=there, other=0)
    there = there & ((closed == 0) | (limit < 0) | (after < limit))
    return token, move, there, after, leaving & (can_end != 0), start, end


@triton.jit
def _add(part, index, count, number, to_part, to_index, to_count, lane):
    """One more position, unless it is there; ``number`` may grow past WIDTH."""
    again = 0
    if number > 0:
        same = (part == to_part) & (index == to_index) & (count == to_count) & (lane < number)
        again = tl.max(same.to(tl.int32), axis=0)
    here = (lane == number) & (again == 0)
    part = tl.where(here, to_part, part)
    index = tl.where(here, to_index, index)
    count = tl.where(here, to_count, count)
    return part, index, count, number + 1 - again


@triton.jit
def step(
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
    KIND: tl.constexpr,
    LANES: tl.constexpr,
):
    """The positions after one more token, and flags."""
    lane = tl.arange(0, _WIDTH)
    new_part = tl.full([_WIDTH], -1, tl.int32)
    new_index = tl.zeros([_WIDTH], tl.int32)
    new_count = tl.zeros([_WIDTH], tl.int32)
    number = 0
    ended = 0
    for w in range(0, tl.sum((part >= 0).to(tl.int32), axis=0)):
        at_part = pick(part, lane, w)
        at_count = pick(count, lane, w)
        single, move, there, after, ends, start, end = ways(
            at_part, pick(index, lane, w), at_count, limit, offset, blocks, overflow, parts, moves, LANES
        )
        ended = ended | ((ends & (token == eos)) | (at_part == done_part)).to(tl.int32)
        hit = (there & (single == token)).to(tl.int32)
        hits = tl.sum(hit, axis=0)
        if hits > 0:
            rank = tl.cumsum(hit, axis=0)
            to_part = tl.load(move + 1, mask=hit != 0, other=0)
            to_index = tl.load(move + 2, mask=hit != 0, other=0)
            for k in range(1, hits + 1):
                chosen = (hit != 0) & (rank == k)
                new_part, new_index, new_count, number = _add(
                    new_part,
                    new_index,
                    new_count,
                    number,
                    tl.sum(tl.where(chosen, to_part, 0), axis=0),
                    tl.sum(tl.where(chosen, to_index, 0), axis=0),
                    after,
                    lane,
                )
        child = find(low, high, start, end, token, KIND)
        if child >= 0:
            child_part = tl.load(parts + at_part * 8 + 7)
            new_part, new_index, new_count, number = _add(
                new_part, new_index, new_count, number, child_part, child, at_count, lane
            )
    flags = tl.where(number > _WIDTH, _TOO_MANY_POSITIONS, 0)
    new_part = tl.where(number > _WIDTH, -1, new_part)
    if number == 0:
        new_part = tl.where((lane == 0) & (ended > 0), done_part, -1)
        lost = (ended == 0) & (tl.max(part, axis=0) >= 0)
        flags = tl.where(lost, _NOT_ALLOWED, 0)
    return new_part, new_index, new_count, flags
