"""Ours beside bare vLLM through one real engine: the same texts, the engine's own figures, and nothing left on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from obverse.engine.errors import BackendError
from obverse.engine.generate import compare
from obverse.engine.generate.compare import OURS, compare_with_bare
from obverse.engine.generate.protocol import Request
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.generate.throughput import Throughput

pytest.importorskip("vllm")

ROWS = 12
Targets = Callable[..., pa.Table]


def settings(model: Path, **engine: Any) -> GenerateSettings:
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 12}
    return GenerateSettings(backend="vllm", model=str(model), prompt="facts", sampling=sampling, engine=engine)


def test_ours_and_bare_write_the_same_texts(tiny_model: Path, make_targets: Targets) -> None:
    found = compare_with_bare(
        settings(tiny_model), make_targets(range(ROWS, 0, -1)), seed=3, repeats=2, batches=[5], shard_rows=4
    )
    assert list(found.seconds) == [OURS, "vllm generate(all)", "vllm generate, batches of 5"]
    assert all(len(taken) == 2 and min(taken) > 0 for taken in [*found.seconds.values(), *found.cpu_seconds.values()])
    assert (found.rows, found.summary["rows"]) == (ROWS, ROWS)
    assert ROWS <= found.output_tokens <= 12 * ROWS
    assert found.ratio() > 0


def test_other_texts_are_found_out(tiny_model: Path, make_targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = compare._requests

    def other(*given: Any) -> list[Request]:
        return [request._replace(seed=request.seed + 1) for request in asked(*given)]

    monkeypatch.setattr(compare, "_requests", other)
    with pytest.raises(BackendError, match="wrote another text than"):
        compare_with_bare(settings(tiny_model), make_targets(range(ROWS)), repeats=1)


def test_the_engines_figures_are_vllms_own(tiny_model: Path) -> None:
    from prometheus_client import REGISTRY

    from obverse.engine.generate.vllm import VllmBackend

    backend = VllmBackend(settings(tiny_model), 0)
    try:
        assert not [name for name in REGISTRY._names_to_collectors if name.startswith("vllm:")]
        assert set(backend.stats().values()) == {0.0}
        recorder = Throughput()
        recorder.started(backend.facts(), 0.0, stats=backend.stats)
        shared = "[s] Town one [r] lies in [o] Land two [e] " * 5  # more than one block of the cache, of 128 tokens
        asked = [Request(i, f"{shared}{i} [text]", i, False, 0) for i in range(20)]
        seen = []
        for completion in backend.stream(iter(asked)):
            recorder.add(completion)
            seen.append(backend.stats())
        recorder.summary()
        figures = recorder.figures
        assert figures.engine["prefix_tokens_total"] == figures.prompt_tokens > 20 * 128
        assert 0 < figures.engine["prefix_hit_tokens_total"] < figures.prompt_tokens
        hits = figures.prefix_hit_rate
        assert hits is not None
        again = list(backend.stream(iter([Request(99, asked[0].prompt, 1, False, 0)])))  # all but its last block cached
        assert again[0].num_prompt_tokens is not None
        more = backend.stats()["prefix_hit_tokens_total"] - figures.engine["prefix_hit_tokens_total"]
        assert more == again[0].num_prompt_tokens // 128 * 128
        assert max(stats["running"] for stats in seen) > 0
        assert 0 < max(stats["kv_cache_usage"] for stats in seen) <= 1
        assert backend.stats()["running"] == 0
    finally:
        backend.close()


def test_statistics_can_be_refused(tiny_model: Path) -> None:
    from obverse.engine.generate.vllm import VllmBackend

    backend = VllmBackend(settings(tiny_model, disable_log_stats=True), 0)
    try:
        done = list(backend.stream(iter([Request(0, "[s] a [text]", 1, False, 0)])))
        assert done[0].text is not None
        assert backend.stats() == {}
    finally:
        backend.close()
