"""Files of vectors: what is in them, and their rows in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from obverse.engine.errors import InputError

__all__ = ["Header", "Part", "mapped_parts", "read_header", "read_parts"]

_BATCH = 8_192
_KINDS = ".npy, .parquet, .arrow, .feather, .ipc, or a folder of Parquet or Arrow shards"
_ARROW = (".arrow", ".feather", ".ipc")


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of one file."""

    file: Path | None
    row: int
    """The first one's number within its file."""
    ids: npt.NDArray[np.int64]
    values: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Header:
    """What one source holds: its tables' files, how many rows, of how many dimensions, as what type."""

    file: Path | None
    sources: tuple[Path | pa.Table, ...]
    rows: int
    dim: int
    dtype: np.dtype[Any]


def read_header(source: Path | pa.Table) -> Header:
    """Look at ``source`` without reading its rows.

    Raises `InputError` for a file that is absent, of another kind or cut short, and for columns of other types.
    """
    if isinstance(source, pa.Table):
        dim, dtype = _kind(source.schema, None, source["vector"])
        return Header(None, (source,), source.num_rows, dim, dtype)
    if not source.exists():
        raise InputError("an existing file", file=source)
    if source.suffix == ".npy":
        values = _npy(source)
        dtype = np.dtype(np.float16 if values.dtype == np.float16 else np.float32)
        return Header(source, (source,), len(values), values.shape[1], dtype)
    files = _shards(source) if source.is_dir() else [source]
    rows, kinds = 0, []
    for file in files:
        count, schema = _outline(file)
        rows += count
        if count:
            kinds.append(_kind(schema, file, None))
    dims = [dim for dim, _ in kinds if dim] or [_first_length(files)]
    narrow = all(dtype == np.float16 for _, dtype in kinds)
    return Header(source, tuple(files), rows, dims[0], np.dtype(np.float16 if narrow else np.float32))


def _shards(folder: Path) -> list[Path]:
    for suffixes in ((".parquet",), _ARROW):
        found = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.name[0] not in "._")
        if found:
            return found
    raise InputError("Parquet or Arrow files in this folder", file=folder)


def _npy(path: Path) -> npt.NDArray[Any]:
    try:
        values: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"a whole .npy file ({error})", file=path) from None
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.shape[1]:
        raise InputError("a matrix [rows, dimensions] of numbers", file=path, seen=f"{values.dtype} {values.shape}")
    return values


def _outline(file: Path) -> tuple[int, pa.Schema]:
    """Rows and schema of one Parquet or Arrow file."""
    try:
        if file.suffix == ".parquet":
            metadata = pq.read_metadata(file)
            return metadata.num_rows, metadata.schema.to_arrow_schema()
        if file.suffix in _ARROW:
            batches = list(_arrow_batches(file))
            if not batches:
                return 0, pa.schema([])
            return sum(batch.num_rows for batch in batches), batches[0].schema
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"a whole file ({error})", file=file) from None
    raise InputError(f"one of {_KINDS}", file=file, seen=file.suffix)


def _arrow_batches(file: Path) -> Iterator[pa.RecordBatch]:
    """Batches of an IPC file (mapped) or of an IPC stream, as `datasets` writes it."""
    with pa.memory_map(str(file)) as source:
        is_file = source.size() >= 6 and source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
        else:
            yield from pa.ipc.open_stream(source)


def _kind(schema: pa.Schema, file: Path | None, column: pa.ChunkedArray | None) -> tuple[int, np.dtype[Any]]:
    """Dimensions (0: to be seen from the first row) and type of the column ``vector``."""
    for name in ("id", "vector"):
        if name not in schema.names:
            raise InputError(f"a column '{name}' in the vectors table", file=file, field=name, seen=schema.names)
    if not pa.types.is_integer(schema.field("id").type):
        raise InputError("integers", file=file, field="id", seen=str(schema.field("id").type))
    kind = schema.field("vector").type
    fixed = pa.types.is_fixed_size_list(kind)
    lists = fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    number = lists and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
    if not number or (fixed and not kind.list_size):
        raise InputError("lists of numbers", file=file, field="vector", seen=str(kind))
    dtype = np.dtype(np.float16 if pa.types.is_float16(kind.value_type) else np.float32)
    if fixed:
        return kind.list_size, dtype
    first = column[0].as_py() if column is not None and len(column) else None
    return len(first) if first else 0, dtype


