"""The exact engine on a GPU: `obverse.kernels.neighbours` over vectors in host memory."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from obverse.engine.diversity.quantise import checked_rows

if TYPE_CHECKING:
    import torch

__all__ = ["fits", "has_device", "self_join"]

_BLOCK = 1 << 17
# What the merges of a join hold beside its lists.
_WORKING_BYTES = 3 << 30


def has_device() -> bool:
    """Whether torch is there and has a CUDA device."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def fits(rows: int, dim: int, itemsize: int, k: int) -> bool:
    """Whether the vectors, their int8 or float16 copies and the lists fit what is free on the device now."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    return bool(rows * (dim * (itemsize + 4) + 64 * k + 64) + _WORKING_BYTES <= free)


def self_join(
    x: npt.NDArray[Any], k: int, *, seed: int = 0, device: str = "cuda"
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], dict[str, Any]]:
    """The ``k`` nearest other rows of each row of ``x [N, d]``, 1 <= k < N: indices, similarities, counts of the join.

    The vectors go to the device a block at a time; see `obverse.kernels.neighbours.self_join`. Raises `InputError` as
    `checked_rows` does, and torch's own error where the device's memory is short.
    """
    import torch

    from obverse.kernels import neighbours

    checked_rows(x)
    stored = torch.empty(x.shape, dtype=_block(x, 0)[:0].dtype, device=device)
    for low in range(0, len(x), _BLOCK):
        stored[low : low + _BLOCK] = _block(x, low).to(device)
    found = neighbours.self_join(stored, k, seed=seed)
    return found.indices.cpu().numpy(), found.similarities.cpu().numpy(), {"device": device, **found.counts._asdict()}


def _block(x: npt.NDArray[Any], low: int) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(x[low : low + _BLOCK]))
