"""The openai backend against a real HTTP server on this machine."""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pytest

from obverse.engine.errors import BackendError, RecipeError
from obverse.engine.generate import GenerateSettings, Request, generate, make_backend
from obverse.engine.records.keys import derive_seed

pytest.importorskip("aiohttp")

KEY = "sk-test-1f3a9c5577d2"
Targets = Callable[..., pa.Table]
Reply = tuple[int, dict[str, str], Any]


class Server(ThreadingHTTPServer):
    """Answers each request by ``rule(path, body, count of this prompt's requests)``; keeps what it saw."""

    daemon_threads = True

    def __init__(self, rule: Callable[[str, dict[str, Any], int], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rule = rule
        self.seen: list[tuple[float, str, dict[str, str], dict[str, Any]]] = []
        self.lock = threading.Lock()
        self.active = self.most_active = 0

    def handle_error(self, *_: object) -> None:
        pass  # a client that hangs up is part of a test, not of its output

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.seen.append((time.monotonic(), self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            count = sum(prompt_of(old[3]) == prompt_of(body) for old in server.seen)
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        status, headers, answer = server.rule(self.path, body, count)
        with server.lock:
            server.active -= 1
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def prompt_of(body: dict[str, Any]) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def chat(text: str | None, reason: str = "stop") -> Any:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    return {"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def plain(text: str) -> Any:
    choice = {"index": 0, "text": text, "finish_reason": "length"}
    return {"id": "a", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers: list[Server] = []

    def start(rule: Callable[[str, dict[str, Any], int], Reply]) -> Server:
        server = Server(rule)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def settings_for(server: Server, **more: Any) -> GenerateSettings:
    engine = {"first_pause": 0.01, "timeout": 5.0} | more.pop("engine", {})
    return GenerateSettings(backend="openai", model="m-1", base_url=server.url, engine=engine, **more)


def test_chat_requests_carry_all_that_was_set(serve: Any, make_targets: Targets) -> None:
    server = serve(lambda path, body, count: (200, {}, chat(f"  Text of {prompt_of(body)[-9:]}")))
    settings = settings_for(server, system="Be dry", sampling={"max_tokens": 33}, engine={"extra_body": {"top_k": 4}})
    table = generate(make_targets(range(20), label="good"), settings, seed=2)
    assert len(server.seen) == 20
    assert sorted(body["seed"] for _, _, _, body in server.seen) == sorted(
        derive_seed(2, "generate", i) for i in range(20)
    )
    _, path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert {k: v for k, v in body.items() if k not in ("messages", "seed")} == {
        "model": "m-1",
        "max_tokens": 33,
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 4,
    }
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == list(range(20))
    assert all(row["text"] == "Text of bel: good" for row in rows)
    assert {(r["finish_reason"], r["num_prompt_tokens"], r["num_output_tokens"], r["model"]) for r in rows} == {
        ("stop", 11, 5, "m-1")
    }


def test_facts_go_to_the_completions_endpoint(serve: Any, make_targets: Targets) -> None:
    server = serve(lambda path, body, count: (200, {}, plain(" A town.")))
    [row] = generate(make_targets([4]), settings_for(server, prompt="facts"), seed=2).to_pylist()
    assert server.seen[0][1] == "/v1/completions"
    assert server.seen[0][3]["prompt"] == "[s] Town 4 [r] lies in [o] Land 40 [e] [text]"
    assert (row["text"], row["finish_reason"], row["num_output_tokens"]) == ("A town.", "length", None)


def test_concurrency_is_bounded_and_used(serve: Any, make_targets: Targets) -> None:
    def slow(path: str, body: dict[str, Any], count: int) -> Reply:
        time.sleep(0.05)
        return 200, {}, chat("t")

    server = serve(slow)
    generate(make_targets(range(30)), settings_for(server, concurrency=6), seed=2)
    assert server.most_active == 6


def test_busy_and_failing_answers_are_tried_again(serve: Any, make_targets: Targets) -> None:
    garbage: list[Any] = [b"<html>", b"{}", {"choices": []}]

    def rule(path: str, body: dict[str, Any], count: int) -> Reply:
        town = int(prompt_of(body).split("Town ")[1].split()[0])
        if count == 1 and town == 0:
            return 429, {"Retry-After": "0.4"}, {"error": {"message": "slow down"}}
        if count <= 2 and town in (1, 2, 3):
            return (500, 503, 529)[town - 1], {}, {"error": {"message": "oops"}}
        if count == 1 and town in (4, 5, 6):
            return 200, {}, garbage[town - 4]
        return 200, {}, chat(f"town {town}")

    server = serve(rule)
    table = generate(make_targets(range(8)), settings_for(server), seed=2)
    assert table.column("text").to_pylist() == [f"town {i}" for i in range(8)]
    times = [at for at, _, _, body in server.seen if "Town 0 " in prompt_of(body)]
    assert len(times) == 2
    assert times[1] - times[0] >= 0.4  # Retry-After outranks the 0.01 s back-off
    assert len([1 for _, _, _, body in server.seen if "Town 1 " in prompt_of(body)]) == 3


def test_bad_rows_fail_alone(serve: Any, make_targets: Targets) -> None:
    def rule(path: str, body: dict[str, Any], count: int) -> Reply:
        town = int(prompt_of(body).split("Town ")[1].split()[0])
        if town == 1:
            return 400, {}, {"error": {"message": f"too long; you sent Bearer {KEY}"}}
        if town == 2:
            return 500, {}, {"error": {"message": "always"}}
        if town == 3:
            return 200, {}, chat("half", "content_filter")
        if town == 4:
            return 200, {}, chat(None)
        return 200, {}, chat(f"echo {KEY}" if town == 5 else "fine")

    server = serve(rule)
    settings = settings_for(server, concurrency=2, engine={"max_attempts": 3, "outage_budget": 3.0})
    rows = generate(make_targets(range(30)), settings, seed=2).to_pylist()
    assert rows[1]["finish_reason"].startswith("error: HTTP 400: ")
    assert "too long" in rows[1]["finish_reason"]
    assert rows[2]["finish_reason"].startswith("error: HTTP 500: ")
    assert int(rows[2]["finish_reason"].split("(")[1].split()[0]) >= 3
    assert rows[3]["finish_reason"] == "error: ended by content_filter"
    assert rows[4]["finish_reason"] == "error: no text (finish_reason stop)"
    assert [row["text"] for row in rows[1:5]] == [None] * 4
    assert rows[5]["text"] == "echo [key]"
    assert all(row["text"] == "fine" for row in rows[6:])
    assert KEY not in json.dumps(rows)


def test_the_key_is_in_no_row_fact_log_or_error(
    serve: Any, make_targets: Targets, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve(lambda path, body, count: (401, {}, {"error": {"message": f"Incorrect API key: {KEY}"}}))
    settings = settings_for(server)
    with caplog.at_level(logging.DEBUG), pytest.raises(BackendError, match="refuses every request") as caught:
        generate(make_targets(range(3)), settings, seed=2)
    shown = "".join(traceback.format_exception(caught.value))
    backend = make_backend(settings, 0)
    facts = json.dumps(backend.facts())
    backend.close()
    captured = capfd.readouterr()
    for text in (shown, facts, repr(settings), repr(vars(caught.value)), captured.out, captured.err):
        assert KEY not in text
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("obverse")]
    assert KEY not in "".join(ours)
    assert server.seen[0][2]["authorization"] == f"Bearer {KEY}"


def test_a_dead_server_pauses_and_then_raises(serve: Any, make_targets: Targets) -> None:
    server = serve(lambda path, body, count: (200, {}, chat("t")))
    server.shutdown()
    server.server_close()
    settings = settings_for(server, engine={"outage_budget": 0.6, "first_pause": 0.05})
    began = time.monotonic()
    with pytest.raises(BackendError, match=r"no answer from http://127\.0\.0\.1:\d+/v1 for 0\.6 s"):
        generate(make_targets(range(40)), settings, seed=2)
    assert 0.2 < time.monotonic() - began < 5


def test_an_outage_within_the_budget_loses_nothing(serve: Any, make_targets: Targets) -> None:
    until = time.monotonic() + 0.5
    server = serve(lambda path, body, count: (200, {}, chat("t")) if time.monotonic() > until else (503, {}, b"down"))
    settings = settings_for(server, engine={"outage_budget": 5.0, "max_attempts": 2})
    table = generate(make_targets(range(10)), settings, seed=2)
    assert table.column("text").to_pylist() == ["t"] * 10


def test_an_early_end_does_not_wait_out_a_pause(serve: Any, make_targets: Targets) -> None:
    def rule(path: str, body: dict[str, Any], count: int) -> Reply:
        first = "Town 0 " in prompt_of(body)
        return (200, {}, chat("t")) if first else (429, {"Retry-After": "30"}, {"error": {"message": "wait"}})

    server = serve(rule)
    backend = make_backend(settings_for(server), 0)
    began = time.monotonic()
    stream = backend.stream(iter([Request(i, f"Town {i} ", i, True, 0) for i in range(6)]))
    assert next(stream).id == 0
    stream.close()  # type: ignore[attr-defined]
    backend.close()
    assert time.monotonic() - began < 5


def test_unknown_options_raise(serve: Any) -> None:
    server = serve(lambda path, body, count: (200, {}, chat("t")))
    with pytest.raises(RecipeError, match="did you mean 'timeout'"):
        make_backend(settings_for(server, engine={"timeuot": 3}), 0)
    with pytest.raises(RecipeError, match="extra_body"):
        make_backend(settings_for(server, engine={"top_k": 3}), 0)
