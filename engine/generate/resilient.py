"""An engine that dies on one row, kept going: a new engine, a search for the row at fault, and on with the rest.

The rows in flight when the engine failed are the suspects. They run again in halves: a half that the engine survives
is answered, and the other half is then known to hold the fault without being tried, so that a search among ``n`` rows
costs about log2(n) / 2 + 1 restarts. A row is given up only for a failure while it ran alone, and only once a new
engine was seen to work after it: an engine that fails on everything condemns nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

from obverse.engine.errors import BackendError, ObverseError
from obverse.engine.generate.protocol import Backend, Completion, Request, failed

__all__ = ["ResilientBackend"]

RESTARTS = 3
CALM = 20  # times the rows once suspected, answered since: failures before that are forgotten

_log = logging.getLogger(__name__)


class _EngineFailedError(Exception):
    """Carries what the engine raised to where it is dealt with; never leaves this module."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Group:
    """Rows that are run together, apart from all others."""

    def __init__(self, rows: Sequence[Request], *, guilty: bool = False) -> None:
        self.rows, self.guilty = list(rows), guilty
        """``guilty``: one of them is known to be at fault, so that trying them together would only cost a restart."""
        self.other: _Group | None = None
        """The half that holds the fault if this one doesn't."""


class ResilientBackend:
    """A `Backend` that starts another one when the one it has fails; every row is answered exactly once.

    ``make`` loads an engine, and is called again, after `close` of the old one, each time the engine has failed. What
    it raises is passed on, and so is what the source of requests raises. Raises `BackendError` where a new engine does
    not help: ``restarts`` of them in a row fail with no row in flight or on a row that was answered before, as many
    rows fail alone and none is answered, or the engine fails under load again and again though each row passes alone.
    Not for servers: those that are away are waited for (`openai`).
    """

    def __init__(
        self, make: Callable[[], Backend], *, restarts: int = RESTARTS, say: Callable[[str], None] | None = None
    ) -> None:
        """Loads the first engine. ``say`` is told of each failure; None: logged as warnings."""
        self._make, self._limit, self._say = make, restarts, say or _log.warning
        self._inner: Backend | None = make()
        self._facts: dict[str, Any] = {}
        self._totals: dict[str, float] = {}  # counters of the engines before this one
        self._live: dict[int, Request] = {}
        self._verdicts: list[Completion] = []  # rows that failed alone, until an engine is seen to work
        self._known: tuple[int, Request] | None = None  # a short row that was answered: shows that an engine works
        self._source_error: Exception | None = None
        self._vain = 0  # restarts since a row was answered that told nothing
        self._loaded = 0  # failures in a row that were no single row's fault
        self._calm = self._suspected = 0  # rows answered since the last failure; rows that were suspected then
        self._restarts = self._failed_rows = 0

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        """Answer every request; see `protocol.Backend`."""
        while True:
            try:
                yield from self._run(requests)
                break
            except _EngineFailedError as failure:
                cause = failure.cause
            suspects = list(self._live.values())
            if self._calm >= CALM * self._suspected:
                self._loaded = 0
            self._suspected = len(suspects)
            yield from self._restart(cause, vain=not suspects)
            yield from self._search(suspects, cause)
            self._calm = 0
        # No row was ever answered, so that nothing can show whether they or the engine are at fault: a few at the end
        # of a run, that would else never end.
        yield from self._pronounce()

    def facts(self) -> dict[str, Any]:
        """The engine's facts, with how often it was started anew and how many rows it failed on."""
        if self._inner is not None:
            self._facts = self._inner.facts()
        return self._facts | {"restarts": self._restarts, "engine_failed_rows": self._failed_rows}

    def stats(self) -> dict[str, float]:
        """The engine's own figures, where it has some, beside the restarts."""
        own: Callable[[], dict[str, float]] | None = getattr(self._inner, "stats", None)
        found = own() if own is not None else {}
        return found | {
            **{name: before + found.get(name, 0.0) for name, before in self._totals.items()},
            "restarts_total": float(self._restarts),
        }

    def close(self) -> None:
        """See `protocol.Backend`."""
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.close()

    def _run(self, requests: Iterator[Request]) -> Iterator[Completion]:
        """Rows through the engine; verdicts come out with the first answer. Those in flight at a failure stay live."""
        self._live.clear()
        for completion in self._pass(requests):
            request = self._live.pop(completion.id, None)
            self._vain = 0
            self._calm += 1
            if self._verdicts:
                yield from self._pronounce()
            if completion.text is not None and request is not None:
                length = completion.num_output_tokens or 0
                if self._known is None or length < self._known[0]:
                    self._known = length, request
            yield completion

    def _pass(self, requests: Iterator[Request]) -> Iterator[Completion]:
        """The engine's own stream; what the engine raises becomes `_EngineFailedError`."""
        if self._inner is None:
            raise BackendError("the engine is closed")
        try:
            # Closed here and not some time later: an engine must let go of its rows before the next is made.
            with closing(self._inner.stream(self._noted(requests))) as stream:  # type: ignore[type-var]
                yield from stream
        except Exception as error:
            source, self._source_error = self._source_error, None
            if source is not None:
                raise source from None
            if isinstance(error, ObverseError) and not isinstance(error, BackendError):
                raise
            raise _EngineFailedError(_first(error)) from None

    def _noted(self, requests: Iterator[Request]) -> Iterator[Request]:
        while True:
            try:
                request = next(requests, None)
            except Exception as error:
                self._source_error = error  # the caller's fault, not the engine's
                raise
            if request is None:
                return
            self._live[request.id] = request
            yield request

    def _search(self, suspects: Sequence[Request], cause: Exception) -> Iterator[Completion]:
        """Answer the suspects, but for those at fault."""
        groups = [_Group(suspects, guilty=True)] if suspects else []
        found = 0
        while groups:
            group = groups.pop()
            if group.guilty and len(group.rows) > 1:
                half = len(group.rows) // 2
                first, other = _Group(group.rows[:half]), _Group(group.rows[half:])
                first.other = other
                groups += [other, first]
                continue
            rows = iter(group.rows)
            try:
                yield from self._run(rows)
                if group.other is not None:
                    group.other.guilty = True
            except _EngineFailedError as failure:
                cause = failure.cause
                live, unasked = list(self._live.values()), list(rows)
                if len(group.rows) == 1 and live:
                    found += 1
                    self._condemn(live[0], cause)
                else:
                    groups += [_Group(part, guilty=part is live) for part in (unasked, live) if part]
                yield from self._restart(cause, vain=not live)
        if suspects:
            self._loaded = 0 if found else self._loaded + 1
            if self._loaded >= self._limit:
                raise BackendError(
                    f"the engine failed {self._loaded} times with about {len(suspects)} rows in flight, though each "
                    f"of them passes with fewer beside it; lower concurrency or max_num_seqs. Last: {_words(cause)}"
                ) from cause

    def _condemn(self, request: Request, cause: Exception) -> None:
        self._verdicts.append(failed(request, f"the engine failed on this row: {_words(cause)}"))
        if len(self._verdicts) >= self._limit:
            raise BackendError(
                f"the engine failed on {len(self._verdicts)} rows one after another, each alone, and answered none "
                f"in between. Last: {_words(cause)}"
            ) from cause

    def _pronounce(self) -> Iterator[Completion]:
        verdicts, self._verdicts = self._verdicts, []
        self._failed_rows += len(verdicts)
        yield from verdicts

    def _restart(self, cause: Exception, *, vain: bool) -> Iterator[Completion]:
        """A new engine, tried on a row that was answered before (its answer is dropped)."""
        while True:
            self._vain += vain
            if self._vain >= self._limit:
                raise BackendError(
                    f"the engine failed {self._vain} times in a row on nothing that it was given; last: {_words(cause)}"
                ) from cause
            self._restarts += 1
            self._say(f"the engine failed ({_words(cause)}); starting it anew, for the {_nth(self._restarts)} time")
            self._drop()
            self._inner = self._make()
            if self._known is None:
                return
            self._live.clear()
            try:
                for _ in self._pass(iter([self._known[1]])):
                    pass
            except _EngineFailedError as failure:
                cause, vain = failure.cause, True
            else:
                yield from self._pronounce()
                return

    def _drop(self) -> None:
        """Close an engine that has failed, and may fail at this too; its counters are kept."""
        try:
            totals = {name: value for name, value in self.stats().items() if name.endswith("_total")}
            self._totals = self._totals | {name: value for name, value in totals.items() if name != "restarts_total"}
            self.close()
        except Exception as error:
            self._say(f"the failed engine could not be closed: {_words(error)}")


def _first(error: Exception) -> Exception:
    """What went wrong first: an engine that has died often fails once more while its rows are taken back."""
    first: BaseException = error
    while isinstance(first.__context__, BackendError) and not isinstance(first, BackendError):
        first = first.__context__
    return first if isinstance(first, Exception) else error


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return text if isinstance(error, BackendError) else f"{type(error).__name__}: {text}"


def _nth(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number // 10 % 10 != 1 else 0, "th")
    return f"{number}{ending}"
