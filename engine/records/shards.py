"""Tables on disk as Parquet shards: a shard exists only when it is whole.

A folder holds ``part-00000.parquet``, ``part-00001.parquet``, ... Each is written under a temporary name, fsynced
and renamed, so a reader (or a process started after SIGKILL) sees a shard whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from obverse.engine.errors import InputError, RunError

__all__ = ["Shards", "atomic_write", "read_json", "write_json", "write_parquet"]

_PART = re.compile(r"part-(\d{5,})\.parquet")


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, fsync it, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"
    atomic_write(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that Obverse wrote.

    Raises `RunError` when it isn't JSON (a run folder edited by hand, say).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is damaged (not JSON: {error}); delete it and run again") from error


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write one Parquet file atomically, with settings that give the same bytes for the same table."""
    # A dictionary of the numbers in vectors takes ten times as long to build as writing them, and saves nothing.
    plain = any(pa.types.is_fixed_size_list(field.type) for field in table.schema)
    options = {"compression": "zstd", "use_dictionary": not plain}
    atomic_write(path, lambda temporary: pq.write_table(table, temporary, **options))


class Shards:
    """The shards of one table in one folder."""

    def __init__(self, folder: Path, schema: pa.Schema | None = None, *, shared: bool = False) -> None:
        """``shared``: other processes write shards here too, so their temporary files are left alone."""
        self.folder, self.schema, self.shared = folder, schema, shared

    def path(self, index: int) -> Path:
        """The path of shard ``index``."""
        return self.folder / f"part-{index:05d}.parquet"

    def done(self) -> list[int]:
        """The indices of the shards that exist, in order; stale temporary files are removed."""
        if not self.folder.is_dir():
            return []
        for stale in () if self.shared else self.folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        found = (_PART.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def write(self, index: int, table: pa.Table) -> None:
        """Write shard ``index``; its columns must be those of the schema, in any order."""
        if self.schema is not None:
            missing = [name for name in self.schema.names if name not in table.column_names]
            if missing:
                raise InputError(f"columns {self.schema.names}", file=self.path(index), seen=table.column_names)
            table = table.select(self.schema.names).cast(self.schema)
        write_parquet(self.path(index), table)

    def read(self, index: int, columns: list[str] | None = None) -> pa.Table:
        """Read shard ``index`` (of it ``columns`` only)."""
        return _read(self.path(index), columns)

    def tables(self) -> Iterator[pa.Table]:
        """Every shard in order, one at a time."""
        for index in self.done():
            yield self.read(index)

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """All shards as one table (of ``columns`` only), for stages that need the whole set at once."""
        tables = [_read(self.path(index), columns) for index in self.done()]
        if tables:
            return pa.concat_tables(tables)
        if self.schema is None:
            raise InputError("at least one shard", file=self.folder)
        schema = self.schema
        empty: pa.Table = schema.empty_table()
        return empty.select(columns) if columns else empty

    def num_rows(self) -> int:
        """Rows in all shards, from the Parquet footers alone."""
        return sum(pq.read_metadata(self.path(index)).num_rows for index in self.done())


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it and run again to redo that shard") from error
