"""The rolling window against a backend that answers in an adversarial order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.errors import InputError
from obverse.engine.generate import Completion, GenerateSettings, Request, Throughput, generate, generate_shards
from obverse.engine.generate.stage import TAKE_ROWS
from obverse.engine.generate.throughput import MOST_SAMPLES
from obverse.engine.records.keys import content_hash, derive_seed
from obverse.engine.records.schemas import TARGETS, TEXTS

Targets = Callable[..., pa.Table]
SETTINGS = GenerateSettings(model="x/y", prompt="facts")


class Shuffler:
    """Holds up to ``window`` requests and answers them in an order of its own."""

    def __init__(self, window: int, order: int, *, drop: int = -1, twice: int = -1) -> None:
        self.window, self.random = window, random.Random(order)
        self.drop, self.twice = drop, twice
        self.most_held = 0
        self.closed = False

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        held: list[Request] = []
        more = True
        while held or more:
            while more and len(held) < self.window:
                request = next(requests, None)
                if request is None:
                    more = False
                else:
                    held.append(request)
            self.most_held = max(self.most_held, len(held))
            if held:
                request = held.pop(self.random.randrange(len(held)))
                if request.id != self.drop:
                    yield Completion(request.id, f"{request.id}:{request.seed}", "stop", 3, 2)
                if request.id == self.twice:
                    yield Completion(request.id, "again", "stop", 3, 2)

    def facts(self) -> dict[str, Any]:
        return {"backend": "shuffler"}

    def close(self) -> None:
        self.closed = True


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), max_size=8),
    window=st.integers(1, 12),
    order=st.integers(0, 1000),
    bad=st.sets(st.integers(0, 40)),
)
def test_every_row_once_in_its_place(
    make_targets: Targets, sizes: list[int], window: int, order: int, bad: set[int]
) -> None:
    shards, first = [], 0
    for k, size in enumerate(sizes):
        table = make_targets(range(first, first + size))
        rows = [r | {"triplets": None} if r["id"] in bad else r for r in table.to_pylist()]
        shards.append((k, pa.Table.from_pylist(rows, schema=TARGETS)))
        first += size
    backend, seen, recorder = Shuffler(window, order), [], Throughput()
    out = dict(
        generate_shards(iter(shards), SETTINGS, seed=1, backend=backend, on_progress=seen.append, throughput=recorder)
    )
    assert sorted(out) == list(range(len(sizes)))
    assert sum(seen) == first == recorder.rows
    assert backend.most_held <= window
    assert not backend.closed  # a lent backend stays open
    for k, targets in shards:
        table = out[k]
        assert table.schema.equals(TEXTS)
        assert table.column("id").to_pylist() == targets.column("id").to_pylist()
        for row in table.to_pylist():
            seed = derive_seed(1, "generate", row["id"])
            assert row["seed"] == seed
            if row["id"] in bad:
                assert (row["text"], row["prompt_hash"]) == (None, None)
                assert row["finish_reason"].startswith("error: no prompt: ")
            else:
                assert (row["text"], row["finish_reason"]) == (f"{row['id']}:{seed}", "stop")
    assert recorder.errors == len([i for i in bad if i < first])


def test_shards_are_read_only_as_the_window_has_room(make_targets: Targets) -> None:
    read: list[int] = []

    def shards() -> Iterator[tuple[int, pa.Table]]:
        for k in range(60):
            read.append(k)
            yield k, make_targets(range(500 * k, 500 * k + 500))

    done = 0
    for _ in generate_shards(shards(), SETTINGS, seed=1, backend=Shuffler(25, 0)):
        done += 1
        # Rows wait for the next look (TAKE_ROWS) or the rest of their shard (25 in flight lie in few shards).
        assert len(read) - done <= TAKE_ROWS // 500 + 6
    assert done == 60


def test_prompt_hash_is_of_the_prompt(make_targets: Targets) -> None:
    table = generate(make_targets([2]), SETTINGS, seed=1, backend=Shuffler(1, 0))
    assert table.column("prompt_hash").to_pylist() == [content_hash("[s] Town 2 [r] lies in [o] Land 20 [e] [text]")]


def test_nothing_to_write_loads_no_model(make_targets: Targets) -> None:
    settings = GenerateSettings(model="no/such-model", backend="transformers", prompt="facts")
    assert list(generate_shards([], settings, seed=1)) == []
    [(index, table)] = generate_shards([(4, make_targets([]))], settings, seed=1)
    assert (index, table.num_rows) == (4, 0)
    assert table.schema.equals(TEXTS)
    assert generate(make_targets([]), settings, seed=1).equals(TEXTS.empty_table())


def test_wrong_inputs_and_wrong_backends_are_named(make_targets: Targets) -> None:
    with pytest.raises(InputError, match=r"row 3, field 'id': expected a unique id"):
        generate(make_targets([3, 4, 3]), SETTINGS, seed=1, backend=Shuffler(2, 0))
    with pytest.raises(InputError, match="a column 'id'"):
        generate(pa.table({"x": [1]}), SETTINGS, seed=1, backend=Shuffler(2, 0))
    with pytest.raises(RuntimeError, match="left 1 rows unanswered"):
        generate(make_targets(range(5)), SETTINGS, seed=1, backend=Shuffler(2, 0, drop=3))
    with pytest.raises(RuntimeError, match="answered row 3, which is not in flight"):
        generate(make_targets(range(5)), SETTINGS, seed=1, backend=Shuffler(2, 0, twice=3))


def test_throughput_stays_small_and_ends_with_the_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("obverse.engine.generate.throughput.time.perf_counter", lambda: next(clock))
    recorder = Throughput()
    recorder.started({"backend": "x"}, 2.5)
    for i in range(5000):
        recorder.add(Completion(i, None if i % 10 == 0 else "t", "stop", 7, 3))
    samples = recorder.samples
    assert len(samples) <= MOST_SAMPLES + 1
    assert samples[-1] == (5000, 5000, 15000)
    assert all(a.seconds < b.seconds and a.rows < b.rows for a, b in itertools.pairwise(samples))
    summary = recorder.summary()
    assert (summary["errors"], summary["prompt_tokens"], summary["start_seconds"]) == (500, 35000, 2.5)
    assert summary["rows_per_second"] == 1.0
