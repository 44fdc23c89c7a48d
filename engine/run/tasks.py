"""What one worker of many does for a run: a few shards at a time, safe against its own death and against its double.

A *task* is some shards of one stage, named by the first. Its worker holds ``locked`` on the task's own journal folder,
so a worker that was given up for dead but still writes keeps the next one waiting instead of writing beside it. What a
killed worker had in the journal is taken over by whoever gets the task next. All machines see the run folder under one
path. Nothing here knows what carries tasks to workers; `run.ray` does.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from obverse.engine.errors import RunError
from obverse.engine.generate.backends import make_backend, model_key, redoes_shards
from obverse.engine.generate.folder import earlier_texts
from obverse.engine.generate.protocol import Backend, Completion, Request
from obverse.engine.generate.settings import GenerateSettings, resolve_backend
from obverse.engine.generate.stage import generate_into
from obverse.engine.generate.throughput import Throughput
from obverse.engine.generate.writer import journal_of
from obverse.engine.recipe import Recipe
from obverse.engine.records.journal import Journal
from obverse.engine.records.lock import locked
from obverse.engine.records.progress import Progress
from obverse.engine.records.schemas import TARGETS, TEXTS
from obverse.engine.records.shards import Shards, read_json, write_json
from obverse.engine.run.context import Context

__all__ = [
    "EmbedTasks",
    "GenerateTasks",
    "Job",
    "News",
    "cut_tasks",
    "deal_journals",
    "held",
    "journal_name",
    "run_alone",
]

MOST_TASK_ROWS = 65_536
TASKS_EACH = 8
"""Tasks a worker, at the least, where there are shards enough: so that workers end at about the same time."""
TRIES = 5
"""Attempts at one task, one after another, that end in the worker's death with not one row done."""
LOCK_WAIT_S = 180.0
"""Longer than a network file system takes to notice that a host is gone (NFS: 90 s)."""


@dataclass(frozen=True)
class Job:
    """One stage of a run, as its workers see it.

    ``key`` is the stage's (`driver.stage_keys`); ``backend`` is what ``generate.backend`` means to the driver.
    """

    recipe: Recipe
    folder: Path
    stage: str
    key: str
    backend: str

    def context(self, progress: Progress | None = None) -> Context:
        """The run as the stage sees it. Raises `RunError` where this machine does not see the run folder."""
        started = self.folder / self.stage / "_started.json"
        if not started.exists() or read_json(started)["key"] != self.key:
            raise RunError(
                f"{socket.gethostname()} does not see this run at {self.folder}: every machine needs the run folder "
                "under the same path (a shared file system)"
            )
        return Context(self.recipe, self.folder, progress or Progress(quiet=True), self.stage)


class News(NamedTuple):
    """What a worker tells while it works: rows of the task done so far in all, or a line to show."""

    task: int
    rows: int = 0
    line: str = ""


