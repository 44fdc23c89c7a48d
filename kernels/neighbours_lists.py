"""Lists of nearest rows as sorted 64-bit keys: the similarity's bits above, the row below, counted backwards.

Keys order as (similarity descending, row ascending) does, all different, so that sorting is all there is to a merge and
its result does not depend on the order of work.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["NO_KEY", "exact_keys", "indices_of", "keys_of", "merge_pairs", "similarities_of"]

NO_KEY = -(1 << 63)
"""A place of a list that is still free; below every key."""
_ROW_BITS = 32
_LAST_ROW = (1 << _ROW_BITS) - 1
_BLOCK = 1 << 17
"""Pairs computed in float64 at a time: 128 MB a side at 128 columns, 400 at 384."""


class _Stored(Protocol):
    @property
    def stored(self) -> Tensor: ...
    @property
    def inverse_norms(self) -> Tensor: ...


def keys_of(similarities: Tensor, rows: Tensor) -> Tensor:
    """int64 keys of float32 similarities and rows below 2^31."""
    # A float's bits order as an integer does; negative ones the other way round. Minus zero is zero.
    bits = (similarities + 0.0).view(torch.int32).long()
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return (ordered << _ROW_BITS) | (_LAST_ROW - rows)


def indices_of(keys: Tensor) -> Tensor:
    """The rows of keys, int64; -1 of `NO_KEY`."""
    return torch.where(keys == NO_KEY, -1, _LAST_ROW - (keys & _LAST_ROW))


def similarities_of(keys: Tensor) -> Tensor:
    """The similarities of keys, float32; -inf of `NO_KEY`."""
    ordered = keys >> _ROW_BITS
    bits = torch.where(ordered < 0, -ordered | -(1 << 31), ordered).int()
    return torch.where(keys == NO_KEY, -torch.inf, bits.view(torch.float32))


def exact_keys(x: _Stored, y: _Stored, rows: Tensor, others: Tensor) -> Tensor:
    """Keys, for the lists of ``rows`` of x, of the cosines with ``others`` of y: in float64, rounded to float32."""
    parts = []
    for low in range(0, len(rows), _BLOCK):
        i, j = rows[low : low + _BLOCK], others[low : low + _BLOCK]
        dots = (x.stored[i].double() * y.stored[j].double()).sum(dim=1)
        cosines = dots * x.inverse_norms[i] * y.inverse_norms[j]
        parts.append(keys_of(cosines.float(), j))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=rows.device)


def merge_pairs(keys: Tensor, x: _Stored, y: _Stored | None, rows: Tensor, others: Tensor) -> None:
    """Put pairs into the sorted lists ``keys [N, k]`` in place; where ``y`` is None into the lists of both rows.

    A pair may be in its list already, or given twice.
    """
    found = exact_keys(x, x if y is None else y, rows, others)
    if y is None:
        found = torch.cat([found, keys_of(similarities_of(found), rows)])
        rows = torch.cat([rows, others])
    useful = found > keys[rows, -1]
    rows, found = rows[useful], found[useful]
    order = found.argsort(descending=True)
    rows, found = rows[order], found[order]
    order = rows.argsort(stable=True)
    rows, found = rows[order], found[order]
    different = torch.ones_like(rows, dtype=torch.bool)
    different[1:] = (rows[1:] != rows[:-1]) | (found[1:] != found[:-1])
    rows, found = rows[different], found[different]
    if not len(rows):
        return
    touched, lengths = torch.unique_consecutive(rows, return_counts=True)
    starts = lengths.cumsum(0) - lengths
    k = keys.shape[1]
    place = torch.arange(len(rows), device=rows.device) - torch.repeat_interleave(starts, lengths)
    slot = torch.repeat_interleave(torch.arange(len(touched), device=rows.device), lengths)
    first = place < k
    fresh = torch.full((len(touched), k), NO_KEY, dtype=torch.int64, device=rows.device)
    fresh[slot[first], place[first]] = found[first]
    both = torch.cat([keys[touched], fresh], dim=1).sort(dim=1, descending=True).values
    repeated = torch.zeros_like(both, dtype=torch.bool)
    repeated[:, 1:] = both[:, 1:] == both[:, :-1]
    keys[touched] = both.masked_fill(repeated, NO_KEY).sort(dim=1, descending=True).values[:, :k]
