"""What every benchmark module shares: interleaved timing, rows as JSON lines, append-only CSV with provenance.

A module writes ``measure(quick: bool) -> Iterator[Row]`` and ends with::

    if __name__ == "__main__":
        raise SystemExit(run_main("losses", measure))

Inside ``measure``: check correctness first (raise if wrong), then ``interleave`` ours and the peers in this
process, then ``yield from timing_rows(...)``.  A quality figure (recall, F1) is a `Row` of its own.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Row",
    "Timing",
    "append_csv",
    "as_json",
    "as_text",
    "interleave",
    "peak_extra_memory",
    "provenance",
    "run_main",
    "timing_rows",
]

OURS = "obverse"
_SECONDS = {"s": 1.0, "ms": 1e3, "us": 1e6}


class Row(NamedTuple):
    """One measurement. ``peer_ratio`` is the fastest peer's time over ours; None where no peer ran."""

    bench: str
    op: str
    provider: str
    shape: str
    metric: str
    value: float
    unit: str
    peer_ratio: float | None = None
    p10: float | None = None
    p90: float | None = None


class Timing(NamedTuple):
    """Seconds per call over the timed repeats."""

    median: float
    p10: float
    p90: float


def interleave(
    cases: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 9,
    warmup: int = 2,
    inner: int = 1,
    synchronise: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time every case once per round, so that drift of the machine falls on all of them alike.

    The order rotates by one each round. ``inner`` calls make one timed repeat (for calls under ~100 us);
    ``synchronise`` runs before each clock reading (a device's synchronise).
    """
    wait = synchronise or (lambda: None)
    names = list(cases)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for _ in range(warmup):
            cases[name]()
    for turn in range(repeats):
        cut = turn % len(names)
        for name in names[cut:] + names[:cut]:
            call = cases[name]
            wait()
            start = time.perf_counter()
            for _ in range(inner):
                call()
            wait()
            samples[name].append((time.perf_counter() - start) / inner)
    return {name: _summary(values) for name, values in samples.items()}


def _summary(values: Sequence[float]) -> Timing:
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    return Timing(at(0.5), at(0.1), at(0.9))


def timing_rows(
    bench: str,
    op: str,
    shape: str,
    timings: Mapping[str, Timing],
    *,
    unit: str = "ms",
    metric: str = "time",
    ours: str = OURS,
    references: Sequence[str] = (),
) -> Iterator[Row]:
    """One row per provider; ours carries ``peer_ratio`` against the fastest peer.

    ``references`` are yardsticks (a bare copy, a bare GEMM), shown but never counted as peers.
    """
    scale = _SECONDS[unit]
    peers = [t.median for name, t in timings.items() if name != ours and name not in references]
    for name, timing in timings.items():
        ratio = min(peers) / timing.median if name == ours and peers else None
        low, high = timing.p10 * scale, timing.p90 * scale
        yield Row(bench, op, name, shape, metric, timing.median * scale, unit, ratio, low, high)


def peak_extra_memory(call: Callable[[], object]) -> int | None:
    """Bytes by which resident memory rose above its level before ``call`` (Linux; None elsewhere)."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        clear.write_text("5")  # resets VmHWM to the present resident size
        before = _status_kib(status, "VmRSS")
        call()
        return (_status_kib(status, "VmHWM") - before) * 1024
    except OSError:
        return None


def _status_kib(status: Path, field: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise OSError(f"no {field} in {status}")


def provenance(packages: Sequence[str] = ("torch", "triton", "numpy")) -> dict[str, str]:
    """Hardware, versions, commit and date, as they go beside each row of a results file."""
    versions = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "hardware": _hardware(),
        "versions": "; ".join(versions),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _hardware() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        if models:
            name = f"{models[0]} x{len(models)}"
    return name


def _commit() -> str:
    root = Path(__file__).resolve().parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def append_csv(path: Path, rows: Iterable[Row], *, packages: Sequence[str] = ("torch", "triton", "numpy")) -> None:
    """Append rows with their provenance; the header is written when the file is new."""
    extra = provenance(packages)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow([*Row._fields, *extra])
        for row in rows:
            writer.writerow(["" if cell is None else cell for cell in (*row, *extra.values())])


def as_json(row: Row) -> str:
    """One JSON object on one line; absent figures are left out."""
    return json.dumps({key: value for key, value in row._asdict().items() if value is not None})


def as_text(row: Row) -> str:
    """A line to read."""
    spread = f" [{row.p10:.4g}, {row.p90:.4g}]" if row.p10 is not None and row.p90 is not None else ""
    ratio = f"  {row.peer_ratio:.2f}x the best peer" if row.peer_ratio is not None else ""
    return f"{row.op:<28} {row.shape:<28} {row.provider:<22} {row.metric} {row.value:.4g} {row.unit}{spread}{ratio}"


def run_main(
    bench: str,
    measure: Callable[[bool], Iterable[Row]],
    argv: Sequence[str] | None = None,
    *,
    packages: Sequence[str] = ("torch", "triton", "numpy"),
) -> int:
    """The command line of a benchmark module. Each row is printed (and kept) as soon as it is measured."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{bench}")
    parser.add_argument("--quick", action="store_true", help="smallest size that shows the ratio, under 50 s")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--csv", type=Path, help="append rows with provenance to this file")
    options = parser.parse_args(argv)
    for row in measure(options.quick):
        print(as_json(row) if options.json else as_text(row), flush=True)
        if options.csv is not None:
            append_csv(options.csv, [row], packages=packages)
    return 0
