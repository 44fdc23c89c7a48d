"""The approximate neighbour graph: rows carved into overlapping leaves, then rounds of NN-descent, on int8 rows.

csrc/include/obverse/descent.hpp has the method. The graph is built on quantised rows; similarities are the exact
cosines of the best candidates. The same result for any number of threads and any instruction set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse import _core
from obverse.engine.diversity.quantise import Quantised, Rows, num_threads, quantise
from obverse.engine.errors import InputError

__all__ = ["Facts", "Settings", "candidates", "plan", "self_join"]

Progress = Callable[[str, float], None]

_MAX_DEGREE = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """What the graph's recall is bought with (csrc/include/obverse/descent.hpp says what each is)."""

    degree: int
    leaf: int = 1024
    fanout: int = 4
    carvings: int = 12
    settled: float = 0.03
    reverse: int = 24
    rounds: int = 2
    delta: float = 0.001


@dataclass(slots=True)
class Facts:
    """What building a graph took: one entry a carving or round, in their order."""

    settings: Settings
    distinct: int  # rows that differ from all others after quantisation
    rounds: int = 0
    updates: list[int] = field(default_factory=list)  # entries of lists that each changed, carvings first
    evaluated: int = 0  # dot products
    seconds: dict[str, float] = field(default_factory=dict)
    nbytes: int = 0


def plan(recall: float, k: int, rows: int) -> Settings:
    """Settings for ``recall`` of the ``k`` nearest of ``rows`` rows, on data as hard as real texts.

    Raises `InputError` where ``recall`` is not in (0, 1) or ``k`` is more than a graph holds.
    """
    if not 0.0 < recall < 1.0:
        raise InputError("a recall between 0 and 1", field="recall", seen=recall)
    # k = 10 of 65,536 MiniLM embeddings of texts (4,000 rows against float64; CPU seconds without quantising):
    # .909 in 0.6 s, .963 in 1.0, .984 in 1.5, .993 in 2.2, .996 in 3.3, .998 in 4.6; mixed to 1M rows, the fourth
    # line gave .999 in 38. Lists longer than k are for what int8 takes for nearer than it is.
    spare, settings = next(
        (spare, settings)
        for upto, spare, settings in (
            (0.90, 6, Settings(0, leaf=512, fanout=3, settled=0.15, rounds=0)),
            (0.95, 6, Settings(0, leaf=512, fanout=3, settled=0.15, rounds=1)),
            (0.98, 6, Settings(0, fanout=3, settled=0.05)),
            (0.99, 14, Settings(0)),
            (0.995, 22, Settings(0, settled=0.02, rounds=3)),
            (1.0, 30, Settings(0, leaf=2048, settled=0.01, reverse=32, rounds=3)),
        )
        if recall <= upto
    )
    most = _MAX_DEGREE - 30
    there = min(k, max(rows - 1, 0))
    if not 0 <= there <= most:
        raise InputError(f"k from 0 to {most} (the exact engine takes any)", field="k", seen=k)
    degree = there + spare
    return replace(settings, degree=max(16, -(-degree // 8) * 8))


def _grow(
    q: npt.NDArray[np.int8], settings: Settings, seed: int, threads: int, on_progress: Progress | None
) -> tuple[Any, Facts]:
    began = time.perf_counter()
    graph = _core.Descent(
        q,
        degree=settings.degree,
        leaf=settings.leaf,
        fanout=settings.fanout,
        carvings=settings.carvings,
        settled=settings.settled,
        reverse=settings.reverse,
        rounds=settings.rounds,
        delta=settings.delta,
        seed=seed,
        threads=num_threads(threads),
    )
    facts = Facts(settings, graph.distinct, nbytes=graph.nbytes)
    facts.seconds["equal rows"] = time.perf_counter() - began
    while True:
        began = time.perf_counter()
        part, number, share, evaluated, updates = graph.step()
        if part == "done":
            return graph, facts
        facts.seconds[part] = facts.seconds.get(part, 0.0) + time.perf_counter() - began
        if share == 1.0:
            facts.updates.append(updates)
            facts.evaluated += evaluated
            facts.rounds += part == "round"
        if on_progress is not None:
            of = settings.carvings if part == "carving" else settings.rounds
            on_progress(f"{part} {number + 1} of {of}", share)


def candidates(
    quantised: Quantised,
    m: int,
    *,
    recall: float = 0.9,
    threads: int = 0,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> npt.NDArray[np.int32]:
    """Rows ``[N, m]`` likely nearest to each row, best first by the quantised inner product; -1 where there are fewer.

    Never the row itself, none twice. ``recall`` is aimed at for the m // 2 nearest. Raises `InputError` as `plan`.
    """
    settings = plan(recall, m // 2, len(quantised.q))
    graph, _ = _grow(quantised.q, settings, seed, threads, on_progress)
    found: npt.NDArray[np.int32] = graph.candidates(m)
    return found


def self_join(
    x: Rows,
    k: int,
    *,
    recall: float = 0.99,
    threads: int = 0,
    seed: int = 0,
    on_progress: Progress | None = None,
    quantised: Quantised | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], Facts]:
    """The k rows nearest to each row of ``x [N, d]``, approximately: indices, exact cosines, and what it took.

    Both ``[N, k]``, by falling cosine, equal ones by row; -1 and -inf where there are fewer than k other rows.
    ``on_progress`` is told the part at work and the share of it that is done. Raises `InputError` as
    `obverse.engine.diversity.quantise.checked_rows` and `plan` do.
    """
    settings = plan(recall, k, len(x))
    began = time.perf_counter()
    rows = quantised if quantised is not None else quantise(x, threads=threads, seed=seed)
    quantising = time.perf_counter() - began
    graph, facts = _grow(rows.q, settings, seed, threads, on_progress)
    del rows  # at millions of rows the lists alone are hundreds of megabytes: each thing goes when it is done with
    facts.seconds["quantise"] = quantising
    began = time.perf_counter()
    near = graph.candidates(settings.degree)
    del graph
    indices, similarities = _core.rank_candidates(x, near, k, threads=num_threads(threads))
    facts.seconds["rank"] = time.perf_counter() - began
    return indices.astype(np.int64), similarities, facts
