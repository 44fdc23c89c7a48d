"""What the openai backend lets through of what a server says: valid text, and never a secret."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from obverse.engine.errors import BackendError
from obverse.engine.generate import GenerateSettings, Request, generate, make_backend
from obverse.engine.generate.openai import OpenAIBackend

pytest.importorskip("aiohttp")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


broken_server = _load("broken_server")
Exchange, Server, Rule = broken_server.Exchange, broken_server.Server, broken_server.Rule
backend_for, good, rows, run, sends = (
    getattr(broken_server, name) for name in ("backend_for", "good", "rows", "run", "sends")
)

KEY = "sk-fault/ing+1f3a9c5577d2"
Targets = Callable[..., pa.Table]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Rule], Server]]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers: list[Server] = []

    def start(rule: Rule) -> Server:
        servers.append(Server(rule))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


HOSTILE = {
    b'"a \\ud83d\\ude00 b"': "a \U0001f600 b",  # a pair in two escapes
    b'"a \\ud83d b"': "a \ufffd b",  # half a pair
    b'"a \\ude00\\ud83d b"': "a \ufffd\ufffd b",
    b'"a \\u0000 \x01 b"': None,  # control characters, escaped and raw: any valid text
    b'"a \xff\xfe b"': None,  # not UTF-8
    b'"\\u001b]0;pwned\\u0007 b"': None,
}


def test_whatever_a_text_holds_goes_into_parquet(serve: Any, make_targets: Targets, tmp_path: Path) -> None:
    raw = list(HOSTILE)

    async def rule(exchange: Exchange) -> None:
        text = raw[exchange.row]
        exchange.send(b'{"choices": [{"finish_reason": "stop", "message": {"content": ' + text + b"}}]}")

    server = serve(rule)
    settings = GenerateSettings(
        backend="openai",
        model="m",
        base_url=server.url,
        prompt="{{ triplets[0].subject }}",
        engine={"first_pause": 0.01},
    )
    targets = make_targets(range(len(raw)))
    backend = make_backend(settings, 0)
    direct = sorted(backend.stream(rows(len(raw))))
    backend.close()
    for completion, want in zip(direct, HOSTILE.values(), strict=True):
        assert completion.text is not None
        completion.text.encode("utf-8")
        assert want is None or completion.text == want
    table = generate(targets, settings, seed=1)
    pq.write_table(table, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").equals(table)
    assert table["text"].null_count == 0


def test_what_a_server_says_is_cleaned_for_messages(serve: Any) -> None:
    async def rule(exchange: Exchange) -> None:
        if exchange.row == 0:
            exchange.send(b"<html><b>\x1b[31mbad\x1b[0m</b>\n\n gone \x00\xff</html>", "418 Teapot")
        elif exchange.row == 1:
            exchange.send(b'{"error": "' + b"x" * 5000 + b'"}', "400 Bad Request")
        else:
            exchange.answer("t", finish_reason="\x1b[2J\ud800stop\nnow")

    done = run(backend_for(serve(rule)), rows(3))
    reasons = [c.finish_reason for c in done]
    assert reasons[0] == "error: HTTP 418: \ufffd[31mbad\ufffd[0m gone \ufffd\ufffd"
    assert len(reasons[1]) < 310
    assert reasons[2] == "error: ended by \ufffd[2J\ufffdstop now"


@pytest.mark.parametrize(
    "said",
    [KEY, KEY.replace("/", "%2F").replace("+", "%2B"), f"Bearer {KEY}", "x" * 233 + KEY, "<p>" * 300 + KEY],
)
def test_the_key_is_struck_out_of_all_that_a_server_says(serve: Any, said: str) -> None:
    heads: list[bytes] = []

    async def rule(exchange: Exchange) -> None:
        heads.append(server.headers)
        if exchange.row == 0:
            exchange.send(said.encode(), "400 Bad Request")
        elif exchange.row == 1:
            exchange.answer(said, finish_reason=said)
        elif exchange.row == 2:
            exchange.answer(said)
        elif exchange.row == 3:
            exchange.send(json.dumps({"error": {"message": said}}).encode(), "402 Payment Required")
        else:
            exchange.answer()

    server = serve(rule)
    lines: list[str] = []
    shown = [str(c) for c in run(backend_for(server, lines.append), rows(3))]
    backend = backend_for(server, lines.append)
    with pytest.raises(BackendError) as caught:
        list(backend.stream(iter([Request(3, "write 3", 3, True, 0)])))
    shown += [str(caught.value), repr(caught.value), str(backend.facts()), *lines]
    backend.close()
    # A message is cut at 240 characters: not even a part of the key may be left before the cut.
    for text in shown:
        assert KEY not in text
        assert KEY[:6] not in text
        assert KEY[-6:] not in text
    assert f"Authorization: Bearer {KEY}\r\n".encode() in heads[0]


def test_passwords_of_an_address_are_not_shown(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    server = serve(sends(b"who is ann:pass%2Fword1?", "401 Unauthorized"))
    url = server.url.replace("127.0.0.1", "ann:pass%2Fword1@127.0.0.1") + "?token=0123456789"
    settings = GenerateSettings(backend="openai", model="m", base_url=url)
    backend = OpenAIBackend(settings)
    with pytest.raises(BackendError) as caught:
        list(backend.stream(rows(1)))
    backend.close()
    for text in (str(caught.value), str(backend.facts())):
        assert "word1" not in text
        assert "0123456789" not in text
    assert b"Authorization: Basic YW5uOnBhc3Mvd29yZDE=\r\n" in server.headers
    assert b"POST /v1/chat/completions?token=0123456789 HTTP/1.1" in server.headers


def test_the_key_of_a_local_server_is_no_secret(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")

    async def rule(exchange: Exchange) -> None:
        exchange.answer("An EMPTY town.")

    assert run(backend_for(serve(rule)), rows(1))[0].text == "An EMPTY town."


def test_a_key_that_no_header_can_carry_is_not_shown(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two\nlines")
    with pytest.raises(BackendError, match="OPENAI_API_KEY holds characters") as caught:
        backend_for(serve(good))
    assert "sk-two" not in str(caught.value)
