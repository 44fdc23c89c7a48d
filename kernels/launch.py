"""Where a kernel can run, and in what blocks."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Literal, NamedTuple

import torch

__all__ = ["BlockSizes", "Implementation", "Kernel", "choose", "row_blocks", "triton_installed", "triton_interprets"]

Kernel = Literal["auto", "triton", "blocked", "reference"]
Implementation = Literal["triton", "blocked", "reference"]

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BlockSizes(NamedTuple):
    """The tile of logits that one Triton program works on at a time."""

    rows: int
    columns: int
    num_warps: int


@cache
def triton_installed() -> bool:
    """Whether the package is there; importing it is left to the kernels' own modules."""
    return importlib.util.find_spec("triton") is not None


def triton_interprets() -> bool:
    """Whether Triton runs its kernels in its interpreter (TRITON_INTERPRET=1 before its first import)."""
    if not triton_installed():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def choose(kernel: Kernel, logits: torch.Tensor, *, weight_gradients: bool) -> Implementation:
    """Which implementation runs; all give the same numbers to rounding.

    ``auto``: Triton on CUDA tensors of float32, bfloat16 or float16; ``blocked`` torch (row blocks that stay
    in cache, nothing of the logits' size but the gradient) for everything else; ``reference`` where a weight
    itself needs a gradient, for only it differentiates those. ``auto`` never interprets.

    Raises ValueError when the named implementation can't do what is asked.
    """
    if kernel == "reference" or (kernel == "auto" and weight_gradients):
        return "reference"
    if weight_gradients:
        raise ValueError(f"kernel={kernel!r} has no gradients for weights; use kernel='reference' or detach them")
    if kernel == "blocked":
        return "blocked"
    able = triton_installed() and logits.dtype in _TRITON_DTYPES
    if kernel == "auto":
        return "triton" if able and logits.is_cuda else "blocked"
    if kernel != "triton":
        raise ValueError(f"kernel: expected auto, triton, blocked or reference, saw {kernel!r}")
    if not able:
        reason = f"does not take {logits.dtype}" if triton_installed() else "is not installed"
        raise ValueError(f"kernel='triton': Triton {reason}; kernel='auto' picks one that runs here")
    if not (logits.is_cuda or triton_interprets()):
        raise ValueError(
            f"kernel='triton' needs a CUDA tensor, saw one on {logits.device}; "
            "for a test on the CPU set TRITON_INTERPRET=1 before Python starts"
        )
    return "triton"


def row_blocks(num_columns: int) -> BlockSizes:
    """Blocks for a row-wise pass over ``num_columns`` logits.

    4,096 columns on 8 warps is 16 values a thread: two 128-bit loads of bfloat16 in flight and about 40
    registers on sm_90, where 65,536 columns spill. Short rows share a program so that no lane idles:
    16 classes take 128 rows a tile.
    """
    columns = max(16, min(4096, 1 << (num_columns - 1).bit_length()))
    rows = max(1, min(128, 2048 // columns))
    return BlockSizes(rows, columns, 8 if rows * columns > 2048 else 4)
