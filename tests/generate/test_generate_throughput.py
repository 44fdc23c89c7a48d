"""The recorder of throughput: sums, rates, the engine's figures, what a row costs."""

from __future__ import annotations

import io
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from obverse.engine.generate import throughput as module
from obverse.engine.generate.protocol import Completion
from obverse.engine.generate.throughput import MOST_SAMPLES, Figures, Price, Throughput
from obverse.engine.recipe import load_recipe
from obverse.engine.records.progress import Progress
from obverse.engine.run.driver import run_recipe


class Clock:
    """Time that stands still but for `pass_`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000.0 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def rows(count: int, *, first: int = 0) -> list[Completion]:
    rng = random.Random(first)
    made = []
    for i in range(first, first + count):
        kind = rng.choice(["stop", "stop", "length", "error: it broke"])
        text = None if kind.startswith("error") else "x"
        written = None if text is None else rng.randrange(1, 50)
        made.append(Completion(i, text, kind, rng.choice([None, rng.randrange(1, 90)]), written))
    return made


def test_sums_are_those_of_the_rows(clock: Clock) -> None:
    one, many = Throughput(), Throughput()
    done = rows(500)
    one.started({}, 1.5)
    many.started({}, 1.5)
    clock.now += 4.0
    for row in done:
        one.add(row)
    many.add_many(done[:200])
    many.add_many(done[200:])
    many.add_many([])
    summary = many.summary()
    assert summary == one.summary()
    assert summary["rows"] == 500
    assert summary["errors"] == sum(row.text is None for row in done)
    assert summary["cut"] == sum(row.finish_reason == "length" for row in done)
    assert summary["prompt_tokens"] == sum(row.num_prompt_tokens or 0 for row in done)
    assert summary["output_tokens"] == sum(row.num_output_tokens or 0 for row in done)
    assert summary["rows_per_second"] == 125.0
    assert summary["output_tokens_per_second"] == pytest.approx(summary["output_tokens"] / 4)
    assert summary["prompt_tokens_per_second"] == pytest.approx(summary["prompt_tokens"] / 4)
    assert summary["start_seconds"] == 1.5
    json.dumps(summary)


def test_memory_is_bounded_and_samples_stay_in_order(clock: Clock) -> None:
    recorder = Throughput()
    recorder.started({}, 0.0)
    for i in range(20_000):
        clock.now += 0.3
        recorder.add(Completion(i, "x", "stop", 1, 2))
    samples = recorder.samples
    assert len(samples) <= MOST_SAMPLES + 1
    assert samples[-1] == (pytest.approx(6000.0), 20_000, 40_000)
    assert all(a.seconds < b.seconds and a.rows < b.rows for a, b in itertools.pairwise(samples))
    gaps = [b.seconds - a.seconds for a, b in itertools.pairwise(samples[:-1])]
    assert max(gaps) < 3 * min(gaps)  # spread over the whole time, not bunched at one end


def test_live_rates_are_of_the_last_half_minute(clock: Clock) -> None:
    recorder = Throughput()
    recorder.started({}, 0.0)
    for _ in range(400):  # 100 s at 8 rows a second
        clock.now += 0.25
        recorder.add_many([Completion(0, "x", "stop", 10, 5)] * 2)
    assert recorder.figures.rates == pytest.approx((8.0, 80.0, 40.0))
    for _ in range(400):  # and 100 s at four times that
        clock.now += 0.25
        recorder.add_many([Completion(0, "x", "stop", 10, 5)] * 8)
    assert recorder.figures.rates == pytest.approx((32.0, 320.0, 160.0))
    assert recorder.summary()["rows_per_second"] == pytest.approx(20.0)
    clock.now += 100.0  # one row in longer than the window
    recorder.add(Completion(0, "x", "stop", 10, 5))
    assert recorder.figures.rates[0] == pytest.approx(0.01)


def test_counters_of_an_engine_are_counted_from_when_it_was_taken_over(clock: Clock) -> None:
    engine: dict[str, float] = {"prefix_tokens_total": 1000.0, "prefix_hit_tokens_total": 900.0, "running": 3.0}
    recorder = Throughput()
    recorder.started({}, 0.0, stats=lambda: dict(engine))

    def step(tokens: float, hits: float, running: float) -> None:
        engine.update(prefix_tokens_total=tokens, prefix_hit_tokens_total=hits, running=running)
        clock.now += 1.0
        recorder.add(Completion(0, "x", "stop", 1, 1))

    step(1100.0, 925.0, 7.0)
    assert recorder.figures.engine == {"prefix_tokens_total": 100, "prefix_hit_tokens_total": 25, "running": 7}
    assert recorder.figures.prefix_hit_rate == 0.25
    step(60.0, 45.0, 1.0)  # it died and was started again: it counts from nothing
    assert recorder.figures.engine["prefix_tokens_total"] == 160
    other = {"prefix_tokens_total": 5.0, "prefix_hit_tokens_total": 5.0}
    recorder.started({}, 0.0, stats=lambda: other)
    clock.now += 1.0
    recorder.add(Completion(0, "x", "stop", 1, 1))
    summary = recorder.summary()["engine"]
    assert summary["prefix_tokens_total"] == 160
    assert summary["prefix_hit_rate"] == pytest.approx(70 / 160, abs=1e-4)
    assert summary["running"] == {"mean": 4.0, "most": 7.0}


def test_the_engine_is_asked_rarely_and_may_fail(clock: Clock) -> None:
    calls = 0

    def stats() -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise AttributeError("vLLM changed")
        return {"running": 1.0}

    recorder = Throughput()
    recorder.started({}, 0.0, stats=stats)
    for _ in range(100):
        clock.now += 0.01
        recorder.add(Completion(0, "x", "stop", 1, 1))
    assert calls == 5  # when taken over, at the first row, and then every 0.25 s
    for _ in range(100):
        clock.now += 0.3
        recorder.add(Completion(0, "x", "stop", 1, 1))
    assert calls == 6
    assert recorder.summary()["engine"]["trouble"] == "AttributeError: vLLM changed"
    assert recorder.rows == 200


def test_a_million_rows_cost_what_they_take(clock: Clock) -> None:
    recorder = Throughput(Price(2.0, gpus=8))
    recorder.started({}, 0.0)
    clock.now += 10.0
    recorder.add_many([Completion(0, "x", "stop", 1, 1)] * 1000)
    # 100 rows a second: a million take 10,000 s of 8 GPUs at $2 an hour.
    assert recorder.summary()["dollars_per_million_rows"] == pytest.approx(10_000 / 3600 * 16, abs=1e-4)
    assert "$44.44 a million rows" in recorder.line()
    assert Price(1.0).per_million(0.0) is None
    assert "dollars_per_million_rows" not in Throughput().summary()
    assert Throughput(Price(1.0)).summary()["dollars_per_million_rows"] is None


def test_the_line_says_only_what_is_known(clock: Clock) -> None:
    recorder = Throughput()
    assert recorder.line() == ""
    recorder.started({}, 0.0)
    clock.now += 2.0
    recorder.add(Completion(0, "x", "stop", 30, 10))
    assert recorder.line() == "5 tokens/s out, 15 in"
    engine = {
        "running": 128.0,
        "waiting": 7.0,
        "kv_cache_usage": 0.4149,
        "prefix_tokens_total": 0.0,
        "prefix_hit_tokens_total": 0.0,
        "preemptions_total": 0.0,
    }
    recorder.started({}, 0.0, stats=lambda: engine)
    engine |= {"prefix_tokens_total": 8.0, "prefix_hit_tokens_total": 6.0, "preemptions_total": 2.0}
    clock.now += 2.0
    recorder.add(Completion(0, "x", "stop", 30, 10))
    expected = "5 tokens/s out, 15 in, 75% of prompts cached, KV 41%, 128 running, 7 waiting, 2 preempted"
    assert recorder.line() == expected


def test_figures_are_published_whole_and_cannot_be_changed(clock: Clock) -> None:
    recorder = Throughput()
    assert recorder.figures == Figures()
    recorder.started({"backend": "vllm"}, 0.0, stats=lambda: {"running": 1.0})
    clock.now += 1.0
    recorder.add(Completion(0, "x", "stop", 1, 1))
    before = recorder.figures
    with pytest.raises(TypeError):
        before.engine["running"] = 2.0  # type: ignore[index]
    clock.now += 1.0
    recorder.add(Completion(1, "x", "stop", 1, 1))
    assert (before.rows, recorder.figures.rows) == (1, 2)
    assert recorder.figures.newest == clock.time()


def test_progress_shows_the_figures() -> None:
    stream = io.StringIO()
    said = iter(["", "9 tokens/s out", "8 tokens/s out", "7 tokens/s out", "end"])
    progress = Progress(stream=stream, every_s=0.0)
    with progress.task("generate", 30, figures=lambda: next(said)) as advance:
        for _ in range(3):
            advance(10)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "tokens/s" not in lines[0]
    assert "20/30 rows" in lines[0]
    assert "9 tokens/s out, " in lines[1]
    assert "GiB" in lines[1]


def test_the_bar_shows_the_figures_unread_as_markup() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream: Any = Terminal()
    with Progress(stream=stream).task("generate", 2, figures=lambda: "[red]x[/x]") as advance:
        advance(1)
        advance(1)
    assert "[red]x[/x]" in stream.getvalue()


def test_a_run_keeps_the_figures_in_its_manifest(tmp_path: Path, tiny_model: Path) -> None:
    edges = "".join(f"Town {i}\tlies in\tLand {i % 3}\n" for i in range(30))
    (tmp_path / "graph.tsv").write_text("subject\tpredicate\tobject\n" + edges)
    row = {"text": "Town 1 is in Land 1.", "triplets": [{"subject": "Town 1", "predicate": "in", "object": "Land 1"}]}
    (tmp_path / "real.jsonl").write_text((json.dumps(row) + "\n") * 9)
    (tmp_path / "recipe.toml").write_text(
        f'name = "r"\ntask = "extraction"\n[data]\nreal = "real.jsonl"\nchecker_rows = 2\nselection_rows = 2\n'
        f'[sample]\ngraph = "{tmp_path / "graph.tsv"}"\nsamples = 9\n[generate]\nbackend = "transformers"\n'
        f'model = "{tiny_model}"\nprompt = "facts"\nsampling = {{max_tokens = 4}}\n'
    )
    recipe, text = load_recipe(tmp_path / "recipe.toml")
    recorder, stream = Throughput(Price(2.0)), io.StringIO()
    progress = Progress(stream=stream, every_s=0.0)
    run = run_recipe(recipe, tmp_path / "run", text=text, until="generate", progress=progress, recorder=recorder)
    assert recorder.rows == 9
    speed = json.loads((run / "run.json").read_text())["stages"]["generate"]["speed"]
    summary = recorder.summary()
    for name in ("rows_per_second", "output_tokens_per_second", "dollars_per_million_rows"):
        assert speed[name] == summary[name] > 0
    assert "a million rows" in stream.getvalue()
