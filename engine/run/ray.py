"""A run on a Ray cluster: generate and embed as Ray Data stages, check and score as one Ray task each.

Ray carries tasks (a few shards each, `run.tasks`) to workers, starts workers again that died and adds them as machines
join; what is done is in the run folder alone, never in Ray. The other stages stay in the driver's process. The run
folder must be on a file system that all machines share, and Obverse installed on each.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from obverse.engine.errors import MissingPackageError, ObverseError, RunError
from obverse.engine.generate.backends import redoes_shards
from obverse.engine.generate.settings import resolve_backend
from obverse.engine.generate.writer import journal_of
from obverse.engine.records.progress import Progress
from obverse.engine.records.schemas import TARGETS, TEXTS
from obverse.engine.records.shards import read_json
from obverse.engine.run.context import Context, Stage
from obverse.engine.run.tasks import EmbedTasks, GenerateTasks, Job, News, cut_tasks, deal_journals, run_alone

__all__ = ["RaySite"]

POLL_S = 1.0
STORE_BYTES = 256 << 20  # of a local cluster; only numbers of shards and facts go through it
ATTEMPTS = 20  # of the stages that are one task


class RaySite:
    """Stages of a run on a Ray cluster; use it by ``with``."""

    def __init__(self, address: str | None = None, *, workers: int | None = None, worker_cpus: int = 1) -> None:
        """``address``: of a running cluster ("auto" where this machine is part of it), or None to start one here.

        ``workers``: the most models at once (None: one a machine, or one a group of GPUs). ``worker_cpus``: CPUs that
        each takes, which is also how many threads it has. Raises `MissingPackageError` without ray, `RunError` for an
        address of Ray's client.
        """
        if importlib.util.find_spec("ray") is None:
            raise MissingPackageError("ray", needed_for="--on ray", extra="ray")
        if address is not None and address.startswith("ray://"):
            raise RunError(f"--address {address}: Ray Data needs a driver on the cluster; log in there, --address auto")
        self._address, self._workers, self._cpus = address, workers, worker_cpus
        self._stack = ExitStack()

    def __enter__(self) -> RaySite:
        import ray

        if ray.is_initialized():
            return self
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            # Nothing is told to Ray's makers; read where Ray starts its head node.
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            # Logical CPUs: the workers', one for a stage that is one task, one to spare.
            cpus = max((self._workers or 1) * self._cpus + 2, os.cpu_count() or 1)
            options |= {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        # "local", not None: Ray would look for a cluster that happens to run here.
        options["address"] = self._address or "local"
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**options)
        except (ConnectionError, ValueError) as error:
            raise RunError(f"no Ray cluster at {self._address or 'this machine'}: {error}") from error
        self._stack.callback(ray.shutdown)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process with another code
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keys(self, keys: dict[str, str]) -> dict[str, str]:
        """Where stages run changes no result."""
        return keys

    def carry_out(self, stage: Stage, context: Context) -> dict[str, Any]:
        """Run a stage on the cluster, or here where it has no work for many.

        Raises `RunError` with what a worker raised on purpose, and from which; the run goes on where it was when
        started again.
        """
        given = getattr(context.recipe.given, stage.name, None) is not None
        if stage.name == "generate" and not given:
            return self._generate(stage, context)
        if stage.name == "embed" and not given:
            return self._embed(stage, context)
        if stage.name in ("check", "score") and not given:
            return self._alone(context)
        return stage.run(context)

    def _generate(self, stage: Stage, context: Context) -> dict[str, Any]:
        recipe = context.recipe
        sources, shards = context.shards("sample", TARGETS), context.shards("generate", TEXTS)
        finished = set(shards.done())
        todo = [index for index in sources.done() if index not in finished]
        tasks = cut_tasks(todo, self._count(context), recipe.shard_rows)
        deal_journals(shards, tasks, use=not redoes_shards(recipe.generate))
        total, done = sources.num_rows(), shards.num_rows()
        results = self._spread(context, tasks, total, done, "rows") if tasks else []
        missing = set(sources.done()) - set(shards.done())
        if missing:
            raise RuntimeError(f"the workers left {len(missing)} shards unwritten")
        shutil.rmtree(journal_of(shards.folder).folder, ignore_errors=True)
        return _finish(stage, context) | _generated(results)

    def _embed(self, stage: Stage, context: Context) -> dict[str, Any]:
        texts, shards = context.shards("generate"), context.shards("embed")
        finished = set(shards.done())
        todo = [index for index in texts.done() if index not in finished]
        tasks = cut_tasks(todo, self._count(context), context.recipe.shard_rows)
        results = self._spread(context, tasks, None, shards.num_rows(), "texts") if tasks else []
        facts = {name: results[0][name] for name in ("model", "dim", "encoder")} if results else {}
        return _finish(stage, context) | facts

    def _spread(
        self, context: Context, tasks: Sequence[Sequence[int]], total: int | None, done: int, unit: str
    ) -> list[dict[str, Any]]:
        """Have ``tasks`` done by workers; their facts."""
        import ray.data

        workers = min(self._count(context), len(tasks))
        context.progress.say(f"  {context.stage:<10} {len(tasks)} tasks for up to {workers} workers")
        _quieten(ray)
        with context.progress.task(context.stage, total, unit, done) as advance, _news(context, advance) as counter:
            results = ray.data.from_items(
                [{"task": json.dumps(list(task))} for task in tasks], override_num_blocks=len(tasks)
            ).map_batches(
                _Worker,
                fn_constructor_kwargs={"job": _job(context), "counter": counter},
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
                num_cpus=self._cpus,
                num_gpus=self._gpus_each(context),
            )
            found = []
            for row in results.iter_rows():
                found.append(_facts(row["facts"]))
                context.spent()
        return found

    def _alone(self, context: Context) -> dict[str, Any]:
        import ray

        with _news(context) as counter:
            remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS)(_run_alone)
            facts: str = ray.get(remote.remote(_job(context), counter))
        return _facts(facts)

    def _gpus_each(self, context: Context) -> int:
        """GPUs that one model takes; 0 where the cluster has none, or where a server elsewhere has the model."""
        import ray

        settings = context.recipe.generate
        if not ray.cluster_resources().get("GPU"):
            return 0
        if context.stage != "generate":
            return 1
        if resolve_backend(settings) == "openai":
            return 0
        engine = settings.engine
        return int(engine.get("tensor_parallel_size", 1)) * int(engine.get("pipeline_parallel_size", 1))

    def _count(self, context: Context) -> int:
        import ray

        if self._workers is not None:
            return self._workers
        gpus = self._gpus_each(context)
        if gpus:
            return max(1, int(ray.cluster_resources()["GPU"]) // gpus)
        return sum(1 for node in ray.nodes() if node["Alive"])


def _finish(stage: Stage, context: Context) -> dict[str, Any]:
    """With every shard there, what is left of a stage is its facts."""
    return stage.run(replace(context, progress=Progress(quiet=True)))


def _job(context: Context) -> Job:
    key = read_json(context.home / "_started.json")["key"]
    backend = resolve_backend(context.recipe.generate)
    return Job(context.recipe, context.folder.resolve(), context.stage, key, backend)


def _quieten(ray: Any) -> None:
    """Ray Data's own bars and plans: `Progress` tells what users need."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _Worker:
    """What Ray Data keeps alive on a machine: one model or encoder, for task after task."""

    def __init__(self, job: Job, counter: Any) -> None:
        self._job, self._counter = job, counter
        self._tasks: GenerateTasks | EmbedTasks | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"facts": [_answer(self._run, json.loads(task)) for task in batch["task"]]}

    def _run(self, task: list[int]) -> dict[str, Any]:
        if self._tasks is None:
            make = GenerateTasks if self._job.stage == "generate" else EmbedTasks
            self._tasks = make(self._job, self._tell)
        return self._tasks.run(task)

    def _tell(self, news: News) -> None:
        self._counter.note.remote(news)


