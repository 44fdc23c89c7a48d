"""Progress of long work: rate, time left and memory; a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import psutil

__all__ = ["Progress", "format_seconds"]

Advance = Callable[[int], None]


def format_seconds(seconds: float) -> str:
    """``4.2 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _memory_gib() -> float:
    return float(psutil.Process().memory_info().rss) / 2**30


class Progress:
    """Reports the stages of one run to ``stream`` (default: standard error)."""

    def __init__(self, *, quiet: bool = False, stream: IO[str] | None = None, every_s: float = 5.0) -> None:
        self.quiet, self.stream, self.every_s = quiet, stream or sys.stderr, every_s

    def say(self, message: str) -> None:
        """Print one plain line."""
        if not self.quiet:
            print(message, file=self.stream, flush=True)

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "rows", done: int = 0) -> Iterator[Advance]:
        """Report one task of ``total`` units, of which ``done`` were done before; gives ``advance(n)``."""
        if self.quiet:
            yield _ignore
        elif self.stream.isatty():
            with self._bar(name, total, unit, done) as advance:
                yield advance
        else:
            lines = _Lines(self, name, total, unit, done)
            yield lines.advance
            lines.report(final=True)

    @contextmanager
    def _bar(self, name: str, total: int | None, unit: str, done: int) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[memory]}"),
        )
        started, count = time.perf_counter(), 0
        with Bars(*columns, console=Console(file=self.stream)) as bars:
            bar = bars.add_task(name, total=total, completed=done, rate="", memory="")

            def advance(n: int) -> None:
                nonlocal count
                count += n
                rate = count / max(time.perf_counter() - started, 1e-9)
                bars.update(bar, advance=n, rate=f"{rate:,.0f} {unit}/s", memory=f"{_memory_gib():.1f} GiB")

            yield advance


class _Lines:
    """Plain progress lines, at most one every few seconds."""

    def __init__(self, progress: Progress, name: str, total: int | None, unit: str, done: int) -> None:
        self.progress, self.name, self.total, self.unit = progress, name, total, unit
        self.before, self.count = done, 0
        self.started = self.reported = time.perf_counter()

    def advance(self, n: int) -> None:
        self.count += n
        if time.perf_counter() - self.reported >= self.progress.every_s:
            self.report()

    def report(self, *, final: bool = False) -> None:
        now = time.perf_counter()
        self.reported = now
        rate = self.count / max(now - self.started, 1e-9)
        position = self.before + self.count
        parts = [f"{position:,}" + (f"/{self.total:,}" if self.total else "") + f" {self.unit}"]
        parts.append(f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2f} {self.unit}/s")
        if final:
            parts.append(f"took {format_seconds(now - self.started)}")
        elif self.total and rate > 0:
            parts.append(f"{format_seconds((self.total - position) / rate)} left")
        parts.append(f"{_memory_gib():.1f} GiB")
        self.progress.say(f"  {self.name:<10} {', '.join(parts)}")


def _ignore(_: int) -> None:
    return
