"""The driver: skips what is done, goes on from what is half done, shelves what belongs to other settings."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from obverse.engine.errors import RunError
from obverse.engine.recipe import Recipe, load_recipe
from obverse.engine.records.progress import Progress
from obverse.engine.records.shards import Shards
from obverse.engine.run.driver import planned, run_recipe, stage_keys
from obverse.engine.run.stages import stages_for

ROOT = Path(__file__).resolve().parents[2]


def _recipe(folder: Path, **changes: object) -> Recipe:
    if not (folder / "triples.tsv").exists():
        edges = [f"City {i}\tcountry\tLand {i % 7}" for i in range(60)]
        edges += [f"Land {i}\tshares border with\tLand {i + 1}" for i in range(6)]
        (folder / "triples.tsv").write_text("subject\tpredicate\tobject\n" + "\n".join(edges) + "\n")
        rows = [_row(i) for i in range(40)]
        (folder / "real.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = f"""
name = "small"
task = "extraction"
shard_rows = 16
[data]
real = "real.jsonl"
checker_rows = 10
selection_rows = 5
[sample]
graph = "{folder / "triples.tsv"}"
samples = 50
"""
    (folder / "recipe.toml").write_text(text)
    return load_recipe(folder / "recipe.toml", [f"{key}={value}" for key, value in changes.items()])[0]


def _row(i: int) -> dict[str, object]:
    def name(text: str) -> dict[str, str]:
        return {"surfaceform": text, "uri": text}

    triplet = {"subject": name(f"Town {i}"), "predicate": name("country"), "object": name("Land 1")}
    return {"text": f"Town {i} is in Land 1.", "triplets": [triplet]}


def _log() -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    return Progress(stream=stream), stream


def _times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def test_finished_stages_are_left_alone(tmp_path: Path) -> None:
    recipe, out = _recipe(tmp_path), tmp_path / "run"
    run_recipe(recipe, out, until="sample")
    assert Shards(out / "sample").num_rows() == 50
    assert len(Shards(out / "sample").done()) == 4
    before = _times(out)
    progress, stream = _log()
    run_recipe(recipe, out, until="sample", progress=progress)
    assert "nothing to do" in stream.getvalue()
    assert _times(out) == before
    assert "sample     done" in planned(recipe, out)
    assert "generate   to do" in planned(recipe, out)


def test_a_half_done_stage_goes_on_with_the_first_missing_shard(tmp_path: Path) -> None:
    recipe, whole, half = _recipe(tmp_path), tmp_path / "whole", tmp_path / "half"
    run_recipe(recipe, whole, until="sample")
    run_recipe(recipe, half, until="sample")
    shards = Shards(half / "sample")
    for index in (2, 3):
        shards.path(index).unlink()
    (half / "sample/_stage.json").unlink()
    kept = shards.path(1).stat().st_mtime_ns
    run_recipe(recipe, half, until="sample")
    assert shards.path(1).stat().st_mtime_ns == kept
    for index in range(4):
        assert shards.path(index).read_bytes() == Shards(whole / "sample").path(index).read_bytes()


def test_other_settings_shelve_results_and_the_old_ones_come_back(tmp_path: Path) -> None:
    first, other, out = _recipe(tmp_path), _recipe(tmp_path, **{"sample.samples": 30}), tmp_path / "run"
    run_recipe(first, out, until="sample")
    part = (out / "sample/part-00000.parquet").stat().st_ino
    progress, stream = _log()
    run_recipe(other, out, until="sample", progress=progress)
    assert "moved to" in stream.getvalue()
    assert Shards(out / "sample").num_rows() == 30
    run_recipe(first, out, until="sample")
    assert (out / "sample/part-00000.parquet").stat().st_ino == part
    assert Shards(out / "sample").num_rows() == 50


def test_keys_change_with_what_results_depend_on_and_with_nothing_else(tmp_path: Path) -> None:
    def keys(**changes: object) -> dict[str, str]:
        recipe = _recipe(tmp_path, **changes)
        return stage_keys(recipe, stages_for(recipe))

    base = keys()
    assert keys() == base

    def changed(**changes: object) -> set[str]:
        return {name for name, key in keys(**changes).items() if key != base[name]}

    after_sample = set(base) - {"graph", "data"}
    assert changed(**{"sample.samples": 51}) == after_sample
    assert changed(**{"report.examples": 3}) == {"report"}
    assert changed(**{"train.epochs": 3}) == {"train", "decode", "evaluate", "report"}
    assert changed(seed=1) == set(base)
    with (tmp_path / "real.jsonl").open("a") as handle:
        handle.write(json.dumps(_row(99)) + "\n")
    assert "data" in changed()


def test_two_processes_refuse_each_other(tmp_path: Path) -> None:
    recipe, out = _recipe(tmp_path), tmp_path / "run"
    out.mkdir()
    holder = (
        "import fcntl, os, sys; h = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(h, fcntl.LOCK_EX);"
        "os.write(h, b'4711'); print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", holder, str(out / ".run.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="in use by another obverse process"):
            run_recipe(recipe, out, until="data")
    finally:
        child.kill()
        child.communicate()
    run_recipe(recipe, out, until="data")


def test_splits_are_disjoint_and_a_text_never_trains_and_tests(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    with (tmp_path / "real.jsonl").open("a") as handle:
        for _ in range(4):
            handle.write(json.dumps(_row(0)) + "\n")
    run_recipe(recipe, tmp_path / "run", until="data")
    parts = {name: Shards(tmp_path / "run/data" / name).table() for name in ("checker", "selection", "test")}
    ids = [row for table in parts.values() for row in table["id"].to_pylist()]
    assert len(ids) == len(set(ids))
    tested = set(parts["test"]["text"].to_pylist())
    assert not tested & set(parts["checker"]["text"].to_pylist())
    assert not tested & set(parts["selection"]["text"].to_pylist())


def test_an_unknown_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no stage 'smaple'.*sample"):
        run_recipe(_recipe(tmp_path), tmp_path / "run", until="smaple")


def test_importing_obverse_is_quick_and_light() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import obverse; s = time.perf_counter() - t;"
        "heavy = {'torch', 'pyarrow', 'numpy', 'vllm', 'faiss', 'transformers', 'pydantic'} & set(sys.modules);"
        "assert not heavy, heavy; print(s)"
    )
    seconds = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert seconds < 0.3


def test_public_names_are_sorted_and_exist() -> None:
    import obverse

    assert obverse.__all__ == sorted(obverse.__all__)
    assert set(obverse._HOMES) == set(obverse.__all__) - {"__version__"}
    for name in obverse.__all__:
        assert getattr(obverse, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        obverse.smaple  # noqa: B018


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.lock").write_text("999999\n")
    run_recipe(_recipe(tmp_path), out, until="data")
    assert (out / ".run.lock").read_text() == f"{os.getpid()}\n"
