"""Engines that die: a scripted one under every window and order, and real vLLM whose step raises for one prompt."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.errors import BackendError, InputError, MissingPackageError
from obverse.engine.generate import Backend, Completion, GenerateSettings, Request, generate, make_backend
from obverse.engine.generate.resilient import ResilientBackend

Targets = Callable[..., pa.Table]


class Host:
    """Makes engines that fail as told; counts them, and what each row was asked for."""

    def __init__(self, poison: set[int] = frozenset(), *, window: int = 8, seed: int = 0) -> None:  # type: ignore[assignment]
        self.poison, self.window = poison, window
        self.random = random.Random(seed)
        self.made = self.open = 0
        self.answered: list[int] = []
        self.asked: list[list[int]] = []  # rows of each call of stream
        self.most = 10**9  # rows in flight that it survives
        self.windows: tuple[int, int] | None = None  # of later engines: they may find less memory
        self.dies: Callable[[int], bool] = lambda made: False

    def make(self) -> Backend:
        assert self.open == 0, "two engines at once: a GPU has no room for that"
        self.made += 1
        self.open += 1
        if self.windows is not None:
            self.window = self.random.randint(*self.windows)
        return Engine(self, self.made)


class Engine:
    """A rolling window that ends its rows in random order, and dies at the first step with a poisoned row in it."""

    def __init__(self, host: Host, number: int) -> None:
        self.host, self.number, self.dead = host, number, False

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        assert not self.dead, "a dead engine was asked again"
        host, live = self.host, dict[int, Request]()
        host.asked.append([])
        more = True
        while live or more:
            while more and len(live) < host.window:
                request = next(requests, None)
                if request is None:
                    more = False
                    break
                live[request.id] = request
                host.asked[-1].append(request.id)
            if not live:
                break
            # A step; a poisoned row sometimes lives through a few.
            if (host.poison & live.keys() and host.random.random() < 0.7) or len(live) > host.most:
                self._die("a tensor of the wrong shape")
            if host.dies(self.number):
                self._die("the device fell off the bus")
            clean = [i for i in live if i not in host.poison]
            if clean and host.random.random() < 0.8:
                done = live.pop(host.random.choice(clean))
                host.answered.append(done.id)
                yield Completion(done.id, f"text {done.id} {done.seed}", "stop", 1, host.random.randint(1, 9))

    def _die(self, why: str) -> None:
        self.dead = True
        raise RuntimeError(why)

    def facts(self) -> dict[str, Any]:
        return {"backend": "scripted", "engine": self.number}

    def stats(self) -> dict[str, float]:
        return {"running": 7.0 + self.number, "steps_total": 10.0}

    def close(self) -> None:
        self.host.open -= 1
        if self.dead and self.host.random.random() < 0.5:
            raise OSError("already gone")


def requests(count: int) -> Iterator[Request]:
    return (Request(i, f"p{i}", 3 * i, False, 0) for i in range(count))


def quiet(_: str) -> None:
    pass


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_poisoned_rows_fail_alone_and_all_others_are_answered_once(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60), "rows")
    poison = data.draw(st.sets(st.integers(0, count - 1), max_size=min(4, count // 3)), "poison")
    host = Host(poison, window=data.draw(st.integers(1, 40), "window"), seed=data.draw(st.integers(0, 99), "seed"))
    host.windows = data.draw(st.sampled_from([None, (1, 40)]), "windows")
    backend = ResilientBackend(host.make, restarts=6, say=quiet)
    done = list(backend.stream(requests(count)))
    assert sorted(c.id for c in done) == list(range(count))
    for c in done:
        if c.id in poison:
            assert c.text is None
            assert c.finish_reason == "error: the engine failed on this row: RuntimeError: a tensor of the wrong shape"
        else:
            assert c.text == f"text {c.id} {3 * c.id}"
    facts = backend.facts()
    assert facts["restarts"] == host.made - 1
    assert backend.stats() == {
        "running": 7.0 + host.made,
        "steps_total": 10.0 * host.made,
        "restarts_total": host.made - 1,
    }
    assert facts["engine_failed_rows"] == len(poison)
    backend.close()
    backend.close()
    assert host.open == 0


def test_a_search_costs_few_restarts() -> None:
    made = []
    for row in range(0, 256, 15):
        host = Host({row}, window=256, seed=row)
        backend = ResilientBackend(host.make, say=quiet)
        assert len(list(backend.stream(requests(256)))) == 256
        made.append(host.made - 1)
    assert max(made) <= 10  # 8 halvings, the first failure and the row alone
    assert sum(made) / len(made) <= 8


def test_an_engine_that_fails_on_everything_condemns_no_row() -> None:
    host = Host(window=8)
    backend = ResilientBackend(host.make, say=quiet)
    got: list[Completion] = []
    stream = backend.stream(requests(100))
    got += [next(stream) for _ in range(20)]
    host.dies = lambda made: True
    with pytest.raises(BackendError, match=r"3 times in a row.*the device fell off the bus") as caught:
        got.extend(stream)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert len(got) == 20
    assert all(c.text is not None for c in got)
    assert host.made <= 4


def test_an_engine_that_never_answered_condemns_no_row() -> None:
    host = Host(window=16)
    host.dies = lambda made: True
    backend = ResilientBackend(host.make, say=quiet)
    got: list[Completion] = []
    with pytest.raises(BackendError, match="3 rows one after another"):
        got.extend(backend.stream(requests(100)))
    assert got == []
    assert host.made <= 12


def test_a_last_row_that_nobody_can_vouch_for_ends_the_run_as_failed() -> None:
    host = Host({0})
    [c] = ResilientBackend(host.make, say=quiet).stream(requests(1))
    assert c.finish_reason.startswith("error: the engine failed on this row")


def test_one_bad_hour_costs_no_row() -> None:
    host = Host(window=8)
    host.dies = lambda made: made in (1, 2) and len(host.answered) in (30, 31)
    backend = ResilientBackend(host.make, say=quiet)
    done = list(backend.stream(requests(100)))
    assert sorted(c.id for c in done) == list(range(100))
    assert all(c.text for c in done)
    assert backend.facts()["restarts"] == 2


def test_an_engine_that_fails_under_load_says_so() -> None:
    host = Host(window=8)
    host.most = 7
    backend = ResilientBackend(host.make, say=quiet)
    got: list[Completion] = []
    with pytest.raises(BackendError, match=r"about 8 rows in flight.*lower concurrency or max_num_seqs"):
        got.extend(backend.stream(requests(500)))
    assert got
    assert len({c.id for c in got}) == len(got)
    assert all(c.text for c in got)


@pytest.mark.parametrize("error", [InputError("an id", row=3), OSError("the disk is gone")])
def test_what_the_source_raises_is_passed_on(error: Exception) -> None:
    def broken() -> Iterator[Request]:
        yield from requests(3)
        raise error

    host = Host(window=2)
    with pytest.raises(type(error)) as caught:
        list(ResilientBackend(host.make, say=quiet).stream(broken()))
    assert caught.value is error
    assert host.made == 1


def test_what_a_new_engine_raises_is_passed_on() -> None:
    host = Host({1})
    engines = iter([host.make, lambda: (_ for _ in ()).throw(MissingPackageError("x", needed_for="y", extra="z"))])
    with pytest.raises(MissingPackageError):
        list(ResilientBackend(lambda: next(engines)(), say=quiet).stream(requests(5)))


def test_an_early_end_closes_the_engines_stream() -> None:
    host = Host()
    backend = ResilientBackend(host.make, say=quiet)
    stream = backend.stream(requests(50))
    first = next(stream)
    stream.close()  # type: ignore[attr-defined]
    rest = list(backend.stream(r for r in requests(50) if r.id != first.id))
    assert sorted([first.id, *(c.id for c in rest)]) == list(range(50))
    assert host.made == 1


def test_failures_are_told() -> None:
    said: list[str] = []
    list(ResilientBackend(Host({4}).make, say=said.append).stream(requests(20)))
    assert said[0].startswith("the engine failed (RuntimeError: a tensor of the wrong shape); starting it anew")


def test_real_vllm_dies_on_one_prompt_and_all_others_are_written(
    make_targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    chosen = GenerateSettings(backend="vllm", sampling={"max_tokens": 24}, concurrency=4)
    targets = make_targets(range(16))
    backend = make_backend(chosen, 5, say=quiet)
    want = generate(targets, chosen, seed=5, backend=backend).to_pylist()
    assert all(row["text"] for row in want)
    # Inside the engine: the sampler, on the device of a real one, is where a poisoned row makes CUDA assert.
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    real = GPUModelRunner.execute_model

    def poisoned(self: Any, scheduler_output: Any, *rest: Any, **more: Any) -> Any:
        running = {name.split("-")[0] for name in scheduler_output.num_scheduled_tokens}
        if "5" in running:
            raise RuntimeError("device-side assert triggered")
        return real(self, scheduler_output, *rest, **more)

    monkeypatch.setattr(GPUModelRunner, "execute_model", poisoned)
    try:
        rows = generate(targets, chosen, seed=5, backend=backend).to_pylist()
        facts = backend.facts()
    finally:
        backend.close()
    assert rows[5]["text"] is None
    assert rows[5]["finish_reason"].startswith("error: the engine failed on this row: ")
    assert "device-side assert triggered" in rows[5]["finish_reason"]
    assert rows[:5] + rows[6:] == want[:5] + want[6:]  # to the byte, whatever they were beside
    assert facts["engine_failed_rows"] == 1
    assert 2 <= facts["restarts"] <= 4


@pytest.mark.slow
def test_real_vllm_whose_process_is_killed_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the system does when memory runs out. vLLM's own client would wait for ever: see `vllm_liveness`.
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    chosen = GenerateSettings(backend="vllm", prompt="facts", sampling={"max_tokens": 24}, concurrency=8)
    backend = make_backend(chosen, 5, say=quiet)
    done: list[Completion] = []
    try:
        for completion in backend.stream(requests(60)):
            done.append(completion)
            if len(done) == 20:
                cores = [p for p in psutil.Process().children(recursive=True) if "EngineCore" in p.name()]
                assert len(cores) == 1
                cores[0].kill()
        facts = backend.facts()
    finally:
        backend.close()
    assert sorted(c.id for c in done) == list(range(60))
    assert all(c.text is not None for c in done)
    assert (facts["restarts"], facts["engine_failed_rows"]) == (1, 0)
