"""A server for tests that breaks in every way a server can, and what the tests of the openai backend share."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from obverse.engine.generate import Completion, GenerateSettings, Request
from obverse.engine.generate.openai import OpenAIBackend


class Exchange:
    """One request and the connection that it came on; rules answer by writing bytes."""

    def __init__(self, body: dict[str, Any], count: int, writer: asyncio.StreamWriter) -> None:
        self.body, self.count, self.writer = body, count, writer
        self.row = int(str(body.get("prompt") or body["messages"][-1]["content"]).split()[-1])
        self.probe = body["max_tokens"] == 1

    def send(self, data: bytes, status: str = "200 OK", more: str = "", length: int | None = None) -> None:
        size = len(data) if length is None else length
        self.writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{more}\r\n".encode() + data)

    def answer(self, text: str | None = None, **more: Any) -> None:
        message = {"role": "assistant", "content": f"text {self.row}" if text is None else text}
        choice = {"message": message, "finish_reason": "stop"} | more
        self.send(json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode())

    def error(self, status: str, more: str = "") -> None:
        self.send(b'{"error": {"message": "no luck"}}', status, more)


Rule = Callable[[Exchange], Awaitable[None]]


class Server:
    """A listener in a thread whose rule may be changed, and that can go away and come back on its port."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.counts: Counter[int] = Counter()
        self.times: list[float] = []
        self.probes = self.active = self.most_active = 0
        self.headers = b""
        self._writers: set[asyncio.StreamWriter] = set()
        self.loop = asyncio.new_event_loop()
        # Bound and never listening: keeps the port ours, and refuses connections, while the listener is away.
        self._port = self._bound(0)
        self.port: int = self._port.getsockname()[1]
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.up()

    def _bound(self, port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", port))
        return bound

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def up(self) -> None:
        self._listener = self._run(asyncio.start_server(self._serve, sock=self._bound(self.port), backlog=1024))

    def down(self) -> None:
        async def work() -> None:
            self._listener.close()
            for writer in self._writers:
                writer.transport.abort()

        self._run(work())

    def close(self) -> None:
        async def work() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.down()
        self._run(work())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self._port.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                self.headers = head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                exchange = Exchange(body, 0, writer)
                self.times.append(time.monotonic())
                if exchange.probe:
                    self.probes += 1
                else:
                    self.counts[exchange.row] += 1
                    exchange.count = self.counts[exchange.row]
                self.active += 1
                self.most_active = max(self.most_active, self.active)
                try:
                    await self.rule(exchange)
                finally:
                    self.active -= 1
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


def sends(data: bytes, status: str = "200 OK", more: str = "") -> Rule:
    async def rule(exchange: Exchange) -> None:
        exchange.send(data, status, more)

    return rule


async def good(exchange: Exchange) -> None:
    exchange.answer()


def rows(count: int, *, chat: bool = True) -> Iterator[Request]:
    return (Request(i, f"write {i}", 7 * i, chat, 0) for i in range(count))


def backend_for(server: Server, say: Callable[[str], None] | None = None, **more: Any) -> OpenAIBackend:
    engine = {"first_pause": 0.01, "timeout": 5.0} | more.pop("engine", {})
    settings = GenerateSettings(backend="openai", model="m", base_url=server.url, engine=engine, **more)
    return OpenAIBackend(settings, say)


def run(backend: OpenAIBackend, requests: Iterator[Request]) -> list[Completion]:
    try:
        done = list(backend.stream(requests))
    finally:
        backend.close()
    return sorted(done)


def taken(stream: Iterator[Completion]) -> tuple[list[int], Exception]:
    """The ids that came before the stream raised, and what it raised."""
    got: list[int] = []
    try:
        got.extend(completion.id for completion in stream)
    except Exception as error:
        return got, error
    raise AssertionError("the stream ended well")
