"""Texts that an earlier process wrote, found by id and prompt: what a resumed or extended run need not write again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.records.schemas import TEXTS
from obverse.engine.records.shards import Shards

__all__ = ["EarlierTexts"]

_TABLES_HELD = 4


class EarlierTexts:
    """Rows of TEXTS from journals (held) and from folders of shards (read when asked for).

    Never by position: a row counts for a target only where both its id and the hash of its prompt are the target's, so
    an input may be put in another order, cut into other shards or have rows added. Of two rows with one id the one
    that was added last is found.
    """

    def __init__(self, *, failed: bool = True) -> None:
        self.failed = failed
        """Whether rows that could not be done count as done."""
        self._sources: list[Callable[[], pa.Table]] = []
        self._ids: list[npt.NDArray[np.int64]] = []
        self._index: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        self._held: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(ids) for ids in self._ids)

    def ids(self) -> npt.NDArray[np.int64]:
        """Every id, once, ascending."""
        return np.unique(np.concatenate(self._ids)) if self._ids else np.zeros(0, np.int64)

    def add(self, rows: pa.Table) -> None:
        """Rows that are held in memory."""
        self._add(rows["id"].to_numpy(), lambda: rows)

    def add_folder(self, shards: Shards) -> None:
        """Rows of a folder's shards; only their ids are read now."""
        for index in shards.done():
            self._add(shards.read(index, ["id"])["id"].to_numpy(), partial(shards.read, index, TEXTS.names))

    def _add(self, ids: npt.NDArray[np.int64], read: Callable[[], pa.Table]) -> None:
        self._ids.append(ids)
        self._sources.append(read)
        self._index = None

    def find(self, ids: npt.NDArray[np.int64], hashes: Sequence[str | None]) -> tuple[npt.NDArray[np.bool_], pa.Table]:
        """Which of the targets ``[n]`` are done, and their rows in the same order."""
        done = np.zeros(len(ids), bool)
        if not self._ids or not len(ids):
            return done, TEXTS.empty_table()
        known, source, row = self._sorted()
        # The last of equal ids: the index is stable, so that is the one added last.
        at = np.searchsorted(known, ids, side="right") - 1
        there = (at >= 0) & (known[np.maximum(at, 0)] == ids)
        parts: list[pa.Table] = []
        places: list[npt.NDArray[np.int64]] = []
        for number in np.unique(source[at[there]]):
            mine = np.flatnonzero(there & (source[np.maximum(at, 0)] == number))
            rows = self._table(int(number)).take(pa.array(row[at[mine]]))
            same = self._same(rows, [hashes[i] for i in mine.tolist()])
            parts.append(rows.filter(same))
            places.append(mine[same.to_numpy(zero_copy_only=False)])
        if not parts:
            return done, TEXTS.empty_table()
        order = np.concatenate(places)
        done[order] = True
        return done, pa.concat_tables(parts).take(pa.array(np.argsort(order)))

    def _same(self, rows: pa.Table, hashes: list[str | None]) -> pa.Array:
        same = pc.fill_null(pc.equal(rows["prompt_hash"], pa.array(hashes, pa.string())), False)
        if not self.failed:
            same = pc.and_(same, pc.is_valid(rows["text"]))
        return pa.chunked_array(same.chunks, pa.bool_()).combine_chunks()

    def _sorted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        if self._index is None:
            ids = np.concatenate(self._ids)
            source = np.repeat(np.arange(len(self._ids)), [len(part) for part in self._ids])
            row = np.concatenate([np.arange(len(part)) for part in self._ids])
            order = np.argsort(ids, kind="stable")
            self._index = ids[order], source[order], row[order]
        return self._index

    def _table(self, number: int) -> pa.Table:
        if number not in self._held:
            self._held[number] = self._sources[number]().select(TEXTS.names).cast(TEXTS)
            if len(self._held) > _TABLES_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]
