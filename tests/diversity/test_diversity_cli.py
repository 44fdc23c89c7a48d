"""`obverse score`: files in, a streamed Parquet and a JSON summary out."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("faiss")


def obverse(folder: Path, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "obverse.engine.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def values(rows: int, dim: int = 12) -> Any:
    generator = np.random.default_rng()
    centres = generator.normal(size=(rows // 20, dim))
    found = centres[generator.integers(0, len(centres), rows)] + 0.3 * generator.normal(size=(rows, dim))
    return found.astype(np.float16)


def summary(said: str) -> Any:
    return json.loads(said[said.index("{") :])


def test_every_column_from_files(tmp_path: Path) -> None:
    x, real = values(400), values(50)
    x[300:320] = x[:20]
    np.save(tmp_path / "real.npy", real)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 12)
    ids = np.arange(400)[::-1] * 2
    pq.write_table(pa.table({"id": ids, "vector": flat}), tmp_path / "x.parquet", row_group_size=90)
    pq.write_table(pa.table({"id": ids, "label": ["a", "b"] * 200}), tmp_path / "labels.parquet")
    options = ["--real", "real.npy", "--labels", "labels.parquet", "--duplicates", "0.999", "-k", "4"]
    code, said, told = obverse(tmp_path, "score", "x.parquet", "-o", "s.parquet", *options)
    assert code == 0, told
    assert "exact: 400 rows are within" in told
    assert all(name in told for name in ("score ", "novelty ", "labels ", "duplicates ", "clusters ", "rows/s", "GiB"))
    found = summary(said)
    assert found["index"]["engine"] == "exact"
    assert found["index"]["certificate"]["pairs"] > 0
    assert found["index"]["duplicates"]["kept"] == 380
    assert found["index"]["peak_memory"] > 2**20
    assert found["metrics"]["n"] == 400
    table = pq.read_table(tmp_path / "s.parquet")
    assert table["id"].to_pylist() == ids.tolist()
    assert {len(row) for row in table["neighbour_ids"].to_pylist()} == {4}
    assert all(column.null_count == 0 for column in table.columns)
    rows = table.to_pylist()
    for row in range(300, 320):
        assert rows[row]["duplicate_group"] == rows[row - 300]["id"]
        assert (rows[row]["duplicate_kept"], rows[row - 300]["duplicate_kept"]) == (False, True)
        assert rows[row]["neighbour_ids"][0] == rows[row - 300]["id"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or "scratch" in path.name]
    # The same through tables in memory.
    import obverse as package

    labels = pa.table({"id": ids, "label": ["a", "b"] * 200})
    vectors = pq.read_table(tmp_path / "x.parquet")
    others = pa.table({"id": np.arange(50), "vector": list(real)})
    again = package.score(vectors, real=others, labels=labels, neighbours=4, duplicates=0.999)
    assert again.equals(table)


def test_an_approximate_engine_is_measured_and_warned_of(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values(3000))
    options = ["--engine", "faiss", "--faiss-index", "hnsw", "--recall", "1.0", "--max-score-error", "1e-9", "-q"]
    code, said, told = obverse(tmp_path, "score", "x.npy", "-o", "s.parquet", *options)
    assert code == 0, told
    found = summary(said)["index"]
    assert found["recall"]["low"] <= found["recall"]["value"] <= found["recall"]["high"]
    assert found["score_error"]["sample"] == 2000
    missed = found["recall"]["value"] < 1 or found["score_error"]["value"] > 1e-9
    assert ("neighbours by faiss: " in told) == missed


@pytest.mark.parametrize(
    ("name", "match"),
    [("nan.npy", "row 7, field 'vector'"), ("cut.npy", "cut.npy"), ("empty.npy", "at least one"), ("no.npy", "no.npy")],
)
def test_bad_files_are_named_and_nothing_is_written(tmp_path: Path, name: str, match: str) -> None:
    x = values(40)
    np.save(tmp_path / "empty.npy", x[:0])
    np.save(tmp_path / "cut.npy", x)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-9])
    x[7, 3] = np.nan
    np.save(tmp_path / "nan.npy", x)
    code, _, told = obverse(tmp_path, "score", name, "-o", "s.parquet")
    assert code != 0
    assert match in told
    assert "Traceback" not in told
    assert not (tmp_path / "s.parquet").exists()


def test_real_rows_of_another_dimension_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values(60))
    np.save(tmp_path / "real.npy", values(60, 5))
    code, _, told = obverse(tmp_path, "score", "x.npy", "-o", "s.parquet", "--real", "real.npy", "-q")
    assert code != 0
    assert "rows of 12 values" in told
    assert "Traceback" not in told


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", values(6000, 16))
    plain = ["score", "x.npy", "-q", "-o"]
    assert obverse(tmp_path, *plain, "whole.parquet")[0] == 0
    kept = [*plain, "s.parquet", "--checkpoint", "join"]
    command = [sys.executable, "-m", "obverse.engine.cli", *kept]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "join" / "exact_join.npz").exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert (tmp_path / "join" / "exact_join.npz").exists()
    code, _, told = obverse(tmp_path, *kept)
    assert code == 0, told
    assert (tmp_path / "s.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
