"""Metrics over HTTP and in a file, read back by Prometheus' own parser."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from obverse.engine.errors import RunError
from obverse.engine.generate.prometheus import (
    CONTENT_TYPE,
    MetricsServer,
    TextfileWriter,
    exposition,
    write_textfile,
)
from obverse.engine.generate.protocol import Completion
from obverse.engine.generate.throughput import Price, Throughput

HOSTILE = 'we"ird\\mo\ndel{a="b"} \ud800 Zürich'


def recorder(**facts: Any) -> Throughput:
    made = Throughput(Price(2.5, gpus=4))
    stats: dict[str, float] = {"kv_cache_usage": float("nan"), "odd name!": 3.5, "prefix_tokens_total": 10.0}
    made.started(
        {"backend": "vllm", "model": HOSTILE, "base_url": "http://me:secret@host/v1"} | facts, 2.0, lambda: stats
    )
    stats["prefix_tokens_total"] = 50.0
    made.add_many(
        [Completion(0, "x", "stop", 5, 7), Completion(1, "y", "length", 5, 9), Completion(2, None, "error: z", 3, None)]
    )
    return made


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """By Prometheus' own parser: name, labels, value."""
    parser = pytest.importorskip("prometheus_client.parser")
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            place = found.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in place, "one sample twice"
            place[labels] = sample.value
    return found


def test_every_figure_is_there_under_its_name() -> None:
    found = samples(exposition(recorder()))
    ends = {dict(labels)["finish_reason"]: value for labels, value in found["obverse_rows_total"].items()}
    assert ends == {"stop": 1, "length": 1, "error": 1}
    assert found["obverse_prompt_tokens_total"] == {(): 13}
    assert found["obverse_output_tokens_total"] == {(): 16}
    assert found["obverse_engine_prefix_tokens_total"] == {(): 40}
    assert found["obverse_engine_odd_name_"] == {(): 3.5}
    assert found["obverse_model_load_seconds"] == {(): 2}
    usage = found["obverse_engine_kv_cache_usage"][()]
    assert usage != usage
    rate, dollars = found["obverse_rows_per_second"][()], found["obverse_dollars_per_million_rows"][()]
    assert dollars == pytest.approx(10.0 / 3600 / rate * 1e6)
    assert abs(found["obverse_newest_row_timestamp_seconds"][()] - time.time()) < 60
    assert found["process_resident_memory_bytes"][()] > 1e6


def test_hostile_labels_stay_one_label_and_secrets_stay_out() -> None:
    text = exposition(recorder())
    (labels,) = samples(text)["obverse_backend_info"]
    assert dict(labels) == {"backend": "vllm", "model": HOSTILE.replace("\ud800", "?")}
    assert "secret" not in text
    line = re.compile(r"# (HELP|TYPE) [a-z_]+ .*|[a-z_]+(\{.*\})? (-?[0-9][0-9.e+-]*|NaN|[+-]Inf)")
    assert all(line.fullmatch(each) for each in text.rstrip("\n").split("\n"))
    assert text.endswith("\n")


def test_a_recorder_before_its_first_row_has_metrics_too() -> None:
    found = samples(exposition(Throughput()))
    assert sum(found["obverse_rows_total"].values()) == 0
    assert "obverse_backend_info" not in found
    assert "obverse_dollars_per_million_rows" not in found


def test_the_endpoint_answers_while_rows_are_added() -> None:
    made = Throughput()
    made.started({"backend": "test"}, 0.0)
    with MetricsServer(lambda: exposition(made), 0) as server:
        for total in (10, 20):
            made.add_many([Completion(0, "x", "stop", 1, 2)] * 10)
            made.summary()  # publishes what the next quarter of a second would
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
                assert answer.headers["Content-Type"] == CONTENT_TYPE
                body = answer.read().decode()
                assert int(answer.headers["Content-Length"]) == len(body.encode())
            assert f'obverse_rows_total{{finish_reason="stop"}} {total}\n' in body
        link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        link.request("HEAD", "/metrics")
        answer = link.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
        link.close()
        link.request("GET", "/secrets")
        assert link.getresponse().status == 404
        link.close()
        link.request("POST", "/metrics", b"x")
        assert link.getresponse().status == 501
        link.close()


