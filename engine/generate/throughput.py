"""How fast rows are written, and how busy the engine is: a recorder of bounded size.

It feeds the run's manifest and report (`Throughput.summary`), the terminal (`Throughput.line`) and, as `Figures` that
another thread may read at any moment, the Prometheus endpoint (`generate.prometheus`).

An engine's own figures come from its backend's ``stats() -> dict[str, float]``, if it has that. These are known::

    running, waiting            rows in the engine's batch, and rows that it has admitted but not begun
    kv_cache_usage              share of the key-value cache that is taken, 0 to 1
    prefix_tokens_total         prompt tokens looked up in the prefix cache, and found there
    prefix_hit_tokens_total
    preemptions_total           rows put back because the key-value cache was full

A name that ends in ``_total`` only ever grows while the engine lives; other names are shown as they are.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from obverse.engine.generate.protocol import Completion

__all__ = ["Figures", "Price", "Sample", "Throughput"]

MOST_SAMPLES = 1024
TICK_S = 0.25
LIVE_S = 30.0

Stats = Callable[[], Mapping[str, float]]
_NOTHING: Mapping[str, float] = MappingProxyType({})


class Sample(NamedTuple):
    """Totals at one moment: seconds since the first request was asked for, rows and output tokens done."""

    seconds: float
    rows: int
    output_tokens: int


class Price(NamedTuple):
    """What the machine costs while it writes."""

    dollars_per_hour: float
    """Of one GPU."""
    gpus: int = 1

    def per_million(self, rows_per_second: float) -> float | None:
        """Dollars for a million rows at this rate; None where there is no rate."""
        if rows_per_second <= 0:
            return None
        return self.dollars_per_hour * self.gpus / 3600 / rows_per_second * 1e6


class Figures(NamedTuple):
    """All there is to know at one moment; immutable, so that any thread may read it."""

    seconds: float = 0.0
    """From the first request to the newest row."""
    rows: int = 0
    cut: int = 0
    """Rows that ended at the most tokens allowed."""
    errors: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    start_seconds: float = 0.0
    """Spent on loading the model."""
    rates: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Rows, prompt tokens and output tokens a second over the last `LIVE_S` seconds."""
    engine: Mapping[str, float] = _NOTHING
    """The engine's own figures; counters since this recorder began."""
    backend: Mapping[str, Any] = _NOTHING
    """The backend's facts."""
    newest: float = 0.0
    """When the newest row came, in seconds since 1970; 0 before the first."""

    @property
    def prefix_hit_rate(self) -> float | None:
        """Share of prompt tokens that were in the prefix cache; None where the engine does not tell."""
        asked = self.engine.get("prefix_tokens_total", 0.0)
        return self.engine.get("prefix_hit_tokens_total", 0.0) / asked if asked else None


class _Tick(NamedTuple):
    seconds: float
    rows: int
    prompt_tokens: int
    output_tokens: int


