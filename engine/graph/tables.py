"""Graphs from tables: TSV(.gz, .bz2) and Parquet, one edge a row.

Three columns are names (subject, predicate, object; a name is its own uri). Six columns are uri and name of each:
``subject_uri subject_label predicate_uri ...``. A TSV file's first row is a header if every cell of it is a header
word; without one the order is that above. Quotes mean nothing in TSV, and empty lines may stand at the end only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from obverse.engine.errors import InputError
from obverse.engine.graph.builder import GraphBuilder
from obverse.engine.graph.graph import KnowledgeGraph
from obverse.engine.graph.lines import decode_line, graph_name, read_lines
from obverse.engine.graph.names import clean_name, has_brackets

__all__ = ["load_parquet", "load_tsv"]

_ROLES = {
    **dict.fromkeys(("subject", "head", "s", "h"), "subject"),
    **dict.fromkeys(("predicate", "relation", "property", "p", "r"), "predicate"),
    **dict.fromkeys(("object", "tail", "o", "t"), "object"),
}
_KINDS = {"": "name", "uri": "uri", "id": "uri", "label": "name", "name": "name"}
_NAMES = ("subject", "predicate", "object")
_NAMES_AND_URIS = tuple(f"{role} {kind}" for role in _NAMES for kind in ("uri", "name"))
_BATCH = 65_536  # rows turned into Arrow at once: some tens of megabytes

Progress = Callable[[int], None]
Indices = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Batch:
    """Columns by field ("subject uri" ...) of rows ``first_row`` and on, as given in ``path``."""

    path: Path
    first_row: int
    columns: dict[str, pa.Array]


def load_tsv(path: Path, *, on_progress: Progress | None = None) -> KnowledgeGraph:
    """The graph of a tab-separated file of 3 or 6 columns (see the module's text).

    A uri's first name counts. Edges whose subject, predicate or object has a name with square brackets are left out
    and noted. Raises `InputError` for another number of columns, an empty cell, text that is not UTF-8, an empty file.
    """
    return _build(path, _tsv_batches(path), on_progress)


def load_parquet(path: Path, *, on_progress: Progress | None = None) -> KnowledgeGraph:
    """The graph of a Parquet file with columns subject, predicate, object, or of each ``_uri`` and ``_label``.

    The words that a TSV header may use are good too; other columns are not read. Raises `InputError` for missing
    columns, columns that are not strings, nulls and empty strings; rows count from 1.
    """
    return _build(path, _parquet_batches(path), on_progress)


def _build(path: Path, batches: Iterator[_Batch], on_progress: Progress | None) -> KnowledgeGraph:
    builder = GraphBuilder(graph_name(path))
    empty = True
    for batch in batches:
        empty = False
        heads, tails = _rows(batch, ("subject", "object"), builder.entity).reshape(-1, 2).T
        predicates = _rows(batch, ("predicate",), builder.relation)
        usable = (heads >= 0) & (predicates >= 0) & (tails >= 0)
        builder.note("edges with square brackets in a name", int((~usable).sum()))
        builder.add_edges(heads[usable], predicates[usable], tails[usable])
        if on_progress:
            on_progress(len(heads))
    if empty:
        raise InputError("at least one row", file=path, seen="none")
    return builder.build()


def _rows(batch: _Batch, roles: tuple[str, ...], add: Callable[[str, str], int]) -> Indices:
    """The graph's rows of the uris in some roles, int32 ``[n * roles]``, row by row; -1 where a name has brackets."""
    uris = _interleaved([batch.columns[f"{role} uri"] for role in roles]).dictionary_encode()
    names = _interleaved([batch.columns[f"{role} name"] for role in roles])
    codes = uris.indices.to_numpy()
    first = np.unique(codes, return_index=True)[1]
    found = []
    for uri, raw in zip(uris.dictionary.to_pylist(), names.take(pa.array(first)).to_pylist(), strict=True):
        name = clean_name(raw)
        found.append(-1 if has_brackets(name) else add(uri, name))
    rows: Indices = np.array(found, dtype=np.int32)[codes]
    return rows


def _interleaved(columns: list[pa.Array]) -> pa.Array:
    """Equally long arrays as one, row by row."""
    order = np.arange(sum(map(len, columns))).reshape(len(columns), -1).T.ravel()
    return pa.concat_arrays(columns).take(pa.array(order))


def _checked(path: Path, first_row: int, columns: dict[str, pa.Array]) -> _Batch:
    """A batch with all six fields; empty cells are errors."""
    for field, values in columns.items():
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(values), ""), True)
        row = pc.index(blank, True).as_py()
        if row >= 0:
            raise InputError("a value", file=path, row=first_row + row, field=field, seen=values[row].as_py() or "")
    for role in _NAMES:
        name = columns[f"{role} name"]
        columns.setdefault(f"{role} uri", name)
    return _Batch(path, first_row, columns)


