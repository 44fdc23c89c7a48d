"""The generate stage: targets in, texts out, shard by shard over one loaded model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from obverse.engine.errors import InputError, RecipeError
from obverse.engine.generate.prompts import build_prompt, prompt_source
from obverse.engine.generate.protocol import Backend, Completion, Request
from obverse.engine.generate.settings import GenerateSettings, is_local, model_source, resolve_backend
from obverse.engine.generate.throughput import Throughput
from obverse.engine.generate.window import OpenShards, RowError
from obverse.engine.records.fingerprint import folder_mark
from obverse.engine.records.keys import content_hash, derive_seed
from obverse.engine.records.schemas import TEXTS, require_columns

__all__ = ["generate", "generate_shards", "make_backend", "model_key"]

STAGE = "generate"


def make_backend(settings: GenerateSettings, seed: int) -> Backend:
    """Load the model behind the `Backend` protocol; the caller closes it.

    ``seed`` seeds the engine itself; rows have seeds of their own. Raises `MissingPackageError`,
    `BackendError` (the model can't be loaded) or `RecipeError` (an unknown ``engine`` argument).
    """
    name = resolve_backend(settings)
    if name == "vllm":
        from obverse.engine.generate.vllm import VllmBackend

        return VllmBackend(settings, seed)
    if name == "transformers":
        from obverse.engine.generate.transformers import TransformersBackend

        return TransformersBackend(settings)
    from obverse.engine.generate.openai import OpenAIBackend

    return OpenAIBackend(settings)


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
    recorder = throughput if throughput is not None else Throughput()
    seed_of = partial(derive_seed, seed, STAGE)
    build = partial(_request, settings=settings, seed_of=seed_of)
    window = OpenShards(shards, build, settings.model, seed_of)
    requests = window.requests()
    first = next(requests, None)  # decides whether a model is needed at all
    yield from window.take_whole()
    _report(window.take_failed(), recorder, on_progress)
    if first is None:
        return
    began = time.perf_counter()
    engine = backend if backend is not None else make_backend(settings, seed)
    try:
        recorder.started(engine.facts(), time.perf_counter() - began)
        for completion in engine.stream(_chain(first, requests)):
            window.place(completion)
            _report([*window.take_failed(), completion], recorder, on_progress)
            yield from window.take_whole()
        _report(window.take_failed(), recorder, on_progress)
        yield from window.take_whole()
        if window.missing:
            raise RuntimeError(f"the backend left {window.missing} rows unanswered")
    finally:
        if backend is None:
            engine.close()


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


def model_key(settings: GenerateSettings) -> str:
    """A hash of all that decides the texts beside targets and seed: settings, template text, model files.

    A local model counts by its files' names, sizes, and first and last 64 KiB, so that a model trained anew
    in the same folder is a different model. How many rows are in flight does not count.
    """
    facts: dict[str, Any] = settings.model_dump(exclude={"concurrency", "prompt"})
    facts["prompt"] = prompt_source(settings)
    facts["backend"] = resolve_backend(settings)
    if is_local(settings):
        facts["files"] = folder_mark(model_source(settings))
    return content_hash(facts)


def _request(row: dict[str, Any], index: int, *, settings: GenerateSettings, seed_of: Callable[[int], int]) -> Request:
    import jinja2

    try:
        prompt = build_prompt(row, settings)
    except RecipeError:
        raise  # no row can do better
    except (InputError, jinja2.TemplateError, KeyError, TypeError, ValueError) as error:
        raise RowError(f"no prompt: {error}") from error
    return Request(row["id"], prompt.text, seed_of(row["id"]), prompt.chat, index)


def _chain(first: Request, rest: Iterator[Request]) -> Iterator[Request]:
    yield first
    yield from rest


def _report(completions: list[Completion], recorder: Throughput, on_progress: Callable[[int], None] | None) -> None:
    for completion in completions:
        recorder.add(completion)
    if completions and on_progress is not None:
        on_progress(len(completions))
