"""The rolling window: rows stream through a backend across shard borders; a shard comes out when it is whole.

There is no barrier between shards: while one shard waits for its slowest row, rows of the next are already in flight.
What is held as Python objects is the rows in flight and those since the last `take`; rows that are done wait for the
rest of their shard as Arrow batches.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.errors import InputError
from obverse.engine.generate.earlier import EarlierTexts
from obverse.engine.generate.prompts import Prompts
from obverse.engine.generate.protocol import Completion, Request
from obverse.engine.records.keys import content_hash
from obverse.engine.records.schemas import TEXTS, require_columns

__all__ = ["Finished", "OpenShards", "RetryRule", "whole_table"]


class Finished(NamedTuple):
    """Rows of one shard that are done since the last time."""

    shard: int
    rows: pa.RecordBatch
    """In the order they ended; the schema is TEXTS."""
    ids: npt.NDArray[np.int64] | None
    """The ids of the shard in its targets' order if these rows make it whole, else None."""
    kept: bool
    """Whether the rows were read from an earlier process's work, not written now."""


class RetryRule(NamedTuple):
    """When a row is written again, under another seed."""

    judge: Callable[[Completion], tuple[Completion, str | None]]
    """The completion as it is kept, and why it should be tried again (None: it should not)."""
    attempts: int
    """The most attempts at one row, the first counted."""
    share: float
    """The most attempts beyond the first, in all, as a share of the rows done so far (and 100 in any case)."""


_WRITTEN = ("id", "text", "prompt_hash", "seed", "finish_reason", "num_prompt_tokens", "num_output_tokens")


class _Flight(NamedTuple):
    shard: int
    prompt: str
    prompt_hash: str
    seed: int
    attempt: int


class _Shard:
    """One open shard: ids in the targets' order, how many are still to come, rows done since the last `take`.

    These are kept as columns, for a tuple a row is one more thing that the garbage collector walks through.
    """

    __slots__ = ("columns", "ids", "left")

    def __init__(self, ids: npt.NDArray[np.int64]) -> None:
        self.ids, self.left = ids, len(ids)
        self.columns: tuple[list[Any], ...] = tuple([] for _ in _WRITTEN)

    @property
    def rows(self) -> int:
        """Rows done since the last `take`."""
        return len(self.columns[0])

    def take(self) -> tuple[list[Any], ...]:
        """These rows, which are let go."""
        columns, self.columns = self.columns, tuple([] for _ in _WRITTEN)
        return columns


