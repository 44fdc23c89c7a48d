"""Tables read a stretch at a time are the tables read whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from obverse.engine.errors import InputError
from obverse.engine.records.streams import TableStream, marked_like

ROWS = 2500


@pytest.fixture(scope="module")
def table() -> pa.Table:
    ids = np.random.default_rng().permutation(ROWS)
    return pa.table({"id": ids, "label": [f"l{i % 7}" if i % 5 else None for i in ids]})


def save(table: pa.Table, folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=333)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=77)
    elif kind == "csv":
        path.write_text("id,label\n" + "".join(f"{r['id']},{r['label'] or ''}\n" for r in table.to_pylist()))
    elif kind.startswith("jsonl"):
        opener = gzip.open if kind.endswith("gz") else open
        with opener(path, "wt") as handle:
            handle.writelines(json.dumps(row) + "\n\n" for row in table.to_pylist())
    else:
        path = folder / "parts"
        path.mkdir()
        for k in range(3):
            pq.write_table(table.slice(k * 1000, 1000), path / f"part-{k}.parquet")
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "jsonl", "jsonl.gz", "folder"])
@pytest.mark.parametrize("rows", [1, 7, 999, ROWS, 10 * ROWS])
def test_stretches_make_up_the_whole(table: pa.Table, tmp_path: Path, kind: str, rows: int) -> None:
    part = table.slice(0, 50) if rows == 1 else table
    source = TableStream(save(part, tmp_path, kind))
    found = list(source.tables(rows))
    assert [piece.num_rows for piece in found[:-1]] == [rows] * (len(found) - 1)
    assert 0 < found[-1].num_rows <= rows
    whole = pa.concat_tables(found, promote_options="default")
    assert whole["id"].to_pylist() == part["id"].to_pylist()
    assert [value or None for value in whole["label"].to_pylist()] == part["label"].to_pylist()
    assert source.num_rows() in (None, part.num_rows)
    for first in (1, 333, 1000, part.num_rows - 1, part.num_rows, part.num_rows + 5):
        later = [row_id for piece in source.tables(rows, first=first) for row_id in piece["id"].to_pylist()]
        assert later == part["id"].to_pylist()[first:]


def test_bad_files_are_named(tmp_path: Path, table: pa.Table) -> None:
    with pytest.raises(InputError, match=r"none\.parquet: expected an existing file"):
        TableStream(tmp_path / "none.parquet")
    path = save(table, tmp_path, "parquet")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"rows\.parquet: expected a whole, readable file"):
        list(TableStream(path).tables(10))
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"id": 1}\nnot json\n')
    with pytest.raises(InputError, match=r"x\.jsonl, row 2: expected one JSON object a line"):
        list(TableStream(lines).tables(10))


def test_marks_are_of_bytes_and_read_only_when_something_changed(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("one")
    first = json.loads(json.dumps(marked_like(path, None)))
    assert marked_like(path, first) == first
    path.write_text("two!")
    second = marked_like(path, first)
    assert second["hash"] != first["hash"]
    assert marked_like(path, {"files": second["files"], "hash": "as noted"})["hash"] == "as noted"
