"""Targets and texts of a batch side by side, as plain lists."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.check.duplicates import text_key
from obverse.engine.check.mention import Entity
from obverse.engine.check.normalise import normalise
from obverse.engine.errors import InputError
from obverse.engine.records.linearise import Triple
from obverse.engine.records.schemas import TRIPLETS, require_columns

__all__ = ["Target", "Targets", "align", "target_key"]


@dataclass(frozen=True, slots=True)
class Target:
    """The triplets of one row: its facts by surface form, and its entities, each once."""

    triples: list[Triple]
    entities: list[Entity]


def align(targets: pa.Table, texts: pa.Table) -> pa.Table:
    """The rows of ``targets`` for the ids of ``texts``, in their order.

    Raises `InputError` for a text whose id no target has.
    """
    require_columns(targets, "id", what="targets")
    require_columns(texts, "id", "text", what="texts")
    wanted, have = texts["id"].combine_chunks(), targets["id"].combine_chunks()
    if wanted.equals(have):
        return targets
    places = pc.index_in(wanted, value_set=have)
    if places.null_count:
        row = places.is_null().to_numpy(zero_copy_only=False).argmax()
        raise InputError("a target for every text", row=int(row), field="id", seen=texts["id"][int(row)].as_py())
    return targets.take(places)


class Targets(Sequence[Target | None]):
    """The triplets of each row of a table; None for a row without (a label's, or one without triplets).

    A row's objects are made when asked for, from flat lists of strings: a batch of them all at once would keep
    Python's garbage collector busy for longer than the checks take.

    Raises `InputError` for a triplet that lacks a surface form.
    """

    def __init__(self, table: pa.Table) -> None:
        self._bounds: list[int] = [0] * (table.num_rows + 1)
        self._names: list[list[str]] = [[], [], []]
        self._uris: list[list[str | None]] = [[], []]
        if "triplets" not in table.column_names or pa.types.is_null(table["triplets"].type):
            return
        # A null list has no values between its offsets once its array is made anew.
        column = pc.fill_null(table["triplets"].combine_chunks(), pa.scalar([], TRIPLETS))
        first, last = column.offsets[0].as_py(), column.offsets[-1].as_py()
        values = column.values.slice(first, last - first)
        self._bounds = pc.subtract(column.offsets, first).to_pylist()
        names = [pc.struct_field(values, [role, "surfaceform"]) for role in ("subject", "predicate", "object")]
        for name in names:
            if name.null_count:
                place = name.is_null().to_numpy(zero_copy_only=False).argmax()
                row = bisect.bisect_right(self._bounds, int(place)) - 1
                raise InputError("a surface form in every part of a triplet", row=row, field="triplets")
        self._names = [name.to_pylist() for name in names]
        self._uris = [pc.struct_field(values, [role, "uri"]).to_pylist() for role in ("subject", "object")]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, row: int) -> Target | None: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Target | None]: ...
    def __getitem__(self, row: int | slice) -> Target | Sequence[Target | None] | None:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        low, high = self._bounds[row], self._bounds[row + 1]
        if low == high:
            return None
        names = [part[low:high] for part in self._names]
        ends = zip(self._uris[0][low:high], names[0], self._uris[1][low:high], names[2], strict=True)
        entities: dict[Entity, None] = {}
        for subject_uri, subject, object_uri, object_ in ends:
            entities[Entity(subject_uri, subject)] = None
            entities[Entity(object_uri, object_)] = None
        return Target(list(map(Triple, *names)), list(entities))


def target_key(target: Target) -> int:
    """A key that two targets share when their triplets are the same set, in any order, by surface form.

    Surface forms, not uris: held-out sets often have no uris, and what a model learns is the written form.
    """
    lines = sorted({"\x1f".join(normalise(part) for part in triple) for triple in target.triples})
    return text_key("\x1e".join(lines))


def text_lists(texts: pa.Table) -> tuple[list[str | None], list[str | None], np.ndarray]:
    """The texts, finish reasons (None where the column is missing) and ids of a batch."""
    bodies = texts["text"].to_pylist()
    reasons = texts["finish_reason"].to_pylist() if "finish_reason" in texts.column_names else [None] * len(bodies)
    return bodies, reasons, texts["id"].to_numpy().astype(np.int64, copy=False)
