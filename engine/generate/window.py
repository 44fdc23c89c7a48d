"""The rolling window: rows stream through a backend across shard borders; a shard comes out when it is whole.

There is no barrier between shards: while one shard waits for its slowest row, rows of the next are already
in flight. What is held is the shards that have a row in flight, and the backend's appetite bounds those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa

from obverse.engine.errors import InputError
from obverse.engine.generate.protocol import Completion, Request
from obverse.engine.records.keys import content_hash
from obverse.engine.records.schemas import TEXTS, require_columns

__all__ = ["OpenShards", "RowError"]

SLICE = 1024  # rows of a shard held as Python objects at once


class RowError(Exception):
    """A row whose prompt can't be built; it fails alone, with this message."""


class OpenShards:
    """Shards with rows still to come.

    ``build`` turns a target row into a `Request` (given its shard's index) or raises `RowError`.
    """

    def __init__(
        self,
        shards: Iterable[tuple[int, pa.Table]],
        build: Callable[[dict[str, Any], int], Request],
        model: str,
        seed_of: Callable[[int], int],
    ) -> None:
        self._shards = iter(shards)
        self._build = build
        self._model = model
        self._seed_of = seed_of
        self._open: dict[int, _Shard] = {}
        self._home: dict[int, int] = {}  # id of a row in an open shard -> its shard's index
        self._whole: list[tuple[int, pa.Table]] = []
        self._failed: list[Completion] = []

    def requests(self) -> Iterator[Request]:
        """Every row as a request, in order; rows that fail here are kept for `take_failed`."""
        for index, table in self._shards:
            self._begin(index, table)
            for first in range(0, table.num_rows, SLICE):
                for row in table.slice(first, SLICE).to_pylist():
                    try:
                        request = self._build(row, index)
                    except RowError as error:
                        reason = " ".join(str(error).split())
                        failure = Completion(row["id"], None, f"error: {reason[:300]}", None, None)
                        self._failed.append(failure)
                        self.place(failure)
                    else:
                        self._open[index].hashes[row["id"]] = content_hash(request.prompt)
                        yield request

    def place(self, completion: Completion) -> None:
        """Put a finished row into its shard; a shard that this makes whole is ready for `take_whole`."""
        index = self._home.get(completion.id)
        if index is None or completion.id in self._open[index].done:
            raise RuntimeError(f"the backend answered row {completion.id}, which is not in flight")
        shard = self._open[index]
        shard.done[completion.id] = completion
        if len(shard.done) == len(shard.ids):
            self._close(index)

    def take_whole(self) -> Iterator[tuple[int, pa.Table]]:
        """Shards that became whole since the last call, as TEXTS tables in their targets' order."""
        whole, self._whole = self._whole, []
        yield from whole

    def take_failed(self) -> list[Completion]:
        """Rows whose prompt could not be built since the last call (already placed)."""
        failed, self._failed = self._failed, []
        return failed

    @property
    def missing(self) -> int:
        """Rows of open shards that no completion has come for."""
        return sum(len(shard.ids) - len(shard.done) for shard in self._open.values())

    def _begin(self, index: int, table: pa.Table) -> None:
        require_columns(table, "id", what="targets")
        ids = table.column("id").to_pylist()
        if index in self._open:
            raise InputError("each shard once", field="shard", seen=index)
        for row_id in ids:
            if row_id is None or row_id in self._home:
                raise InputError("a unique id", row=row_id, field="id", seen=row_id)
            self._home[row_id] = index
        self._open[index] = _Shard(ids)
        if not ids:
            self._close(index)

    def _close(self, index: int) -> None:
        shard = self._open.pop(index)
        for row_id in shard.ids:
            del self._home[row_id]
        self._whole.append((index, shard.table(self._model, self._seed_of)))


class _Shard:
    """The rows of one open shard: ids in the target's order, and what is done so far."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.hashes: dict[int, str] = {}
        self.done: dict[int, Completion] = {}

    def table(self, model: str, seed_of: Callable[[int], int]) -> pa.Table:
        rows = [self.done[row_id] for row_id in self.ids]
        return pa.table(
            {
                "id": self.ids,
                "text": [row.text for row in rows],
                "prompt_hash": [self.hashes.get(row_id) for row_id in self.ids],
                "model": [model] * len(rows),
                "seed": [seed_of(row_id) for row_id in self.ids],
                "finish_reason": [row.finish_reason for row in rows],
                "num_prompt_tokens": [row.num_prompt_tokens for row in rows],
                "num_output_tokens": [row.num_output_tokens for row in rows],
            },
            schema=TEXTS,
        )