class OpenShards:
    """Shards with rows still to come."""

    def __init__(
        self,
        shards: Iterable[tuple[int, pa.Table]],
        prompts: Callable[[pa.Table], Prompts],
        *,
        model: str,
        seed_of: Callable[[int, int], int],
        earlier: Sequence[EarlierTexts] = (),
        retry: RetryRule | None = None,
    ) -> None:
        """``seed_of(id, attempt)`` seeds a row's draws."""
        self._prompts, self._model, self._seed_of = prompts, model, seed_of
        self._earlier, self._retry = earlier, retry
        self._open: dict[int, _Shard] = {}
        self._flights: dict[int, _Flight] = {}
        self._again: deque[Request] = deque()
        self._fresh = self._read(iter(shards))
        self._failed: list[Completion] = []
        self._finished: list[Finished] = []
        self._lock = threading.Lock()  # rows are placed by one thread and may be taken by another
        self._done = self.retried = self.kept = 0
        self.pending = 0
        """Rows done since the last `take`."""
        self.reasons: dict[str, int] = {}
        """Attempts that were rejected, by the first words of the reason."""

    def requests(self) -> Iterator[Request]:
        """Every row as a request; those to be tried again come first. Ask again when it has ended: see `waiting`."""
        while True:
            while self._again:
                yield self._again.popleft()
            request = next(self._fresh, None)
            if request is None:
                return
            yield request

    @property
    def waiting(self) -> bool:
        """Whether rows wait to be tried again; the backend must be asked once more."""
        return bool(self._again)

    @property
    def missing(self) -> int:
        """Rows of open shards that no completion has come for."""
        return sum(shard.left for shard in list(self._open.values()))

    def place(self, completion: Completion) -> Completion | None:
        """Put a finished row into its shard: the row as it is kept, or None where it will be tried again."""
        flight = self._flights.get(completion.id)
        if flight is None:
            raise RuntimeError(f"the backend answered row {completion.id}, which is not in flight")
        if self._retry is not None:
            completion, why = self._retry.judge(completion)
            if why is not None and self._try_again(completion.id, flight, why):
                return None
        del self._flights[completion.id]
        self._put(flight.shard, completion, flight.prompt_hash, flight.seed)
        return completion

    def take(self) -> list[Finished]:
        """What is done since the last call, shard by shard; any thread may call, one at a time."""
        with self._lock:
            finished, self._finished = self._finished, []
            ready = [index for index, shard in self._open.items() if shard.rows or not shard.left]
            taken = [(index, self._open[index], self._open[index].take()) for index in ready]
            whole = [self._close(index) for index in ready]
            self.pending = 0
        for (index, shard, columns), is_whole in zip(taken, whole, strict=True):
            finished.append(Finished(index, _batch(columns, self._model), shard.ids if is_whole else None, False))
        return finished

    def take_failed(self) -> list[Completion]:
        """Rows whose prompt could not be built since the last call (already placed)."""
        failed, self._failed = self._failed, []
        return failed

    def _close(self, index: int) -> bool:
        """Whether the shard is whole; it is then let go."""
        shard = self._open[index]
        whole = shard.left == 0 and not shard.rows
        if whole:
            del self._open[index]
        return whole

    def _put(self, index: int, completion: Completion, prompt_hash: str | None, seed: int) -> None:
        with self._lock:
            self._append(self._open[index], completion, prompt_hash, seed)

    def _append(self, shard: _Shard, completion: Completion, prompt_hash: str | None, seed: int) -> None:
        ids, texts, hashes, seeds, reasons, prompt_counts, output_counts = shard.columns
        ids.append(completion[0])
        texts.append(completion[1])
        hashes.append(prompt_hash)
        seeds.append(seed)
        reasons.append(completion[2])
        prompt_counts.append(completion[3])
        output_counts.append(completion[4])
        shard.left -= 1
        self._done += 1
        self.pending += 1

    def _try_again(self, row_id: int, flight: _Flight, why: str) -> bool:
        kind = why.split(":")[0]
        self.reasons[kind] = self.reasons.get(kind, 0) + 1
        rule = self._retry
        if rule is None or flight.attempt + 1 >= rule.attempts or self.retried >= max(100, rule.share * self._done):
            return False
        self.retried += 1
        attempt = flight.attempt + 1
        seed = self._seed_of(row_id, attempt)
        self._flights[row_id] = flight._replace(seed=seed, attempt=attempt)
        self._again.append(Request(row_id, flight.prompt, seed, self._chat, flight.shard))
        return True

    def _read(self, shards: Iterator[tuple[int, pa.Table]]) -> Iterator[Request]:
        for index, table in shards:
            ids = self._begin(index, table)
            prompts = self._prompts(table)
            self._chat = prompts.chat
            hashes = [None if text is None else content_hash(text) for text in prompts.texts]
            done = self._take_earlier(index, ids, hashes)
            numbers: list[int] = ids.tolist()
            for place, why in prompts.errors.items():
                failure = Completion(numbers[place], None, f"error: {' '.join(why.split())[:300]}", None, None)
                self._failed.append(failure)
                self._put(index, failure, None, self._seed_of(numbers[place], 0))
            texts = prompts.texts
            # Prompts that begin alike go in one after another, so that an engine's prefix cache finds them.
            left = [i for i in range(len(ids)) if texts[i] is not None and not done[i]]
            left.sort(key=lambda i: texts[i] or "")
            for i in left:
                row_id, seed = numbers[i], self._seed_of(numbers[i], 0)
                self._flights[row_id] = _Flight(index, texts[i], hashes[i], seed, 0)  # type: ignore[arg-type]
                yield Request(row_id, texts[i], seed, prompts.chat, index)  # type: ignore[arg-type]

    def _begin(self, index: int, table: pa.Table) -> npt.NDArray[np.int64]:
        require_columns(table, "id", what="targets")
        if index in self._open:
            raise InputError("each shard once", field="shard", seen=index)
        column = table.column("id")
        if column.null_count:
            raise InputError("a unique id", row=column.is_null().to_pylist().index(True), field="id", seen=None)
        ids: npt.NDArray[np.int64] = column.to_numpy().astype(np.int64)
        names, counts = np.unique(ids, return_counts=True)
        others = [np.intersect1d(names, shard.ids) for shard in list(self._open.values())]
        for twice in (names[counts > 1], *others):
            if len(twice):
                raise InputError("a unique id", row=int(twice[0]), field="id", seen=int(twice[0]))
        with self._lock:
            self._open[index] = _Shard(ids)
        return ids

    def _take_earlier(self, index: int, ids: npt.NDArray[np.int64], hashes: list[str | None]) -> npt.NDArray[np.bool_]:
        done = np.zeros(len(ids), bool)
        for texts in self._earlier:
            left = np.flatnonzero(~done)
            there, rows = texts.find(ids[left], [hashes[i] for i in left])
            if rows.num_rows:
                done[left[there]] = True
                self._keep(index, rows.combine_chunks().to_batches()[0])
        return done

    def _keep(self, index: int, rows: pa.RecordBatch) -> None:
        with self._lock:
            shard = self._open[index]
            shard.left -= rows.num_rows
            self._done += rows.num_rows
            self.kept += rows.num_rows
            self.pending += rows.num_rows
            self._finished.append(Finished(index, rows, shard.ids if self._close(index) else None, True))


def whole_table(ids: npt.NDArray[np.int64], parts: Sequence[pa.RecordBatch]) -> pa.Table:
    """The rows of a shard, in its targets' order."""
    table = pa.Table.from_batches(parts, schema=TEXTS)
    order = pc.index_in(pa.array(ids), value_set=table["id"].combine_chunks())
    if table.num_rows != len(ids) or order.null_count:
        raise RuntimeError(f"a shard of {len(ids)} rows came out with {table.num_rows}")
    return table.take(order).combine_chunks()


def _batch(columns: tuple[list[Any], ...], model: str) -> pa.RecordBatch:
    values = dict(zip(_WRITTEN, columns, strict=True)) | {"model": [model] * len(columns[0])}
    return pa.record_batch([pa.array(values[kind.name], kind.type) for kind in TEXTS], schema=TEXTS)
