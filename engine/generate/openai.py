"""Any OpenAI-compatible server over HTTP: thousands of requests in flight, and a server that is away only pauses a run.

One event loop in a thread of its own does all the sending (`row_sender`); `stream` stays in the caller's thread, where
the requests come from. The key comes from OPENAI_API_KEY, goes into the Authorization header alone, and is struck out
of every text and message that comes back. Servers promise nothing about batch invariance; a seed is sent all the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from obverse.engine.errors import RecipeError
from obverse.engine.generate.openai_http import Address, Connections, Secrets, client_version, require_client
from obverse.engine.generate.openai_options import Options
from obverse.engine.generate.openai_wire import Wire
from obverse.engine.generate.protocol import Completion, Request
from obverse.engine.generate.row_sender import RowSender, Server
from obverse.engine.generate.server_health import ServerHealth
from obverse.engine.generate.settings import GenerateSettings

__all__ = ["OpenAIBackend"]

CONCURRENCY = 256
SPARE_FILES = 256  # file descriptors left to the rest of the process

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class OpenAIBackend:
    """A client of one server, or of several replicas of it (``engine.replicas``).

    A row that fails by itself (a 4xx, or ``max_attempts`` failures while the server answers others) is an error row. A
    server that answers nobody pauses the run, which goes on when it is back; only after ``outage_budget`` seconds of
    that `BackendError`, and at once where no row can succeed (HTTP 401, 403, 404, ...).
    """

    def __init__(self, settings: GenerateSettings, say: Callable[[str], None] | None = None) -> None:
        """``say`` is told, in the thread that streams, of servers that are away; None: logged as warnings.

        Raises `MissingPackageError` and `RecipeError` (an option that is unknown or out of range).
        """
        require_client()
        self._settings, self._options = settings, Options.read(settings.engine)
        self._say = say or _log.warning
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        try:
            self._addresses = [Address(url, key) for url in (str(settings.base_url), *self._options.replicas)]
        except ValueError:
            raise RecipeError(
                "generate.base_url and engine.replicas: expected addresses as in http://HOST:PORT/v1"
            ) from None
        secrets = Secrets(secret for address in self._addresses for secret in address.secrets)
        self._wire = Wire(settings, self._options.extra_body, secrets)
        self._concurrency = settings.concurrency or CONCURRENCY
        self._most = _most_connections(self._concurrency)
        self._thread: _LoopThread | None = None
        self._sender: RowSender | None = None
        self._servers: list[Server] = []

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        """Answer requests as the server does; see `protocol.Backend`."""
        thread, sender = self._open()
        inbox, outbox = _Inbox(thread.loop, sender.add), _Outbox(thread.loop)
        thread.call(sender.begin, outbox.put, outbox.fail, outbox.note)
        # A few more rows than requests, so that a free place does not wait for this thread.
        room = self._concurrency + max(1, self._concurrency // 4)
        live, more = 0, True
        trouble: Exception | None = None
        try:
            while live or more:
                done = outbox.take(self._say) if live else []
                live -= len(done)
                # New rows go out before the answers are handed on: the server works while the caller does.
                while more and live < room:
                    try:
                        request = next(requests, None)
                    except Exception as error:  # the source's: raised once what is in flight has been handed on
                        request, trouble = None, error
                    if request is None:
                        more = False
                    else:
                        live += 1
                        inbox.put(request)
                yield from done
            if trouble is not None:
                raise trouble
        finally:
            if not thread.loop.is_closed():
                thread.run(sender.stop())

    def facts(self) -> dict[str, Any]:
        """See `protocol.Backend`. Addresses are given without user, password and query."""
        sender = self._sender
        return {
            "backend": "openai",
            "version": f"aiohttp {client_version()}",
            "model": self._settings.model,
            "base_url": self._addresses[0].shown,
            "replicas": [address.shown for address in self._addresses[1:]],
            "dtype": None,
            "device": None,
            "batch_invariant": None,
            "concurrency": self._concurrency,
            "connections": self._most,
            "requests": sender.requests if sender else 0,
            "answered": sender.answered if sender else 0,
            "outages": sender.outages if sender else 0,
        }

    def stats(self) -> dict[str, float]:
        """Requests at the servers and rows waiting here now, under the names of `generate.throughput`."""
        sender = self._sender
        if sender is None:
            return {}
        return {"running": float(sender.active), "waiting": float(sender.waiting)}

    def close(self) -> None:
        """See `protocol.Backend`."""
        thread, self._thread = self._thread, None  # the sender stays: `facts` has its counts
        if thread is not None:
            for server in self._servers:
                thread.run(server.connections.close())
            self._servers = []
            thread.close()

    def _open(self) -> tuple[_LoopThread, RowSender]:
        if self._thread is None or self._sender is None:
            if self._most < self._concurrency:
                self._say(
                    f"only {self._most} requests at once, not {self._concurrency}: each takes an open file, and this "
                    "process may have no more (ulimit -n)"
                )
            self._thread = _LoopThread()
            self._sender = self._thread.run(self._connect())
        return self._thread, self._sender

    async def _connect(self) -> RowSender:
        for address in self._addresses:
            connections = Connections(address, most=self._most, timeout=self._options.timeout)
            self._servers.append(Server(address, connections, ServerHealth(self._most, self._options.first_pause)))
        return RowSender(
            self._servers, self._wire, self._options, most=self._most, max_tokens=self._settings.sampling.max_tokens
        )


class _Inbox:
    """Rows on their way to the loop's thread: each at once, however slow its source, with one call for many."""

    def __init__(self, loop: asyncio.AbstractEventLoop, add: Callable[[Iterable[Request]], None]) -> None:
        self._loop, self._add = loop, add
        self._rows: deque[Request] = deque()
        self._called = False

    def put(self, request: Request) -> None:
        self._rows.append(request)
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._called = False  # first: a row put from now on calls again
        self._add([self._rows.popleft() for _ in range(len(self._rows))])


