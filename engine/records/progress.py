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
Figures = Callable[[], str]


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
    def task(
        self, name: str, total: int | None, unit: str = "rows", done: int = 0, *, figures: Figures | None = None
    ) -> Iterator[Advance]:
        """Report one task of ``total`` units, of which ``done`` were done before; gives ``advance(n)``.

        ``figures`` gives a few words more for the line, such as an engine's; it is called when a line is shown.
        """
        if self.quiet:
            yield _ignore
        elif self.stream.isatty():
            with self._bar(name, total, unit, done, figures) as advance:
                yield advance
        else:
            lines = _Lines(self, name, total, unit, done, figures)
            yield lines.advance
            lines.finish()

    @contextmanager
    def _bar(self, name: str, total: int | None, unit: str, done: int, figures: Figures | None) -> Iterator[Advance]:
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
            *([TextColumn("{task.fields[figures]}", markup=False)] if figures else []),
        )
        measured = _Rate()
        with Bars(*columns, console=Console(file=self.stream)) as bars:
            bar = bars.add_task(name, total=total, completed=done, rate="", memory="", figures="")

            def advance(n: int) -> None:
                rate = measured.add(n)
                shown = "" if rate is None else _format_rate(rate, unit)
                said = figures() if figures else ""
                bars.update(bar, advance=n, rate=shown, memory=f"{_memory_gib():.1f} GiB", figures=said)

            yield advance


class _Rate:
    """Units a second since the first report: loading a model must not make a run look endless."""

    def __init__(self) -> None:
        self.count = 0
        self.first: tuple[float, int] | None = None

    def add(self, n: int) -> float | None:
        """Count ``n`` more; gives the rate, or None until there are two reports to tell it from."""
        now = time.perf_counter()
        self.count += n
        if self.first is None:
            self.first = now, self.count
            return None
        return (self.count - self.first[1]) / max(now - self.first[0], 1e-9)


class _Lines:
    """Plain progress lines, at most one every few seconds."""

    def __init__(
        self,
        progress: Progress,
        name: str,
        total: int | None,
        unit: str,
        done: int,
        figures: Figures | None = None,
    ) -> None:
        self.progress, self.name, self.total, self.unit, self.figures = progress, name, total, unit, figures
        self.before, self.rate = done, _Rate()
        self.started = self.reported = time.perf_counter()

    def advance(self, n: int) -> None:
        rate = self.rate.add(n)
        if rate is not None and time.perf_counter() - self.reported >= self.progress.every_s:
            left = None if self.total is None or rate <= 0 else (self.total - self.before - self.rate.count) / rate
            self._say([_format_rate(rate, self.unit), *([f"{format_seconds(left)} left"] if left is not None else [])])

    def finish(self) -> None:
        """The last line: the whole time, start-up counted in."""
        seconds = time.perf_counter() - self.started
        rate = [_format_rate(self.rate.count / max(seconds, 1e-9), self.unit)] if self.rate.count else []
        self._say([*rate, f"took {format_seconds(seconds)}"])

    def _say(self, parts: list[str]) -> None:
        self.reported = time.perf_counter()
        position = self.before + self.rate.count
        if position or self.total:
            parts = [f"{position:,}" + (f"/{self.total:,}" if self.total else "") + f" {self.unit}", *parts]
        if self.figures is not None and (said := self.figures()):
            parts = [*parts, said]
        self.progress.say(f"  {self.name:<10} {', '.join(parts)}, {_memory_gib():.1f} GiB")


def _format_rate(rate: float, unit: str) -> str:
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.2f} {unit}/s"


def _ignore(_: int) -> None:
    return
