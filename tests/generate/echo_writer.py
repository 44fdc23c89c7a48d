"""A process that writes texts with an engine that echoes, for tests that kill it: FOLDER TARGETS ROWS_A_SECOND LOG.

What it does besides the engine is all real: targets from Parquet, prompts, journal, shards.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from obverse.engine.generate.folder import TextFolder
from obverse.engine.generate.protocol import Completion, Request
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.records.lock import locked

SETTINGS = GenerateSettings(model="x/y", prompt="facts", backend="vllm")
SHARD_ROWS = 64


class Echo:
    """Answers in an order of its own, at a steady rate; notes each row that it was asked for."""

    def __init__(self, rate: float, log: Path) -> None:
        self.rate, self.log = rate, log

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        print("begun", flush=True)
        begun, count = time.monotonic(), 0
        held: list[Request] = []
        asked = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        while True:
            while len(held) < 50 and (request := next(requests, None)) is not None:
                held.append(request)
                os.write(asked, f"{request.id}\n".encode())
            if not held:
                return
            yield echo(held.pop((7 * count) % len(held)))
            count += 1
            ahead = count / self.rate - (time.monotonic() - begun)
            if ahead > 0:
                time.sleep(ahead)

    def facts(self) -> dict[str, Any]:
        return {"backend": "echo", "batch_invariant": True}

    def close(self) -> None:
        return


def echo(request: Request) -> Completion:
    if request.id % 97 == 5:
        return Completion(request.id, None, "error: too long", 9, None)
    return Completion(request.id, f"{request.prompt} {request.seed}\u2028\x01", "stop", 9, 4)


def main() -> None:
    folder, targets, rate, log = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
    with locked(folder):
        texts = TextFolder(folder, targets, SETTINGS, seed=3, shard_rows=SHARD_ROWS)
        report = texts.write(backend=Echo(rate, log))
        print(f"done {report.written} {report.kept}", flush=True)


if __name__ == "__main__":
    main()
