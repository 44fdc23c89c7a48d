"""Tables of any size, read a stretch of rows at a time."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from obverse.engine.errors import InputError
from obverse.engine.records.files import json_object, open_text, read_table, rows_table
from obverse.engine.records.fingerprint import file_hash

__all__ = ["TableStream", "in_stretches", "marked_like"]

_LINES = (".jsonl", ".json", ".ndjson")
_LINES_READ = 8192


class TableStream:
    """The rows of a file, or of a folder's Parquet or Arrow files in order of name, without holding them all.

    Parquet, Arrow and JSONL(.gz) are streamed; CSV is read whole. Raises `InputError` naming the file for one that is
    missing, malformed or of another kind.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise InputError("an existing file", file=path)
        self.path = path
        self.files = sorted([*path.glob("*.parquet")] or [*path.glob("*.arrow")]) if path.is_dir() else [path]
        if not self.files:
            raise InputError("Parquet or Arrow files in this folder", file=path)

    def num_rows(self) -> int | None:
        """From the files' footers; None where only reading would tell."""
        if any(file.suffix != ".parquet" for file in self.files):
            return None
        return sum(int(pq.read_metadata(file).num_rows) for file in self.files)

    def tables(self, rows: int, *, first: int = 0) -> Iterator[pa.Table]:
        """Tables of ``rows`` rows from row ``first`` on, the last one shorter; Parquet before ``first`` isn't read."""
        return in_stretches(self._from(first, min(rows, 1 << 16)), rows)

    def _from(self, first: int, rows: int) -> Iterator[pa.Table]:
        for file in self.files:
            try:
                groups = None
                if file.suffix == ".parquet":
                    groups, first = _groups_from(file, first)
                for table in _pieces(file, rows, groups):
                    kept = table.slice(first)
                    first = max(0, first - table.num_rows)
                    if kept.num_rows:
                        yield kept
            except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError, EOFError, gzip.BadGzipFile, OSError) as error:
                raise InputError(f"a whole, readable file ({error})", file=file) from error


def in_stretches(pieces: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The rows of ``pieces`` as tables of ``rows`` rows, the last one shorter."""
    held: list[pa.Table] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += piece.num_rows
        if count >= rows:
            whole = pa.concat_tables(held, promote_options="default")
            for start in range(0, count - rows + 1, rows):
                yield whole.slice(start, rows)
            count %= rows
            held = [whole.slice(whole.num_rows - count)]
    if count:
        yield pa.concat_tables(held, promote_options="default")


def _groups_from(file: Path, first: int) -> tuple[list[int], int]:
    """The row groups of a Parquet file that reach row ``first`` or beyond, and the row of the first of them."""
    metadata = pq.read_metadata(file)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    group = 0
    while group < len(sizes) and sizes[group] <= first:
        first -= sizes[group]
        group += 1
    return list(range(group, len(sizes))), first


def _pieces(file: Path, rows: int, groups: list[int] | None) -> Iterator[pa.Table]:
    if file.suffix == ".parquet":
        with pq.ParquetFile(file, pre_buffer=False) as parquet:  # else it keeps what it has read
            for batch in parquet.iter_batches(rows, row_groups=groups):
                yield pa.Table.from_batches([batch])
    elif file.suffix == ".arrow":
        yield from _arrow(file)
    elif file.name.removesuffix(".gz").endswith(_LINES):
        yield from _lines(file)
    else:
        yield read_table(file)


def _arrow(file: Path) -> Iterator[pa.Table]:
    with pa.memory_map(str(file)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        reader = pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            yield pa.Table.from_batches([batch])


def _lines(file: Path) -> Iterator[pa.Table]:
    held = []
    with open_text(file) as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                held.append(json_object(line, file, number))
            if len(held) >= _LINES_READ:
                yield rows_table(held)
                held = []
    if held:
        yield rows_table(held)


def marked_like(path: Path, before: dict[str, object] | None) -> dict[str, object]:
    """A mark of the files' bytes; those that have the size and time of change noted in ``before`` aren't read again."""
    files = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
    now = [[part.name, part.stat().st_size, part.stat().st_mtime_ns] for part in files]
    if before is not None and before.get("files") == json.loads(json.dumps(now)):
        return before
    return {"files": now, "hash": file_hash(path)}
