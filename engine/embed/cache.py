"""Vectors by the content of their texts, kept between calls.

A cache is a folder with one sub-folder per encoder (the hash of what its vectors depend on). In it lie append-only
files, one for each process that writes at the same time, held by ``flock``. A file is a sequence of records: a header
with two digests, the keys (BLAKE2b-128 of each text) and their vectors. A record is written and fsynced as a whole;
one that a crash cut short fails its digest, is passed over by readers and cut off by the next writer of that file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from obverse.engine.errors import InputError, RunError
from obverse.engine.records.keys import content_hash
from obverse.engine.records.shards import write_json

__all__ = ["VectorCache", "Vectors", "text_keys"]

Keys = npt.NDArray[np.uint64]
Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]

_HEADER = struct.Struct("<8sQII16s16s8x")  # magic, rows, dim, bytes a value, digests of keys and of vectors
_MAGIC = b"OBVVEC01"
_MOST_BLOCKS = 32


def text_keys(texts: Sequence[str]) -> Keys:
    """Keys ``[N, 2]`` of texts: 128 bits of BLAKE2b of each text's UTF-8 bytes."""
    digests = (hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


class _Record(NamedTuple):
    path: Path
    keys_at: int
    values_at: int
    rows: int
    digest: bytes


class _Block(NamedTuple):
    """Keys sorted by their first word, and where each one's vector is."""

    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    record: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]


class VectorCache:
    """Vectors of one encoder by text; `find`, `add`, `close`.

    ``identity`` is what the vectors depend on (`TextEncoder.describe` and the stored precision). Several processes
    may use a cache at once; each sees what the others had finished when it opened it. Raises `RunError` where the
    folder can't be used.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], dim: int, dtype: npt.DTypeLike) -> None:
        self.dim, self.dtype = dim, np.dtype(dtype)
        self.folder = folder / content_hash(dict(identity))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder} can't be a cache folder ({error})") from error
        if not (self.folder / "encoder.json").exists():
            write_json(self.folder / "encoder.json", dict(identity))
        self._records: list[_Record] = []
        self._intact: dict[int, bool] = {}
        self._blocks: list[_Block] = []
        self._path, self._file = self._own_file()
        ends = {path: self._scan(path) for path in sorted(self.folder.glob("vectors-*.bin"))}
        self._file.truncate(ends[self._path])  # what a crash cut short; nobody else writes this file
        self._index(range(len(self._records)))

    def __enter__(self) -> VectorCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, for another process to append to."""
        self._file.close()

    def __len__(self) -> int:
        return sum(len(block.high) for block in self._blocks)

    def find(self, keys: Keys) -> tuple[npt.NDArray[np.bool_], Vectors]:
        """Which of ``keys [N, 2]`` are here, and vectors ``[N, dim]`` (zeros where they aren't)."""
        found = np.zeros(len(keys), bool)
        values = np.zeros((len(keys), self.dim), self.dtype)
        for block in self._blocks:
            at = np.minimum(np.searchsorted(block.high, keys[:, 0]), len(block.high) - 1)
            # Keys that share 64 bits: the first is found, another is a miss. That costs time, never a wrong vector.
            hit = np.flatnonzero((block.high[at] == keys[:, 0]) & (block.low[at] == keys[:, 1]) & ~found)
            records = block.record[at[hit]]
            for record in np.unique(records):
                rows = hit[records == record]
                stored = self._values(int(record))
                if stored is not None:
                    values[rows] = stored[block.row[at[rows]]]
                    found[rows] = True
        return found, values

    def add(self, keys: Keys, values: Vectors) -> None:
        """Append vectors ``[N, dim]`` of ``keys``; on disk, whole, when this returns."""
        if not len(keys):
            return
        if values.shape != (len(keys), self.dim) or values.dtype != self.dtype:
            raise InputError(f"{self.dtype} vectors {(len(keys), self.dim)}", seen=(values.dtype, values.shape))
        start = self._file.seek(0, os.SEEK_END)
        key_bytes, value_bytes = np.ascontiguousarray(keys).tobytes(), np.ascontiguousarray(values).tobytes()
        fixed = (_MAGIC, len(keys), self.dim, self.dtype.itemsize)
        digest = _digest(value_bytes)
        header = _HEADER.pack(*fixed, _digest(struct.pack("<8sQII", *fixed) + digest + key_bytes), digest)
        try:
            self._file.write(header + key_bytes + value_bytes)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(start)  # a full disk: what was there before stays whole
            raise
        keys_at = start + _HEADER.size
        self._records.append(_Record(self._path, keys_at, keys_at + len(key_bytes), len(keys), digest))
        self._intact[len(self._records) - 1] = True
        self._index([len(self._records) - 1])

    def _own_file(self) -> tuple[Path, IO[bytes]]:
        """The first file that no other process holds."""
        number = 0
        while True:
            path = self.folder / f"vectors-{number:03d}.bin"
            handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.close()
                number += 1
                continue
            return path, handle

    def _scan(self, path: Path) -> int:
        """Note the records of ``path``; gives where the last whole one ends."""
        size, at = path.stat().st_size, 0
        with path.open("rb") as handle:
            while at + _HEADER.size <= size:
                handle.seek(at)
                magic, rows, dim, item, digest, values_digest = _HEADER.unpack(handle.read(_HEADER.size))
                keys_at, values_at = at + _HEADER.size, at + _HEADER.size + rows * 16
                end = values_at + rows * dim * item
                if magic != _MAGIC or end > size:
                    break
                keys = handle.read(rows * 16)
                if _digest(struct.pack("<8sQII", magic, rows, dim, item) + values_digest + keys) != digest:
                    break
                if (dim, item) != (self.dim, self.dtype.itemsize):
                    raise RunError(f"{path} is damaged (vectors of {dim} values of {item} bytes); delete it")
                if end == size and _digest(handle.read()) != values_digest:
                    break
                self._records.append(_Record(path, keys_at, values_at, rows, values_digest))
                at = end
        return at

    def _index(self, records: Sequence[int]) -> None:
        if len(self._blocks) + 1 > _MOST_BLOCKS:
            self._blocks, records = [], range(len(self._records))
        if not records:
            return
        keys = np.concatenate([self._keys(self._records[record]) for record in records])
        order = np.argsort(keys[:, 0], kind="stable")
        rows = [self._records[record].rows for record in records]
        record_of = np.repeat(np.asarray(records, np.int32), rows)
        row_of = np.concatenate([np.arange(count) for count in rows])
        self._blocks.append(_Block(keys[order, 0], keys[order, 1], record_of[order], row_of[order]))

    def _keys(self, record: _Record) -> Keys:
        return np.fromfile(record.path, np.uint64, record.rows * 2, offset=record.keys_at).reshape(-1, 2)

    def _values(self, index: int) -> Vectors | None:
        """The vectors of a record, mapped; None if they are not what was written."""
        record = self._records[index]
        shape = (record.rows, self.dim)
        values = np.memmap(record.path, self.dtype, "r", record.values_at, shape)
        if index not in self._intact:
            self._intact[index] = _digest(values.tobytes()) == record.digest
        return values if self._intact[index] else None


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
