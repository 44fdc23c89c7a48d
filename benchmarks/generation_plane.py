"""The data plane alone: prompts -> journal -> Parquet around an engine that answers at once.

``python -m benchmarks.generation_plane ROWS`` measures in a process of its own and prints one JSON object: seconds, and
by how much resident memory rose above what it was before the first row. `benchmarks.generation` starts it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import peak_extra_memory
from obverse.engine.generate.protocol import Completion, Request
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.generate.stage import generate_into
from obverse.engine.graph.load import load_graph
from obverse.engine.graph.sampling import SampleSettings, TargetSampler
from obverse.engine.records.schemas import TEXTS
from obverse.engine.records.shards import Shards

SHARD = 65_536
WARM = 2 * SHARD


class AtOnce:
    """A backend that answers each request with its own prompt, as it is asked."""

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        for row_id, prompt, _, _, _ in requests:
            yield Completion(row_id, prompt, "stop", 30, 40)

    def facts(self) -> dict[str, Any]:
        return {"backend": "at once", "model": "none", "batch_invariant": True}

    def close(self) -> None:
        pass


def _targets(pool: pa.Table, rows: int) -> Iterator[tuple[int, pa.Table]]:
    """Shards of ``rows`` targets in all: the pool's triplets over and over, under ids of their own."""
    for index, start in enumerate(range(0, rows, SHARD)):
        ids = pa.array(range(start, min(start + SHARD, rows)), pa.int64())
        yield index, pool.slice(0, len(ids)).set_column(0, pool.schema.field("id"), ids)


def _write(pool: pa.Table, rows: int, folder: Path) -> tuple[float, float]:
    settings = GenerateSettings(backend="vllm")
    begun, spent = time.perf_counter(), time.process_time()
    generate_into(Shards(folder, TEXTS), _targets(pool, rows), settings, seed=0, backend=AtOnce())
    seconds, spent = time.perf_counter() - begun, time.process_time() - spent
    found = 0
    for path in sorted(folder.glob("*.parquet")):
        ids = pq.read_table(path, columns=["id"])["id"].to_numpy()
        if (ids != range(found, found + len(ids))).any():
            raise AssertionError(f"{path.name} holds other rows than its targets")
        found += len(ids)
    if found != rows or (folder / "_journal").exists():
        raise AssertionError(f"{found:,} rows of {rows:,} came out, or the journal was left")
    return seconds, spent


def measure(rows: int) -> dict[str, float]:
    """Seconds, rows a second and bytes of memory for ``rows`` rows, after a warm-up of 131,072."""
    pool = TargetSampler(load_graph("geography"), SampleSettings(), 0).draw(SHARD)
    folder = Path(tempfile.mkdtemp(prefix="obverse-plane-"))
    try:
        _write(pool, WARM, folder / "warm")
        shutil.rmtree(folder / "warm")
        taken: list[float] = []
        extra = peak_extra_memory(lambda: taken.extend(_write(pool, rows, folder / "texts")))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"rows": rows, "seconds": taken[0], "cpu_seconds": taken[1], "extra_bytes": float(extra or 0)}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
