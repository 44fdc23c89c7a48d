"""Lists of names that users bring, for catalogues.

===========================  ==================================================================================
``.txt``                     one name a line
``.tsv``                     columns by a header line; nothing is quoted, so fields hold anything but tabs and lines
``.csv``                     columns by a header line, quoted where needed
``.jsonl`` ``.ndjson``       one object a line
``.parquet``, a folder       columns of strings; lists of strings for ``aliases`` and ``types``
===========================  ==================================================================================

Text files may be gzipped (``.gz``). Columns: ``name`` (needed), ``uri`` (the name itself where there is none),
``aliases`` (further names of the same thing) and ``types`` or ``type``. In .tsv and .csv several aliases or types are
separated by ``|``. Every value stays the text it is: ``007`` is not 7, ``NA`` is not missing.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from obverse.engine.errors import InputError
from obverse.engine.records.files import json_object

__all__ = ["NAME_COLUMNS", "name_table", "read_names"]

NAME_COLUMNS = ("uri", "name", "aliases", "types")
_LIST = pa.list_(pa.string())
_KINDS = ".txt, .tsv, .csv, .jsonl, .ndjson (each also .gz), .parquet, or a folder of Parquet files"
_BLOCK = 1 << 25


def read_names(path: Path, *, underscores: bool = False) -> pa.Table:
    """A table of ``uri``, ``name`` and, where the file has them, ``aliases`` and ``types`` (list<string>).

    Args:
        underscores: names are written with ``_`` for spaces, as in Wikipedia's titles and SynthIE's files.

    Raises:
        InputError: the file is missing, malformed or of another kind, has no column ``name`` or no rows.
    """
    if not path.exists():
        raise InputError("an existing file", file=path)
    try:
        table = name_table(_read(path), file=path)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"a readable file ({error})", file=path) from error
    if table.num_rows == 0:
        raise InputError("at least one name", file=path)
    return _spaced(table) if underscores else table


def name_table(table: pa.Table, *, file: Path | None = None) -> pa.Table:
    """Any table with a column ``name`` in the form that `read_names` gives; other columns are left out.

    Where there is no ``uri``, in the table or in a row, the name is its own.

    Raises:
        InputError: there is no column ``name``, or a column is not of strings (lists of strings).
    """
    if "name" not in table.column_names:
        raise InputError("a column 'name'", file=file, field="name", seen=table.column_names)
    columns = {"name": _strings(table["name"], "name", file)}
    columns["uri"] = columns["name"]
    if "uri" in table.column_names:
        uris = table["uri"]
        # Numbers serve as ids (Wikidata's, say), though not as names.
        uris = uris.cast(pa.string()) if pa.types.is_integer(uris.type) else _strings(uris, "uri", file)
        columns["uri"] = pc.coalesce(uris, columns["name"])
    if "aliases" in table.column_names:
        columns["aliases"] = _lists(table["aliases"], "aliases", file)
    field = next((name for name in ("types", "type") if name in table.column_names), None)
    if field is not None:
        columns["types"] = _lists(table[field], field, file)
    return pa.table({name: columns[name] for name in NAME_COLUMNS if name in columns})


def _strings(column: pa.ChunkedArray, field: str, file: Path | None) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    raise InputError("strings", file=file, field=field, seen=str(column.type))


def _lists(column: pa.ChunkedArray, field: str, file: Path | None) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(_LIST)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if not (pa.types.is_null(kind.value_type) or pa.types.is_integer(kind.value_type)):
            return column.cast(_LIST)
        if pa.types.is_null(kind.value_type):
            return column.cast(_LIST)
        raise InputError("lists of strings", file=file, field=field, seen=str(kind))
    strings = _strings(column, field, file)
    return pa.chunked_array([_singles(chunk) for chunk in strings.chunks], _LIST)


def _singles(chunk: pa.Array) -> pa.Array:
    """Each string as a list of one; null and "" as an empty list."""
    kept = pc.fill_null(pc.not_equal(chunk, ""), False)
    offsets = np.concatenate([[0], np.cumsum(kept.to_numpy(zero_copy_only=False))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), chunk.filter(kept))


def _spaced(table: pa.Table) -> pa.Table:
    for number, name in enumerate(table.column_names):
        column = table[name]
        if name == "name":
            table = table.set_column(number, name, pc.replace_substring(column, "_", " "))
        elif name == "aliases":
            chunks = [_map_values(chunk, lambda v: pc.replace_substring(v, "_", " ")) for chunk in column.chunks]
            table = table.set_column(number, name, pa.chunked_array(chunks, _LIST))
    return table


def _map_values(chunk: pa.Array, change: Any) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), change(chunk.flatten()))


def _read(path: Path) -> pa.Table:
    name = path.name.removesuffix(".gz")
    if path.is_dir():
        parts = sorted(path.glob("*.parquet"))
        if not parts:
            raise InputError("Parquet files in this folder", file=path)
        return pa.concat_tables([_read_parquet(part) for part in parts], promote_options="default")
    if name.endswith(".txt"):
        return pa.table({"name": _lines(path)})
    if name.endswith((".tsv", ".csv")):
        return _read_separated(path, "\t" if name.endswith(".tsv") else ",")
    if name.endswith((".jsonl", ".ndjson")):
        return _read_json(path)
    if path.name.endswith(".parquet"):
        return _read_parquet(path)
    raise InputError(f"one of {_KINDS}", file=path, seen=path.name)


def _bytes(path: Path) -> bytes:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.removeprefix(b"\xef\xbb\xbf")


def _lines(path: Path) -> pa.Array:
    """The lines of a file; only a line feed ends one (names may hold any other odd character)."""
    data = _bytes(path).replace(b"\r\n", b"\n")
    if data and not data.endswith(b"\n"):
        data += b"\n"
    content = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(content == 10)
    offsets = np.concatenate([[0], ends - np.arange(len(ends))]).astype(np.int64)
    kept = content[content != 10]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(kept)]
    lines = pa.Array.from_buffers(pa.large_string(), len(ends), buffers)
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid:
        row = next(i for i, line in enumerate(data.split(b"\n")) if not _is_utf8(line))
        raise InputError("UTF-8 text", file=path, row=row + 1, seen=data.split(b"\n")[row]) from None
    return lines


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _read_parquet(path: Path) -> pa.Table:
    known = {*NAME_COLUMNS, "type"}
    return pq.read_table(path, columns=[name for name in pq.read_schema(path).names if name in known])


def _read_separated(path: Path, delimiter: str) -> pa.Table:
    quote = '"' if delimiter == "," else False
    parse = pa.csv.ParseOptions(delimiter=delimiter, quote_char=quote, newlines_in_values=delimiter == ",")
    data = _bytes(path)
    header = next(iter(data.split(b"\n", 1)), b"").decode("utf-8").rstrip("\r")
    columns = [name.strip('"') if quote else name for name in header.split(delimiter)]
    if "name" not in columns:
        raise InputError("a header line with a column 'name'", file=path, row=1, field="name", seen=header)
    known = {name: pa.string() for name in (*NAME_COLUMNS, "type") if name in columns}
    convert = pa.csv.ConvertOptions(column_types=known, include_columns=list(known), strings_can_be_null=False)
    read = pa.csv.ReadOptions(block_size=_BLOCK)
    table = pa.csv.read_csv(pa.BufferReader(data), read_options=read, parse_options=parse, convert_options=convert)
    for number, name in enumerate(table.column_names):
        if name in ("aliases", "types", "type"):
            chunks = [_split(chunk) for chunk in table[name].chunks]
            table = table.set_column(number, name, pa.chunked_array(chunks, _LIST))
        elif name == "uri":
            blank = pc.equal(table[name], "")
            table = table.set_column(number, name, pc.if_else(blank, None, table[name]))
    return table


def _split(chunk: pa.Array) -> pa.Array:
    """``a|b`` as [a, b]; "" as []."""
    lists = pc.split_pattern(chunk, "|")
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    kept = pc.not_equal(lists.flatten(), "").to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(chunk)), lengths)[kept]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(chunk)))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), lists.flatten().filter(pa.array(kept)))


def _read_json(path: Path) -> pa.Table:
    """Read JSON lines natively where each field has its plain kind, else object by object."""
    data = _bytes(path)
    for types in ({"type": pa.string(), "types": _LIST}, {"type": _LIST, "types": pa.string()}):
        fields = {"uri": pa.string(), "name": pa.string(), "aliases": _LIST, **types}
        options = pa.json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore")
        try:
            table = pa.json.read_json(
                pa.BufferReader(data), read_options=pa.json.ReadOptions(block_size=_BLOCK), parse_options=options
            )
        except pa.ArrowInvalid:
            continue
        # A field that the schema names and the file lacks comes out as nulls.
        return table.drop_columns([name for name in table.column_names if table[name].null_count == table.num_rows])
    return pa.Table.from_pylist(list(_objects(data, path)), schema=pa.schema(_JSON))


_JSON = {"uri": pa.string(), "name": pa.string(), "aliases": _LIST, "types": _LIST}


def _objects(data: bytes, path: Path) -> Iterator[dict[str, Any]]:
    for row, line in enumerate(data.decode("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        value = json_object(line, path, row)
        uri = value.get("uri")
        if not (uri is None or isinstance(uri, str)):
            if isinstance(uri, bool) or not isinstance(uri, int):
                raise InputError("a string", file=path, row=row, field="uri", seen=uri)
            uri = str(uri)
        name = value.get("name")
        if not (name is None or isinstance(name, str)):
            raise InputError("a string", file=path, row=row, field="name", seen=name)
        field = "types" if "types" in value else "type"
        lists = {"aliases": value.get("aliases"), field: value.get(field)}
        aliases, types = (_texts(given, key, path, row) for key, given in lists.items())
        yield {"uri": uri, "name": name, "aliases": aliases, "types": types}


def _texts(value: Any, field: str, path: Path, row: int) -> list[str] | None:
    if value is None or isinstance(value, str):
        return [value] if value else None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError("a list of strings", file=path, row=row, field=field, seen=value)
    return value