class Throughput:
    """Counts rows and tokens as they finish and keeps at most `MOST_SAMPLES` samples of the totals.

    Samples begin a quarter of a second apart; each time they fill up, every second one is dropped and the
    spacing doubles, so that a run of a week costs no more memory than one of a minute. Counting (`add_many`) is done by
    one thread, which asks the engine for its figures at most four times a second; `figures` is for any thread.
    """

    def __init__(self, price: Price | None = None) -> None:
        self.price = price
        self.rows = self.cut = self.errors = 0
        self.prompt_tokens = self.output_tokens = 0
        self.start_seconds = 0.0
        self.backend: dict[str, Any] = {}
        self.figures = Figures()
        """As of the last quarter of a second in which rows came."""
        self._samples: list[Sample] = []
        self._spacing = TICK_S
        self._ticks: deque[_Tick] = deque([_Tick(0.0, 0, 0, 0)], maxlen=round(LIVE_S / TICK_S) + 1)
        self._engine = _Engine()
        self._began: float | None = None
        self._last = 0.0

    def started(self, backend: dict[str, Any], start_seconds: float, stats: Stats | None = None) -> None:
        """Note the backend's facts and the seconds that loading the model took; starts the clock.

        ``stats`` is the backend's, if it has one; it is called from the thread that adds rows, never raises into it,
        and is let go when it fails.
        """
        self.backend = backend
        self.start_seconds += start_seconds
        self._engine.attach(stats)
        if self._began is None:
            self._began = time.perf_counter()

    def add(self, completion: Completion) -> None:
        """Count one finished row."""
        self.add_many((completion,))

    def add_many(self, completions: Iterable[Completion]) -> None:
        """Count finished rows: about 0.1 us each, and a clock reading."""
        rows = cut = errors = prompt = output = 0
        for _, text, reason, given, written in completions:
            rows += 1
            if text is None:
                errors += 1
            elif reason == "length":
                cut += 1
            if given:
                prompt += given
            if written:
                output += written
        if not rows:
            return
        self.rows += rows
        self.cut += cut
        self.errors += errors
        self.prompt_tokens += prompt
        self.output_tokens += output
        self._last = self._now()
        if self._last - self._ticks[-1].seconds >= TICK_S or not self.figures.rows:
            self._tick()

    @property
    def samples(self) -> list[Sample]:
        """The totals over time, ending with the newest."""
        newest = Sample(self._last, self.rows, self.output_tokens)
        is_last = not self.rows or (self._samples and self._samples[-1] == newest)
        return self._samples if is_last else [*self._samples, newest]

    def line(self) -> str:
        """The rates of the last `LIVE_S` seconds and the engine's figures in a few words; empty before the first."""
        now = self.figures
        if not now.rows:
            return ""
        rows, prompt, output = now.rates
        said = [f"{output:,.0f} tokens/s out, {prompt:,.0f} in"]
        if (hits := now.prefix_hit_rate) is not None:
            said.append(f"{hits:.0%} of prompts cached")
        if (usage := now.engine.get("kv_cache_usage")) is not None:
            said.append(f"KV {usage:.0%}")
        said += [f"{now.engine[name]:,.0f} {name}" for name in ("running", "waiting") if name in now.engine]
        if preempted := now.engine.get("preemptions_total"):
            said.append(f"{preempted:,.0f} preempted")
        dollars = self.price.per_million(rows) if self.price else None
        if dollars is not None:
            said.append(f"${dollars:,.2f} a million rows")
        return ", ".join(said)

    def summary(self) -> dict[str, Any]:
        """Totals and rates per second (model loading apart), JSON-serialisable."""
        seconds = max(self._last, 1e-9)
        if self.rows:
            self._tick()
        found = {
            "rows": self.rows,
            "cut": self.cut,
            "errors": self.errors,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "seconds": round(self._last, 3),
            "start_seconds": round(self.start_seconds, 3),
            "rows_per_second": round(self.rows / seconds, 3),
            "prompt_tokens_per_second": round(self.prompt_tokens / seconds, 3),
            "output_tokens_per_second": round(self.output_tokens / seconds, 3),
            "backend": self.backend,
            "engine": self._engine.summary(self.figures.prefix_hit_rate),
        }
        if self.price is not None:
            found["price"] = self.price._asdict()
            dollars = self.price.per_million(self.rows / seconds) if self.rows else None
            found["dollars_per_million_rows"] = None if dollars is None else round(dollars, 4)
        return found

    def _now(self) -> float:
        if self._began is None:
            self._began = time.perf_counter()
        return time.perf_counter() - self._began

    def _tick(self) -> None:
        """Take a sample, ask the engine, and publish what is known."""
        now = _Tick(self._last, self.rows, self.prompt_tokens, self.output_tokens)
        if now != self._ticks[-1]:
            self._ticks.append(now)
        if not self._samples or self._last - self._samples[-1].seconds >= self._spacing:
            self._samples.append(Sample(self._last, self.rows, self.output_tokens))
            if len(self._samples) > MOST_SAMPLES:
                self._samples = self._samples[::2]
                self._spacing *= 2
        self._engine.ask()
        self.figures = Figures(
            self._last,
            self.rows,
            self.cut,
            self.errors,
            self.prompt_tokens,
            self.output_tokens,
            self.start_seconds,
            self._rates(now),
            MappingProxyType(self._engine.now()),
            MappingProxyType(self.backend),
            time.time(),
        )

    def _rates(self, now: _Tick) -> tuple[float, float, float]:
        # Ticks may be far apart where rows are slow: then the last two, however long ago.
        before = next((tick for tick in self._ticks if now.seconds - tick.seconds <= LIVE_S), now)
        if before == now and len(self._ticks) > 1:
            before = self._ticks[-2]
        seconds = max(now.seconds - before.seconds, 1e-9)
        rows, prompt, output = (float(b - a) / seconds for a, b in zip(before[1:], now[1:], strict=True))
        return rows, prompt, output


class _Engine:
    """An engine's figures over time: the newest, counters since the beginning, mean and most of the others."""

    def __init__(self) -> None:
        self._stats: Stats | None = None
        self._seen: dict[str, float] = {}
        self._totals: dict[str, float] = {}
        self._newest: dict[str, float] = {}
        self._sums: dict[str, tuple[int, float, float]] = {}  # how many, their sum, the most
        self._trouble: str | None = None

    def attach(self, stats: Stats | None) -> None:
        """Ask this engine from now on; what its counters stood at before does not count."""
        self._stats, self._seen = stats, {}
        self._seen = {name: value for name, value in self._call().items() if name.endswith("_total")}
        for name in self._seen:
            self._totals.setdefault(name, 0.0)

    def ask(self) -> None:
        """Take the figures of this moment."""
        for name, value in self._call().items():
            if name.endswith("_total"):
                before = self._seen.get(name, 0.0)
                # An engine that was started again counts from nothing.
                self._totals[name] = self._totals.get(name, 0.0) + (value - before if value >= before else value)
                self._seen[name] = value
            else:
                count, total, most = self._sums.get(name, (0, 0.0, value))
                self._sums[name] = count + 1, total + value, max(most, value)
                self._newest[name] = value

    def now(self) -> dict[str, float]:
        return {**self._newest, **self._totals}

    def summary(self, prefix_hit_rate: float | None) -> dict[str, Any]:
        found: dict[str, Any] = {name: round(value, 3) for name, value in sorted(self._totals.items())}
        for name, (count, total, most) in sorted(self._sums.items()):
            found[name] = {"mean": round(total / count, 4), "most": round(most, 4)}
        if prefix_hit_rate is not None:
            found["prefix_hit_rate"] = round(prefix_hit_rate, 4)
        if self._trouble is not None:
            found["trouble"] = self._trouble
        return found

    def _call(self) -> Mapping[str, float]:
        if self._stats is None:
            return _NOTHING
        try:
            return self._stats()
        except Exception as error:  # figures are never worth a run
            self._stats, self._trouble = None, f"{type(error).__name__}: {error}"[:300]
            return _NOTHING
