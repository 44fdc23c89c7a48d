"""Rates of each stage on this machine, measured on the embedded graph and models (`obverse bench`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from obverse import __version__
from obverse.engine.check.checker import Checker
from obverse.engine.check.settings import CheckSettings
from obverse.engine.diversity.settings import ScoreSettings
from obverse.engine.embed.settings import EmbedSettings
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.graph.sampling import SampleSettings

__all__ = ["STAGES", "measure_rates"]

STAGES = ("sample", "generate", "check", "embed", "score")


def measure_rates(stages: Sequence[str] = STAGES, *, rows: int = 1000, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Run each of ``stages`` on ``rows`` rows and give one record each: op, value, unit, shape, seconds.

    Start-up (loading the graph, the model, the engine) is left out of the time and given as ``start_s``. Stages that
    are not asked for still run where a later one needs their rows, unmeasured.
    """
    work = _Work(rows, seed)
    for stage in STAGES[: max(STAGES.index(stage) for stage in stages) + 1]:
        row = getattr(work, stage)()
        if stage in stages:
            yield {"bench": "rates", "op": stage, "provider": "obverse", "version": __version__, **row}


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begun


def _row(value: float, unit: str, seconds: float, shape: str, start_s: float = 0.0) -> dict[str, Any]:
    return {"value": value, "unit": unit, "seconds": round(seconds, 4), "start_s": round(start_s, 3), "shape": shape}


class _Work:
    """The rows as they move from stage to stage."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.targets = self.texts = self.vectors = pa.table({})

    def sample(self) -> dict[str, Any]:
        from obverse.engine.graph.load import load_graph
        from obverse.engine.graph.sampling import TargetSampler

        graph, start = _timed(lambda: load_graph("geography"))
        sampler = TargetSampler(graph, SampleSettings(), self.seed)
        self.targets = sampler.draw(self.rows)
        many, seconds = _timed(lambda: sampler.draw(self.rows * 20))
        return _row(many.num_rows / seconds, "sets/s", seconds, f"{graph.entities.num_rows:,} entities", start)

    def generate(self) -> dict[str, Any]:
        from obverse.engine.generate.stage import generate_shards
        from obverse.engine.generate.throughput import Throughput

        recorder = Throughput()
        shards = generate_shards([(0, self.targets)], GenerateSettings(), seed=self.seed, throughput=recorder)
        (_, self.texts), whole = _timed(lambda: next(iter(shards)))
        seconds = recorder.summary()["seconds"]
        tokens = sum(count or 0 for count in self.texts["num_output_tokens"].to_pylist())
        return _row(tokens / max(seconds, 1e-9), "tokens/s", seconds, f"{self.rows:,} rows, demo", whole - seconds)

    def check(self) -> dict[str, Any]:
        checker = Checker(CheckSettings(), held_out=None, aliases=None)
        _, seconds = _timed(lambda: checker.check(self.targets, self.texts))
        return _row(self.rows / seconds, "rows/s", seconds, f"{self.rows:,} rows")

    def embed(self) -> dict[str, Any]:
        from obverse.engine.embed.encoder import Encoder
        from obverse.engine.embed.vectors import embed_texts

        encoder, start = _timed(lambda: Encoder(EmbedSettings()))
        self.vectors, seconds = _timed(lambda: embed_texts(self.texts, encoder))
        return _row(self.rows / seconds, "texts/s", seconds, f"{self.rows:,} texts, MiniLM", start)

    def score(self) -> dict[str, Any]:
        from obverse.engine.diversity.score import score_with_report

        _, seconds = _timed(lambda: score_with_report(self.vectors, ScoreSettings(), seed=self.seed))
        return _row(self.rows / seconds, "rows/s", seconds, f"{self.rows:,} x {self.vectors['vector'].type.list_size}")
