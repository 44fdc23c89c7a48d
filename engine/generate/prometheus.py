"""What a `Throughput` knows as Prometheus metrics: an HTTP endpoint, or a file for node_exporter's textfile collector.

Text format 0.0.4. The endpoint answers on 127.0.0.1 unless told otherwise, runs in threads of its own and reads only
immutable figures, so that nobody who asks can hold up the engine. Without a library: the format is a page.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from obverse.engine.errors import RunError
from obverse.engine.generate.throughput import Figures, Throughput
from obverse.engine.records.shards import atomic_write

__all__ = ["CONTENT_TYPE", "MetricsServer", "TextfileWriter", "exposition", "write_textfile"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ASKER_S = 10.0  # seconds that one connection may take
_FACTS = ("backend", "model", "version", "dtype", "device")
_ENGINE = {
    "running": "Rows in the engine's batch.",
    "waiting": "Rows that the engine has admitted but not begun.",
    "kv_cache_usage": "Share of the key-value cache that is taken, 0 to 1.",
    "prefix_tokens_total": "Prompt tokens looked up in the prefix cache.",
    "prefix_hit_tokens_total": "Prompt tokens found in the prefix cache.",
    "preemptions_total": "Rows put back because the key-value cache was full.",
}


class _Metric(NamedTuple):
    name: str
    kind: str
    about: str
    samples: list[tuple[dict[str, str], float]]


def exposition(throughput: Throughput) -> str:
    """The metrics as text; every name begins with ``obverse_`` or is one that all exporters have."""
    lines = []
    for metric in _metrics(throughput.figures, throughput):
        lines.append(f"# HELP {metric.name} {_escape(metric.about, quote=False)}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        lines += [f"{metric.name}{_labels(labels)} {_number(value)}" for labels, value in metric.samples]
    return "\n".join(lines) + "\n"


def _metrics(now: Figures, throughput: Throughput) -> Iterator[_Metric]:
    def one(name: str, kind: str, about: str, value: float) -> _Metric:
        return _Metric(f"obverse_{name}", kind, about, [({}, value)])

    ends = {"stop": now.rows - now.cut - now.errors, "length": now.cut, "error": now.errors}
    yield _Metric(
        "obverse_rows_total", "counter", "Rows done.", [({"finish_reason": name}, n) for name, n in ends.items()]
    )
    yield one("prompt_tokens_total", "counter", "Tokens of the prompts of rows done.", now.prompt_tokens)
    yield one("output_tokens_total", "counter", "Tokens written in rows done.", now.output_tokens)
    for name, rate in zip(("rows", "prompt_tokens", "output_tokens"), now.rates, strict=True):
        yield one(f"{name}_per_second", "gauge", "Over the last half minute.", rate)
    yield one("generating_seconds", "gauge", "From the first request to the newest row.", now.seconds)
    yield one("model_load_seconds", "gauge", "Spent on loading the model.", now.start_seconds)
    yield one("newest_row_timestamp_seconds", "gauge", "When the newest row was done (Unix time).", now.newest)
    if throughput.price is not None and (dollars := throughput.price.per_million(now.rates[0])) is not None:
        yield one("dollars_per_million_rows", "gauge", "At the price given and the present rate.", dollars)
    for name, value in sorted(now.engine.items()):
        kind = "counter" if name.endswith("_total") else "gauge"
        yield one(f"engine_{_clean(name)}", kind, _ENGINE.get(name, "A figure of the engine's own."), value)
    if now.backend:
        facts = {name: str(now.backend[name]) for name in _FACTS if now.backend.get(name) is not None}
        yield _Metric("obverse_backend_info", "gauge", "What writes the rows.", [(facts, 1.0)])
    yield from _process()


def _process() -> Iterator[_Metric]:
    import psutil

    process = psutil.Process()
    spent = process.cpu_times()
    resident = float(process.memory_info().rss)
    cpu = float(spent.user + spent.system)
    yield _Metric("process_cpu_seconds_total", "counter", "CPU time of this process.", [({}, cpu)])
    yield _Metric("process_resident_memory_bytes", "gauge", "Resident memory of this process.", [({}, resident)])


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value, quote=True)}"' for name, value in labels.items()) + "}"


def _escape(value: str, *, quote: bool) -> str:
    value = value.replace("\\", "\\\\").replace("\n", "\\n")
    value = value.replace('"', '\\"') if quote else value
    # Anything else is allowed by the format as UTF-8; half a surrogate pair is not UTF-8.
    return value.encode("utf-8", "replace").decode()


def _clean(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


def write_textfile(path: Path, throughput: Throughput) -> None:
    """Write the metrics to ``path`` (``*.prom``), whole or not at all, readable by all: another user collects it."""

    def write(temporary: Path) -> None:
        temporary.write_text(exposition(throughput), encoding="utf-8")
        temporary.chmod(0o644)

    atomic_write(path, write)


class TextfileWriter:
    """Writes the metrics to a file every ``every_s`` seconds, and once more at the end; a full disk is no trouble."""

    def __init__(self, path: Path, throughput: Throughput, *, every_s: float = 15.0) -> None:
        """Raises `RunError` where the file can't be written at all."""
        self._path, self._throughput, self._every_s = path, throughput, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="obverse-metrics-file", daemon=True)
        try:
            write_textfile(path, throughput)
        except OSError as error:
            raise RunError(f"{path}: metrics can't be written there ({error.strerror or error})") from error

    def __enter__(self) -> TextfileWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(self._every_s)
            with contextlib.suppress(OSError):  # metrics are never worth a run
                write_textfile(self._path, self._throughput)


class MetricsServer:
    """The endpoint ``http://HOST:PORT/metrics``; answers from `__enter__` to `__exit__`."""

    def __init__(self, render: Callable[[], str], port: int, host: str = "127.0.0.1") -> None:
        """``port`` 0 takes any free one; `port` says which. Raises `RunError` where the port can't be had."""
        try:
            self._server = _Server((host, port), _handler(render))
        except (OSError, OverflowError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise RunError(f"metrics can't be served on {host}:{port} ({reason}); choose another port") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="obverse-metrics", daemon=True
        )

    def __enter__(self) -> MetricsServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # one who asks and never reads the answer must not keep the process alive
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the other side's affair: nothing on the terminal."""


def _handler(render: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _ASKER_S
        server_version, sys_version = "obverse", ""

        def do_GET(self) -> None:
            """Answer /metrics; send anyone else there."""
            if self.path.split("?")[0] != "/metrics":
                self.send_error(404, "the metrics are at /metrics")
                return
            body = render().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            """As GET, without the body."""
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Nothing: the terminal is the progress's."""

    return Handler
