"""What a set of weights does to its data: how many rows still count, which, and when to worry."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.errors import InputError
from obverse.engine.records.schemas import require_columns
from obverse.engine.weigh.weights import effective_sample_size

__all__ = ["LOST_GROUP", "LOW_EFFECTIVE_SHARE", "diagnostics"]

LOW_EFFECTIVE_SHARE = 0.1
"""Below this share of effective rows the weights are about to hurt."""

LOST_GROUP = 0.2
"""A group whose share of the weight is under this part of its share of the rows has lost its mass."""

_MANY_CLIPPED = 0.5
_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_BINS = 20
_SHOWN = 20

Floats = npt.NDArray[np.float64]


def diagnostics(weights: pa.Table, groups: pa.Array | pa.ChunkedArray | None = None) -> dict[str, Any]:
    """Describe a ``weights`` table; every figure is a plain number, ready for JSON.

    ``groups`` [N] gives each row's label, prompt or generator (null is a group of its own); rows are matched
    by place. Returned keys: ``num_rows``; ``effective_sample_size`` and ``effective_share``; ``max_weight``;
    ``clipped_low_share``, ``clipped_high_share``; ``quantiles`` (as strings to weights); ``histogram``
    (``edges`` of log10 weight, ``counts``, and ``zeros``); ``groups`` (name to ``rows``, ``share_of_rows``,
    ``share_of_weight``); ``highest`` and ``lowest`` (20 rows each, id and weight, ties by id); ``warnings``,
    in plain words.

    Raises `InputError` for a missing column, a weight that is negative or not finite, and groups of another
    length.
    """
    require_columns(weights, "id", "weight", "clipped", what="weights")
    ids = weights.column("id").to_numpy()
    values = weights.column("weight").to_numpy().astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise InputError("a finite weight >= 0", row=int(ids[bad[0]]), field="weight", seen=float(values[bad[0]]))
    if groups is not None and len(groups) != len(values):
        raise InputError(f"{len(values)} groups, one a row", field="groups", seen=len(groups))
    size = len(values)
    effective = effective_sample_size(values)
    report: dict[str, Any] = {
        "num_rows": size,
        "effective_sample_size": effective,
        "effective_share": effective / size if size else 0.0,
        "max_weight": float(values.max(initial=0.0)),
        "clipped_low_share": _share(weights.column("clipped"), "low"),
        "clipped_high_share": _share(weights.column("clipped"), "high"),
        "quantiles": _quantiles(values),
        "histogram": _histogram(values),
        "groups": {} if groups is None else _groups(values, groups),
        **_extremes(ids, values),
    }
    report["warnings"] = _warnings(report)
    return report


def _share(column: pa.ChunkedArray, which: str) -> float:
    if len(column) == 0:
        return 0.0
    count = pc.sum(pc.equal(column, which)).as_py() or 0
    return float(count) / len(column)


def _quantiles(values: Floats) -> dict[str, float]:
    if len(values) == 0:
        return {}
    return {f"{q:g}": float(w) for q, w in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)}


def _histogram(values: Floats) -> dict[str, Any]:
    positive = np.log10(values[values > 0])
    zeros = int(len(values) - len(positive))
    if len(positive) == 0:
        return {"edges": [], "counts": [], "zeros": zeros}
    low, high = float(positive.min()), float(positive.max())
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(positive, bins=_BINS, range=(low, high))
    return {"edges": edges.tolist(), "counts": counts.tolist(), "zeros": zeros}


def _groups(values: Floats, groups: pa.Array | pa.ChunkedArray) -> dict[str, dict[str, float]]:
    names = [("(none)" if name is None else str(name)) for name in groups.to_pylist()]
    kinds, places = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    rows = np.bincount(places, minlength=len(kinds))
    mass = np.bincount(places, weights=values, minlength=len(kinds))
    total = float(mass.sum())
    return {
        str(kind): {
            "rows": int(rows[i]),
            "share_of_rows": float(rows[i] / len(values)),
            "share_of_weight": float(mass[i] / total) if total > 0 else 0.0,
        }
        for i, kind in enumerate(kinds)
    }


def _extremes(ids: npt.NDArray[np.int64], values: Floats) -> dict[str, list[dict[str, float]]]:
    falling = np.lexsort((ids, -values))[:_SHOWN]
    rising = np.lexsort((ids, values))[:_SHOWN]
    return {
        "highest": [{"id": int(ids[i]), "weight": float(values[i])} for i in falling],
        "lowest": [{"id": int(ids[i]), "weight": float(values[i])} for i in rising],
    }


def _warnings(report: dict[str, Any]) -> list[str]:
    size, share = report["num_rows"], report["effective_share"]
    if size == 0:
        return ["There are no rows to weigh."]
    if report["max_weight"] <= 0:
        return ["Every weight is 0: nothing would be learned."]
    found = []
    if share < LOW_EFFECTIVE_SHARE:
        found.append(
            f"The {size} rows count as {report['effective_sample_size']:.0f} ({share:.1%}): a few rows carry the "
            "training, and in practice they are often mislabelled ones. Tighten weight_clip, lower gamma, or set "
            "min_effective_share."
        )
    for end, side in (("low", "lower"), ("high", "upper")):
        clipped = report[f"clipped_{end}_share"]
        if clipped > _MANY_CLIPPED:
            found.append(
                f"{clipped:.0%} of the rows are clipped at the {side} bound, so their weights no longer tell them "
                "apart: the checkers disagree on scale. Calibrate them or widen weight_clip."
            )
    for name, group in report["groups"].items():
        if group["share_of_weight"] < LOST_GROUP * group["share_of_rows"]:
            found.append(
                f"Group '{name}' is {group['share_of_rows']:.1%} of the rows but {group['share_of_weight']:.1%} of "
                "the weight: a model trained so would hardly see it. Check the quality checker on this group."
            )
    return found
