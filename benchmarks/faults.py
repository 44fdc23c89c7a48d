"""Does generation lose or repeat a row when its process is killed, its disk fills or its journal is torn?

``python -m benchmarks.faults [--kills 200] [--rows 100000] [--csv FILE]``

A process of its own writes texts with an engine that echoes (all else is real: targets from Parquet, prompts, journal,
shards) and is killed by SIGKILL at random moments until it has been killed so often; after every third death the last
journal segment loses its last bytes or gets random ones behind it. Then it runs to its end, and what it left is
compared with what a process that nobody stops writes: the same bytes, each id once. Counted are the rows that the
engine was asked for more than once, beside the rows that were in flight or younger than the journal's second.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import OURS, Row, append_csv, as_text
from obverse.engine.generate import Completion, GenerateSettings, Request, generate_shards
from obverse.engine.generate.folder import TextFolder
from obverse.engine.generate.writer import journal_of
from obverse.engine.graph.load import load_graph
from obverse.engine.graph.sampling import SampleSettings, TargetSampler
from obverse.engine.records.lock import locked
from obverse.engine.records.schemas import TEXTS
from obverse.engine.records.shards import Shards

SETTINGS = GenerateSettings(model="x/y", prompt="facts", backend="vllm")
SHARD_ROWS = 512
IN_FLIGHT = 128
RATE = 1000.0  # rows a second


class Echo:
    """Holds some rows, answers them in an order of its own at a steady rate, and notes each row it is asked for."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        print("begun", flush=True)
        begun, count = time.monotonic(), 0
        held: list[Request] = []
        asked = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        while True:
            new = []
            while len(held) < IN_FLIGHT and (request := next(requests, None)) is not None:
                held.append(request)
                new.append(request.id)
            if new:
                os.write(asked, "".join(f"{row}\n" for row in new).encode())
            if not held:
                return
            yield echo(held.pop((7 * count) % len(held)))
            count += 1
            ahead = count / RATE - (time.monotonic() - begun)
            if ahead > 0.002:
                time.sleep(ahead)

    def facts(self) -> dict[str, Any]:
        return {"backend": "echo", "batch_invariant": True}

    def close(self) -> None:
        return


def echo(request: Request) -> Completion:
    if request.id % 97 == 5:
        return Completion(request.id, None, "error: too long", 9, None)
    return Completion(request.id, f"{request.prompt} {request.seed}", "stop", 9, 4)


def child(folder: Path, targets: Path, log: Path) -> int:
    with locked(folder):
        texts = TextFolder(folder, targets, SETTINGS, seed=3, shard_rows=SHARD_ROWS)
        texts.write(backend=Echo(log))
    return 0


def killed(command: Sequence[str], out: Path, kills: int, moments: random.Random) -> int:
    """Run ``command`` and kill it, again and again; gives how often it died before it was done."""
    deaths = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        begun = process.stdout.readline() == "begun\n"  # by the engine; a process that finds all done needs none
        try:
            process.wait(moments.uniform(0.05, 0.8) if begun and deaths < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            deaths += 1
            tear(out, deaths, moments)
            continue
        if process.returncode:
            raise RuntimeError(f"the process failed with {process.returncode}")
        return deaths


def tear(out: Path, deaths: int, moments: random.Random) -> None:
    """As a power cut may: the last bytes never reached the disk, or others did."""
    segments = journal_of(out).segments()
    if not segments or deaths % 3 == 0:
        return
    data = segments[-1].read_bytes()
    if deaths % 3 == 1:
        segments[-1].write_bytes(data[: max(0, len(data) - moments.randrange(400))])
    else:
        segments[-1].write_bytes(data + moments.randbytes(300))


def same_as_unstopped(targets: pa.Table, out: Path, folder: Path) -> None:
    shards = ((i, targets.slice(first, SHARD_ROWS)) for i, first in enumerate(range(0, len(targets), SHARD_ROWS)))
    folder.mkdir()
    other = Shards(folder, TEXTS)
    for index, table in generate_shards(shards, SETTINGS, seed=3, backend=Echo(folder / "log")):
        other.write(index, table)
    found = Shards(out, TEXTS)
    if found.done() != other.done():
        raise AssertionError(f"shards {found.done()} in place of {other.done()}")
    for index in other.done():
        if found.path(index).read_bytes() != other.path(index).read_bytes():
            raise AssertionError(f"shard {index} has other bytes than an unstopped process writes")


def measure(kills: int, rows: int, seed: int) -> Iterator[Row]:
    """One row a figure."""
    moments = random.Random(seed)
    targets = TargetSampler(load_graph("geography"), SampleSettings(samples=rows), 0).draw(rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(targets, folder / "targets.parquet")
        out, log = folder / "out", folder / "asked"
        command = [
            sys.executable,
            "-m",
            "benchmarks.faults",
            "--child",
            *map(str, (out, folder / "targets.parquet", log)),
        ]
        deaths = killed(command, out, kills, moments)
        with contextlib.redirect_stdout(io.StringIO()):
            same_as_unstopped(targets, out, folder / "other")
        asked = Counter(log.read_text().split())
        if (out / "_journal").exists():
            raise AssertionError("the journal is left behind")
    shape = f"{rows:,} rows, {SHARD_ROWS} a shard, {IN_FLIGHT} in flight"
    extra = sum(asked.values()) - rows
    if deaths < kills:
        raise AssertionError(f"done after {deaths} deaths; ask for more rows")
    if extra > deaths * (IN_FLIGHT + RATE * 1.5):
        raise AssertionError(f"{extra:,} rows were asked for again after {deaths} deaths")
    yield Row("faults", "killed at random moments", OURS, shape, "SIGKILLs", float(deaths), "")
    yield Row("faults", "killed at random moments", OURS, shape, "rows lost", 0.0, "rows")
    yield Row("faults", "killed at random moments", OURS, shape, "rows there twice", 0.0, "rows")
    yield Row("faults", "killed at random moments", OURS, shape, "rows asked for again a kill", extra / deaths, "rows")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; by default another one each time")
    parser.add_argument("--csv", type=Path, help="append rows with provenance to this file")
    parser.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        return child(*options.child)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    for row in measure(options.kills, options.rows, seed):
        print(as_text(row), flush=True)
        if options.csv is not None:
            append_csv(options.csv, [row], packages=("pyarrow",))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
