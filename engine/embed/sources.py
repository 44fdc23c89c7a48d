"""Texts on disk, read in pieces: what `obverse embed` streams from."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from obverse.engine.errors import InputError
from obverse.engine.records.files import json_object

__all__ = ["Piece", "TextSource"]

_LINES = (".jsonl", ".ndjson", ".json")
_KINDS = ".parquet, .jsonl(.gz), .csv, .tsv, .arrow, or a folder of such files"
_PIECE = 4096


class Piece(NamedTuple):
    """Some successive rows of one file."""

    file: Path
    first_row: int
    """Row of the file that the piece starts with, from 1 (the line, in a file of lines)."""
    ids: npt.NDArray[np.int64]
    texts: list[str]
    rows: npt.NDArray[np.int64] | None = None
    """Lines of the rows where they are not successive (blank lines between)."""

    def row(self, index: int) -> int:
        """Row of the file, from 1, of the piece's row ``index``."""
        return self.first_row + index if self.rows is None else int(self.rows[index])


class TextSource:
    """Columns ``id`` and ``column`` of a file or a folder of files, in order of file name and row.

    Raises `InputError` naming file, row and field: a file missing, cut short or of another kind, a column missing,
    a text that is null or blank, an id that is no integer.
    """

    def __init__(self, path: Path, *, column: str = "text") -> None:
        self.path, self.column = path, column
        self.files = _files(path)

    def pieces(self) -> Iterator[Piece]:
        """Every row, a few thousand at a time; a piece never spans two files."""
        for file in self.files:
            try:
                yield from self._read(file)
            except (pa.ArrowInvalid, UnicodeDecodeError, EOFError, gzip.BadGzipFile, OSError) as error:
                raise InputError(f"a whole, readable file ({error})", file=file) from error

    def batches(self, size: int) -> Iterator[tuple[npt.NDArray[np.int64], list[str]]]:
        """Ids and texts, ``size`` rows at a time (the last may be shorter)."""
        ids: list[npt.NDArray[np.int64]] = []
        texts: list[str] = []
        for piece in self.pieces():
            ids.append(piece.ids)
            texts += piece.texts
            while len(texts) >= size:
                held = np.concatenate(ids)
                yield held[:size], texts[:size]
                ids, texts = [held[size:]], texts[size:]
        if texts:
            yield np.concatenate(ids), texts

    def _read(self, file: Path) -> Iterator[Piece]:
        name = file.name.removesuffix(".gz")
        if name.endswith(_LINES):
            yield from self._lines(file)
            return
        first = 1
        for batch in self._tables(file):
            for start in range(0, batch.num_rows, _PIECE):
                piece = self._columns(batch.slice(start, _PIECE), file, first)
                first += len(piece.texts)
                yield piece

    def _tables(self, file: Path) -> Iterator[pa.RecordBatch]:
        if file.suffix == ".parquet":
            with pq.ParquetFile(file, pre_buffer=False) as parquet:  # else it keeps what it has read
                self._require(parquet.schema_arrow.names, file)
                yield from parquet.iter_batches(_PIECE, columns=["id", self.column])
        elif file.suffix == ".arrow":
            with pa.memory_map(str(file)) as mapped:
                is_file = mapped.read(6) == b"ARROW1"
                mapped.seek(0)
                reader = pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
                self._require(reader.schema.names, file)
                yield from (map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader)
        else:
            parse = pa.csv.ParseOptions(delimiter="\t" if ".tsv" in file.name else ",", newlines_in_values=True)
            kinds = pa.csv.ConvertOptions(column_types={self.column: pa.string()})
            with pa.csv.open_csv(file, parse_options=parse, convert_options=kinds) as reader:
                self._require(reader.schema.names, file)
                yield from reader

    def _require(self, names: list[str], file: Path) -> None:
        for name in ("id", self.column):
            if name not in names:
                raise InputError(f"a column '{name}'", file=file, field=name, seen=names)

    def _columns(self, batch: pa.RecordBatch, file: Path, first: int) -> Piece:
        ids, texts = batch.column("id"), batch.column(self.column)
        if not pa.types.is_integer(ids.type):
            raise InputError("integers", file=file, row=first, field="id", seen=ids[0].as_py())
        if ids.null_count:
            row = first + int(ids.is_null().to_numpy(zero_copy_only=False).argmax())
            raise InputError("an id", file=file, row=row, field="id")
        if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
            raise InputError("texts", file=file, row=first, field=self.column, seen=str(texts.type))
        return self._checked(Piece(file, first, ids.cast(pa.int64()).to_numpy(), texts.to_pylist()))

    def _lines(self, file: Path) -> Iterator[Piece]:
        ids: list[int] = []
        texts: list[Any] = []
        rows: list[int] = []
        with _open_text(file) as handle:
            for number, line in enumerate(handle, start=1):
                if not line.strip():
                    continue
                record = json_object(line, file, number)
                for name in ("id", self.column):
                    if name not in record:
                        raise InputError(f"a field '{name}'", file=file, row=number, field=name, seen=list(record))
                if type(record["id"]) is not int or not -(2**63) <= record["id"] < 2**63:
                    raise InputError("an integer of 64 bits", file=file, row=number, field="id", seen=record["id"])
                ids.append(record["id"])
                texts.append(record[self.column])
                rows.append(number)
                if len(ids) == _PIECE:
                    yield self._checked(Piece(file, rows[0], np.array(ids, np.int64), texts, np.array(rows, np.int64)))
                    ids, texts, rows = [], [], []
        if ids:
            yield self._checked(Piece(file, rows[0], np.array(ids, np.int64), texts, np.array(rows, np.int64)))

    def _checked(self, piece: Piece) -> Piece:
        for index, text in enumerate(piece.texts):
            # isascii first: encoding is only needed to find half of a surrogate pair, which is no text.
            if not isinstance(text, str) or not text or text.isspace() or not (text.isascii() or _is_unicode(text)):
                raise InputError(
                    "a text that isn't empty", file=piece.file, row=piece.row(index), field=self.column, seen=text
                )
        return piece


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError("an existing file or folder", file=path)
    if not path.is_dir():
        if _kind(path) is None:
            raise InputError(f"one of {_KINDS}", file=path, seen=path.suffix)
        return [path]
    parts = [part for part in sorted(path.iterdir()) if part.is_file() and _kind(part) and part.name[0] not in "._"]
    kinds = sorted({str(_kind(part)) for part in parts})
    if kinds != kinds[:1] or not kinds:
        raise InputError(f"files of one kind of {_KINDS}", file=path, seen=kinds)
    return parts


def _kind(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    if name.endswith(_LINES):
        # A saved `datasets` folder keeps its state in .json files beside its .arrow files.
        return None if path.name in ("state.json", "dataset_info.json") else "lines"
    packed = (".csv.gz", ".tsv.gz")
    return next((kind for kind in (".parquet", ".arrow", ".csv", ".tsv", *packed) if path.name.endswith(kind)), None)


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")
