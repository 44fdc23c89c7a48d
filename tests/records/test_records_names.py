from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obverse.engine.errors import InputError
from obverse.engine.records.names import name_table, read_names

ROWS = [
    {"uri": "Q1", "name": '"Weird Al" Yankovic', "aliases": ["Alfred Yankovic", "Weird Al"], "types": ["person"]},
    {"uri": "Q2", "name": "007", "aliases": [], "types": ["film", "code"]},
    {"uri": "Q3", "name": "NA", "aliases": [], "types": []},
    {"uri": "Q4", "name": "Ōsaka 大阪, Japan", "aliases": ["Osaka"], "types": ["city"]},
]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"names.{kind}"
    if kind == "tsv":
        lines = ["uri\tname\taliases\ttypes\tnotes"]
        lines += ["\t".join([r["uri"], r["name"], "|".join(r["aliases"]), "|".join(r["types"]), "x"]) for r in ROWS]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif kind == "csv":
        lines = ['uri,name,"aliases",types']
        for row in ROWS:
            name = row["name"].replace('"', '""')
            lines.append(f'{row["uri"]},"{name}",{"|".join(row["aliases"])},{"|".join(row["types"])}')
        path.write_bytes("\r\n".join(lines).encode())
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS).append_column("n", pa.array([1, 2, 3, 4])), path)
    return path


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
def test_every_kind_of_file_holds_the_same(tmp_path: Path, kind: str, zipped: bool) -> None:
    path = written(tmp_path, kind)
    if zipped and kind != "parquet":
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    table = read_names(path)
    assert table.column_names == ["uri", "name", "aliases", "types"]
    assert table.to_pylist() == ROWS


def test_a_line_ends_at_a_line_feed_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfOslo\r\nNew\x0bYork\n\nA\xe2\x80\xa8B\nlast")
    table = read_names(path)
    assert table["name"].to_pylist() == ["Oslo", "New\x0bYork", "", "A\u2028B", "last"]
    assert table["uri"] == table["name"]


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n\ufeff"), max_size=9), min_size=1
    )
)
def test_lines_come_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")
    assert read_names(path)["name"].to_pylist() == names


@given(
    st.lists(
        st.tuples(
            *[
                st.text(
                    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff"), min_size=1, max_size=9
                )
            ]
            * 2
        ),
        min_size=1,
    )
)
def test_fields_of_a_tsv_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("names") / "names.tsv"
    path.write_text("name\turi\n" + "".join(f"{a}\t{b}\n" for a, b in rows), encoding="utf-8", newline="\n")
    table = read_names(path)
    assert list(zip(table["name"].to_pylist(), table["uri"].to_pylist(), strict=True)) == rows


def test_underscores_become_spaces_in_names_and_not_in_uris(tmp_path: Path) -> None:
    path = tmp_path / "names.tsv"
    path.write_text("name\taliases\nNew_York\tBig_Apple|N_Y\nOslo\t\n")
    assert read_names(path, underscores=True).to_pylist() == [
        {"uri": "New_York", "name": "New York", "aliases": ["Big Apple", "N Y"]},
        {"uri": "Oslo", "name": "Oslo", "aliases": []},
    ]
    assert read_names(path)["name"].to_pylist() == ["New_York", "Oslo"]


def test_a_row_without_uri_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "names.tsv"
    path.write_text("uri\tname\nQ1\tOslo\n\tLima\n")
    assert read_names(path)["uri"].to_pylist() == ["Q1", "Lima"]
    jsonl = tmp_path / "names.jsonl"
    jsonl.write_text('{"uri": 7, "name": "Oslo", "type": "city"}\n{"name": "Lima", "type": ["a", "b"]}\n')
    assert read_names(jsonl).to_pylist() == [
        {"uri": "7", "name": "Oslo", "aliases": None, "types": ["city"]},
        {"uri": "Lima", "name": "Lima", "aliases": None, "types": ["a", "b"]},
    ]


def test_a_folder_of_parquet_is_one_list(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"part-{number}.parquet")
    assert read_names(tmp_path).to_pylist() == ROWS


def test_other_kinds_of_columns() -> None:
    table = pa.table({"name": pa.array(["a", "b"]).dictionary_encode(), "uri": [1, 2], "type": ["x", ""]})
    assert name_table(table).to_pylist() == [
        {"uri": "1", "name": "a", "types": ["x"]},
        {"uri": "2", "name": "b", "types": []},
    ]
    assert name_table(pa.table({"name": pa.array([None], pa.null())}))["name"].to_pylist() == [None]
    with pytest.raises(InputError, match=r"field 'name'.*strings.*int64"):
        name_table(pa.table({"name": [1]}))
    with pytest.raises(InputError, match=r"field 'aliases'.*lists of strings"):
        name_table(pa.table({"name": ["a"], "aliases": [[1]]}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "label\turi\nx\ty\n", r"a\.tsv, row 1, field 'name'.*header"),
        ("a.csv", "name,uri\nx,y,z\n", r"a\.csv: .*readable"),
        ("a.jsonl", '{"name": "x"}\n{"name": 7}\n', r"a\.jsonl, row 2, field 'name': expected a string, saw 7"),
        ("a.jsonl", '{"name": "x"}\n\n{"name": \n', r"a\.jsonl, row 3: expected one JSON object"),
        ("a.jsonl", '{"name": "x", "aliases": [1]}', r"row 1, field 'aliases': expected a list of strings, saw \[1\]"),
        ("a.jsonl", '{"name": "x", "uri": 1.5}', r"row 1, field 'uri': expected a string, saw 1.5"),
        ("a.jsonl", "[1]\n", r"row 1: expected one JSON object a line, saw \[1\]"),
        ("a.jsonl", '{"label": "x"}\n', r"field 'name'"),
        ("a.txt", "", "at least one name"),
        ("a.docx", "x", r"expected one of \.txt"),
        ("a.parquet", "x", r"a\.parquet: .*readable"),
        ("a.txt.gz", "x", r"a\.txt\.gz: .*readable"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_names(tmp_path / name)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\nb\xffd\n")
    with pytest.raises(InputError, match=r"a\.txt, row 2: expected UTF-8 text"):
        read_names(tmp_path / "a.txt")
    with pytest.raises(InputError, match="existing file"):
        read_names(tmp_path / "none.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="Parquet files in this folder"):
        read_names(tmp_path / "folder")
