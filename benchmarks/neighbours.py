"""How fast, and how right, are nearest neighbours of all rows among themselves?

``python -m benchmarks.neighbours [--quick] [--json] [--csv FILE] [--only PART,...] [--rounds N]``

The parts: ``exact`` and ``approximate`` (65,536 real embeddings), ``exact-1m`` and ``approximate-1m`` (grown to a
million, `neighbours_data`), ``threshold`` (all pairs of cosine 0.9 and up among a million rows, 5% of them planted
near-duplicates), ``metrics`` (figures of a set at a million rows and texts), ``cuda`` (on a GPU only). Every provider
runs in a process of its own, in turn with the others, so its time is that of a first call. Recall and the error of the
mean k-NN cosine are measured on a random sample of rows against float64; an exact answer that differs from it raises.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.harness import OURS, Row, Timing, append_csv, timing_rows
from benchmarks.neighbours_data import clustered, grown, real_vectors
from benchmarks.neighbours_peers import PROVIDERS

BENCH = "neighbours"
K = 10
PACKAGES = ("torch", "numpy", "faiss-cpu", "pynndescent", "hnswlib", "usearch", "scipy")
PARTS = ("exact", "approximate", "exact-1m", "approximate-1m", "threshold", "metrics")


class Truth(NamedTuple):
    """The exact lists of a sample of rows."""

    rows: npt.NDArray[np.int64]
    similarities: npt.NDArray[np.float64]
    """[R, k], descending."""


def truth_of(stored: npt.NDArray[Any], sample: int, seed: int = 1) -> Truth:
    """By float64 over all rows, a block of them at a time."""
    rows = np.sort(np.random.default_rng(seed).choice(len(stored), min(sample, len(stored)), replace=False))
    query = np.asarray(stored[rows], np.float64)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    best = np.full((len(rows), K), -np.inf)
    for low in range(0, len(stored), 1 << 16):
        block = np.asarray(stored[low : low + (1 << 16)], np.float64)
        values = query @ block.T / np.linalg.norm(block, axis=1)
        inside = (rows >= low) & (rows < low + len(block))
        values[np.flatnonzero(inside), rows[inside] - low] = -np.inf
        best = -np.sort(-np.concatenate([best, -np.partition(-values, K, axis=1)[:, :K]], axis=1), axis=1)[:, :K]
    return Truth(rows, best)


def quality(stored: npt.NDArray[Any], found: npt.NDArray[np.int64], truth: Truth) -> tuple[float, float]:
    """Recall (rows as near as the k-th count, to 1e-6), and p99 over rows of the error of the mean cosine."""
    query = np.asarray(stored[truth.rows], np.float64)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    got = np.empty_like(truth.similarities)
    for place in range(K):
        names = found[truth.rows, place]
        if (names < 0).any() or (names == truth.rows).any():
            raise AssertionError("a list holds no row, or the row itself")
        other = np.asarray(stored[names], np.float64)
        got[:, place] = (query * other).sum(axis=1) / np.linalg.norm(other, axis=1)
    distinct = np.sort(found[truth.rows], axis=1)
    if (distinct[:, 1:] == distinct[:, :-1]).any():
        raise AssertionError("a row is twice in a list")
    recall = float((got >= truth.similarities[:, -1:] - 1e-6).mean())
    return recall, float(np.quantile(np.abs(got.mean(axis=1) - truth.similarities.mean(axis=1)), 0.99))


def _run(kind: str, name: str, vectors: Path, out: Path, calls: int, limit: float | None) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "benchmarks.neighbours_peers", kind, name, str(vectors), str(out)]
    command += ["--k", str(K), "--calls", str(calls)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {}
    if done.returncode:
        if name == OURS:
            raise RuntimeError(done.stderr)
        print(f"left out: {name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _summary(values: Sequence[float]) -> Timing:
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return Timing(float(middle), float(low), float(high))


def join_rows(
    kind: str,
    vectors: Path,
    shape: str,
    *,
    rounds: int,
    sample: int,
    calls: int = 1,
    leave_out: Sequence[str] = (),
    patience: float | None = None,
) -> Iterator[Row]:
    """Times of a first call (and of a second, with ``calls`` 2), memory, and what each provider got wrong.

    With ``patience`` a peer that takes so many times as long as ours (which runs first) is stopped, and said to be.
    """
    stored = np.load(vectors, mmap_mode="r")
    truth = truth_of(stored, sample)
    op = f"{kind} self-join, k={K}"
    names = [name for name in PROVIDERS[kind] if name not in leave_out]
    first: dict[str, list[float]] = {}
    second: dict[str, list[float]] = {}
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                out = Path(folder) / "found.npy"
                limit = patience * first[OURS][0] if patience is not None and name != OURS else None
                result = _run(kind, name, vectors, out, calls, limit)
                if result is None:
                    continue
                if not result:
                    stopped = "stopped, with no answer yet, after"
                    rows[name] = [Row(BENCH, op, name, shape, stopped, float(limit or 0.0), "s")]
                    continue
                print(f"{op} {shape} {name}: {result}", file=sys.stderr, flush=True)
                first.setdefault(name, []).append(result["seconds"][0])
                second.setdefault(name, []).append(result["seconds"][-1])
                recall, error = quality(stored, np.load(out), truth)
                if name == OURS and kind == "exact" and (recall < 1 or error > 1e-6):
                    raise AssertionError(f"an exact join of recall {recall} and error {error}")
                rows[name] = [
                    Row(BENCH, op, name, shape, f"recall@{K}", recall, "share"),
                    Row(BENCH, op, name, shape, "p99 error of the mean cosine", error, "cosine"),
                ]
                if result["peak_bytes"] is not None:
                    peak = result["peak_bytes"] / 2**20
                    rows[name].append(Row(BENCH, op, name, shape, "peak beyond the vectors", peak, "MiB"))
    yield from timing_rows(
        BENCH, op, shape, {n: _summary(v) for n, v in first.items()}, unit="s", metric="time, first call"
    )
    if calls > 1:
        yield from timing_rows(
            BENCH, op, shape, {n: _summary(v) for n, v in second.items()}, unit="s", metric="time, second call"
        )
    for found in rows.values():
        yield from found


def _saved(vectors: npt.NDArray[Any], folder: str) -> Path:
    path = Path(folder) / "vectors.npy"
    np.save(path, vectors)
    return path


def measure(quick: bool, parts: Sequence[str], rounds: int, leave_out: Sequence[str] = ()) -> Iterator[Row]:
    """The parts' rows, without the providers ``leave_out`` at a million rows."""
    if quick:
        with tempfile.TemporaryDirectory() as folder:
            path = _saved(clustered(12_000, 384), folder)
            yield from join_rows("exact", path, "clustered 12,000 x 384", rounds=2, sample=500)
            few = ("hnswlib", "usearch", "pynndescent")  # seconds of compiling or installing
            yield from join_rows("approximate", path, "clustered 12,000 x 384", rounds=2, sample=500, leave_out=few)
        return
    with tempfile.TemporaryDirectory() as folder:
        if "exact" in parts or "approximate" in parts:
            vectors, shape = real_vectors()
            path = _saved(vectors, folder)
            if "exact" in parts:
                yield from join_rows("exact", path, shape, rounds=rounds, sample=2000)
            if "approximate" in parts:
                yield from join_rows("approximate", path, shape, rounds=rounds, sample=2000, calls=2)
    if "exact-1m" in parts:
        path, shape = grown(1_000_000)
        slow = ("faiss flat", "torch bf16, re-ranked")  # an hour, and half of one
        yield from join_rows("exact", path, shape, rounds=1, sample=1000, leave_out=slow)
    if "approximate-1m" in parts:
        path, shape = grown(1_000_000)
        yield from join_rows("approximate", path, shape, rounds=1, sample=1000, patience=8, leave_out=leave_out)
    if "threshold" in parts:
        from benchmarks.neighbours_sets import threshold_rows

        yield from threshold_rows(1_000_000)
    if "metrics" in parts:
        from benchmarks.neighbours_sets import metric_rows

        yield from metric_rows(1_000_000)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; each row is printed and kept as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours")
    parser.add_argument("--quick", action="store_true", help="smallest size that shows the ratio, under 50 s")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--csv", type=Path, help="append rows with provenance to this file")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}, cuda")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each provider at 65,536 rows")
    parser.add_argument("--leave-out", default="", help="providers not to run at a million rows, by commas")
    options = parser.parse_args(argv)
    from benchmarks.harness import as_json, as_text

    parts = options.only.split(",")
    found: Iterator[Row] = measure(options.quick, parts, options.rounds, options.leave_out.split(","))
    if _on_cuda():
        from benchmarks.neighbours_cuda import cuda_rows

        found = cuda_rows(options.quick)
    for row in found:
        print(as_json(row) if options.json else as_text(row), flush=True)
        if options.csv is not None:
            append_csv(options.csv, [row], packages=PACKAGES)
    return 0


def _on_cuda() -> bool:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    raise SystemExit(main())