def test_it_listens_on_this_machine_alone_unless_told() -> None:
    with MetricsServer(lambda: "", 0) as server:
        assert server._server.server_address[0] == "127.0.0.1"
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", server.port), timeout=5):
            pass
    with (
        MetricsServer(lambda: "", 0, "0.0.0.0") as server,
        socket.create_connection(("127.0.0.2", server.port), timeout=5),
    ):
        pass


def test_one_who_never_reads_holds_up_nobody() -> None:
    with MetricsServer(lambda: "obverse_x 1\n" * 200_000, 0) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(5)]
        silent[0].sendall(b"GET /metrics HTTP/1.0\r\n\r\n")  # asks, and never reads
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
            assert len(answer.read()) == 200_000 * 12
        begun = time.monotonic()
    assert time.monotonic() - begun < 5  # closing does not wait for them either
    for link in silent:
        link.close()


def test_a_port_that_is_taken_is_said_plainly() -> None:
    with MetricsServer(lambda: "", 0) as first, pytest.raises(RunError, match=f"{first.port} .*choose another port"):
        MetricsServer(lambda: "", first.port)
    before = threading.active_count()
    with MetricsServer(lambda: "", first.port):  # and is free again
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_the_file_is_whole_readable_and_final(tmp_path: Path) -> None:
    made, path = recorder(), tmp_path / "obverse.prom"
    old = os.umask(0o077)
    try:
        write_textfile(path, made)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.read_text(encoding="utf-8").startswith("# HELP obverse_rows_total")
    with TextfileWriter(path, made, every_s=3600.0):
        made.add(Completion(4, "x", "stop", 5, 7))
        made.summary()
    assert samples(path.read_text())["obverse_output_tokens_total"] == {(): 23}
    assert [each.name for each in tmp_path.iterdir()] == ["obverse.prom"]
    with pytest.raises(RunError, match="can't be written"):
        TextfileWriter(Path("/dev/null/x.prom"), made)


def _verb(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "obverse.engine.cli", "generate", "targets.jsonl", "-o", "out", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def test_the_verb_leaves_the_totals_in_the_file(tmp_path: Path, tiny_model: Path, make_targets: Any) -> None:
    lines = [json.dumps(row) + "\n" for row in make_targets(range(7)).to_pylist()]
    (tmp_path / "targets.jsonl").write_text("".join(lines))
    model = ("--backend", "transformers", "--model", str(tiny_model), "--prompt", "facts", "--max-tokens", "5")
    watched = ("--metrics-file", "now.prom", "--metrics-port", "0", "--gpu-price", "3.5", "--gpus", "2")
    done = _verb(tmp_path, *model, *watched)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"metrics: http://127\.0\.0\.1:[1-9]\d+/metrics\n", done.stderr)
    assert "a million rows" in done.stderr
    found = samples((tmp_path / "now.prom").read_text())
    written = pq.read_table(sorted((tmp_path / "out").glob("*.parquet"))[0])
    assert sum(found["obverse_rows_total"].values()) == written.num_rows == 7
    assert found["obverse_output_tokens_total"] == {(): pc.sum(written["num_output_tokens"]).as_py()}
    (labels,) = found["obverse_backend_info"]
    assert dict(labels)["backend"] == "transformers"
    assert found["obverse_dollars_per_million_rows"][()] > 0


def test_the_verb_says_that_a_port_is_taken_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "targets.jsonl").write_text('{"id": 0, "label": "a"}\n')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = _verb(tmp_path, "--metrics-port", port)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "choose another port" in done.stderr
    assert not list((tmp_path / "out").glob("*.parquet"))
