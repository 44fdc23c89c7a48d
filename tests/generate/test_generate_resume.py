"""Stopped in every way, gone on with over changed inputs: each id once, nothing asked for twice that was safe."""

from __future__ import annotations

import importlib.util
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from obverse.engine.errors import BackendError, InputError, RunError
from obverse.engine.generate import Completion, GenerateSettings, Request, generate_shards
from obverse.engine.generate.folder import TextFolder
from obverse.engine.generate.writer import journal_of
from obverse.engine.records.schemas import TEXTS
from obverse.engine.records.shards import Shards

Targets = Callable[..., pa.Table]
SCRIPT = Path(__file__).parent / "echo_writer.py"


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("echo_writer", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Counting:
    """Echoes; fails as a whole after ``most`` rows; notes what it was asked for."""

    def __init__(self, echo: Callable[[Request], Completion], most: int | None = None) -> None:
        self.echo, self.most = echo, most
        self.asked: list[int] = []

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        for request in requests:
            if self.most is not None and len(self.asked) == self.most:
                raise BackendError("the engine died")
            self.asked.append(request.id)
            yield self.echo(request)

    def facts(self) -> dict[str, Any]:
        return {"backend": "counting"}

    def close(self) -> None:
        return


def save(table: pa.Table, path: Path) -> Path:
    pq.write_table(table, path)
    return path


def expected(writer: ModuleType, targets: pa.Table, rows: int) -> dict[int, pa.Table]:
    """What a process that nobody stops writes."""
    shards = [(i, targets.slice(i * rows, rows)) for i in range(-(-targets.num_rows // rows))]
    return dict(generate_shards(shards, writer.SETTINGS, seed=3, backend=Counting(writer.echo)))


def texts(folder: Path) -> pa.Table:
    return Shards(folder, TEXTS).table()


def test_killed_at_random_moments_writes_the_same_bytes(
    writer: ModuleType, make_targets: Targets, tmp_path: Path
) -> None:
    ids = random.Random(1).sample(range(10**9), 1500)
    targets = save(make_targets(ids), tmp_path / "targets.parquet")
    out, log = tmp_path / "out", tmp_path / "asked"
    moments, kills = random.Random(), 0
    for _ in range(40):
        command = [sys.executable, str(SCRIPT), str(out), str(targets), "900", str(log)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout is not None
        begun = child.stdout.readline() == "begun\n"  # by the engine; a process that finds all done needs none
        try:
            child.wait(timeout=moments.uniform(0.02, 0.6) if begun and kills < 6 else None)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            kills += 1
            _tear(out, moments, kills)
            continue
        assert child.returncode == 0, child.communicate()[1]
        break
    assert kills >= 2
    whole = expected(writer, make_targets(ids), writer.SHARD_ROWS)
    for index, table in whole.items():
        pq.write_table(table, tmp_path / "one.parquet", compression="zstd", use_dictionary=True)
        assert Shards(out, TEXTS).path(index).read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert Shards(out, TEXTS).done() == sorted(whole)
    assert not (out / "_journal").exists()
    # A row may be asked for again only if it was in flight, or finished in the last moments before a kill.
    again = Counter(log.read_text().split())
    assert sum(again.values()) - len(ids) <= kills * (50 + 1.5 * 900)


def _tear(out: Path, moments: random.Random, kills: int) -> None:
    """As a power cut may: some of the last bytes never reached the disk, or others did."""
    segments = journal_of(out).segments()
    if kills % 3 == 1 and segments:
        data = segments[-1].read_bytes()
        segments[-1].write_bytes(data[: max(0, len(data) - moments.randrange(400))])
    elif kills % 3 == 2 and segments:
        segments[-1].write_bytes(segments[-1].read_bytes() + bytes(moments.randrange(256) for _ in range(300)))


def stopped(writer: ModuleType, out: Path, targets: Path, rows: int, **options: Any) -> list[int]:
    """A run whose engine dies after ``rows`` rows; gives the rows asked for."""
    engine = Counting(writer.echo, rows)
    with pytest.raises(BackendError, match="the engine died"):
        TextFolder(out, targets, writer.SETTINGS, seed=3, shard_rows=50, **options).write(backend=engine)
    return engine.asked


def gone_on(writer: ModuleType, out: Path, targets: Path, *, shard_rows: int = 50, **options: Any) -> list[int]:
    engine = Counting(writer.echo)
    TextFolder(out, targets, writer.SETTINGS, seed=3, shard_rows=shard_rows, **options).write(backend=engine)
    return engine.asked


@pytest.mark.parametrize(
    "change", ["none", "order", "shard size", "rows added", "rows gone", "order and stopped again"]
)
def test_resume_is_by_id_and_prompt_never_by_position(
    writer: ModuleType, make_targets: Targets, tmp_path: Path, change: str
) -> None:
    ids = list(range(1000, 1420))
    targets, out = save(make_targets(ids), tmp_path / "t.parquet"), tmp_path / "out"
    asked = set(stopped(writer, out, targets, 230))
    shard_rows = 50
    if "order" in change:
        random.Random(2).shuffle(ids)
    elif change == "shard size":
        shard_rows = 33
    elif change == "rows added":
        ids = [*range(5, 40), *ids, *range(2000, 2100)]
    elif change == "rows gone":
        ids = ids[100:]
    save(make_targets(ids), targets)
    if "stopped" in change:
        asked |= set(stopped(writer, out, targets, 60))
    rest = gone_on(writer, out, targets, shard_rows=shard_rows)
    assert sorted(rest) == sorted(set(ids) - asked)
    whole = expected(writer, make_targets(ids), shard_rows)
    assert texts(out).equals(pa.concat_tables([whole[index] for index in sorted(whole)]))
    assert (out / "_earlier").exists() == (change == "rows gone")  # what nobody asked for again is not deleted
    assert gone_on(writer, out, targets, shard_rows=shard_rows) == []


def test_a_row_whose_prompt_changed_is_written_anew(writer: ModuleType, make_targets: Targets, tmp_path: Path) -> None:
    targets, out = save(make_targets(range(300)), tmp_path / "t.parquet"), tmp_path / "out"
    stopped(writer, out, targets, 200)
    changed = pa.concat_tables([make_targets(range(100)), make_targets(range(100, 300), name="City")])
    save(changed, targets)
    assert sorted(gone_on(writer, out, targets)) == list(range(100, 300))
    assert all("City" in row["text"] for row in texts(out).to_pylist() if row["id"] >= 100 and row["text"])


def test_targets_without_ids_are_named(writer: ModuleType, make_targets: Targets, tmp_path: Path) -> None:
    targets = save(make_targets(range(3)).drop_columns("id"), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet, field 'id': expected a column 'id', saw \['triplets'"):
        gone_on(writer, tmp_path / "out", targets)


def test_failed_rows_are_tried_again_only_if_asked(writer: ModuleType, make_targets: Targets, tmp_path: Path) -> None:
    targets, out = save(make_targets(range(300)), tmp_path / "t.parquet"), tmp_path / "out"
    gone_on(writer, out, targets)
    failed = [i for i in range(300) if i % 97 == 5]
    folder = TextFolder(out, targets, writer.SETTINGS, seed=3, shard_rows=50)
    assert list(folder.failed()) == [{"id": i, "reason": "error: too long"} for i in failed]
    assert gone_on(writer, out, targets) == []
    assert gone_on(writer, out, targets, retry_failed=True) == failed
    assert texts(out)["id"].to_pylist() == list(range(300))


def test_another_model_prompt_or_seed_is_refused(writer: ModuleType, make_targets: Targets, tmp_path: Path) -> None:
    targets, out = save(make_targets(range(60)), tmp_path / "t.parquet"), tmp_path / "out"
    gone_on(writer, out, targets)
    other = GenerateSettings(model="x/z", prompt="facts", backend="vllm")
    with pytest.raises(RunError, match="out holds texts of another model, prompt or settings; choose another --out"):
        TextFolder(out, targets, other, seed=3, shard_rows=50)
    with pytest.raises(RunError, match="out holds texts of another seed"):
        TextFolder(out, targets, writer.SETTINGS, seed=4, shard_rows=50)
    (out / "_texts.json").unlink()
    with pytest.raises(RunError, match=r"holds shards but no _texts\.json"):
        TextFolder(out, targets, writer.SETTINGS, seed=3, shard_rows=50)


FULL = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_disk_that_takes_no_more_loses_nothing(writer: ModuleType, make_targets: Targets, tmp_path: Path) -> None:
    targets, out, log = save(make_targets(range(600)), tmp_path / "t.parquet"), tmp_path / "out", tmp_path / "asked"
    command = [sys.executable, "-c", FULL, str(SCRIPT), str(out), str(targets), "100", str(log)]
    full = subprocess.run(command, capture_output=True, text=True, check=False)
    assert full.returncode != 0
    assert "rows of this call are safe: make room and give the same command again" in full.stderr
    safe = 600 - len(gone_on(writer, out, targets, shard_rows=writer.SHARD_ROWS))
    assert safe > 0
    whole = expected(writer, make_targets(range(600)), writer.SHARD_ROWS)
    assert texts(out).equals(pa.concat_tables([whole[index] for index in sorted(whole)]))


def test_a_second_process_is_turned_away(writer: ModuleType, make_targets: Targets, tmp_path: Path) -> None:
    targets, out = save(make_targets(range(200)), tmp_path / "t.parquet"), tmp_path / "out"
    command = [sys.executable, str(SCRIPT), str(out), str(targets), "2", str(tmp_path / "asked")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "begun\n"
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode != 0
        assert f"is in use by another obverse process (pid {first.pid})" in second.stderr
        first.kill()
    gone_on(writer, out, targets, shard_rows=writer.SHARD_ROWS)
    assert texts(out).num_rows == 200


class Stalling(Counting):
    """Answers some rows and then none, until ``seen``."""

    def __init__(self, echo: Callable[[Request], Completion], seen: Callable[[], bool]) -> None:
        super().__init__(echo)
        self.seen, self.waited = seen, False

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        for completion in super().stream(requests):
            yield completion
            if len(self.asked) == 30:
                until = time.monotonic() + 30
                while not self.seen() and time.monotonic() < until:
                    time.sleep(0.01)
                self.waited = time.monotonic() < until


def test_rows_are_safe_though_the_engine_stalls(writer: ModuleType, make_targets: Targets, tmp_path: Path) -> None:
    targets, out = save(make_targets(range(200)), tmp_path / "t.parquet"), tmp_path / "out"

    def journaled() -> bool:
        found = journal_of(out)
        return sum(entry.batch.num_rows for entry in found.replay(TEXTS)) == 30

    engine = Stalling(writer.echo, journaled)
    TextFolder(out, targets, writer.SETTINGS, seed=3, shard_rows=100).write(backend=engine)
    assert engine.waited
    assert texts(out).num_rows == 200


def test_a_clock_that_jumps_changes_nothing(
    writer: ModuleType, make_targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = random.Random(4)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(-1e9, 1e10))
    targets, out = save(make_targets(range(300)), tmp_path / "t.parquet"), tmp_path / "out"
    stopped(writer, out, targets, 120)
    gone_on(writer, out, targets)
    whole = expected(writer, make_targets(range(300)), 50)
    assert texts(out).equals(pa.concat_tables([whole[index] for index in sorted(whole)]))


def test_the_journal_does_not_grow_with_the_run(
    writer: ModuleType, make_targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obverse.engine.generate.stage.TAKE_ROWS", 10)
    targets, out, sizes = save(make_targets(range(3000)), tmp_path / "t.parquet"), tmp_path / "out", []

    def measure(_: int) -> None:
        sizes.append(sum(path.stat().st_size for path in journal_of(out).segments()))

    folder = TextFolder(out, targets, writer.SETTINGS, seed=3, shard_rows=50)
    folder.write(backend=Counting(writer.echo), on_shard=measure)
    assert len(sizes) == 60
    assert max(sizes) < 60_000  # some hundred rows, not thousands
    assert len(journal_of(out).segments()) == 0
