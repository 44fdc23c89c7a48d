"""The truth of the exact join: all similarities in float64, sorted."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["join_reference", "self_join_reference"]


def _cosines(x: Tensor, y: Tensor) -> Tensor:
    left, right = x.double(), y.double()
    lengths = torch.linalg.vector_norm(left, dim=1)[:, None] * torch.linalg.vector_norm(right, dim=1)[None, :]
    values: Tensor = ((left @ right.T) / lengths).float()
    return values


def _nearest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    ordered, places = torch.sort(values, dim=1, descending=True, stable=True)
    return places[:, :k], ordered[:, :k]


def self_join_reference(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` other rows of the highest cosine for every row of ``x [N, d]``: indices, similarities ``[N, k]``.

    Cosines in float64, rounded to float32; of equal ones the lower row is first. Memory O(N^2).
    """
    values = _cosines(x, x)
    values.fill_diagonal_(-torch.inf)
    return _nearest(values, min(k, len(x) - 1))


def join_reference(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of ``y [M, d]`` of the highest cosine for every row of ``x [N, d]``, as `self_join_reference`."""
    return _nearest(_cosines(x, y), min(k, len(y)))
