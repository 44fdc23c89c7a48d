"""Ours beside bare vLLM: the same requests through one engine, in turn (`obverse bench generate` and `make bench`).

Ours is `generate_into`, everything on: prompts, the window, checks of every row, journal, Parquet, statistics. Bare
vLLM is ``LLM.generate`` on a list, all at once or in batches, as its documentation has it, its statistics off. Every
call begins with an empty prefix cache.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from obverse.engine.errors import BackendError
from obverse.engine.generate.outputs import retry_rule
from obverse.engine.generate.prompts import PromptBuilder
from obverse.engine.generate.protocol import Request, finish
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.generate.stage import _row_seed, generate_into
from obverse.engine.generate.throughput import Throughput
from obverse.engine.generate.vllm import VllmBackend
from obverse.engine.generate.window import OpenShards
from obverse.engine.records.schemas import TEXTS
from obverse.engine.records.shards import Shards

__all__ = ["OURS", "Comparison", "compare_with_bare"]

OURS = "obverse"

Texts = dict[int, str | None]
Case = Callable[[], Callable[[], Texts]]  # what is timed; what it gives tells the texts afterwards


class Comparison(NamedTuple):
    """Seconds of every repeat by provider, and what was written."""

    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]
    """Of this process, all its threads: less shaken by other programs than the clock is."""
    rows: int
    prompt_tokens: int
    output_tokens: int
    summary: dict[str, Any]
    """`Throughput.summary` of our last repeat."""

    def ratio(self) -> float:
        """The best peer's median time over ours: above 1, ours is faster."""
        ours = statistics.median(self.seconds[OURS])
        return min(statistics.median(taken) for name, taken in self.seconds.items() if name != OURS) / ours


def compare_with_bare(
    settings: GenerateSettings,
    targets: pa.Table,
    *,
    seed: int = 0,
    repeats: int = 3,
    batches: Sequence[int] = (),
    shard_rows: int = 8192,
) -> Comparison:
    """Time both ``repeats`` times after one unmeasured round, their order rotating; batches of these sizes as well.

    Both must write the same texts where the engine's rows don't depend on their neighbours, elsewhere as many. Raises
    `BackendError` where they did not, and what loading the model raises.
    """
    settings = settings.model_copy(update={"output": settings.output.model_copy(update={"attempts": 1})})
    backend = VllmBackend(settings, seed, targets.num_rows)
    try:
        requests = _requests(targets, settings, seed)
        with tempfile.TemporaryDirectory(prefix="obverse-bench-") as folder:
            ours = _Ours(backend, settings, targets, seed, shard_rows, Path(folder))
            bare = partial(_bare, backend, settings, requests)
            cases: dict[str, Case] = {OURS: ours.run, "vllm generate(all)": bare}
            cases |= {f"vllm generate, batches of {size}": partial(bare, size) for size in batches}
            same = bool(backend.facts()["batch_invariant"])
            wall, cpu = _interleaved(cases, repeats, lambda: backend._llm.reset_prefix_cache(), same)
            return Comparison(wall, cpu, targets.num_rows, *ours.tokens(), ours.recorder.summary())
    finally:
        backend.close()


def _requests(targets: pa.Table, settings: GenerateSettings, seed: int) -> list[Request]:
    """What ours asks the engine, in the targets' order."""
    window = OpenShards(
        [(0, targets)], PromptBuilder(settings, seed), model=settings.model, seed_of=partial(_row_seed, seed)
    )
    place = {row_id: i for i, row_id in enumerate(targets["id"].to_pylist())}
    return sorted(window.requests(), key=lambda request: place[request.id])


