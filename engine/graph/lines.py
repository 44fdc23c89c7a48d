"""Lines of plain, gzip or bzip2 files, with row numbers and damaged archives named as such."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from obverse.engine.errors import InputError

__all__ = ["decode_line", "graph_name", "read_lines"]

_COMPRESSIONS = (".gz", ".bz2")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(row, line) of every line, rows from 1, without the line's end; one line is held at a time.

    Raises `InputError` where the archive is damaged or cut, with the row that could not be read.
    """
    row = 0
    try:
        with _open(path) as file:
            for row, line in enumerate(file, 1):
                yield row, line.rstrip(b"\r\n")
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's trouble, not the file's
        expected = f"a whole {path.suffix.lstrip('.')} archive"
        raise InputError(expected, file=path, row=row + 1, seen=str(error)) from error


def decode_line(line: bytes, path: Path, row: int) -> str:
    """The line as text. Raises `InputError` where it is not UTF-8."""
    try:
        return line.decode("utf-8-sig" if row == 1 else "utf-8")
    except UnicodeDecodeError as error:
        seen = line[max(error.start - 10, 0) : error.end + 10]
        raise InputError("UTF-8 text", file=path, row=row, seen=seen) from error


def graph_name(path: Path) -> str:
    """The file's name without its ending and that of its compression."""
    stem = path.stem if path.suffix.lower() in _COMPRESSIONS else path.name
    return stem.rsplit(".", 1)[0] or stem


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if suffix == ".bz2":
        return cast(IO[bytes], bz2.open(path, "rb"))
    return path.open("rb")
