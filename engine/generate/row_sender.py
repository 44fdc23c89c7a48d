"""Rows to servers and back, inside one event loop: who is sent where and when, tried again, or given up.

A row that waits costs an entry in a queue, not a task. Nothing here decides what a text is: pauses are random, texts
are not.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple

from obverse.engine.errors import BackendError
from obverse.engine.generate.openai_http import Address, Connections, NoAnswer
from obverse.engine.generate.openai_options import Options
from obverse.engine.generate.openai_wire import Failure, Wire
from obverse.engine.generate.protocol import Completion, Request, failed
from obverse.engine.generate.rate_limit import RateLimit
from obverse.engine.generate.server_health import ServerHealth
from obverse.engine.records.progress import format_seconds

__all__ = ["RowSender", "Server"]

LONGEST_PAUSE = 60.0  # seconds
PROBE_SECONDS = 30.0
BUSY_BLAME = 0.25  # how much "busy" counts against the row: it says more of the server
LEAST_RETRIES = 100
SAME_REFUSALS = 100  # the first rows all refused in the same words: the settings are wrong, not the rows
FIRST_NOTICE, LONGEST_NOTICE = 5.0, 60.0  # seconds between two lines about the same outage


class Server(NamedTuple):
    """One address, its connections and how it is doing."""

    address: Address
    connections: Connections
    health: ServerHealth


class _Row:
    """A row on its way."""

    __slots__ = ("attempts", "counted", "open_failures", "request", "tokens", "trouble")

    def __init__(self, request: Request, tokens: float) -> None:
        self.request, self.tokens = request, tokens
        self.attempts = 0
        self.counted = 0.0
        """Failures that are the row's own."""
        self.open_failures: list[tuple[ServerHealth, float, float]] = []
        """Where, when and how grave: failures of which nobody can yet say whose they are."""
        self.trouble = ""


