"""Shards by a hash of the id, and their merge: every id once, the bytes of one process."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from obverse.engine.cli.pipeline import run
from obverse.engine.errors import InputError, MissingPackageError, RunError
from obverse.engine.generate.folder import TextFolder
from obverse.engine.generate.protocol import Completion, Request
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.generate.stage import generate_into
from obverse.engine.recipe import load_recipe
from obverse.engine.records.lock import locked
from obverse.engine.records.schemas import TARGETS
from obverse.engine.records.shards import Shards, read_json
from obverse.engine.records.streams import TableStream
from obverse.engine.run.driver import run_recipe
from obverse.engine.run.partition import MergeSite, Part, PartSite, PartStream, find_parts, in_shard, merge

SEED = 5
SETTINGS = GenerateSettings(prompt="instruct", backend="transformers")


class Answering:
    """A backend that answers at once, from prompt and seed alone, in an order of its own."""

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        chance, held = random.Random(len(str(id(self)))), []
        for request in requests:
            held.append(request)
            if len(held) >= 7:
                yield self._answer(held.pop(chance.randrange(len(held))))
        yield from map(self._answer, held)

    def _answer(self, request: Request) -> Completion:
        text = f"{request.seed} says {request.prompt[-20:]}"
        return Completion(request.id, text, "stop", len(request.prompt), len(text))

    def facts(self) -> dict[str, Any]:
        return {"backend": "answering", "batch_invariant": True}

    def close(self) -> None:
        return


def _targets(path: Path, ids: list[int], *, name: str = "Town") -> Path:
    def triplet(i: int) -> dict[str, Any]:
        parts = {"subject": f"{name} {i}", "predicate": "lies in", "object": f"Land {i % 7}"}
        return {part: {"uri": f"x:{surface}", "surfaceform": surface} for part, surface in parts.items()}

    rows = [{"id": i, "triplets": [triplet(i)], "label": None, "attributes": None, "is_real": False} for i in ids]
    pq.write_table(pa.Table.from_pylist(rows, schema=TARGETS), path)
    return path


def _write(out: Path, targets: Path, part: Part | None = None, *, shard_rows: int = 50, seed: int = SEED) -> Path:
    folder = out if part is None else part.folder(out)
    with locked(folder):
        texts = TextFolder(folder, targets, SETTINGS, seed=seed, shard_rows=shard_rows)
        if part is not None:
            texts.source = PartStream(texts.source, part)
        texts.write(backend=Answering())
    return folder


def _merge(out: Path, targets: Path, *, shard_rows: int = 50, seed: int = SEED) -> int:
    tables = enumerate(TableStream(targets).tables(shard_rows))
    return merge(tables, find_parts(out), Shards(out), SETTINGS, seed=seed)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*.parquet")}


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[Path, Path, dict[str, bytes]]:
    """Targets, a folder with the texts of three shards, and the files that one process writes."""
    targets = _targets(tmp_path / "targets.parquet", random.Random(1).sample(range(10**6), 333))
    whole = _bytes(_write(tmp_path / "whole", targets))
    for i in (2, 3, 1):
        _write(tmp_path / "out", targets, Part(i, 3))
    return targets, tmp_path / "out", whole


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=200), st.integers(1, 50))
def test_every_id_is_in_one_shard(ids: list[int], n: int) -> None:
    masks = np.stack([in_shard(ids, i, n) for i in range(1, n + 1)])
    assert (masks.sum(axis=0) == 1).all()


@pytest.mark.parametrize("ids", [np.arange(200_000), np.arange(200_000) * 1024, (1 << 40) + np.arange(200_000)])
@pytest.mark.parametrize("n", [2, 3, 8, 64])
def test_shards_are_even(ids: Any, n: int) -> None:
    counts = np.array([in_shard(ids, i, n).sum() for i in range(1, n + 1)])
    expected = len(ids) / n
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_a_row_stays_in_its_shard_for_good() -> None:
    # Written down once: a change would tear every run apart that is under way.
    assert np.flatnonzero(in_shard(np.arange(40), 3, 8)).tolist() == [11, 16, 35]


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "3/", "a/b", "-1/2", "1/0", "3/8/1"])
def test_a_wrong_shard_is_named(text: str) -> None:
    with pytest.raises(InputError, match="such as 3/8"):
        Part.parse(text)


def test_a_shard_is_read() -> None:
    assert Part.parse("3/8") == Part(3, 8)
    assert Part.parse("1/1").folder(Path("out")) == Path("out/_shards/1-of-1")


def test_a_stream_of_a_shard_has_its_rows_in_order_and_tables_of_one_size(tmp_path: Path) -> None:
    ids = random.Random(2).sample(range(10**9), 1000)
    source = TableStream(_targets(tmp_path / "targets.parquet", ids))
    tables = list(PartStream(source, Part(2, 3)).tables(64))
    found = [row for table in tables for row in table["id"].to_pylist()]
    assert found == [row for row in ids if in_shard([row], 2, 3)[0]]
    assert {table.num_rows for table in tables[:-1]} == {64}
    assert 0 < tables[-1].num_rows <= 64


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("first", [0, 1, 63, 64, 130, 330, 10_000])
def test_a_stream_of_a_shard_begins_anywhere(tmp_path: Path, first: int, kind: str) -> None:
    ids = random.Random(3).sample(range(10**9), 1000)
    path = _targets(tmp_path / "targets.parquet", ids)
    if kind == "jsonl":
        table, path = pq.read_table(path), tmp_path / "targets.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    stream = PartStream(TableStream(path), Part(2, 3))
    mine = [row for row in ids if in_shard([row], 2, 3)[0]]
    found = [row for table in stream.tables(64, first=first) for row in table["id"].to_pylist()]
    assert found == mine[first:]
    assert stream.num_rows() == (1000 if kind == "parquet" else None)


def test_merged_shards_are_the_files_of_one_process(sharded: tuple[Path, Path, dict[str, bytes]]) -> None:
    targets, out, whole = sharded
    assert _merge(out, targets) == 333
    assert _bytes(out) == whole


def test_a_stopped_merge_goes_on(sharded: tuple[Path, Path, dict[str, bytes]]) -> None:
    targets, out, whole = sharded
    _merge(out, targets)
    Shards(out).path(2).unlink()
    kept = Shards(out).path(1).stat().st_mtime_ns
    _merge(out, targets)
    assert Shards(out).path(1).stat().st_mtime_ns == kept
    assert _bytes(out) == whole


def test_shards_cut_otherwise_merge_alike(tmp_path: Path) -> None:
    targets = _targets(tmp_path / "targets.parquet", list(range(200)))
    whole = _bytes(_write(tmp_path / "whole", targets, shard_rows=64))
    for i, rows in ((1, 7), (2, 1000)):
        _write(tmp_path / "out", targets, Part(i, 2), shard_rows=rows)
    _merge(tmp_path / "out", targets, shard_rows=64)
    assert _bytes(tmp_path / "out") == whole


def test_more_shards_than_rows_merge(tmp_path: Path) -> None:
    targets = _targets(tmp_path / "targets.parquet", [4, 9])
    whole = _bytes(_write(tmp_path / "whole", targets))
    for i in range(1, 6):
        _write(tmp_path / "out", targets, Part(i, 5))
    _merge(tmp_path / "out", targets)
    assert _bytes(tmp_path / "out") == whole


def _drop_last(folder: Path) -> None:
    shards = Shards(folder)
    last = shards.done()[-1]
    shards.write(last, shards.read(last).slice(0, shards.read(last).num_rows - 1))


def _add(folder: Path, row: int) -> None:
    shards = Shards(folder)
    table = shards.read(0).slice(0, 1)
    shards.write(len(shards.done()), table.set_column(0, table.schema.field("id"), pa.array([row], pa.int64())))


def test_a_missing_row_names_the_shard_to_run_again(sharded: tuple[Path, Path, dict[str, bytes]]) -> None:
    targets, out, _ = sharded
    _drop_last(Part(2, 3).folder(out))
    with pytest.raises(RunError, match=r"shard 2/3\) is not finished: row \d+ is missing; run --shard 2/3"):
        _merge(out, targets)


def test_a_row_left_over_is_told(sharded: tuple[Path, Path, dict[str, bytes]]) -> None:
    targets, out, _ = sharded
    _add(Part(3, 3).folder(out), 77)
    with pytest.raises(RunError, match=r"shard 3/3\) holds row 77, which the targets don't have"):
        _merge(out, targets)


def test_a_shard_with_a_hole_is_told(sharded: tuple[Path, Path, dict[str, bytes]]) -> None:
    targets, out, _ = sharded
    Shards(Part(1, 3).folder(out)).path(0).unlink()
    with pytest.raises(RunError, match=r"shard 1/3\) is not finished"):
        _merge(out, targets)


def test_rows_of_other_targets_are_told(sharded: tuple[Path, Path, dict[str, bytes]], tmp_path: Path) -> None:
    targets, out, _ = sharded
    ids = pq.read_table(targets)["id"].to_pylist()
    other = _targets(tmp_path / "other.parquet", ids, name="City")
    with pytest.raises(RunError, match="written for another prompt"):
        _merge(out, other)
    other = _targets(tmp_path / "turned.parquet", ids[::-1])
    with pytest.raises(RunError, match="where the targets have row"):
        _merge(out, other)


def test_a_shard_of_another_seed_is_told(sharded: tuple[Path, Path, dict[str, bytes]]) -> None:
    targets, out, _ = sharded
    shutil.rmtree(Part(2, 3).folder(out))
    _write(out, targets, Part(2, 3), seed=SEED + 1)
    with pytest.raises(RunError, match=r"shard 2/3\) has texts of another seed"):
        _merge(out, targets)


def test_an_id_twice_is_told(tmp_path: Path) -> None:
    targets = _targets(tmp_path / "targets.parquet", [*range(100), 2])
    parts = [Part(i, 2) for i in (1, 2)]
    for part in parts:
        # Written in two calls, for within one the second is refused at once.
        texts = TextFolder(part.folder(tmp_path / "out"), targets, SETTINGS, seed=SEED, shard_rows=1)
        for index, table in enumerate(PartStream(texts.source, part).tables(1)):
            generate_into(texts.shards, [(index, table)], SETTINGS, seed=SEED, backend=Answering())
    with pytest.raises(InputError, match="a unique id, saw 2"):
        _merge(tmp_path / "out", targets)


def test_a_shard_that_is_still_written_is_not_merged(sharded: tuple[Path, Path, dict[str, bytes]]) -> None:
    targets, out, _ = sharded
    with locked(Part(1, 3).folder(out)), pytest.raises(RunError, match="in use by another obverse process"):
        _merge(out, targets)


def test_missing_and_foreign_shards_are_named(sharded: tuple[Path, Path, dict[str, bytes]]) -> None:
    _, out, _ = sharded
    shutil.rmtree(Part(2, 3).folder(out))
    with pytest.raises(RunError, match="1 of 3 shards are missing: run --shard 2/3"):
        find_parts(out)
    Part(1, 4).folder(out).mkdir()
    with pytest.raises(RunError, match=r"different n \(2 of n = 3 and 1 of n = 4\)"):
        find_parts(out)
    with pytest.raises(RunError, match="nothing to merge"):
        find_parts(out / "none")


class _Server(ThreadingHTTPServer):
    """An OpenAI-compatible server whose answers depend on prompt and seed alone."""

    daemon_threads, request_queue_size = True, 128
    asked = 0
    send: Callable[[BaseHTTPRequestHandler, str], None]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1  # type: ignore[attr-defined]
        self.server.send(self, f"{body['messages'][-1]['content'][-60:]} {body['seed']}")  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server(send_chat: Callable[[BaseHTTPRequestHandler, str], None]) -> Iterator[_Server]:
    pytest.importorskip("aiohttp")
    found = _Server(("127.0.0.1", 0), _Handler)
    found.send = send_chat
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def recipe_path(tmp_path: Path, server: _Server, city_recipe: Callable[..., Path]) -> Path:
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    generate = f'backend = "openai"\nmodel = "m"\nbase_url = "{address}"\nprompt = "instruct"'
    return city_recipe(tmp_path, generate, samples=90, shard_rows=16)


def _tables(run: Path) -> dict[str, bytes]:
    stages = ("sample", "generate", "check")
    return {f"{stage}/{name}": data for stage in stages for name, data in _bytes(run / stage).items()}


def test_a_recipe_in_shards_ends_as_one_process_does(
    tmp_path: Path, server: _Server, recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    recipe, out = load_recipe(recipe_path)[0], tmp_path / "run"
    run_recipe(recipe, tmp_path / "whole", until="check")
    assert server.asked == 90
    run_recipe(recipe, out, until="sample")
    with pytest.raises(RunError, match="nothing to merge"):
        run_recipe(recipe, out, until="check", site=MergeSite())
    for i in (1, 2, 3):
        part = Part(i, 3)
        run_recipe(recipe, part.folder(out), until="generate", site=PartSite(part))
        run_recipe(recipe, part.folder(out), until="generate", site=PartSite(part))  # nothing to do
    assert server.asked == 180
    run_recipe(recipe, out, until="check", site=MergeSite())
    assert server.asked == 180
    assert _tables(out) == _tables(tmp_path / "whole")
    keys = [read_json(folder / "generate/_stage.json")["key"] for folder in (out, tmp_path / "whole", part.folder(out))]
    assert keys[0] == keys[1] != keys[2]
    facts = read_json(out / "generate/_stage.json")["facts"]
    assert facts["shards"] == 3
    assert facts["backend"]["backend"] == "openai"
    assert facts["tokens_per_s"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shard", "1/2", "--merge"], "take one"),
        (["--on", "ray", "--shard", "1/2"], "take one"),
        (["--workers", "2"], "--workers goes with --on ray"),
        (["--address", "auto"], "--address goes with --on ray"),
        (["--shard", "1/2", "--until", "check"], "--shard ends with the stage generate"),
        (["--shard", "3/2"], "such as 3/8"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, recipe_path: Path, options: list[str], said: str
) -> None:
    result = CliRunner().invoke(run, [str(recipe_path), "-o", str(tmp_path / "run"), *options])
    assert said in f"{result.output} {result.exception}"
    assert not (tmp_path / "run").exists()


def test_ray_is_asked_for_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    from obverse.engine.run.ray import RaySite

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"--on ray needs the package 'ray'.*obverse\[ray\]"):
        RaySite()


def test_the_command_line_runs_shards_and_merges_them(
    tmp_path: Path, server: _Server, recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")

    def obverse(*options: str) -> None:
        path = str(recipe_path)
        result = CliRunner().invoke(run, [path, "-o", str(tmp_path / "run"), "-q", "--samples", "40", *options])
        assert result.exit_code == 0, result.exception

    obverse("--shard", "2/2")
    obverse("--shard", "1/2")
    for options, state in (("--shard", "1/2"), "done"), ((), "to do"):
        asked = [
            str(recipe_path),
            "-o",
            str(tmp_path / "run"),
            "--samples",
            "40",
            "--check-only",
            *options,
        ]
        assert f"generate   {state}" in CliRunner().invoke(run, asked).output
    obverse("--merge", "--until", "generate")
    ids = Shards(tmp_path / "run/generate").table(["id"])["id"].to_pylist()
    assert ids == list(range(40))
    assert server.asked == 40
    obverse("--until", "generate")  # nothing to do, with or without --merge
    assert server.asked == 40
