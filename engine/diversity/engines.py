"""The three engines of a self-join behind one function, and the rule that chooses between them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from obverse.engine.diversity import exact, exact_device, faiss
from obverse.engine.diversity.estimate import sample_rows
from obverse.engine.errors import InputError

__all__ = ["Choice", "Engine", "Job", "Outcome", "choose", "predicted_seconds", "run_engine"]

Engine = Literal["auto", "exact", "faiss", "descent"]
Progress = Callable[[int], None]

# Below this an exact join takes seconds anywhere, and the choice needs no calibration.
_ALWAYS_EXACT = 200_000
# Below this copying to a device is not worth while.
_SMALL = 20_000
# What an exact join may take before an approximate one is preferred.
_EXACT_SECONDS = 900.0
# Neighbours that descent's lists have room for.
_MOST_DESCENT = 160
# The larger one so large that the part which grows with the square outweighs the rest, and its noise.
_CALIBRATION = (16_384, 65_536)


@dataclass(frozen=True, slots=True)
class Job:
    """One self-join: ``x [N, d]``, ``1 <= k < N``, and how."""

    x: npt.NDArray[Any]
    k: int
    recall: float = 0.99
    threads: int = 0
    seed: int = 0
    faiss_index: str = "auto"
    checkpoint: Path | None = None
    on_progress: Progress = lambda _: None
    """Called with numbers of rows newly done."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine that runs, and why."""

    engine: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Neighbour lists ``[N, k]`` (int64; -1 and -inf: no more rows), exact cosines of the stored rows in all."""

    indices: npt.NDArray[np.int64]
    similarities: npt.NDArray[np.float32]
    parameters: dict[str, Any] = field(default_factory=dict)
    certificate: exact.Certificate | None = None


def choose(engine: str, job: Job) -> Choice:
    """The engine for a job: by name, else exact while its predicted time fits, else faiss on a GPU, else descent.

    On a GPU whose memory holds it, an exact join is the fastest there is.
    """
    rows, dim = job.x.shape
    if engine != "auto":
        if engine not in ("exact", "faiss", "descent"):
            raise InputError("one of auto, exact, faiss, descent", field="engine", seen=engine)
        return Choice(engine, "asked for by name")
    if rows <= _ALWAYS_EXACT:
        return Choice("exact", f"{rows:,} rows are within {_ALWAYS_EXACT:,}")
    if job.recall >= 1.0:
        return Choice("exact", "a recall of 1 was asked for")
    if _on_device(job):
        return Choice("exact", f"the device holds {rows:,} x {dim}")
    seconds = predicted_seconds(job)
    told = f"an exact join of {rows:,} x {dim} takes about {seconds:,.0f} s here (predicted from samples)"
    if seconds <= _EXACT_SECONDS:
        return Choice("exact", f"{told}, within {_EXACT_SECONDS:,.0f} s")
    told += f", above {_EXACT_SECONDS:,.0f} s"
    if faiss.num_gpus():
        return Choice("faiss", f"{told}; there is a GPU")
    return Choice("descent", told) if job.k <= _MOST_DESCENT else Choice("faiss", f"{told}; k is above {_MOST_DESCENT}")


def predicted_seconds(job: Job) -> float:
    """Seconds of an exact join, from those of two samples: a N + b N^2, as the work is.

    Bounds leave out more or fewer pairs of a larger set, as its neighbours are nearer or its rows harder to tell apart.
    """
    measured = []
    for size in _CALIBRATION:
        part = job.x[sample_rows(len(job.x), size, job.seed)]
        started = time.perf_counter()
        exact.self_join(part, job.k, threads=job.threads)
        measured.append((len(part), time.perf_counter() - started))
    (n, first), (m, second) = measured
    square = max(second / m - first / n, 0.0) / (m - n)
    linear = max(first / n - square * n, 0.0)
    return linear * len(job.x) + square * len(job.x) ** 2


def run_engine(engine: str, job: Job) -> Outcome:
    """Run ``engine`` by name."""
    return {"exact": _exact, "faiss": _faiss, "descent": _descent}[engine](job)


def _on_device(job: Job) -> bool:
    """Whether an exact join runs on a GPU: a large one, which holds it; one that is to be resumed stays on the CPU."""
    rows, dim = job.x.shape
    if rows <= _SMALL or job.checkpoint is not None or not exact_device.has_device():
        return False
    return exact_device.fits(rows, dim, job.x.itemsize, job.k)


def _exact(job: Job) -> Outcome:
    if _on_device(job):
        indices, values, counts = exact_device.self_join(job.x, job.k, seed=job.seed)
        job.on_progress(len(job.x))
        return Outcome(indices, values, counts)
    indices, values, certificate = exact.self_join(
        job.x, job.k, threads=job.threads, checkpoint=job.checkpoint, on_progress=job.on_progress
    )
    return Outcome(indices, values, certificate=certificate)


def _faiss(job: Job) -> Outcome:
    from obverse.engine.diversity import faiss_join

    indices, values, facts = faiss_join.self_join(
        job.x,
        job.k,
        kind=job.faiss_index,
        recall=job.recall,
        threads=job.threads,
        seed=job.seed,
        on_progress=job.on_progress,
    )
    return Outcome(indices, values, facts)


def _descent(job: Job) -> Outcome:
    from obverse.engine.diversity import descent

    settings = descent.plan(job.recall, job.k, len(job.x))
    done = 0

    def tell(part: str, share: float) -> None:
        """Parts are told as ``carving 2 of 8`` or ``round 1 of 2``; each counts as much of the rows as another."""
        nonlocal done
        name, number = part.split()[:2]
        before = int(number) - 1 + (settings.carvings if name == "round" else 0)
        now = int(len(job.x) * (before + share) / (settings.carvings + settings.rounds))
        job.on_progress(max(now - done, 0))
        done = max(now, done)

    indices, values, facts = descent.self_join(
        job.x, job.k, recall=job.recall, threads=job.threads, seed=job.seed, on_progress=tell
    )
    job.on_progress(len(job.x) - done)
    return Outcome(indices, values, dataclasses.asdict(facts))