def _run_alone(job: Job, counter: Any) -> str:
    return _answer(lambda job: run_alone(job, lambda news: counter.note.remote(news)), job)


def _answer(call: Any, argument: Any) -> str:
    """Facts, or the error that was raised on purpose, as JSON: Ray would wrap it in a trace of its own."""
    import socket

    try:
        return json.dumps(call(argument), default=str)
    except ObverseError as error:
        return json.dumps({"error": f"{error} (on {socket.gethostname()})"})


def _facts(text: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(text)
    if "error" in facts:
        raise RunError(facts["error"])
    return facts


class _Counter:
    """The one that workers report to, an actor beside the driver."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._lines: list[str] = []

    def note(self, news: News) -> None:
        if news.line:
            self._lines.append(news.line)
        else:
            # A task begun again counts from its start: never less than before.
            self._rows[news.task] = max(news.rows, self._rows.get(news.task, 0))

    def take(self) -> tuple[int, list[str]]:
        """Rows in all, and the lines since the last call."""
        lines, self._lines = self._lines, []
        return sum(self._rows.values()), lines


@contextmanager
def _news(context: Context, advance: Any = None) -> Iterator[Any]:
    """An actor for workers to report to; what it hears is shown while the block runs."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    counter = ray.remote(num_cpus=0)(_Counter).options(scheduling_strategy=here, max_restarts=-1).remote()
    shown, nodes, ended = 0, _alive(), threading.Event()

    def show() -> None:
        nonlocal shown
        rows, lines = ray.get(counter.take.remote(), timeout=30)
        for line in [*lines, *_changes(nodes, context.stage)]:
            context.progress.say(line)
        if advance is not None and rows > shown:
            advance(rows - shown)
            shown = rows

    def watch() -> None:
        while not ended.wait(POLL_S):
            try:
                show()
            except Exception:  # a cluster that is going down is told of by the stage itself
                time.sleep(POLL_S)

    thread = threading.Thread(target=watch, name="obverse-news", daemon=True)
    thread.start()
    try:
        yield counter
        ended.set()
        thread.join()
        show()
    finally:
        ended.set()
        ray.kill(counter)


def _alive() -> set[str]:
    import ray

    return {f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})" for node in ray.nodes() if node["Alive"]}


def _changes(nodes: set[str], stage: str) -> list[str]:
    """Lines on the nodes that are gone or new since ``nodes``, which is brought up to date."""
    now = _alive()
    lines = [f"  {stage:<10} node {node} is gone" for node in sorted(nodes - now)]
    lines += [f"  {stage:<10} node {node} has joined" for node in sorted(now - nodes)]
    nodes.clear()
    nodes.update(now)
    return lines


def _generated(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of the generate stage from those of its tasks (of this call)."""
    if not results:
        return {}
    # A task that was done again, because its facts were lost with a machine, found nothing to write.
    wrote = [result for result in results if result["written"]] or results
    seconds = max(result["ended"] for result in wrote) - min(r["began"] + r["start_seconds"] for r in wrote)
    rejected: Counter[str] = Counter()
    for result in results:
        rejected.update(result["rejected"])
    return {
        "backend": next((result["backend"] for result in results if result["backend"]), {}),
        "start_seconds": max(result["start_seconds"] for result in results),
        "tokens_per_s": round(sum(result["output_tokens"] for result in results) / max(seconds, 1e-9), 3),
        "retried": sum(result["retried"] for result in results),
        "rejected": dict(rejected),
    }