class RowSender:
    """Sends rows to servers; every method is called in the event loop's thread."""

    def __init__(self, servers: Sequence[Server], wire: Wire, options: Options, *, most: int, max_tokens: int) -> None:
        """At most ``most`` requests at once over all servers."""
        self._servers, self._wire, self._options = servers, wire, options
        self._most, self._max_tokens = most, max_tokens
        self._loop = asyncio.get_running_loop()
        self._random = random.Random()
        self._rate = RateLimit(options.requests_per_minute, options.tokens_per_minute, self._loop.time())
        self._ready: deque[_Row] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._wake: asyncio.TimerHandle | None = None
        self._stopped = True
        self._good: Request | None = None  # a row that was answered: what a server that was down is asked
        self._notices: dict[ServerHealth, tuple[float, float]] = {}
        self._refusals: tuple[str, int] | None = ("", 0)
        self._charged = 0
        self.answered = self.requests = self.outages = 0

    @property
    def active(self) -> int:
        """Requests at the servers; may be read from any thread."""
        return sum(server.health.active for server in self._servers)

    @property
    def waiting(self) -> int:
        """Rows that wait here for room, for the end of a pause or of an outage; may be read from any thread."""
        return len(self._ready) + len(self._timers)

    def begin(
        self,
        deliver: Callable[[Completion], None],
        fail: Callable[[BaseException], None],
        say: Callable[[str], None],
    ) -> None:
        """Take rows from now on; one of ``deliver`` for each row, or ``fail`` once."""
        self._deliver, self._fail_with, self._say = deliver, fail, say
        self._stopped = False

    def add(self, requests: Iterable[Request]) -> None:
        """Queue rows and send what may be sent now."""
        for request in requests:
            self._ready.append(_Row(request, len(request.prompt) / 4 + self._max_tokens))
        self._pump()

    async def stop(self) -> None:
        """Drop what is on its way."""
        self._stopped = True
        self._ready.clear()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._wake is not None:
            self._wake.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _pump(self) -> None:
        """Send what may be sent now, and see to being called when more may."""
        now = self._loop.time()
        wait = 0.0
        self._probe(now)
        while self._ready and not self._stopped:
            server = self._choose(now)
            if server is None:
                break
            row = self._ready[0]
            wait = self._rate.wait(row.tokens, now)
            if wait > 0:
                break
            self._ready.popleft()
            if row.open_failures and self._give_up(row):
                continue
            row.attempts += 1
            self._rate.take(row.tokens)
            self._start(server, self._attempt(row, server, server.health.down))
        if self._ready and not self._stopped:
            times = [at for server in self._servers if (at := server.health.next_probe()) is not None]
            if wait > 0:
                times.append(now + wait)
            if times:
                self._wake_at(min(times))

    def _wake_at(self, at: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self._loop.call_at(at, self._pump)

    def _probe(self, now: float) -> None:
        """Ask servers that are down for one token of a row that was answered before; not a row's text."""
        if self._good is None or not self._ready or self._stopped:
            return
        for server in self._servers:
            if server.health.down and server.health.room(now):
                self._start(server, self._ask_again(server, self._good))

    def _choose(self, now: float) -> Server | None:
        """The least busy server that takes a row now."""
        if self.active >= self._most:
            return None
        free = [server for server in self._servers if server.health.room(now)]
        return min(free, key=lambda s: (s.health.down, s.health.active / s.health.limit), default=None)

    def _start(self, server: Server, work: Coroutine[Any, Any, None]) -> None:
        self.requests += 1
        server.health.active += 1
        server.health.probing |= server.health.down
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._stopped:
            self._stopped = True  # a fault of our own: it must be seen, not waited for
            self._fail_with(error)

    async def _attempt(self, row: _Row, server: Server, probe: bool) -> None:
        sent_at = self._loop.time()
        outcome: Completion | Failure = Failure("fatal", "")
        try:
            reply = await server.connections.post(*self._wire.body(row.request))
            outcome = self._wire.read(row.request, reply)
        finally:
            self._ended(server, probe)
        if isinstance(outcome, Completion):
            self._finish(row, server, outcome)
        else:
            self._rate.settle(row.tokens, 0.0)
            self._failed(server, outcome, sent_at, probe)
            if not self._stopped:
                self._try_again(row, server, outcome)
        self._pump()

    async def _ask_again(self, server: Server, good: Request) -> None:
        sent_at = self._loop.time()
        outcome: Completion | Failure = Failure("fatal", "")
        try:
            path, body = self._wire.body(good, max_tokens=1)
            reply = await server.connections.post(path, body, PROBE_SECONDS)
            outcome = self._wire.read(good, reply)
            if isinstance(reply, NoAnswer) and reply.timed_out:
                outcome = Failure("failed", self._wire.clean(reply.message))
        finally:
            self._ended(server, True)
        if isinstance(outcome, Failure):
            self._failed(server, outcome, sent_at, True)
        else:
            self._works(server)
        self._pump()

    def _ended(self, server: Server, probe: bool) -> None:
        server.health.active -= 1
        if probe:
            server.health.probing = False

    def _finish(self, row: _Row, server: Server, completion: Completion) -> None:
        """The server dealt with the row."""
        self._works(server)
        self.answered += 1
        if completion.text is not None:
            self._good, self._refusals = row.request, None
        elif self._refusals is not None:
            words, count = self._refusals
            self._refusals = completion.finish_reason, count + 1 if words == completion.finish_reason else 1
            if self._refusals[1] >= SAME_REFUSALS:
                self._fail(f"{server.address.shown} refused each of the first {count + 1} rows: {words}")
        used = (completion.num_prompt_tokens, completion.num_output_tokens)
        if None not in used:
            self._rate.settle(row.tokens, sum(used))  # type: ignore[arg-type]
        self._deliver(completion)

    def _works(self, server: Server) -> None:
        now = self._loop.time()
        lost = server.health.failing_for(now)
        server.health.answered(now)
        if self._notices.pop(server.health, None) is not None:
            self._say(f"{server.address.shown} answers again after {format_seconds(lost)}")

    def _failed(self, server: Server, failure: Failure, sent_at: float, probe: bool) -> None:
        """Count a failure of the server, and end the run where it can't go on."""
        now, health = self._loop.time(), server.health
        if failure.kind == "fatal":
            self._fail(f"{server.address.shown} refuses every request: {failure.message}")
            return
        health.failed(now, sent_at, failure.message, probe=probe, busy=failure.kind == "busy", wait=failure.retry_after)
        if not probe or not health.down:
            return
        self._notice(server, now)
        gone = min(s.health.failing_for(now) for s in self._servers)
        budget = self._options.outage_budget
        if budget and gone >= budget:
            self._fail(
                f"no answer from {', '.join(s.address.shown for s in self._servers)} for {budget:g} s "
                f"(outage_budget); last: {failure.message}"
            )
        elif budget:
            health.probe_no_later(now + budget - gone)  # whatever the pause: the budget's end is looked at

    def _notice(self, server: Server, now: float) -> None:
        at, spacing = self._notices.get(server.health, (now, FIRST_NOTICE))
        if server.health not in self._notices:
            self.outages += 1
        elif now < at:
            return
        gone, why = server.health.failing_for(now), server.health.trouble
        self._say(f"{server.address.shown} does not answer for {format_seconds(gone)}: waiting ({why})")
        self._notices[server.health] = now + spacing, min(spacing * 2, LONGEST_NOTICE)

    def _try_again(self, row: _Row, server: Server, failure: Failure) -> None:
        """Send the row again: at once where the server is down (it waits for that), else after a pause."""
        row.trouble = failure.message
        if failure.kind != "unsent":
            weight = BUSY_BLAME if failure.kind == "busy" else 1.0
            row.open_failures.append((server.health, self._loop.time(), weight))
        pause = 0.0
        if not server.health.down:
            pause = self._jitter(min(self._options.first_pause * 2.0 ** min(row.attempts - 1, 16), LONGEST_PAUSE))
        pause = max(pause, failure.retry_after * self._random.uniform(1.0, 1.05))
        if not pause:
            self._ready.append(row)
            return
        timer: asyncio.TimerHandle = self._loop.call_later(pause, lambda: self._rest_over(row, timer))
        self._timers.add(timer)

    def _rest_over(self, row: _Row, timer: asyncio.TimerHandle) -> None:
        self._timers.discard(timer)
        self._ready.appendleft(row)  # before fresh rows, or the oldest shard would wait for the newest
        self._pump()

    def _give_up(self, row: _Row) -> bool:
        """Whether failures that are now known to be the row's own are enough; if so it is an error row."""
        counted, still = 0.0, []
        for health, at, weight in row.open_failures:
            blame = health.blame(at)
            if blame is None:
                still.append((health, at, weight))
            else:
                counted += min(weight, blame)
        row.counted += counted
        row.open_failures = still
        times = f"{row.attempts} attempt{'s' if row.attempts > 1 else ''}"
        if row.counted >= self._options.max_attempts:
            self._deliver(failed(row.request, f"{row.trouble} ({times})"))
            return True
        if counted:
            self._charged += 1
            if self._charged > max(LEAST_RETRIES, self._options.retry_budget * self.answered):
                self._deliver(failed(row.request, f"{row.trouble} ({times}; retry_budget is spent)"))
                return True
        return False

    def _jitter(self, seconds: float) -> float:
        """The pause made up to a quarter longer or shorter, so that rows don't come back all at once."""
        return seconds * self._random.uniform(0.75, 1.25)

    def _fail(self, message: str) -> None:
        if not self._stopped:
            self._stopped = True
            self._fail_with(BackendError(message))
