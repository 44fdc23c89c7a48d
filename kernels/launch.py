"""Where a kernel can run, and in what blocks."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Literal, NamedTuple, get_args

import torch

__all__ = [
    "KERNELS",
    "BlockSizes",
    "Implementation",
    "Kernel",
    "choose",
    "one_program_blocks",
    "row_blocks",
    "tile_blocks",
    "triton_installed",
    "triton_interprets",
]

Kernel = Literal["auto", "triton", "cpp", "cpp-avx512", "cpp-avx2", "cpp-portable", "reference"]
Implementation = Literal["triton", "cpp", "cpp-avx512", "cpp-avx2", "cpp-portable", "reference"]
KERNELS: tuple[str, ...] = get_args(Kernel)

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BlockSizes(NamedTuple):
    """The tile of logits that one Triton program works on at a time."""

    rows: int
    columns: int
    num_warps: int
    wide: bool = False
    """A program has one row, over which the tile walks; else a row of the tile is a whole row of the logits."""

    def grid(self, num_rows: int) -> tuple[int]:
        """Programs for ``num_rows`` rows of logits."""
        return (num_rows if self.wide else -(-num_rows // self.rows),)


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

    ``auto``: C++ on CPU tensors and Triton on CUDA tensors of float32, bfloat16 or float16; the reference for
    everything else (float64, other devices), where a weight itself needs a gradient, for only it differentiates
    those, and inside torch.func's transforms, which take operations apart. ``auto`` never interprets.
    ``cpp-avx512``, ``cpp-avx2`` and ``cpp-portable`` hold the C++ kernels to an instruction set at most.

    Raises ValueError when the named implementation can't do what is asked.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, saw {kernel!r}")
    transformed = torch._C._are_functorch_transforms_active()  # as torch.autograd.Function.apply itself asks
    if kernel == "reference" or (kernel == "auto" and (weight_gradients or transformed)):
        return "reference"
    if weight_gradients:
        raise ValueError(f"kernel={kernel!r} has no gradients for weights; use kernel='reference' or detach them")
    able = logits.dtype in _KERNEL_DTYPES
    if kernel == "auto":
        if not able or logits.device.type not in ("cpu", "cuda"):
            return "reference"
        return "cpp" if logits.device.type == "cpu" else "triton" if triton_installed() else "reference"
    if not able:
        raise ValueError(f"kernel={kernel!r} does not take {logits.dtype}; kernel='auto' picks one that does")
    if kernel != "triton":
        if logits.device.type != "cpu":
            raise ValueError(f"kernel={kernel!r} needs a CPU tensor, saw one on {logits.device}")
        return kernel
    if not triton_installed():
        raise ValueError("kernel='triton': Triton is not installed; kernel='auto' picks one that runs here")
    if not (logits.is_cuda or triton_interprets()):
        raise ValueError(
            f"kernel='triton' needs a CUDA tensor, saw one on {logits.device}; "
            "for a test on the CPU set TRITON_INTERPRET=1 before Python starts"
        )
    return "triton"


# A row of up to this many logits stays in the registers of its program: 16 a thread on 16 warps.
_WHOLE_ROW = 8192

# What one program does alone and in one launch, 32 tiles at most. More work is worth the launches it takes to
# share it out.
_ONE_PROGRAM_LOGITS = 1 << 17
_ONE_PROGRAM_COLUMNS = 1024


def row_blocks(num_columns: int, element_size: int, *, many_sums: bool = False) -> BlockSizes:
    """Blocks for a pass that needs whole rows of ``num_columns`` logits of ``element_size`` bytes.

    A tile of 16 values a thread is two 128-bit loads of bfloat16 in flight. Short rows
    share a program so that no lane idles: 16 classes take 128 rows a tile. A long row is read twice, the second time
    from the second-level cache if all rows in work fit in there: 132 SMs with one row of 256 KB each (32 warps of
    more than 32 registers leave room for no second) hold 34 of an H200's 60 MB, as do the shorter rows with fewer
    warps each. ``many_sums``: soft targets, or class weights smoothed over, keep so many sums a lane that 32 warps'
    64 registers a thread hold half the lanes.
    """
    if num_columns > _WHOLE_ROW:
        row_bytes = num_columns * element_size
        num_warps = 8 if row_bytes <= 1 << 16 else 16 if row_bytes <= 1 << 17 else 32
        width = 16 // element_size  # one 128-bit load
        return BlockSizes((1 if many_sums else 2) * 32 * num_warps, width, num_warps, wide=True)
    columns = max(2, 1 << (num_columns - 1).bit_length())
    rows = max(1, min(128, 2048 // columns))
    return BlockSizes(rows, columns, max(4, rows * columns // 512))


def tile_blocks(num_columns: int) -> BlockSizes:
    """Blocks for an elementwise pass over rows of ``num_columns`` logits, the columns divided among programs too.

    4,096 columns on 8 warps is 16 values a thread: two 128-bit loads of bfloat16 in flight and about 40
    registers on sm_90, where 65,536 columns spill.
    """
    columns = max(2, min(4096, 1 << (num_columns - 1).bit_length()))
    rows = max(1, min(128, 2048 // columns))
    return BlockSizes(rows, columns, 8 if rows * columns > 2048 else 4)


def one_program_blocks(num_rows: int, num_columns: int) -> BlockSizes | None:
    """Blocks for a problem that one program does alone, tile after tile; None where it is too large for that."""
    if num_columns > _ONE_PROGRAM_COLUMNS or num_rows * num_columns > _ONE_PROGRAM_LOGITS:
        return None
    columns = max(2, 1 << (num_columns - 1).bit_length())
    # Above 256 columns 32 warps' 64 registers a thread would not do for a row's sums.
    elements, num_warps = (8192, 32) if columns <= 256 else (4096, 16)
    rows = min(512, elements // columns, 1 << (num_rows - 1).bit_length())
    return BlockSizes(rows, columns, num_warps)
