"""Vendi scores and the mean cosine of a set of vectors, exact at any size: one pass over the rows, no kernel matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse._core import symmetric_eigenvalues
from obverse.engine.diversity.vectors import check_values
from obverse.engine.errors import InputError

__all__ = ["mean_cosine", "spectrum", "spectrum_score", "vendi_score", "vendi_scores"]

Matrix = npt.NDArray[Any]
Wide = npt.NDArray[np.float64]

ORDERS = (0.1, 0.5, 1.0, 2.0, math.inf)
_BLOCK = 1024
# Bits that a sum of products over a block may take: below float64's 53, so that every sum in it is exact.
_EXACT_BITS = 52
# Eigenvalues below this part of their sum count as 0. Rounding leaves some 1e-13; float16 rows have 1e-11 and more.
_FLOOR = 1e-12


def vendi_score(x: Matrix, q: float = 1.0, *, weights: npt.ArrayLike | None = None) -> float:
    """The Vendi score of order ``q`` of the rows ``x [N, d]``; see `vendi_scores`."""
    return vendi_scores(x, (q,), weights=weights)[q]


def vendi_scores(
    x: Matrix, orders: Sequence[float] = ORDERS, *, weights: npt.ArrayLike | None = None
) -> dict[float, float]:
    """Vendi scores of the rows ``x [N, d]`` under the cosine kernel, by order: the effective number of rows.

    With l the eigenvalues of the matrix of sqrt(p_i p_j) cos(x_i, x_j), the score of order q is
    (sum of l^q)^(1 / (1 - q)); at 1 exp of their entropy (Friedman and Dieng, arXiv 2210.02410), at infinity
    1 / max l (Pasarkar and Dieng, arXiv 2310.12952). p is uniform, or ``weights [N]`` scaled to sum 1 (each at least
    0). It lies between 1 and min(N, d); small orders count what is rare more.

    ``x`` may be a memory map; it is read once. Costs N d^2 / 2 multiply-adds in float64. The result is that of the
    rows to about 1e-9 and doesn't depend on the number of threads (see `spectrum`).

    Raises `InputError` for no rows, values that aren't finite, a row of zeros, orders below 0, and weights that are
    not N finite numbers >= 0 with a sum above 0.
    """
    values = spectrum(x, weights=weights)
    return {float(q): spectrum_score(values, q) for q in orders}


def spectrum_score(eigenvalues: npt.ArrayLike, q: float) -> float:
    """The Vendi score of order ``q`` (0 to infinity) from eigenvalues of sum 1; zeros among them don't count."""
    if not q >= 0:
        raise InputError("an order of 0 or more", field="q", seen=q)
    values = np.asarray(eigenvalues, np.float64)
    values = values[values > 0]
    if q == 1:
        return float(np.exp(-(values * np.log(values)).sum()))
    if math.isinf(q):
        return float(1 / values.max())
    return float(np.exp(np.log((values**q).sum()) / (1 - q)))


def spectrum(x: Matrix, *, weights: npt.ArrayLike | None = None) -> Wide:
    """The eigenvalues of the cosine kernel of ``x [N, d]`` over its trace, largest first, ``[min(N, d)]``.

    They are those of the d x d matrix X' diag(p) X of unit rows (or of the N x N one where N is less), which has the
    same non-zero eigenvalues. Unit rows are rounded to a grid (of 2^-21 at the coarsest, for rows of one weight) that
    is chosen block by block so that float64 holds every partial sum of products exactly: any order of summing, so any
    number of threads and any BLAS, gives the same matrix. That moved an eigenvalue of 65,536 text embeddings by 3e-11
    of their sum at most. Values below 1e-12 of the sum come back as 0.
    """
    _check_shape(x)
    share = _checked_weights(weights, len(x))
    gram = _kernel(x, share) if len(x) < x.shape[1] else _covariance(x, share)
    # The core's: LAPACK over a threaded BLAS gives other last digits with other numbers of threads.
    values = symmetric_eigenvalues(np.ascontiguousarray(gram / np.trace(gram)))
    result: Wide = np.where(values > _FLOOR, values, 0.0)
    return result


def mean_cosine(x: Matrix) -> float:
    """Mean cosine over all pairs of different rows of ``x [N, d]``: (|sum of unit rows|^2 - N) / (N (N - 1)).

    Raises `InputError` for fewer than two rows, values that aren't finite, and a row of zeros.
    """
    _check_shape(x)
    if len(x) < 2:
        raise InputError("at least two rows", seen=len(x))
    total, squares = np.zeros(x.shape[1]), 0.0
    for _, rows in _unit_blocks(x):
        total += rows.sum(axis=0)
        squares += float(np.einsum("nd,nd->", rows, rows))
    return (float(np.einsum("d,d->", total, total)) - squares) / (len(x) * (len(x) - 1))


def _check_shape(x: Matrix) -> None:
    if x.ndim != 2 or not x.shape[1] or x.dtype.kind != "f":
        raise InputError("a matrix [rows, dimensions] of floats", field="vector", seen=f"{x.dtype} {x.shape}")
    if not len(x):
        raise InputError("at least one vector")


def _checked_weights(weights: npt.ArrayLike | None, rows: int) -> Wide | None:
    if weights is None:
        return None
    share = np.asarray(weights, np.float64)
    if share.shape != (rows,):
        raise InputError(f"one weight a row, {rows}", field="weight", seen=share.shape)
    bad = ~np.isfinite(share) | (share < 0)
    if bad.any():
        at = int(bad.argmax())
        raise InputError("finite weights of 0 or more", row=at, field="weight", seen=float(share[at]))
    if not share.any():
        raise InputError("weights with a sum above 0", field="weight", seen=0.0)
    # Relative to the largest, so that a sum over rows can't overflow; the trace scales them in the end.
    relative: Wide = share / share.max()
    return relative


def _unit_blocks(x: Matrix) -> Iterator[tuple[int, Wide]]:
    for start in range(0, len(x), _BLOCK):
        part = x[start : start + _BLOCK]
        check_values(part, np.arange(start, start + len(part)), start)
        rows = part.astype(np.float64)
        # One value of 1e-200 must not count as 0; powers of two change no digit.
        rows *= np.exp2(-np.frexp(np.abs(rows).max(axis=1, keepdims=True))[1])
        rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
        yield start, rows


def _on_grid(rows: Wide) -> Wide:
    """``rows`` on a grid that makes every sum of products of two of its columns exact."""
    # By Cauchy-Schwarz no such sum is more than the largest column's sum of squares.
    most = float(np.einsum("nd,nd->d", rows, rows).max())
    if not most:
        return rows
    unit = 2.0 ** math.ceil((math.log2(most) - _EXACT_BITS) / 2)
    result: Wide = np.rint(rows / unit) * unit
    return result


def _covariance(x: Matrix, share: Wide | None) -> Wide:
    gram = np.zeros((x.shape[1], x.shape[1]))
    for start, rows in _unit_blocks(x):
        part = _on_grid(rows if share is None else rows * np.sqrt(share[start : start + len(rows), None]))
        gram += part.T @ part
    return gram


def _kernel(x: Matrix, share: Wide | None) -> Wide:
    """The N x N matrix, for fewer rows than dimensions."""
    rows = np.concatenate([block for _, block in _unit_blocks(x)])
    part = _on_grid(rows.T).T
    gram: Wide = part @ part.T
    return gram if share is None else gram * np.sqrt(np.outer(share, share))