def _interleaved(
    cases: dict[str, Case], repeats: int, reset: Callable[[], object], same: bool
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    wall: dict[str, list[float]] = {name: [] for name in cases}
    cpu: dict[str, list[float]] = {name: [] for name in cases}
    first: Texts = {}
    names = list(cases)
    for turn in range(repeats + 1):
        cut = turn % len(names)
        for name in names[cut:] + names[:cut]:
            reset()
            begun, spent = time.perf_counter(), time.process_time()
            ended = cases[name]()
            taken, spent = time.perf_counter() - begun, time.process_time() - spent
            texts = ended()
            first = first or texts
            if texts.keys() != first.keys():
                raise BackendError(f"{name} answered {len(texts):,} rows, {names[0]} {len(first):,}")
            if same and texts != first:
                odd = next(row_id for row_id in first if texts[row_id] != first[row_id])
                raise BackendError(f"{name} wrote another text than {names[0]} for row {odd} under the same seed")
            if turn:
                wall[name].append(taken)
                cpu[name].append(spent)
    return wall, cpu


class _Ours:
    def __init__(
        self, backend: VllmBackend, settings: GenerateSettings, targets: pa.Table, seed: int, rows: int, folder: Path
    ) -> None:
        self._backend, self._settings, self._seed, self._folder = backend, settings, seed, folder
        starts = range(0, targets.num_rows, rows)
        self._shards = [(index, targets.slice(start, rows)) for index, start in enumerate(starts)]
        self._turn = 0
        self.recorder = Throughput()

    def run(self) -> Callable[[], Texts]:
        self._turn += 1
        self.recorder = Throughput()
        shards = Shards(self._folder / str(self._turn), TEXTS)
        generate_into(
            shards, self._shards, self._settings, seed=self._seed, throughput=self.recorder, backend=self._backend
        )
        return partial(_texts, shards)

    def tokens(self) -> tuple[int, int]:
        return self.recorder.prompt_tokens, self.recorder.output_tokens


def _texts(shards: Shards) -> Texts:
    table = shards.table(["id", "text"])
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def _bare(
    backend: VllmBackend, settings: GenerateSettings, requests: list[Request], batch: int | None = None
) -> Callable[[], Texts]:
    """``LLM.generate`` on ``batch`` rows at a time (None: all)."""
    llm = backend._llm
    found: list[tuple[Request, Any]] = []
    template = getattr(backend._tokenizer, "chat_template", None)
    with _statistics_off(llm):
        for start in range(0, len(requests), batch or len(requests)):
            part = requests[start : start + (batch or len(requests))]
            params = [backend._make_params(seed=request.seed) for request in part]
            if template and part[0].chat:
                system = [{"role": "system", "content": settings.system}] if settings.system else []
                talks = [[*system, {"role": "user", "content": request.prompt}] for request in part]
                thinking = {"enable_thinking": False}
                outputs = llm.chat(talks, params, use_tqdm=False, chat_template_kwargs=thinking)
            else:
                before = f"{settings.system}\n\n" if settings.system and part[0].chat else ""
                outputs = llm.generate([before + request.prompt for request in part], params, use_tqdm=False)
            found += zip(part, outputs, strict=True)
    return partial(_judged, found, settings)


def _judged(found: list[tuple[Request, Any]], settings: GenerateSettings) -> Texts:
    """Bare texts, cleaned and judged as ours are."""
    rule, texts = retry_rule(settings), {}
    for request, output in found:
        best = output.outputs[0]
        completion = finish(request, best.text, best.finish_reason, None, None)
        texts[request.id] = (completion if rule is None else rule.judge(completion)[0]).text
    return texts


@contextmanager
def _statistics_off(llm: Any) -> Iterator[None]:
    """As `LLM` is without ``disable_log_stats=False``; where its core is another process, the core's part stays on."""
    engine = llm.llm_engine
    scheduler = getattr(getattr(engine.engine_core, "engine_core", None), "scheduler", None)
    counted = [] if scheduler is None else [scheduler, scheduler.kv_cache_manager]
    before = [part.log_stats for part in counted]
    manager, engine.logger_manager = engine.logger_manager, None
    for part in counted:
        part.log_stats = False
    try:
        yield
    finally:
        engine.logger_manager = manager
        for part, value in zip(counted, before, strict=True):
            part.log_stats = value
