"""Finished rows to disk, in a thread of their own: journal first, Parquet when a shard is whole.

The engine's loop hands over batches and goes on; compressing, checksums and waiting for the disk happen beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from obverse.engine.errors import RunError
from obverse.engine.generate.earlier import EarlierTexts
from obverse.engine.generate.window import Finished, whole_table
from obverse.engine.records.journal import Journal
from obverse.engine.records.schemas import TEXTS
from obverse.engine.records.shards import Shards

__all__ = ["TextWriter", "journal_of"]

_BEHIND = 1 << 16  # rows; beyond that the engine waits for the disk
_LOOK_S = 0.25


def journal_of(folder: Path, name: str = "") -> Journal:
    """The journal of a folder of texts, or the one called ``name`` of several (one a worker)."""
    return Journal(folder / "_journal" / name)


class TextWriter:
    """The one that writes a folder of TEXTS: `recover` first, then `taking`."""

    def __init__(self, shards: Shards, on_shard: Callable[[int], None] | None = None, *, journal: str = "") -> None:
        """``journal`` names this worker's own journal where several write one folder."""
        self._shards, self._on_shard = shards, on_shard
        self._journal = journal_of(shards.folder, journal)
        self._parts: dict[int, list[pa.RecordBatch]] = {}
        self._wake, self._taken = threading.Event(), threading.Event()
        self._stopping = False
        self._trouble: BaseException | None = None
        self.rows = 0
        """Rows that have been handed to the disk."""

    def recover(self, *, use: bool = True) -> EarlierTexts:
        """Rows that the journal holds of shards that were never whole. Call it once, before anything is put.

        They are written to a segment of this process's own, and the old segments deleted; the one unnamed journal takes
        over those of workers. Without ``use`` they are let go.
        """
        done = set(self._shards.done())
        live: dict[int, list[pa.RecordBatch]] = {}
        found = EarlierTexts()
        old: list[Path] = []
        for journal in [*self._workers(), self._journal]:
            old += journal.segments()
            for entry in journal.replay(TEXTS):
                if entry.number not in done and use:
                    live.setdefault(entry.number, []).append(entry.batch)
        for number, batches in live.items():
            table = pa.Table.from_batches(batches, TEXTS).combine_chunks()
            found.add(table)
            for batch in table.to_batches():
                self._journal.append(number, batch)
        self._journal.sync()
        for path in old:
            path.unlink(missing_ok=True)
        return found

    def _workers(self) -> list[Journal]:
        folder = self._shards.folder / "_journal"
        if self._journal.folder != folder or not folder.is_dir():
            return []
        return [Journal(path) for path in sorted(folder.iterdir()) if path.is_dir()]

    @contextmanager
    def taking(self, take: Callable[[], Sequence[Finished]]) -> Iterator[None]:
        """Write what ``take`` gives, some times a second, until the block ends; then the rest of it.

        ``take`` is called from the writer's thread. What goes wrong there is raised by `keep_up`, or at the end.
        """
        thread = threading.Thread(target=self._work, args=(take,), name="obverse-writer", daemon=True)
        thread.start()
        sound = False
        try:
            yield
            sound = True
        finally:
            self._stopping = True
            self._wake.set()
            thread.join()
            self._journal.close()
            if sound:
                self._check()
                self._clear()

    def keep_up(self, pending: int) -> None:
        """Have ``pending`` rows written soon; waits while they are very many. Raises what went wrong with others."""
        self._taken.clear()
        self._check()
        self._wake.set()
        while pending >= _BEHIND and not self._taken.wait(0.5):
            self._check()

    def _check(self) -> None:
        if self._trouble is not None:
            trouble = self._trouble
            if isinstance(trouble, OSError):
                where = trouble.filename or self._shards.folder
                raise RunError(
                    f"{where}: can't write ({trouble.strerror or trouble}); {self.rows:,} rows of this call are safe: "
                    "make room and give the same command again"
                ) from trouble
            raise trouble

    def _work(self, take: Callable[[], Sequence[Finished]]) -> None:
        try:
            while True:
                self._wake.wait(_LOOK_S)
                self._wake.clear()
                last = self._stopping  # seen before the rows are taken, so that none comes after the last look
                for finished in take():
                    self._write(finished)
                self._taken.set()
                self._journal.sync_in_time()
                if last:
                    return
        except BaseException as trouble:
            self._trouble = trouble

    def _clear(self) -> None:
        """All is in whole shards: nothing of the journals is needed."""
        if not self._parts:
            for journal in [self._journal, *self._workers()]:
                journal.clear()

    def _write(self, finished: Finished) -> None:
        parts = self._parts.setdefault(finished.shard, [])
        if finished.rows.num_rows:
            if not finished.kept and finished.ids is None:
                self._journal.append(finished.shard, finished.rows)
            parts.append(finished.rows)
            self.rows += finished.rows.num_rows
        if finished.ids is not None:
            self._shards.write(finished.shard, whole_table(finished.ids, parts))
            del self._parts[finished.shard]
            self._journal.release(finished.shard)
            if self._on_shard is not None:
                self._on_shard(finished.shard)
