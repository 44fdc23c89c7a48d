"""Every figure of a whole set, alone and beside a real one: what `obverse metrics` writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from obverse.engine.diversity.coverage import label_metrics
from obverse.engine.diversity.mauve import mauve
from obverse.engine.diversity.ngram_metrics import compression_ratio, ngram_metrics
from obverse.engine.diversity.prdc import prdc
from obverse.engine.diversity.vendi import mean_cosine, spectrum, spectrum_score
from obverse.engine.errors import InputError

__all__ = ["METRICS", "DataSet", "full_metrics"]

Matrix = npt.NDArray[Any]
Advance = Callable[[int], None]
Task = Callable[[str, int | None, str], AbstractContextManager[Advance]]

METRICS = ("vendi", "mean_cosine", "ngrams", "compression", "labels", "prdc", "mauve")
"""What may be left out, by name."""

_VENDI = {"vendi_q0.1": 0.1, "vendi_q0.5": 0.5, "vendi": 1.0, "vendi_q2": 2.0, "vendi_inf": float("inf")}


@dataclass(frozen=True, slots=True)
class DataSet:
    """What is known of one set; each part may be absent."""

    vectors: Matrix | None = None
    """``[N, d]``, float16 or float32; may be a memory map."""
    texts: Iterable[str] | None = None
    """Read twice, from its start each time."""
    labels: pa.Table | None = None
    """With the columns ``label`` or ``triplets``."""
    weights: npt.ArrayLike | None = None
    """``[N]``, for a weighted Vendi score beside the plain one."""


@contextmanager
def _silent(_name: str, _total: int | None, _unit: str) -> Iterator[Advance]:
    yield lambda _: None


def full_metrics(
    data: DataSet,
    real: DataSet | None = None,
    *,
    k: int = 5,
    buckets: int = 0,
    skip: Collection[str] = (),
    seed: int = 0,
    threads: int = 0,
    task: Task = _silent,
) -> dict[str, dict[str, float]]:
    """All figures that ``data``, and ``real`` where given, have what it takes for.

    ``set`` and ``real``: of each set by itself (`vendi_scores`, `mean_cosine`, `ngram_metrics`, `compression_ratio`,
    `label_metrics`). ``comparison``: of ``data`` beside ``real``, from vectors (`prdc` with ``k``, `mauve` with
    ``buckets``). ``seconds``: of each, wall-clock. Names in ``skip`` (of `METRICS`) are left out, as is what isn't
    defined: the mean cosine of one row, PRDC of k rows or fewer. Raises `InputError` as those functions do.
    """
    unknown = sorted(set(skip) - set(METRICS))
    if unknown:
        raise InputError(f"some of {', '.join(METRICS)}", field="skip", seen=unknown[0])
    wanted = [name for name in METRICS if name not in skip]
    clock = _Clock(task)
    result = {"set": _alone(data, wanted, threads, clock, "")}
    if real is not None:
        result["real"] = _alone(real, wanted, threads, clock, "real ")
        if data.vectors is not None and real.vectors is not None:
            result["comparison"] = _compared(data.vectors, real.vectors, wanted, k, buckets, seed, threads, clock)
    return result | {"seconds": clock.seconds}


class _Clock:
    """Progress of each figure, and how long it took."""

    def __init__(self, task: Task) -> None:
        self.task, self.seconds = task, dict[str, float]()

    @contextmanager
    def __call__(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        started = time.perf_counter()
        with self.task(name, total, unit) as advance:
            yield advance
        self.seconds[name] = round(time.perf_counter() - started, 3)


def _alone(data: DataSet, wanted: Collection[str], threads: int, clock: _Clock, which: str) -> dict[str, float]:
    result: dict[str, float] = {}
    if data.vectors is not None:
        result |= _of_vectors(data.vectors, data.weights, wanted, clock, which)
    if data.texts is not None and "ngrams" in wanted:
        with clock(f"{which}n-grams", None, "texts") as advance:
            result |= ngram_metrics(_counted(data.texts, advance), threads=threads)
    if data.texts is not None and "compression" in wanted:
        with clock(f"{which}compression", None, "texts") as advance:
            result["compression_ratio"] = compression_ratio(_counted(data.texts, advance))
    if data.labels is not None and "labels" in wanted:
        with clock(f"{which}labels", data.labels.num_rows, "rows"):
            result |= label_metrics(data.labels)
    return result


def _of_vectors(
    vectors: Matrix, weights: npt.ArrayLike | None, wanted: Collection[str], clock: _Clock, which: str
) -> dict[str, float]:
    result = {"n": float(len(vectors))}
    if "vendi" in wanted:
        with clock(f"{which}vendi", len(vectors), "rows"):
            values = spectrum(vectors)
            result |= {name: spectrum_score(values, q) for name, q in _VENDI.items()}
    if "vendi" in wanted and weights is not None:
        with clock(f"{which}weighted vendi", len(vectors), "rows"):
            result["vendi_weighted"] = spectrum_score(spectrum(vectors, weights=weights), 1.0)
    if "mean_cosine" in wanted and len(vectors) > 1:
        with clock(f"{which}mean cosine", len(vectors), "rows"):
            result["mean_cosine"] = mean_cosine(vectors)
    return result


def _compared(
    data: Matrix, real: Matrix, wanted: Collection[str], k: int, buckets: int, seed: int, threads: int, clock: _Clock
) -> dict[str, float]:
    result: dict[str, float] = {}
    rows = len(data) + len(real)
    if "prdc" in wanted and k < min(len(data), len(real)):
        with clock("prdc", rows + len(real), "rows") as advance:
            result |= prdc(real, data, k, threads=threads, on_progress=advance)
    if "mauve" in wanted:
        with clock("mauve", rows, "rows") as advance:
            result["mauve"] = mauve(real, data, buckets=buckets, seed=seed, on_progress=advance)
    return result


def _counted(texts: Iterable[str], advance: Advance) -> Iterator[str]:
    for number, text in enumerate(texts, start=1):
        yield text
        if number % 8192 == 0:
            advance(8192)
