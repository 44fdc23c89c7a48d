"""Texts of any number to a folder of Arrow shards (or one Parquet file), in memory bounded by the shard.

The texts are read twice. The first pass checks every row and notes a 128-bit key of each text (24 bytes a row stay in
memory), so that bad input is told before hours of work and equal texts are computed once. The second embeds shard
after shard. A row whose text was first seen in an earlier shard is copied from there, so a shard's bytes depend on the
input and the settings (and on the cache, where one is used), never on where an earlier call was stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from obverse.engine.embed.cache import Keys, Vectors, text_keys
from obverse.engine.embed.protocol import TextEncoder, open_encoder
from obverse.engine.embed.settings import EmbedSettings
from obverse.engine.embed.sources import TextSource
from obverse.engine.embed.vectors import Counts, first_rows, open_cache, unique_vectors, vector_table
from obverse.engine.errors import InputError, RunError
from obverse.engine.records.keys import content_hash
from obverse.engine.records.progress import Progress
from obverse.engine.records.shards import atomic_write, read_json, write_json

__all__ = ["EmbedReport", "Scan", "embed_files", "read_shard", "scan"]


@dataclass(frozen=True, slots=True)
class EmbedReport:
    """What one call did: rows in all, and where the vectors of the rows done in this call came from."""

    rows: int
    dim: int
    resumed: int
    """Rows that an earlier call had done."""
    computed: int
    cached: int
    repeated: int
    seconds: float
    encoder: dict[str, Any] = field(default_factory=dict)


class Scan(NamedTuple):
    """A first pass over the texts."""

    keys: Keys
    first: npt.NDArray[np.int64]
    """The lowest row with the same text."""
    digest: str
    """Of all ids and texts, in their order."""


def scan(source: TextSource, on_progress: Callable[[int], None] | None = None) -> Scan:
    """Check every row of ``source`` and key its text.

    Raises `InputError` for what `TextSource` refuses, for an id that comes twice, and for no rows at all.
    """
    keys, ids, places = [], [], []
    for piece in source.pieces():
        keys.append(text_keys(piece.texts))
        ids.append(piece.ids)
        places.append((len(piece.ids), piece.file, piece.first_row, piece.rows))
        if on_progress:
            on_progress(len(piece.texts))
    if not ids:
        raise InputError("at least one text", file=source.path)
    all_ids, all_keys = np.concatenate(ids), np.concatenate(keys)
    order = np.argsort(all_ids, kind="stable")
    again = order[1:][all_ids[order[1:]] == all_ids[order[:-1]]]
    if len(again):
        row = int(again.min())
        seen = int(all_ids[row])
        for count, file, first_row, rows in places:
            if row < count:
                place = first_row + row if rows is None else int(rows[row])
                raise InputError("ids that are unique", file=file, row=place, field="id", seen=seen)
            row -= count
    digest = hashlib.blake2b(all_ids.tobytes() + b"|", digest_size=16)
    digest.update(all_keys.tobytes())
    return Scan(all_keys, first_rows(all_keys), digest.hexdigest())


def embed_files(
    source: Path,
    out: Path,
    settings: EmbedSettings,
    *,
    column: str = "text",
    shard_rows: int = 16_384,
    encoder: TextEncoder | None = None,
    progress: Progress | None = None,
) -> EmbedReport:
    """Embed the texts of ``source`` into ``out``: a folder of ``part-00000.arrow``, ..., or one ``.parquet`` file.

    Shards are Arrow IPC files of schema ``vectors(dim)``, uncompressed, one record batch each, so that they can be
    mapped. A shard exists only when whole. After a kill the same call goes on with the first missing shard and gives
    the bytes that one uninterrupted call gives (with a cache: that nobody else writes meanwhile). A Parquet file is
    put together from such a folder beside it, which is then removed.

    Raises `InputError` for bad input, and `RunError` for a folder of other texts or settings, or one in use.
    """
    started = time.perf_counter()
    progress = progress or Progress(quiet=True)
    texts = TextSource(source, column=column)
    is_file = out.suffix == ".parquet"
    folder = out.with_name(f".{out.name}.parts") if is_file else out
    if not is_file and out.exists() and not out.is_dir():
        raise InputError("a folder, or a file that ends in .parquet", file=out)
    with progress.task("read", None, "texts") as advance:
        seen = scan(texts, advance)
    with _held(folder):
        encoder = encoder or open_encoder(settings)
        job = _Job(texts, folder, encoder, shard_rows, seen)
        resumed, counts = job.run(progress)
        if is_file:
            job.merge(out)
            shutil.rmtree(folder)
    seconds = time.perf_counter() - started
    return EmbedReport(len(seen.first), encoder.dim, resumed, *counts, seconds, encoder.describe())


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{folder} is in use by another process") from error
        yield


class _Job:
    """One input going into one folder."""

    def __init__(self, texts: TextSource, folder: Path, encoder: TextEncoder, shard_rows: int, seen: Scan) -> None:
        self.texts, self.folder, self.encoder, self.shard_rows, self.seen = texts, folder, encoder, shard_rows, seen
        self.rows = len(seen.first)
        self.parts = -(-self.rows // shard_rows)
        self._claim()

    def path(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.arrow"

    def _claim(self) -> None:
        """Mark the folder with what goes into it, or see that the mark is ours."""
        settings = self.encoder.settings
        facts = {
            "texts": self.seen.digest,
            "rows": self.rows,
            "shard_rows": self.shard_rows,
            "encoder": self.encoder.describe(),
            "batch_size": settings.batch_size,
            "precision": settings.precision,
        }
        marker, key = self.folder / "_started.json", content_hash(facts)
        if marker.exists():
            held = read_json(marker)
            if held.get("key") != key:
                names = [name for name in facts if held.get(name) != facts[name]] or ["key"]
                raise RunError(
                    f"{self.folder} holds vectors of another call (it differs in: {', '.join(names)}); "
                    "choose another --out or delete it"
                )
        elif any(self.folder.glob("part-*")):
            raise RunError(f"{self.folder} holds shards of something else; choose another --out")
        else:
            write_json(marker, {"key": key, **facts})

    def run(self, progress: Progress) -> tuple[int, Counts]:
        """Embed what is missing; gives the rows that were there and the counts of the rest."""
        for stale in self.folder.glob(".part-*.tmp"):
            stale.unlink(missing_ok=True)
        done = [self.path(index).exists() for index in range(self.parts)]
        resumed = sum(min(self.shard_rows, self.rows - i * self.shard_rows) for i in range(self.parts) if done[i])
        total = Counts()
        if all(done):
            return resumed, total
        with open_cache(self.encoder) as cache, progress.task("embed", self.rows, "texts", resumed) as advance:
            for index, (ids, texts) in enumerate(self.texts.batches(self.shard_rows)):
                if not done[index]:
                    counts = self._shard(index, ids, texts, cache, advance)
                    total = Counts(*map(sum, zip(total, counts, strict=True)))
        return resumed, total

    def _shard(self, index: int, ids: npt.NDArray[np.int64], texts: list[str], cache: Any, advance: Any) -> Counts:
        start = index * self.shard_rows
        keys, first = self.seen.keys[start : start + len(texts)], self.seen.first[start : start + len(texts)]
        if len(keys) < len(texts) or not np.array_equal(text_keys(texts), keys):
            raise InputError("texts that don't change while they are read", file=self.texts.path)
        values = np.empty((len(texts), self.encoder.dim), self.encoder.settings.precision)
        earlier = first < start
        sources = first // self.shard_rows
        for other in np.unique(sources[earlier]):
            rows = np.flatnonzero(sources == other)
            values[rows] = read_shard(self.path(int(other)))[1][first[rows] - other * self.shard_rows]
        advance(int(earlier.sum()))
        own = np.flatnonzero(~earlier)
        values[own], counts = unique_vectors(
            [texts[row] for row in own], self.encoder, keys=keys[own], cache=cache, on_progress=advance
        )
        table = vector_table(pa.array(ids), values)
        atomic_write(self.path(index), lambda path: _write_arrow(path, table))
        return counts._replace(repeated=counts.repeated + int(earlier.sum()))

    def merge(self, out: Path) -> None:
        """All shards as one Parquet file, a row group each."""

        def write(path: Path) -> None:
            with pa.memory_map(str(self.path(0))) as mapped:
                schema = pa.ipc.open_file(mapped).schema
            with pq.ParquetWriter(path, schema, compression="zstd") as writer:
                for index in range(self.parts):
                    ids, values = read_shard(self.path(index))
                    writer.write_table(vector_table(pa.array(ids), values))

        atomic_write(out, write)


def _write_arrow(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_batch(table.combine_chunks().to_batches()[0])


def read_shard(path: Path) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Ids ``[n]`` and vectors ``[n, dim]`` of a shard, mapped; raises `RunError` where it is cut short."""
    try:
        with pa.memory_map(str(path)) as mapped:
            batch = pa.ipc.open_file(mapped).get_batch(0)
    except (pa.ArrowInvalid, OSError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it and run again to redo that shard") from error
    vectors = batch.column("vector")
    values: Vectors = vectors.flatten().to_numpy(zero_copy_only=True).reshape(len(vectors), -1)
    return batch.column("id").to_numpy(zero_copy_only=True), values
