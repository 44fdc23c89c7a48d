"""Log-probabilities to weights, in log space throughout: nothing overflows, however far apart the checkers are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from obverse.engine.errors import InputError
from obverse.engine.records.schemas import WEIGHTS
from obverse.engine.weigh.settings import WeighSettings

__all__ = ["effective_sample_size", "importance_weights", "weigh_rows"]

Floats = npt.NDArray[np.float64]

_INPUTS = {"imp": ("log_quality", "log_diversity"), "quality": ("log_quality",), "diversity": ("log_diversity",)}


def importance_weights(
    log_quality: npt.ArrayLike | None,
    log_diversity: npt.ArrayLike | None,
    settings: WeighSettings,
) -> tuple[Floats, list[str | None]]:
    """One weight a row from the checkers' natural log-probabilities [N] of its target given its text.

    With q the quality checker's and d the diversity checker's probability (arXiv 2410.21526, IMP-Loss)::

        r_i = gamma (log q_i - log d_i)     imp          (quality: gamma log q_i; diversity: -gamma log d_i)
        r_i = r_i - median_j r_j                         where ``centre`` is set
        c_i = min(max(r_i, log low), log high)           weight_clip = (low, high)
        w_i = exp(tau c_i) / mean_j exp(tau c_j)         without normalise: exp(tau c_i)

    tau is 1, or, with ``min_effective_share``, the largest number in [0, 1] at which the effective sample size
    ``(sum w)^2 / sum w^2`` is at least that share of N (it falls as tau grows, and is N at 0). Published is
    ``weight_clip=None, normalise=False, centre=False``. For a sequence give its mean log-probability a token.

    Returns the weights, float64 [N], and for each row "low" or "high" where the clip moved it, else None.
    The one that the scheme doesn't use may be None. Raises `InputError` naming the row's place for a value
    that is not finite, for lengths that differ, and for weights that float64 can't hold.
    """
    return _weigh(_log_ratio(log_quality, log_diversity, settings, None), settings, None)


def weigh_rows(
    ids: npt.ArrayLike | pa.Array | pa.ChunkedArray,
    log_quality: npt.ArrayLike | None,
    log_diversity: npt.ArrayLike | None,
    settings: WeighSettings,
) -> pa.Table:
    """The ``weights`` table of the rows ``ids`` [N] int64; the rest as in `importance_weights`.

    Raises `InputError` naming the row's id for a value that is null or not finite.
    """
    keys = np.asarray(ids, dtype=np.int64)
    if len(np.unique(keys)) != len(keys):
        values, counts = np.unique(keys, return_counts=True)
        repeated = int(values[counts > 1][0])
        raise InputError("each id once", row=repeated, field="id", seen=f"it {int(counts.max())} times")
    ratio = np.zeros(len(keys))
    if settings.scheme != "uniform":
        ratio = _log_ratio(log_quality, log_diversity, settings, keys)
    if len(ratio) != len(keys):
        raise InputError(f"{len(keys)} values, one an id", field=_INPUTS[settings.scheme][0], seen=len(ratio))
    weights, marks = _weigh(ratio, settings, keys)
    columns = [
        pa.array(keys, pa.int64()),
        _column(log_quality, len(keys)),
        _column(log_diversity, len(keys)),
        pa.array(weights.astype(np.float32), pa.float32()),
        pa.array(marks, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=WEIGHTS)


def _weigh(
    ratio: Floats, settings: WeighSettings, ids: npt.NDArray[np.int64] | None
) -> tuple[Floats, list[str | None]]:
    low, high = settings.log_clip()
    if settings.centre and len(ratio):
        ratio = ratio - np.median(ratio)
    bounded = np.clip(ratio, low, high)
    marks: list[str | None] = [None] * len(ratio)
    for place in np.flatnonzero(ratio != bounded).tolist():
        marks[place] = "low" if ratio[place] < low else "high"
    tempered = bounded * _temper(bounded, settings.min_effective_share)
    if settings.normalise and len(tempered):
        tempered = tempered - _log_mean_exp(tempered)
    if len(tempered) and tempered.max() > np.log(np.finfo(np.float32).max):
        place = int(tempered.argmax())
        row = place if ids is None else int(ids[place])
        expected = "a weight within float32's range (set weight_clip or normalise)"
        raise InputError(expected, row=row, field="weight", seen=f"exp({tempered[place]:.4g})")
    return np.exp(tempered), marks


def effective_sample_size(weights: npt.ArrayLike) -> float:
    """Kish's ``(sum w)^2 / sum w^2`` of weights >= 0: N when all are equal, near 1 when one row has it all."""
    values = np.asarray(weights, dtype=np.float64)
    top = float(values.max(initial=0.0))
    if top <= 0.0:
        return 0.0
    scaled = values / top
    return float(scaled.sum() ** 2 / np.square(scaled).sum())


def _log_ratio(
    log_quality: npt.ArrayLike | None,
    log_diversity: npt.ArrayLike | None,
    settings: WeighSettings,
    ids: npt.NDArray[np.int64] | None,
) -> Floats:
    given = {"log_quality": _finite("log_quality", log_quality, ids, settings)}
    given["log_diversity"] = _finite("log_diversity", log_diversity, ids, settings)
    sizes = {len(values) for values in given.values() if values is not None}
    if len(sizes) > 1:
        raise InputError("as many log_quality as log_diversity", field="log_diversity", seen=sorted(sizes))
    size = sizes.pop() if sizes else 0
    quality, diversity = given["log_quality"], given["log_diversity"]
    ratio = np.zeros(size)
    if settings.scheme in ("imp", "quality") and quality is not None:
        ratio = ratio + quality
    if settings.scheme in ("imp", "diversity") and diversity is not None:
        ratio = ratio - diversity
    return settings.gamma * ratio


def _finite(
    name: str, values: npt.ArrayLike | None, ids: npt.NDArray[np.int64] | None, settings: WeighSettings
) -> Floats | None:
    """``values`` as float64, checked if the scheme uses them; None if it doesn't and they have gaps."""
    used = name in _INPUTS.get(settings.scheme, ())
    if values is None:
        if used:
            raise InputError(f"values: scheme '{settings.scheme}' needs them", field=name)
        return None
    array = _as_floats(name, values)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        if not used and np.isnan(array[bad]).all():
            return None
        place = int(bad[0])
        row = place if ids is None or place >= len(ids) else int(ids[place])
        raise InputError("a finite log-probability", row=row, field=name, seen=float(array[place]))
    return array


def _as_floats(name: str, values: Any) -> Floats:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise InputError("one value a row", field=name, seen=f"shape {list(array.shape)}")
    return array


def _column(values: npt.ArrayLike | None, size: int) -> pa.Array:
    if values is None:
        return pa.nulls(size, pa.float32())
    array = _as_floats("", values)
    return pa.array(array.astype(np.float32), pa.float32(), mask=np.isnan(array))


def _log_mean_exp(values: Floats) -> float:
    top = float(values.max())
    return top + float(np.log(np.mean(np.exp(values - top))))


def _temper(log_weights: Floats, share: float) -> float:
    """The largest tau in [0, 1] with an effective sample size of ``share`` of the rows, to within 2^-40."""
    size = len(log_weights)
    if size == 0 or share <= 0.0:
        return 1.0
    spread = log_weights - log_weights.max()

    def enough(tau: float) -> bool:
        return effective_sample_size(np.exp(tau * spread)) >= share * size

    if enough(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low