def cut_tasks(todo: Sequence[int], workers: int, shard_rows: int) -> list[list[int]]:
    """Cut the shards ``todo`` into tasks of neighbours: large, but enough of them to keep ``workers`` even."""
    size = max(1, min(-(-len(todo) // (workers * TASKS_EACH)), MOST_TASK_ROWS // shard_rows))
    return [list(todo[start : start + size]) for start in range(0, len(todo), size)]


def journal_name(task: Sequence[int]) -> str:
    """The journal of a task's texts, a folder below ``generate/_journal``."""
    return f"shards-{task[0]:05d}"


def deal_journals(shards: Shards, tasks: Sequence[Sequence[int]], *, use: bool) -> int:
    """Give what all journals of an earlier call hold to the journals of ``tasks``; returns the rows.

    Call it before any worker starts. Without ``use`` (rows whose bytes depend on their batch) they are let go. Killed
    half-way, rows are in two journals and count once. Raises `RunError` where a worker of an earlier call still lives.
    """
    home = journal_of(shards.folder)
    if not home.folder.is_dir():
        return 0
    folders = [path for path in sorted(home.folder.iterdir()) if path.is_dir()]
    owner = {index: journal_name(task) for task in tasks for index in task}
    new = {name: journal_of(shards.folder, name) for name in set(owner.values())}
    rows = 0
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(held(folder))
        old = [home, *map(Journal, folders)]
        segments = [path for journal in old for path in journal.segments()]
        for entry in (entry for path in segments if use for entry in _Segment(path).replay(TEXTS)):
            if entry.number in owner:
                new[owner[entry.number]].append(entry.number, entry.batch)
                rows += entry.batch.num_rows
        for journal in new.values():
            journal.close()
        for path in segments:
            path.unlink()
        for folder in folders:
            if folder.name not in new:
                shutil.rmtree(folder)
            else:
                (folder / "tries").unlink(missing_ok=True)
    return rows


class _Segment(Journal):
    """One segment alone: others may be added to its folder while it is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent)
        self._only = path

    def segments(self) -> list[Path]:
        return [self._only]


@contextmanager
def held(folder: Path, wait_s: float | None = None) -> Iterator[None]:
    """`locked`, but wait up to ``wait_s`` (`LOCK_WAIT_S`) for another process to end or be found dead."""
    until = time.monotonic() + (LOCK_WAIT_S if wait_s is None else wait_s)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except RunError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.2)
        yield


class GenerateTasks:
    """A worker of the generate stage: one model, loaded when the first row needs it, for task after task."""

    def __init__(self, job: Job, tell: Callable[[News], None]) -> None:
        self._job, self._tell = job, tell
        self._context = job.context()
        settings, seed = job.recipe.generate, self._context.seed("generate")
        if resolve_backend(settings) != job.backend:
            what = f"generate.backend = '{settings.backend}' is {resolve_backend(settings)} on {socket.gethostname()}"
            raise RunError(f"{what} and {job.backend} where the run was started: install the same on every machine")
        self._sources = self._context.shards("sample", TARGETS)
        self._shards = Shards(self._context.home, TEXTS, shared=True)
        self._backend = _Kept(settings, seed, self._context.num_targets())
        self._earlier = earlier_texts([job.folder / "earlier"], {"model": model_key(settings), "seed": seed})

    def run(self, task: Sequence[int]) -> dict[str, Any]:
        """Write what is missing of the shards ``task``; returns facts of this call, JSON-ready.

        Raises what `generate_into` does, and `RunError` where `TRIES` workers died over the task, or where another
        process holds it.
        """
        settings, name, first = self._job.recipe.generate, journal_name(task), task[0]
        journal = journal_of(self._shards.folder, name)
        with held(journal.folder):
            done = [index for index in task if self._shards.path(index).exists()]
            count = sum(self._shards.read(index, ["id"]).num_rows for index in done)
            known = count if redoes_shards(settings) else count + _journal_rows(journal, done)
            self._begin(task, journal.folder / "tries", known)

            def progress(rows: int) -> None:
                nonlocal count
                count += rows
                self._tell(News(first, count))

            progress(0)
            recorder, began = Throughput(), time.time()
            report = generate_into(
                self._shards,
                ((index, self._sources.read(index)) for index in task if index not in done),
                settings,
                seed=self._context.seed("generate"),
                earlier=self._earlier if len(self._earlier) else None,
                on_progress=progress,
                throughput=recorder,
                backend=self._backend,
                journal=name,
            )
            (journal.folder / "tries").unlink(missing_ok=True)
        facts = {**report._asdict(), "rejected": dict(report.rejected), **recorder.summary()}
        return {**facts, "task": first, "worker": _worker(), "began": began, "ended": time.time()}

    def close(self) -> None:
        """Let the model go."""
        self._backend.close()

    def _begin(self, task: Sequence[int], path: Path, known: int) -> None:
        """Note this attempt; say what an earlier one left, and give up where attempts lead nowhere."""
        tries = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        if tries:
            before = tries[-1]["worker"]
            what = f"shards {task[0]} to {task[-1]}: {before} was lost; {_worker()} goes on behind {known:,} rows"
            line = f"  {'generate':<10} {what}"
            self._tell(News(task[0], line=line))
        same = [entry for entry in tries if entry["known"] == known]
        if len(same) >= TRIES:
            raise RunError(
                f"shards {task[0]} to {task[-1]}: {len(same)} workers died one after another with no row done, the "
                f"last on {tries[-1]['worker']}; out of memory, or a row that kills the engine: see its log"
            )
        with path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"worker": _worker(), "known": known}) + "\n")
            handle.flush()
            os.fsync(handle.fileno())


def _journal_rows(journal: Journal, done: Sequence[int]) -> int:
    ids: set[int] = set()
    for entry in journal.replay(TEXTS):
        if entry.number not in done:
            ids.update(entry.batch["id"].to_pylist())
    return len(ids)


def _worker() -> str:
    return f"{socket.gethostname()} (pid {os.getpid()})"


class _Kept:
    """A `Backend` that is loaded when something is asked of it, and stays until `close`."""

    def __init__(self, settings: GenerateSettings, seed: int, rows: int) -> None:
        self._load = partial(make_backend, settings, seed, rows)
        self._backend: Backend | None = None

    def _open(self) -> Backend:
        if self._backend is None:
            self._backend = self._load()
        return self._backend

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        return self._open().stream(requests)

    def facts(self) -> dict[str, Any]:
        return self._open().facts()

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None


class EmbedTasks:
    """A worker of the embed stage. Shards are written whole or not at all, and the same by whoever writes them."""

    def __init__(self, job: Job, tell: Callable[[News], None]) -> None:
        from obverse.engine.embed.protocol import open_encoder

        self._tell, self._context = tell, job.context()
        self._texts = self._context.shards("generate", TEXTS)
        self._shards = Shards(self._context.home, shared=True)
        checks = self._context.shards("check").table(["id", "kept"])
        self._kept: pa.Array = checks.filter(checks["kept"])["id"].combine_chunks()
        self._encoder = open_encoder(job.recipe.embed)
        self._agree(self._context.home / "_encoder.json")

    def _agree(self, path: Path) -> None:
        """Raise unless all machines chose the same encoder ("auto" looks at processors)."""
        mine = json.loads(json.dumps(self._encoder.describe()))
        if not path.exists():
            write_json(path, mine)
        theirs = read_json(path)  # of two that wrote at once, one stays
        if theirs != mine:
            differ = ", ".join(name for name in mine if theirs.get(name) != mine[name])
            raise RunError(
                f"{socket.gethostname()} would embed otherwise than the machine that was first (it differs in: "
                f"{differ}); set embed.backend and embed.dtype"
            )

    def run(self, task: Sequence[int]) -> dict[str, Any]:
        """Embed the kept texts of the shards ``task``; returns facts, JSON-ready. Raises what `embed_texts` does."""
        import pyarrow.compute as pc

        from obverse.engine.embed.vectors import embed_texts, open_cache

        count = 0

        def progress(rows: int) -> None:
            nonlocal count
            count += rows
            self._tell(News(task[0], count))

        encoder = self._encoder
        with open_cache(encoder) as cache:
            for index in task:
                table = self._texts.read(index)
                table = table.filter(pc.is_in(table["id"], value_set=self._kept))
                if self._shards.path(index).exists():
                    progress(table.num_rows)
                else:
                    self._shards.write(index, embed_texts(table, encoder, cache=cache, on_progress=progress))
        return {"model": encoder.settings.model, "dim": encoder.dim, "encoder": encoder.describe(), "rows": count}

    def close(self) -> None:
        """Nothing to let go."""


def run_alone(job: Job, tell: Callable[[News], None]) -> dict[str, Any]:
    """Carry out a stage that needs the whole set in order, in this process; returns its facts.

    Raises `RunError` where another process is at it, and what the stage raises.
    """
    from obverse.engine.run.stages import stages_for

    context = job.context(Progress(stream=_Lines(tell)))
    stage = next(stage for stage in stages_for(job.recipe) if stage.name == job.stage)
    with held(context.home):
        return stage.run(context)


class _Lines(io.StringIO):
    """A stream for `Progress` that hands on every line."""

    def __init__(self, tell: Callable[[News], None]) -> None:
        super().__init__()
        self._tell = tell

    def write(self, text: str) -> int:
        if text.strip():
            self._tell(News(-1, line=text.rstrip()))
        return len(text)