class _Outbox:
    """Completions on their way from the loop's thread to the caller's, many at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready = threading.Condition()
        self._fresh: list[Completion] = []  # of this turn of the loop; only its thread touches it
        self._done: list[Completion] = []
        self._notes: list[str] = []
        self._error: BaseException | None = None
        # A fault in a callback would leave the caller waiting for ever.
        loop.set_exception_handler(lambda _, context: self.fail(context.get("exception") or RuntimeError(str(context))))

    def put(self, completion: Completion) -> None:
        if not self._fresh:
            self._loop.call_soon(self._flush)
        self._fresh.append(completion)

    def note(self, message: str) -> None:
        with self._ready:
            self._notes.append(message)
            self._ready.notify()

    def fail(self, error: BaseException) -> None:
        self._flush()
        with self._ready:
            self._error = self._error or error
            self._ready.notify()

    def take(self, say: Callable[[str], None]) -> list[Completion]:
        """All that is done, waiting until something is; raises what `fail` was given once all else is taken."""
        with self._ready:
            while not (self._done or self._notes or self._error is not None):
                self._ready.wait()
            done, self._done = self._done, []
            notes, self._notes = self._notes, []
        for note in notes:
            say(note)
        if not done and self._error is not None:
            raise self._error
        return done

    def _flush(self) -> None:
        fresh, self._fresh = self._fresh, []
        with self._ready:
            self._done += fresh
            self._ready.notify()


class _LoopThread:
    """An event loop in a thread of its own: it turns while the caller works, and inside a notebook's own loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="obverse-openai", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the loop's thread, and wait for it."""

        async def work() -> None:
            function(*arguments)

        self.run(work())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def _most_connections(wanted: int) -> int:
    """As many of the wanted connections as this process may have files open."""
    try:
        import resource
    except ImportError:  # no such limit on this system
        return wanted
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (allowed - SPARE_FILES) if allowed > 2 * SPARE_FILES else allowed // 2))
