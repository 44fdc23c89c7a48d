"""How fast rows are written: a recorder of bounded size, for the run's manifest and report."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from obverse.engine.generate.protocol import Completion

__all__ = ["Sample", "Throughput"]

MOST_SAMPLES = 1024


class Sample(NamedTuple):
    """Totals at one moment: seconds since the first request was asked for, rows and output tokens done."""

    seconds: float
    rows: int
    output_tokens: int


class Throughput:
    """Counts rows and tokens as they finish and keeps at most `MOST_SAMPLES` samples of the totals.

    Samples begin a quarter of a second apart; each time they fill up, every second one is dropped and the
    spacing doubles, so that a run of a week costs no more memory than one of a minute.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.errors = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.start_seconds = 0.0
        self.backend: dict[str, Any] = {}
        self._samples: list[Sample] = []
        self._spacing = 0.25
        self._began: float | None = None
        self._last = 0.0

    def started(self, backend: dict[str, Any], start_seconds: float) -> None:
        """Note the backend's facts and the seconds that loading the model took; starts the clock."""
        self.backend = backend
        self.start_seconds += start_seconds
        if self._began is None:
            self._began = time.perf_counter()

    def add(self, completion: Completion) -> None:
        """Count one finished row."""
        self.rows += 1
        self.errors += completion.text is None
        self.prompt_tokens += completion.num_prompt_tokens or 0
        self.output_tokens += completion.num_output_tokens or 0
        self._last = self._now()
        if not self._samples or self._last - self._samples[-1].seconds >= self._spacing:
            self._samples.append(Sample(self._last, self.rows, self.output_tokens))
            if len(self._samples) > MOST_SAMPLES:
                self._samples = self._samples[::2]
                self._spacing *= 2

    @property
    def samples(self) -> list[Sample]:
        """The totals over time, ending with the newest."""
        newest = Sample(self._last, self.rows, self.output_tokens)
        return self._samples if not self.rows or self._samples[-1] == newest else [*self._samples, newest]

    def summary(self) -> dict[str, Any]:
        """Totals and rates per second (model loading apart), JSON-serialisable."""
        seconds = max(self._last, 1e-9)
        return {
            "rows": self.rows,
            "errors": self.errors,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "seconds": round(self._last, 3),
            "start_seconds": round(self.start_seconds, 3),
            "rows_per_second": round(self.rows / seconds, 3),
            "output_tokens_per_second": round(self.output_tokens / seconds, 3),
            "backend": self.backend,
        }

    def _now(self) -> float:
        if self._began is None:
            self._began = time.perf_counter()
        return time.perf_counter() - self._began
