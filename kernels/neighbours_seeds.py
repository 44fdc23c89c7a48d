"""What the exact join starts from: thresholds from random clusters, and groups of equal rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from obverse.kernels.neighbours_lists import NO_KEY, exact_keys, indices_of, keys_of, similarities_of

__all__ = ["Groups", "expand_groups", "first_keys", "group_rows"]

_ROUNDS = 4
"""Rounds of clusters. Each looks at 768 rows a row; what they cost is some percent of the pass at a million rows."""
_WINDOW = 256
"""Rows to a cluster on average, and to a block that is compared with itself and the blocks beside it."""
_MOST_CENTRES = 1 << 14


class _Stored(NamedTuple):
    stored: Tensor
    inverse_norms: Tensor


class Groups(NamedTuple):
    """Bit-equal rows."""

    firsts: Tensor
    """int64 [G]: the first row of each group, ascending."""
    group: Tensor
    """int64 [N]: the group of each row."""
    members: Tensor
    """int64 [N]: rows by group, ascending in each."""
    starts: Tensor
    """int64 [G + 1]: where each group begins in ``members``."""


def first_keys(stored: Tensor, inverse_norms: Tensor, quick: Tensor, k: int, seed: int) -> Tensor:
    """Lists ``[N, k]`` (keys, sorted) of near rows: those near in an order by random clusters, over a few rounds.

    Rows are sorted by the nearest of N / 256 random rows, these by their place along one direction; a row meets those
    of its block of 256 and of the two beside it, by products of ``quick``. Where fewer than ``k`` others were met the
    list ends in `NO_KEY`.
    """
    n = len(quick)
    generator = torch.Generator().manual_seed(seed)
    # Libraries have no products of int8 in batches; float16 holds its values, but on a CPU is slow.
    kind = torch.float16 if quick.is_cuda else torch.float32
    best_values = torch.full((n, k), -torch.inf, dtype=torch.float32, device=quick.device)
    best = torch.full((n, k), -1, dtype=torch.int64, device=quick.device)
    for _ in range(_ROUNDS):
        order = _cluster_order(quick, kind, generator)
        for block in range(0, n, _WINDOW * 64):
            own = order[block : block + _WINDOW * 64]
            _meet(quick, kind, order, own, block, best, best_values)
    return _exact_lists(_Stored(stored, inverse_norms), best)


def _short(values: Tensor, kind: torch.dtype) -> Tensor:
    """int8 rows as numbers whose products don't leave float16's range."""
    return values.to(kind) / 64


def _cluster_order(quick: Tensor, kind: torch.dtype, generator: torch.Generator) -> Tensor:
    n, device = len(quick), quick.device
    number = max(1, min(n // _WINDOW, _MOST_CENTRES))
    centres = _short(quick[torch.randperm(n, generator=generator)[:number].to(device)], kind)
    along = centres.float() @ torch.randn(quick.shape[1], generator=generator).to(device)
    centres = centres[along.argsort()]
    nearest = torch.empty(n, dtype=torch.int64, device=device)
    step = max(1, (1 << 28) // number)
    for low in range(0, n, step):
        nearest[low : low + step] = (_short(quick[low : low + step], kind) @ centres.T).argmax(dim=1)
    return nearest.argsort(stable=True)


def _meet(
    quick: Tensor, kind: torch.dtype, order: Tensor, own: Tensor, block: int, best: Tensor, best_values: Tensor
) -> None:
    """Compare the rows ``own`` (at ``block`` of ``order``) with those at most a window away; keep each row's best."""
    n, k, device = len(order), best.shape[1], quick.device
    number = -(-len(own) // _WINDOW)
    places = block + torch.arange(number * _WINDOW, device=device).view(number, _WINDOW)
    around = block + _WINDOW * torch.arange(number, device=device)[:, None]
    around = around + torch.arange(-_WINDOW, 2 * _WINDOW, device=device)[None]
    rows, others = order[places.clamp(max=n - 1)], order[around.clamp(0, n - 1)]
    values = torch.bmm(_short(quick[rows], kind), _short(quick[others], kind).transpose(1, 2)).float()
    unfit = ((around < 0) | (around >= n))[:, None, :] | (rows[:, :, None] == others[:, None, :])
    values.masked_fill_(unfit, -torch.inf)
    wide = min(k, values.shape[2])
    found, columns = values.topk(wide, dim=2)
    found, columns = found.view(-1, wide)[: len(own)], columns.view(-1, wide)[: len(own)]
    blocks = torch.arange(len(own), device=device) // _WINDOW
    ids = torch.where(found > -torch.inf, others[blocks[:, None], columns], -1)
    # What a row has already would take two of its places.
    known = (ids[:, :, None] == best[own][:, None, :]).any(dim=2)
    both = torch.cat([best_values[own], found.masked_fill(known, -torch.inf)], dim=1)
    names = torch.cat([best[own], ids.masked_fill(known, -1)], dim=1)
    best_values[own], chosen = both.topk(k, dim=1)
    best[own] = names.gather(1, chosen)


def _exact_lists(rows: _Stored, found: Tensor) -> Tensor:
    """Candidates [N, k] (-1: none) as sorted keys of their exact similarities."""
    keys = torch.full(found.shape, NO_KEY, dtype=torch.int64, device=found.device)
    there = (found >= 0).nonzero()
    keys[there[:, 0], there[:, 1]] = exact_keys(rows, rows, there[:, 0], found[there[:, 0], there[:, 1]])
    return keys.sort(dim=1, descending=True).values


def group_rows(x: Tensor) -> Groups | None:
    """Groups of bit-equal rows of ``x``; None where no two are equal.

    Rows are sorted by a 64-bit sum of their bits times random odd numbers, and rows next to each other with one sum
    are compared; two different rows of one sum (a chance of 2^-64 a pair) between equal ones only leave a group split.
    """
    words = x.contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32)
    generator = torch.Generator().manual_seed(0x0B5E)
    factors = torch.randint(-(1 << 62), 1 << 62, (x.shape[1],), generator=generator).mul(2).add(1).to(x.device)
    sums = torch.cat([(words[low : low + (1 << 16)].long() * factors).sum(dim=1) for low in range(0, len(x), 1 << 16)])
    order = sums.argsort(stable=True)
    ordered = sums[order]
    same = ordered[1:] == ordered[:-1]
    places = same.nonzero()[:, 0]
    for low in range(0, len(places), 1 << 16):
        part = places[low : low + (1 << 16)]
        same[part] = (words[order[part]] == words[order[part + 1]]).all(dim=1)
    if not bool(same.any()):
        return None
    number = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    number[1:] = (~same).cumsum(0)
    starts = torch.cat([torch.zeros(1, dtype=torch.bool, device=x.device), same]).logical_not().nonzero()[:, 0]
    firsts = order[starts]  # the lowest: the sort is stable
    by_row = firsts.argsort()
    rank = torch.empty_like(by_row)
    rank[by_row] = torch.arange(len(by_row), device=x.device)
    group = torch.empty_like(order)
    group[order] = rank[number]
    members = group.argsort(stable=True)
    sizes = torch.bincount(group, minlength=len(firsts))
    ends = torch.cat([torch.zeros(1, dtype=torch.int64, device=x.device), sizes.cumsum(0)])
    return Groups(firsts[by_row], group, members, ends)


