"""Vectors as int8 rows with a proved error: the filter of the exact join and the approximate graph's distance.

Rows are brought to length 1 and turned by an orthogonal matrix: principal axes by falling variance, then a random
orthogonal matrix inside each block of 64 axes, so that the first 64 values of a row carry most of it and one scale
fits all. docs/exactness.md has the bound and its proof.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from obverse import _core
from obverse.engine.errors import InputError

__all__ = ["Basis", "Quantised", "Rows", "checked_rows", "num_threads", "quantise", "quantise_with", "row_basis"]

Rows: TypeAlias = npt.NDArray[np.float16] | npt.NDArray[np.float32]

_BLOCK = 64
_SAMPLE = 8192
# Beyond this many columns the axes' eigenvectors would cost more than they spare; the filter then reads more.
_MOST_AXES = 2048
_MOST_COLUMNS = 65_536
# Below this, bounds in units of scale^2 would not fit 32-bit integers.
_LEAST_SCALE = 2.0**-12


@dataclass(frozen=True)
class Basis:
    """``y = R^T x / |x|`` and ``q = round(y / scale)``.

    ``matrix [d, P]`` is R in float32, padded with columns of zeros to a multiple of 64; ``defect`` bounds the spectral
    norm of ``R R^T - I``.
    """

    matrix: npt.NDArray[np.float32]
    scale: float
    defect: float


@dataclass(frozen=True)
class Quantised:
    """``q [N, P]`` int8, ``error [N]`` and ``norms [N]`` (of x), the error such that

    ``|cosine(x_i, x_j) - scale^2 <q_i, q_j>| <= error[i] + error[j]``.
    """

    q: npt.NDArray[np.int8]
    error: npt.NDArray[np.float32]
    norms: npt.NDArray[np.float64]
    basis: Basis

    @property
    def scale(self) -> float:
        """Of ``q``: cosines are about ``scale ** 2`` times inner products of rows of ``q``."""
        return self.basis.scale


def num_threads(threads: int) -> int:
    """``threads``, or for 0 as many as this process may run on."""
    if threads < 0:
        raise InputError("threads of 0 (all) or more", seen=threads)
    return threads or len(os.sched_getaffinity(0))


def checked_rows(x: Rows, *, name: str = "x", threads: int = 0, isa: int = 2) -> npt.NDArray[np.float64]:
    """Norms ``[N]`` of the rows of ``x [N, d]``.

    Raises `InputError` where ``x`` is not a C-contiguous float16 or float32 matrix, has no columns, or 2^31 rows or
    more, or has a row with a value that is not finite or with zeros alone (the error names the row).
    """
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype not in (np.float16, np.float32):
        seen = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise InputError("a 2-D array of float16 or float32, one row a vector", field=name, seen=seen)
    if not 1 <= x.shape[1] <= _MOST_COLUMNS or x.shape[0] >= 2**31:
        raise InputError(f"1 to {_MOST_COLUMNS} columns and fewer than 2^31 rows", field=name, seen=x.shape)
    if not x.flags.c_contiguous:
        raise InputError("rows without gaps (C-contiguous)", field=name, seen=f"strides {x.strides}")
    norms, bad = _core.vector_norms(x, threads=num_threads(threads), isa=isa)
    if bad >= 0:
        row = x[bad]
        wrong = row[~np.isfinite(row)]
        raise InputError(
            "finite values, not all of them zero", row=bad, field=name, seen=float(wrong[0]) if wrong.size else 0.0
        )
    return norms


def row_basis(*parts: tuple[Rows, npt.NDArray[np.float64]], seed: int = 0) -> Basis:
    """The axes and the scale, from a sample of at most 8192 rows of each ``(x [N, d], norms [N])``.

    The sample and the mixing of axes are keyed by ``seed``.
    """
    d = parts[0][0].shape[1]
    rng = np.random.default_rng([seed, d])
    sample = np.concatenate([_sample(x, norms, rng) for x, norms in parts])
    axes = np.eye(d)
    if 1 < d <= _MOST_AXES and len(sample) > 1:
        single = sample.astype(np.float32)
        axes = np.ascontiguousarray(np.linalg.eigh((single.T @ single).astype(np.float64))[1][:, ::-1])
    for low in range(0, d, _BLOCK):
        width = min(_BLOCK, d - low)
        mix = np.linalg.qr(rng.standard_normal((width, width)))[0]
        axes[:, low : low + width] = axes[:, low : low + width] @ mix
    matrix = np.zeros((d, -(-d // _BLOCK) * _BLOCK), np.float32)
    matrix[:, :d] = axes
    stored = matrix[:, :d].astype(np.float64)
    gap = stored @ stored.T - np.eye(d)
    # The Frobenius norm bounds the spectral one; the second term is the rounding of the product in float64.
    defect = float(np.sqrt((gap**2).sum())) * (1 + 1e-9) + d**1.5 * 2.0**-50
    return Basis(matrix, _best_scale(sample[:: max(1, len(sample) // 1024)] @ stored), defect)


def _sample(x: Rows, norms: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    rows = np.sort(rng.choice(len(x), _SAMPLE, replace=False)) if len(x) > _SAMPLE else np.arange(len(x))
    result: npt.NDArray[np.float64] = np.asarray(x[rows], np.float64) / norms[rows, None]
    return result


def _best_scale(y: npt.NDArray[np.float64]) -> float:
    """The scale with the least mean error over the sample: values beyond 127 steps are clipped, which rows pay for."""
    if len(y) == 0:
        return 1.0 / 127
    top = float(np.abs(y).max())

    def cost(scale: float) -> float:
        return float(np.sqrt(((y - scale * np.clip(np.rint(y / scale), -127, 127)) ** 2).sum(1)).mean())

    best = min((top * share / 127 for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)), key=cost)
    return max(best, _LEAST_SCALE)


def quantise_with(
    x: Rows,
    basis: Basis,
    norms: npt.NDArray[np.float64],
    *,
    threads: int = 0,
    isa: int = 2,
    out: npt.NDArray[np.int8] | None = None,
) -> Quantised:
    """The rows of ``x [N, d]`` under a given basis; ``out [N, P]`` may be memory that the caller owns."""
    q, error = _core.quantise_rows(
        x, norms, basis.matrix, basis.scale, basis.defect, q=out, threads=num_threads(threads), isa=isa
    )
    return Quantised(q, error, norms, basis)


def quantise(x: Rows, *, threads: int = 0, seed: int = 0, isa: int = 2) -> Quantised:
    """The rows of ``x [N, d]`` as int8 ``[N, P]``, P = d rounded up to a multiple of 64.

    Raises `InputError` as `checked_rows` does.
    """
    norms = checked_rows(x, threads=threads, isa=isa)
    return quantise_with(x, row_basis((x, norms), seed=seed), norms, threads=threads, isa=isa)
