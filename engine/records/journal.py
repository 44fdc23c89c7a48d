"""An append-only, checksummed record of finished rows, for what is not yet in a Parquet shard.

A folder of segments, ``00000001.journal`` and on. A segment is a magic number followed by frames::

    "OBJF" | length u32 | number i64 | CRC-32 of all the rest u32 | payload: one Arrow IPC stream of one batch

A process writes only to segments that it began, so a torn end is never written behind. `replay` gives every frame whose
checksum holds: it stops at a torn end, and goes on behind a damaged frame at the next one that is sound.
"""

from __future__ import annotations

import os
import re
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from obverse.engine.errors import InputError

__all__ = ["Entry", "Journal"]

_SEGMENT = re.compile(r"(\d{8})\.journal")
_HEAD = b"obverse journal 1\n"
_MAGIC = b"OBJF"
_FRAME = struct.Struct("<4sIqI")
_CHECKED = struct.Struct("<Iq")


class Entry(NamedTuple):
    """One frame: the number that it was written under (a shard's, say) and its rows."""

    number: int
    batch: pa.RecordBatch


class Journal:
    """The journal of one folder; one process writes at a time (`records.lock`)."""

    def __init__(self, folder: Path, *, sync_s: float = 1.0) -> None:
        self.folder, self.sync_s = folder, sync_s
        self.torn_bytes = 0
        """Bytes that the last `replay` passed over because they were torn or damaged."""
        self._handle: int | None = None
        self._path: Path | None = None
        self._numbers: dict[Path, set[int]] = {}  # of each segment that this process wrote
        self._size = 0
        self._synced, self._unsynced = time.monotonic(), False

    def segments(self) -> list[Path]:
        """The segments that are there, in the order they were begun."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _SEGMENT.fullmatch(path.name))

    def replay(self, schema: pa.Schema) -> Iterator[Entry]:
        """Every sound frame, oldest first. Raises `InputError` where a sound one has another schema."""
        self.torn_bytes = 0
        for path in self.segments():
            data = path.read_bytes()
            if not data.startswith(_HEAD):
                self.torn_bytes += len(data)
                continue
            at = len(_HEAD)
            while at < len(data):
                end = _frame_end(data, at)
                if end is None:
                    following = data.find(_MAGIC, at + 1)
                    self.torn_bytes += (len(data) if following < 0 else following) - at
                    at = len(data) if following < 0 else following
                    continue
                number = _FRAME.unpack_from(data, at)[2]
                yield Entry(number, _batch(data[at + _FRAME.size : end], schema, path, at))
                at = end

    def append(self, number: int, batch: pa.RecordBatch) -> None:
        """Add a frame; it is on the disk for good when `sync_s` seconds have passed and `sync_in_time` was called.

        Raises ``OSError`` where it can't be written; what was there before stays readable.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        payload = sink.getvalue()
        checksum = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(len(payload), number)))
        handle = self._open()
        _write_all(handle, _FRAME.pack(_MAGIC, len(payload), number, checksum))
        _write_all(handle, payload)
        self._numbers.setdefault(self._path or Path(), set()).add(number)
        self._size += len(payload)
        self._unsynced = True
        self.sync_in_time()

    def sync_in_time(self) -> None:
        """`sync`, if frames have waited for it for `sync_s` seconds."""
        if self._unsynced and time.monotonic() - self._synced >= self.sync_s:
            self.sync()

    def sync(self) -> None:
        """Have all frames on the disk."""
        if self._handle is not None:
            os.fdatasync(self._handle)
        self._unsynced = False
        self._synced = time.monotonic()

    def release(self, number: int, *, segment_bytes: int = 64 << 20) -> None:
        """Frames of ``number`` are kept elsewhere now: delete the segments that hold nothing else.

        A segment of ``segment_bytes`` and more is ended first, so that a journal never grows with the run.
        """
        if self._size >= segment_bytes:
            self._end()
        for path, numbers in list(self._numbers.items()):
            numbers.discard(number)
            if not numbers and path != self._path:
                path.unlink(missing_ok=True)
                del self._numbers[path]
        if self._path is not None and not self._numbers.get(self._path):
            self._empty()

    def clear(self) -> None:
        """Delete every segment."""
        self._end()
        for path in self.segments():
            path.unlink(missing_ok=True)
        self._numbers.clear()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def close(self) -> None:
        """Sync and let go; the segments stay."""
        if self._handle is not None:
            self.sync()
        self._end()

    def _open(self) -> int:
        if self._handle is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = self.segments()
            number = int(_SEGMENT.fullmatch(there[-1].name)[1]) + 1 if there else 1  # type: ignore[index]
            self._path = self.folder / f"{number:08d}.journal"
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            _write_all(self._handle, _HEAD)
            self._size = 0
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return self._handle

    def _end(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle = self._path = None
        self._size = 0

    def _empty(self) -> None:
        """Nothing in the open segment is needed any more."""
        if self._handle is not None and self._size:
            os.ftruncate(self._handle, len(_HEAD))
            os.lseek(self._handle, 0, os.SEEK_END)
            self._size = 0


def _frame_end(data: bytes, at: int) -> int | None:
    """Where the frame at ``at`` ends; None where it is torn or damaged."""
    if at + _FRAME.size > len(data):
        return None
    magic, length, number, checksum = _FRAME.unpack_from(data, at)
    end = at + _FRAME.size + length
    if magic != _MAGIC or end > len(data):
        return None
    payload = memoryview(data)[at + _FRAME.size : end]
    return end if zlib.crc32(payload, zlib.crc32(_CHECKED.pack(length, number))) == checksum else None


def _batch(payload: bytes, schema: pa.Schema, path: Path, at: int) -> pa.RecordBatch:
    batch = next(iter(pa.ipc.open_stream(payload)))
    if not batch.schema.equals(schema):
        raise InputError(f"rows of {schema.names}", file=path, row=at, seen=batch.schema.names)
    return batch


def _write_all(handle: int, data: object) -> None:
    view = memoryview(data).cast("B")  # type: ignore[arg-type]
    while view:
        view = view[os.write(handle, view) :]