def _header(cells: list[str]) -> list[str] | None:
    """The fields that header cells name, or None if a cell is no header word."""
    fields = []
    for cell in cells:
        word, _, kind = cell.strip().lower().replace(" ", "_").partition("_")
        if word not in _ROLES or kind not in _KINDS:
            return None
        fields.append(f"{_ROLES[word]} {_KINDS[kind]}")
    return fields


def _complete(fields: list[str]) -> bool:
    names = {f"{role} name" for role in _NAMES}
    return sorted(fields) in (sorted(names), sorted(_NAMES_AND_URIS))


def _tsv_batches(path: Path) -> Iterator[_Batch]:
    fields: list[str] = []
    columns: list[list[str]] = []
    first_row, empty_row = 1, 0
    for row, line in read_lines(path):
        if not line:
            empty_row = empty_row or row
            continue
        if empty_row:
            raise InputError("an edge (empty lines at the end only)", file=path, row=empty_row, seen="")
        cells = decode_line(line, path, row).split("\t")
        if row == 1:
            header = _header(cells)
            fields = header or _positional(cells, path)
            if not _complete(fields):
                raise InputError("a header that names each of the columns once", file=path, row=1, seen=cells)
            columns = [[] for _ in fields]
            if header:
                first_row = 2
                continue
        if len(cells) != len(fields):
            raise InputError(f"{len(fields)} tab-separated columns", file=path, row=row, seen="\t".join(cells))
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
        if len(columns[0]) == _BATCH:
            yield _checked(path, first_row, _arrays(fields, columns))
            first_row, columns = row + 1, [[] for _ in fields]
    if columns and columns[0]:
        yield _checked(path, first_row, _arrays(fields, columns))


def _arrays(fields: list[str], columns: list[list[str]]) -> dict[str, pa.Array]:
    return {field: pa.array(column, pa.string()) for field, column in zip(fields, columns, strict=True)}


def _positional(cells: list[str], path: Path) -> list[str]:
    if len(cells) == 3:
        return [f"{role} name" for role in _NAMES]
    if len(cells) == 6:
        return list(_NAMES_AND_URIS)
    raise InputError("3 or 6 tab-separated columns", file=path, row=1, seen="\t".join(cells))


def _parquet_batches(path: Path) -> Iterator[_Batch]:
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # else it keeps what it has read
    except pa.ArrowInvalid as error:
        raise InputError("a Parquet file", file=path, seen=str(error)) from error
    with file:
        known = {name: header[0] for name in file.schema_arrow.names if (header := _header([name]))}
        if not _complete(list(known.values())):
            expected = "columns subject, predicate, object or {subject,predicate,object}_{uri,label}"
            raise InputError(expected, file=path, seen=file.schema_arrow.names)
        row = 1
        for batch in file.iter_batches(batch_size=_BATCH, columns=list(known)):
            columns = {field: _strings(batch.column(name), path, name) for name, field in known.items()}
            if batch.num_rows:
                yield _checked(path, row, columns)
            row += batch.num_rows


def _strings(values: Any, path: Path, name: str) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise InputError("strings", file=path, field=name, seen=str(values.type))
    return values.cast(pa.string())
