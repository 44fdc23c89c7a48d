"""What the exact joins read: rows checked, quantised by common axes, and which of them are equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from obverse import _core
from obverse.engine.diversity.quantise import Quantised, Rows, checked_rows, quantise_with, row_basis
from obverse.engine.errors import InputError

__all__ = ["Kernel", "Side", "kernel_number", "prepare"]

Indices: TypeAlias = npt.NDArray[np.int64]
Kernel: TypeAlias = Literal["auto", "avx512vnni", "avx2", "portable"]

_KERNELS: dict[str, int] = {"auto": 2, "avx512vnni": 2, "avx2": 1, "portable": 0}


@dataclass(frozen=True)
class Side:
    """One side of a join: its rows, quantised, and for each row the first with the same bytes (int64 ``[N]``)."""

    x: Rows
    quantised: Quantised
    first: Indices

    @property
    def distinct(self) -> npt.NDArray[np.int32]:
        """The first rows, rising."""
        return np.flatnonzero(self.first == np.arange(len(self.first))).astype(np.int32)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What the core takes."""
        return self.x, self.quantised.norms, self.quantised.q, self.quantised.error


def kernel_number(kernel: Kernel) -> int:
    """The core's number of a kernel's name; the core uses the best that the processor has up to it."""
    if kernel not in _KERNELS:
        raise InputError("one of " + ", ".join(_KERNELS), field="kernel", seen=kernel)
    return _KERNELS[kernel]


def prepare(*parts: Rows, threads: int, isa: int) -> list[Side]:
    """The sides of a join, checked and quantised by the same axes.

    Raises `InputError` as `checked_rows` does, and where dtypes or numbers of columns differ.
    """
    names = ("x", "y")
    norms = [checked_rows(x, name=names[i], threads=threads, isa=isa) for i, x in enumerate(parts)]
    if len({(x.shape[1], x.dtype) for x in parts}) > 1:
        raise InputError(
            f"as many columns and the same dtype as x, {parts[0].shape[1]} of {parts[0].dtype}",
            field="y",
            seen=f"{parts[1].shape[1]} of {parts[1].dtype}",
        )
    basis = row_basis(*zip(parts, norms, strict=True))
    return [
        Side(x, quantise_with(x, basis, norm, threads=threads, isa=isa), _core.first_equal_rows(x, threads=threads))
        for x, norm in zip(parts, norms, strict=True)
    ]
