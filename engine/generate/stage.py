"""The generate stage: targets in, texts out, shard by shard over one loaded model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa

from obverse.engine.generate.backends import make_backend, redoes_shards
from obverse.engine.generate.earlier import EarlierTexts
from obverse.engine.generate.outputs import retry_rule
from obverse.engine.generate.prompts import PromptBuilder
from obverse.engine.generate.protocol import Backend, Completion, Request
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.generate.throughput import Throughput
from obverse.engine.generate.window import OpenShards, whole_table
from obverse.engine.generate.writer import TextWriter
from obverse.engine.records.keys import derive_seed
from obverse.engine.records.schemas import TEXTS, require_columns
from obverse.engine.records.shards import Shards

__all__ = [
    "GenerateReport",
    "generate",
    "generate_into",
    "generate_shards",
]

STAGE = "generate"
TAKE_ROWS = 4096
TAKE_SECONDS = 0.25


def generate_into(
    shards: Shards,
    targets: Iterable[tuple[int, pa.Table]],
    settings: GenerateSettings,
    *,
    seed: int,
    earlier: EarlierTexts | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_shard: Callable[[int], None] | None = None,
    throughput: Throughput | None = None,
    backend: Backend | None = None,
    rows: int | None = None,
    journal: str = "",
    say: Callable[[str], None] | None = None,
) -> GenerateReport:
    """Write a text for every row of ``targets`` (index, TARGETS) into ``shards``, each row safe within a second.

    Finished rows go to a journal beside the shards and into Parquet as their shard becomes whole; what the journal of
    a process that was stopped holds is not written again, nor what ``earlier`` has. ``on_progress`` is told of rows
    done (those of the journal too), ``on_shard`` of shards written, from the writer's thread; ``rows`` is how many the
    whole run has, done ones and all, and ``say`` is told of trouble (see `make_backend`). One process a folder, or one
    a ``journal`` of its own: hold `records.lock.locked`. Raises what `generate_shards` does, and `RunError` where the
    disk takes no more.
    """
    writer = TextWriter(shards, on_shard, journal=journal)
    known = [found for found in (earlier, writer.recover(use=not redoes_shards(settings))) if found is not None]
    watch = Watch(throughput or Throughput(), on_progress)
    window = _window(targets, settings, seed, known)
    with writer.taking(window.take):
        make = partial(make_backend, settings, seed, rows, say=say)
        for _ in _driven(window, make, watch, backend):
            writer.keep_up(window.pending)
    return watch.report(window)


def generate_shards(
    shards: Iterable[tuple[int, pa.Table]],
    settings: GenerateSettings,
    *,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
    throughput: Throughput | None = None,
    backend: Backend | None = None,
) -> Iterator[tuple[int, pa.Table]]:
    """Write a text for every row of every shard (index, TARGETS) and yield (index, TEXTS) as shards end.

    Shards are read only as the window has room, and may end out of order. No model is loaded while there is
    no row to write; a ``backend`` lent is left open. A row that can't be done has a null text and an
    ``error: ...``. Raises `InputError` (no id, or one twice) and what `make_backend` raises.
    """
    parts: dict[int, list[pa.RecordBatch]] = {}
    watch = Watch(throughput or Throughput(), on_progress)
    window = _window(shards, settings, seed, ())
    for _ in _driven(window, partial(make_backend, settings, seed), watch, backend):
        for finished in window.take():
            parts.setdefault(finished.shard, []).append(finished.rows)
            if finished.ids is not None:
                yield finished.shard, whole_table(finished.ids, parts.pop(finished.shard))


class GenerateReport(NamedTuple):
    """What a call of `generate_into` did."""

    written: int = 0
    """Rows that it wrote, the failed ones among them."""
    failed: int = 0
    kept: int = 0
    """Rows that were there already, in the journal or the earlier texts; whole shards aside."""
    retried: int = 0
    """Attempts beyond the first."""
    rejected: Mapping[str, int] = MappingProxyType({})
    """Attempts that were rejected, by reason."""


class Watch:
    """Who is told of finished rows, and their count."""

    def __init__(self, recorder: Throughput, on_progress: Callable[[int], None] | None) -> None:
        self.recorder, self.on_progress = recorder, on_progress
        self._written = self._failed = self._kept = 0

    def see(self, window: OpenShards, done: Sequence[Completion]) -> None:
        """Count rows that are done now, those whose prompt could not be built and those found among them."""
        completions = [*window.take_failed(), *done]
        self.recorder.add_many(completions)
        self._written += len(completions)
        self._failed += sum(completion.text is None for completion in completions)
        found, self._kept = window.kept - self._kept, window.kept
        if self.on_progress is not None and (completions or found):
            self.on_progress(len(completions) + found)

    def report(self, window: OpenShards) -> GenerateReport:
        """The whole count."""
        return GenerateReport(self._written, self._failed, window.kept, window.retried, dict(window.reasons))


def _window(
    shards: Iterable[tuple[int, pa.Table]], settings: GenerateSettings, seed: int, earlier: Sequence[EarlierTexts]
) -> OpenShards:
    return OpenShards(
        shards,
        PromptBuilder(settings, seed),
        model=settings.model,
        seed_of=partial(_row_seed, seed),
        earlier=earlier,
        retry=retry_rule(settings),
    )


def _driven(window: OpenShards, make: Callable[[], Backend], watch: Watch, backend: Backend | None) -> Iterator[None]:
    """Rows through the engine and back into the window; stops a few times a second, for rows to be taken."""
    requests = window.requests()
    first = next(requests, None)  # decides whether a model is needed at all
    watch.see(window, ())
    yield
    if first is None:
        return
    began = time.perf_counter()
    engine = backend if backend is not None else make()
    try:
        watch.recorder.started(engine.facts(), time.perf_counter() - began, stats=getattr(engine, "stats", None))
        source = _chain(first, requests)
        while True:
            yield from _streamed(window, engine.stream(source), watch)
            if not window.waiting:
                break
            source = window.requests()
        if window.missing:
            raise RuntimeError(f"the backend left {window.missing} rows unanswered")
        watch.recorder.backend = engine.facts()  # with what happened meanwhile: restarts, outages
    finally:
        if backend is None:
            engine.close()


def _streamed(window: OpenShards, completions: Iterator[Completion], watch: Watch) -> Iterator[None]:
    seen = float("-inf")  # the first rows are taken at once: before a pause, that may be all for long
    done: list[Completion] = []
    for completion in completions:
        kept = window.place(completion)
        if kept is not None:
            done.append(kept)
        if len(done) >= TAKE_ROWS or (done and time.monotonic() - seen >= TAKE_SECONDS):
            watch.see(window, done)
            done, seen = [], time.monotonic()
            yield
    watch.see(window, done)
    yield


def generate(
    targets: pa.Table,
    settings: GenerateSettings,
    *,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
    throughput: Throughput | None = None,
    backend: Backend | None = None,
) -> pa.Table:
    """Write a text for every row of one TARGETS table: a TEXTS table in the same order.

    Errors are those of `generate_shards`.
    """
    require_columns(targets, "id", what="targets")
    shards = generate_shards(
        [(0, targets)], settings, seed=seed, on_progress=on_progress, throughput=throughput, backend=backend
    )
    tables = [table for _, table in shards]
    return pa.concat_tables(tables) if tables else TEXTS.empty_table()


def _row_seed(seed: int, row_id: int, attempt: int) -> int:
    return derive_seed(seed, STAGE if attempt == 0 else f"{STAGE}-{attempt}", row_id)


def _chain(first: Request, rest: Iterator[Request]) -> Iterator[Request]:
    yield first
    yield from rest
