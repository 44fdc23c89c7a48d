"""Vectors that a user or the embed stage wrote, as rows that lie in a file and not in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from obverse.engine.diversity.vector_files import Header, Part, mapped_parts, read_header, read_parts
from obverse.engine.errors import InputError
from obverse.engine.records.schemas import require_columns

__all__ = [
    "Rows",
    "check_ids",
    "check_values",
    "gather",
    "open_vectors",
    "unit_blocks",
    "unit_rows",
]

_BLOCK = 32_768
# Up to here gathered rows stay in memory; above, they get a file of their own.
_IN_MEMORY = 1 << 28


class Rows(NamedTuple):
    """Vectors with their ids."""

    ids: npt.NDArray[np.int64]
    """``[N]``, unique."""
    matrix: npt.NDArray[Any]
    """``[N, d]``, float16 or float32, C-contiguous, finite, no row of zeros; read-only where it is a mapped file."""


def open_vectors(source: Path | str | pa.Table | npt.NDArray[Any], *, scratch: Path | None = None) -> Rows:
    """Rows and ids of ``source``, checked, with no more than a batch of them copied into memory.

    ``source`` is a file (``.npy`` ``[N, d]``, ids 0 to N - 1; ``.parquet`` or Arrow IPC with the columns ``id`` and
    ``vector``), a folder of such Parquet or Arrow shards, a table, or an array. An array, an ``.npy`` file, and a
    table or Arrow file of one uncompressed batch of fixed-size lists are used where they are. All else is streamed
    once into a nameless file in the folder ``scratch`` (default: the system's), which is gone with the last use of
    the rows, or with the process. float64 becomes float32.

    Raises `InputError` naming file, row (within the file, from 0) and field for a null, a value that isn't finite, a
    vector of zeros or of another length than the first, a repeated id, an empty set, and a file that was cut short.
    """
    if isinstance(source, np.ndarray):
        return _rows(_array_ids(source), _own(source), None)
    path = None if isinstance(source, pa.Table) else Path(source)
    if isinstance(source, pa.Table):
        require_columns(source, "id", "vector", what="vectors")
    header = read_header(path if path is not None else source)
    if not header.rows:
        raise InputError("at least one vector", file=path)
    whole = mapped_parts(header)
    if whole is not None:
        return _rows(whole.ids, whole.values, whole.file)
    return _streamed(header, scratch)


def _array_ids(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if values.ndim != 2 or not values.shape[1]:
        raise InputError("a matrix [rows, dimensions]", field="vector", seen=values.shape)
    if not len(values):
        raise InputError("at least one vector")
    return np.arange(len(values), dtype=np.int64)


def _own(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype in (np.float16, np.float32) and values.flags.c_contiguous:
        return values
    if values.dtype.kind not in "fiu":
        raise InputError("numbers", field="vector", seen=str(values.dtype))
    return np.ascontiguousarray(values, np.float16 if values.dtype == np.float16 else np.float32)


def _rows(ids: npt.NDArray[np.int64], matrix: npt.NDArray[Any], file: Path | None) -> Rows:
    for start in range(0, len(matrix), _BLOCK):
        block = matrix[start : start + _BLOCK]
        check_values(block, ids[start : start + _BLOCK], start, file)
    check_ids(ids, file)
    return Rows(ids, matrix)


def _streamed(header: Header, scratch: Path | None) -> Rows:
    ids = np.empty(header.rows, np.int64)
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    # The file has no name: nothing is left behind, whatever becomes of the process.
    with tempfile.TemporaryFile(dir=scratch) as handle:
        start = 0
        for part in read_parts(header):
            values = _fit(part, header)
            check_values(values, part.ids, part.row, part.file)
            values.tofile(handle)
            ids[start : start + len(values)] = part.ids
            start += len(values)
        handle.flush()
        if start != header.rows:
            raise InputError(f"{header.rows} rows", file=header.file, seen=start)
        matrix = np.memmap(handle, dtype=header.dtype, mode="r", shape=(header.rows, header.dim))
    check_ids(ids, header.file)
    return Rows(ids, matrix)


def _fit(part: Part, header: Header) -> npt.NDArray[Any]:
    if part.values.shape[1] != header.dim:
        expected = f"vectors of {header.dim} values, as in the first"
        raise InputError(expected, file=part.file, row=part.row, field="vector", seen=part.values.shape[1])
    with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite and is refused as such
        return np.ascontiguousarray(part.values, header.dtype)


def check_values(values: npt.NDArray[Any], ids: npt.NDArray[np.int64], row: int, file: Path | None = None) -> None:
    """Raise `InputError` for a vector of ``values [R, d]`` that isn't finite or is all zeros; ``row`` is the first."""
    # Squares of float16 can't leave float32's range.
    wide: npt.NDArray[Any] = values.astype(np.float32 if values.dtype == np.float16 else np.float64, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", wide, wide)
    bad = ~np.isfinite(squares) | (squares == 0)
    if bad.any():
        at = int(bad.argmax())
        wrong = "all zeros" if squares[at] == 0 else "a value that isn't finite"
        seen = f"{wrong} (id {ids[at]})"
        raise InputError("finite vectors, not all zeros", file=file, row=row + at, field="vector", seen=seen)


def check_ids(ids: npt.NDArray[np.int64], file: Path | None = None) -> None:
    """Raise `InputError` where an id of ``ids`` is there twice, naming the second row."""
    if len(ids) < 2 or bool((ids[1:] > ids[:-1]).all()):
        return
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(twice):
        row = int(order[twice + 1].min())
        raise InputError("ids that are unique", file=file, row=row, field="id", seen=int(ids[row]))


def gather(matrix: npt.NDArray[Any], rows: npt.NDArray[np.integer[Any]], scratch: Path | None = None) -> Any:
    """The rows ``matrix[rows]``, in memory where they are few, else in a nameless file of the folder ``scratch``."""
    if len(rows) * matrix.shape[1] * matrix.itemsize <= _IN_MEMORY:
        return matrix[rows]
    with tempfile.TemporaryFile(dir=scratch) as handle:
        for start in range(0, len(rows), _BLOCK):
            matrix[rows[start : start + _BLOCK]].tofile(handle)
        handle.flush()
        return np.memmap(handle, dtype=matrix.dtype, mode="r", shape=(len(rows), matrix.shape[1]))


def unit_rows(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """``values [R, d]`` with every row of length 1, as float32; the norm is computed in float64."""
    wide = values.astype(np.float64)
    wide /= np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
    return wide.astype(np.float32)


def unit_blocks(matrix: npt.NDArray[Any], block: int = _BLOCK) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """``matrix`` in blocks of unit rows, each with the number of its first row."""
    for start in range(0, len(matrix), block):
        yield start, unit_rows(matrix[start : start + block])