def _first_length(files: list[Path]) -> int:
    for file in files:
        for part in _batches(file):
            length = pc.list_value_length(part.column("vector").slice(0, 1))[0].as_py() if part.num_rows else None
            if length is not None:
                return int(length)
    return 0


def _batches(source: Path | pa.Table) -> Iterator[pa.RecordBatch]:
    """The columns ``id`` and ``vector`` in batches; a file that ends early is an `InputError`."""
    if isinstance(source, pa.Table):
        yield from source.select(["id", "vector"]).to_batches(max_chunksize=_BATCH)
        return
    try:
        if source.suffix == ".parquet":
            with pq.ParquetFile(source, memory_map=True, pre_buffer=False) as file:
                yield from file.iter_batches(_BATCH, columns=["id", "vector"])
            return
        for batch in _arrow_batches(source):
            part = batch.select(["id", "vector"])
            for start in range(0, part.num_rows, _BATCH):
                yield part.slice(start, _BATCH)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"a whole file ({error})", file=source) from None


def read_parts(header: Header) -> Iterator[Part]:
    """Every row of the source in order, in batches.

    Raises `InputError` naming file, row and field for nulls, and for lists that differ in length.
    """
    for source in header.sources:
        file = source if isinstance(source, Path) else None
        row = 0
        if file is not None and file.suffix == ".npy":
            values = _npy(file)
            for start in range(0, len(values), _BATCH):
                block = values[start : start + _BATCH]
                yield Part(file, start, np.arange(start, start + len(block)), block)
            continue
        for batch in _batches(source):
            yield _part(batch, file, row, header.dim)
            row += batch.num_rows


def _part(batch: pa.RecordBatch, file: Path | None, row: int, dim: int) -> Part:
    ids, lists = batch.column("id"), batch.column("vector")
    for name, column in (("id", ids), ("vector", lists)):
        if column.null_count:
            at = int(column.is_null().to_numpy(zero_copy_only=False).argmax())
            raise InputError("no nulls", file=file, row=row + at, field=name, seen="a null")
    if not pa.types.is_fixed_size_list(lists.type):
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        if (lengths != dim).any():
            at = int((lengths != dim).argmax())
            expected = f"vectors of {dim} values, as the first has"
            raise InputError(expected, file=file, row=row + at, field="vector", seen=int(lengths[at]))
    flat = lists.flatten()
    width = max(len(flat) // max(len(lists), 1), 1)
    if flat.null_count:
        at = int(flat.is_null().to_numpy(zero_copy_only=False).argmax()) // width
        raise InputError("numbers without nulls", file=file, row=row + at, field="vector", seen="a null")
    values = flat.to_numpy(zero_copy_only=False).reshape(len(lists), -1)
    return Part(file, row, ids.to_numpy(zero_copy_only=False).astype(np.int64), values)


def mapped_parts(header: Header) -> Part | None:
    """The whole source as one part used where it lies, or None where it must be put together from several."""
    if len(header.sources) != 1:
        return None
    source = header.sources[0]
    file = source if isinstance(source, Path) else None
    if file is not None and file.suffix == ".npy":
        values = _npy(file)
        if values.dtype == header.dtype and values.flags.c_contiguous:
            return Part(file, 0, np.arange(len(values)), values)
        return None
    if file is not None and file.suffix == ".parquet":
        return None
    batches = source.to_batches() if isinstance(source, pa.Table) else list(_arrow_batches(source))
    batches = [batch.select(["id", "vector"]) for batch in batches if batch.num_rows]
    if len(batches) != 1:
        return None
    part = _part(batches[0], file, 0, header.dim)
    return part if part.values.dtype == header.dtype and part.values.flags.c_contiguous else None