def expand_groups(keys: Tensor, groups: Groups, k: int) -> Tensor:
    """Lists ``[N, k]`` of all rows from those of the groups' first rows, ``keys [G, wide]`` of groups.

    A row's own group is at similarity 1 (its cosine with itself, which float32 rounds to 1). Of a group at most
    ``k + 1`` members can be in a list.
    """
    n, device = len(groups.group), keys.device
    sizes = groups.starts[1:] - groups.starts[:-1]
    most = int(min(k + 1, int(sizes.max())))
    result = torch.empty((n, k), dtype=torch.int64, device=device)
    step = max(1, (1 << 24) // ((keys.shape[1] + 1) * most))
    offsets = torch.arange(most, device=device)
    for low in range(0, n, step):
        rows = torch.arange(low, min(low + step, n), device=device)
        own = groups.group[rows]
        near, values = indices_of(keys[own]), similarities_of(keys[own])
        near = torch.cat([own[:, None], near], dim=1)
        values = torch.cat([torch.ones_like(rows, dtype=torch.float32)[:, None], values], dim=1)
        there = (near >= 0)[:, :, None] & (offsets < sizes[near.clamp(min=0)][:, :, None])
        place = groups.starts[near.clamp(min=0)][:, :, None] + offsets
        members = groups.members[place.clamp(max=n - 1)]
        there &= members != rows[:, None, None]
        wide = torch.where(there, keys_of(values[:, :, None].expand(members.shape), members), NO_KEY)
        result[rows] = wide.view(len(rows), -1).sort(dim=1, descending=True).values[:, :k]
    return result
