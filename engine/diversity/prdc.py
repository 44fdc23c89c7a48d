"""Precision, recall, density and coverage of a synthetic set beside a real one, without any matrix of distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse.engine.errors import InputError

__all__ = ["prdc"]

Matrix = npt.NDArray[Any]


def prdc(
    real: Matrix,
    synthetic: Matrix,
    k: int = 5,
    *,
    threads: int = 0,
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[str, float]:
    """Precision, recall, density and coverage (Naeem et al., arXiv 2002.09797) of ``synthetic [M, d]``.

    A row's ball reaches to its k-th nearest other row of its own set, and what lies on its edge is outside.
    ``precision``: share of synthetic rows in some ball of a real row; ``recall``: share of real rows in some ball of a
    synthetic row (Kynkäänniemi et al., arXiv 1904.06991); ``density``: balls of real rows that a synthetic row lies
    in, over k, on average; ``coverage``: share of balls of real rows that hold a synthetic row.

    Balls are of cosines, as everywhere here: rows are taken at length 1, where cosine and Euclidean balls are the
    same. Vectors whose lengths mean something are not for this function. Radii and cosines are rounded to float32, so
    rows less than about 3e-4 apart at length 1 count as equally near.

    All four fall or rise with N and M: compare sets of one size. Exact: two self-joins and one pass over all pairs,
    O(k (N + M)) memory; both matrices may be memory maps. ``on_progress`` gets numbers of rows newly done, 2 N + M in
    all. Raises `InputError` unless 1 <= k < N and k < M, and as the joins do.
    """
    from obverse.engine.diversity import exact

    for name, rows in (("real", real), ("synthetic", synthetic)):
        if not 1 <= k < len(rows):
            raise InputError(f"k of at least 1 and less than the {name} rows ({len(rows)})", field="k", seen=k)
    radii = [exact.self_join(rows, k, threads=threads, on_progress=on_progress)[1][:, -1] for rows in (real, synthetic)]
    # Inside is nearer than the k-th neighbour, and the join counts what is as near as the radius given.
    inside = [np.nextafter(radius, np.float32(np.inf)) for radius in radii]
    balls = exact.ball_counts(real, synthetic, inside[0], inside[1], threads=threads, on_progress=on_progress)
    return {
        "precision": float(np.count_nonzero(balls.inside_y) / len(synthetic)),
        "recall": float(np.count_nonzero(balls.reached_x) / len(real)),
        "density": int(balls.inside_y.sum()) / (k * len(synthetic)),
        "coverage": float(np.count_nonzero(balls.inside_x) / len(real)),
    }
