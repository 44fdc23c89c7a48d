"""Data that users bring: every format reads to the same rows, and each mistake is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from obverse.engine.errors import InputError
from obverse.engine.records.files import as_table, read_rows, read_table, write_synthie

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

RECORD = {
    "text": "Lyon is in France.",
    "triplets": [
        {
            "subject": {"surfaceform": "Lyon", "uri": "Q456"},
            "predicate": {"surfaceform": "country", "uri": "P17"},
            "object": {"surfaceform": "French_Republic", "uri": "Q142"},
        }
    ],
}
ROWS = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.name.endswith(".csv"):
        path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    elif path.name.endswith(".tsv"):
        path.write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows))
    elif path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.parquet"])
def test_every_format_reads_to_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = read_rows(_write(tmp_path / name, ROWS), task="classification")
    assert rows.to_pylist() == [
        {"id": 0, "text": "good", "triplets": None, "label": "1"},
        {"id": 1, "text": "bad", "triplets": None, "label": "0"},
    ]


def test_a_saved_datasets_folder_reads(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    path = str(tmp_path / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert read_rows(tmp_path, task="classification").num_rows == 2


def test_synthie_records_come_in_and_go_out_with_underscores(tmp_path: Path) -> None:
    rows = read_rows(_write(tmp_path / "a.jsonl", [RECORD]), task="extraction")
    assert rows["triplets"][0].as_py()[0]["object"] == {"uri": "Q142", "surfaceform": "French Republic"}
    write_synthie(tmp_path / "b.jsonl.gz", rows)
    with gzip.open(tmp_path / "b.jsonl.gz", "rt") as handle:
        record = json.loads(handle.read())
    assert record["triplets"] == RECORD["triplets"]
    assert [entity["surfaceform"] for entity in record["entities"]] == ["Lyon", "French_Republic"]
    assert record["relations"] == [{"surfaceform": "country", "uri": "P17"}]
    assert read_rows(tmp_path / "b.jsonl.gz", task="extraction").equals(rows)


def test_ids_are_kept_or_numbered_from_first_id(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", [{"id": 7, **ROWS[0]}, {"id": 3, **ROWS[1]}])
    assert read_rows(path, task="classification")["id"].to_pylist() == [7, 3]
    assert read_rows(path, task="classification", first_id=100)["id"].to_pylist() == [100, 101]


@pytest.mark.parametrize(
    ("rows", "task", "parts"),
    [
        ([{"text": "x"}], "classification", ["a.jsonl", "'label'", "['text']"]),
        ([ROWS[0], {"text": "  ", "label": 1}], "classification", ["row 2", "'text'", "isn't empty"]),
        ([{"text": "x", "label": None}], "classification", ["row 1", "'label'"]),
        ([{"text": "x", "triplets": 5}], "extraction", ["row 1", "'triplets'", "saw 5"]),
        ([{"text": "x", "triplets": [{"subject": "a", "predicate": "b"}]}], "extraction", ["triplets[0].object"]),
        ([{"id": 1, **ROWS[0]}, {"id": 1, **ROWS[1]}], "classification", ["row 2", "'id'", "unique"]),
        ([{"id": "one", **ROWS[0]}], "classification", ["'id'", "integers"]),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[dict[str, object]], task: str, parts: list[str]) -> None:
    path = _write(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError) as caught:
        read_rows(path, task=task)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "a.jsonl"
    broken.write_text('{"text": "x", "label": 1}\n{"text": \n')
    with pytest.raises(InputError, match=r"row 2.*one JSON object a line"):
        read_rows(broken, task="classification")
    with pytest.raises(InputError, match="existing file"):
        read_table(tmp_path / "nothing.jsonl")
    odd = tmp_path / "a.xlsx"
    odd.write_text("")
    with pytest.raises(InputError, match=r"one of \.jsonl"):
        read_table(odd)
    torn = tmp_path / "a.jsonl.gz"
    torn.write_bytes(gzip.compress(b'{"text": "x", "label": 1}\n' * 1000)[:-20])
    with pytest.raises(InputError, match="readable file"):
        read_table(torn)


def test_tables_from_whatever_a_notebook_holds() -> None:
    import pandas as pd

    expected = pa.table({"id": [1, 2]})
    for data in (
        expected,
        expected.to_batches()[0],
        pd.DataFrame({"id": [1, 2]}),
        {"id": [1, 2]},
        [{"id": 1}, {"id": 2}],
    ):
        assert as_table(data).to_pylist() == expected.to_pylist()
    with pytest.raises(InputError, match="data frame"):
        as_table(5)


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_real_sets_read() -> None:
    rows = read_rows(DATA / "wiki_cie_text.jsonl.gz", task="extraction")
    assert rows.num_rows == 499
    assert sum(len(triplets) for triplets in rows["triplets"].to_pylist()) == 1704
    assert read_rows(DATA / "sst2_supergen.jsonl.gz", task="classification").num_rows == 6000


@pytest.mark.parametrize("streamed", [False, True])
def test_fields_that_only_later_rows_have_are_kept_and_what_is_no_text_is_named(tmp_path: Path, streamed: bool) -> None:
    from obverse.engine.records.streams import TableStream

    def read(text: str) -> pa.Table:
        path = tmp_path / "rows.jsonl"
        path.write_text(text)
        return next(TableStream(path).tables(10)) if streamed else read_table(path)

    rows = [{"id": 0}, {"id": 1, "topic": "tea"}, {"topic": "salt", "tags": ["a"]}]
    table = read("".join(json.dumps(row) + "\n" for row in rows))
    assert table.to_pylist() == [{"id": None, "topic": None, "tags": None} | row for row in rows]
    for text in ('{"a": "\\ud800"}\n', '{"a": "x"}\n{"a": 3}\n', '{"a": 3}\n{"a": "x"}\n'):
        with pytest.raises(InputError, match=r"rows\.jsonl: expected a (whole, )?readable file"):
            read(text)
