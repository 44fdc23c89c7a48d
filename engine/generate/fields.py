"""The columns of targets as prompts see them: names out of nested Arrow, without a Python object for every struct."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.errors import InputError
from obverse.engine.records.linearise import Triple

__all__ = ["ROLES", "Columns", "Triplet", "TripletColumn", "attributes_of", "is_missing", "python_list", "triples_in"]

ROLES = ("subject", "predicate", "object")


class Triplet(dict[str, str]):
    """A triplet's three names as templates see it: ``t.subject`` or ``t["subject"]``."""

    __slots__ = ()


def triples_in(target: Mapping[str, Any]) -> list[Triple]:
    """The triples of one row; a name is a string or an object with ``surfaceform``.

    Raises `InputError` naming row and field where one is missing.
    """
    found = []
    for place, triplet in enumerate(target.get("triplets") or ()):
        names = []
        for role in ROLES:
            name = triplet.get(role) if isinstance(triplet, Mapping) else None
            if isinstance(name, Mapping):
                name = name.get("surfaceform")
            if not isinstance(name, str):
                raise InputError(
                    "a surface form", row=target.get("id"), field=f"triplets[{place}].{role}", seen=triplet
                )
            names.append(name)
        found.append(Triple(*names))
    return found


def attributes_of(value: object) -> Mapping[str, Any]:
    """The attributes of one row: a JSON object's text, or what Arrow makes of a struct or map.

    Raises ``ValueError`` for anything else.
    """
    if not value:
        return {}
    found = json.loads(value) if isinstance(value, str) else value
    if isinstance(found, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in found):
        found = dict(found)
    if not isinstance(found, Mapping):
        raise ValueError(f"attributes: expected a JSON object, saw {value!r}")
    return found


def is_missing(value: object) -> bool:
    """Whether a field has nothing in it: null, or an empty text or list (0 and false are something)."""
    return value is None or (isinstance(value, Sized) and len(value) == 0)


def python_list(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """A column as a list, None for null."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        # Several times the speed of to_pylist, which makes a scalar object for each.
        try:
            return list(column.to_numpy(zero_copy_only=False).tolist()) if len(column) else []
        except pa.ArrowException:
            pass  # bytes that are no UTF-8: to_pylist says it as Python does
    return list(column.to_pylist())


class TripletColumn:
    """The names of a column of triplets, all rows' end to end."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        """``column`` is list<struct<subject, predicate, object>>, each a string or a struct with ``surfaceform``.

        A column of another type has no sound rows.
        """
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        if pa.types.is_null(column.type):
            chunks = []
        parts = [_flat(chunk) for chunk in chunks]
        self.ends: npt.NDArray[np.int64] = np.zeros(len(column) + 1, np.int64)
        """Where each row's names begin and end: [n + 1]."""
        self.sound: npt.NDArray[np.bool_] = np.full(len(column), not chunks)
        """Whether a row has every name (an empty or null list lacks none): [n]."""
        self.names: list[pa.Array] = [pa.array([], pa.string())] * 3
        """Subjects, predicates, objects: strings [ends[n]] each."""
        if parts and all(part is not None for part in parts):
            self._fill(chunks, [part for part in parts if part is not None])

    def _fill(self, chunks: list[pa.Array], parts: list[list[pa.Array]]) -> None:
        lengths = [pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False) for chunk in chunks]
        np.cumsum(np.concatenate(lengths), out=self.ends[1:])
        self.names = [pa.concat_arrays([part[role] for part in parts]) for role in range(3)]
        missing = np.zeros(len(self.names[0]), bool)
        for names in self.names:
            if names.null_count:
                missing |= names.is_null().to_numpy(zero_copy_only=False)
        self.sound[:] = True
        if missing.any():
            before = np.concatenate(([0], np.cumsum(missing)))
            self.sound[:] = before[self.ends[1:]] == before[self.ends[:-1]]

    def facts(self, suffix: str = "") -> list[str | None]:
        """Each row fully expanded (`records.linearise`), then ``suffix``; None where not sound."""
        return self.written(("[s] ", " [r] ", " [o] ", " [e]"), " ", ("", suffix))

    def written(self, marks: tuple[str, str, str, str], between: str, ends: tuple[str, str]) -> list[str | None]:
        """Each row's triplets, each with ``marks`` before, between and behind its names; None where not sound."""
        subject, predicate, thing = self.names
        first, second, third, last = marks
        joined = pc.binary_join_element_wise(first, subject, second, predicate, third, thing, last, "")
        lists = pa.ListArray.from_arrays(pa.array(self.ends, pa.int32()), joined)
        text = pc.binary_join(lists, between)
        if any(ends):
            text = pc.binary_join_element_wise(ends[0], text, ends[1], "")
        if not self.sound.all():
            text = pc.if_else(pa.array(self.sound), text, pa.scalar(None, pa.string()))
        return python_list(text)

    def lists(self) -> list[list[Triplet]]:
        """Each row's triplets; wrong where not sound."""
        names = zip(*(python_list(names) for names in self.names), strict=True)
        flat = [Triplet(subject=s, predicate=p, object=o) for s, p, o in names]
        ends: Sequence[int] = self.ends.tolist()
        return [flat[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]


class Columns:
    """The fields of a table's rows, each column made into Python objects once and only where it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.names = table.column_names
        nulls = pa.chunked_array([pa.nulls(table.num_rows)])
        column = table["triplets"] if "triplets" in self.names else nulls
        self.has_triplets: npt.NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
        """Whether a row's list is not null: [n]."""
        self.triplets = TripletColumn(column)
        self._cells: dict[str, Sequence[Any]] = {}

    def cells(self, name: str) -> Sequence[Any]:
        """A field of every row, derived ones (``triplets``, ``facts``, ``attributes``, ``row``) among them."""
        if name not in self._cells:
            self._cells[name] = self._made(name)
        return self._cells[name]

    def whole(self, names: Collection[str], needed: str | None) -> list[bool]:
        """Whether each row has sound fields of these ``names``, and something in the column ``needed``."""
        sound = np.ones(self._table.num_rows, bool)
        if needed == "triplets" or "triplets" in names or "facts" in names:
            sound &= self.triplets.sound
        if needed == "triplets":
            sound &= self.triplets.ends[1:] > self.triplets.ends[:-1]
        elif needed is not None:
            sound &= [not is_missing(value) for value in self.cells(needed)] if needed in self.names else False
        if "attributes" in names:
            sound &= [value is not None for value in self.cells("attributes")]
        return list(sound.tolist())

    def _made(self, name: str) -> Sequence[Any]:
        if name == "triplets":
            return self.triplets.lists()
        if name == "facts":
            return self.triplets.facts()
        if name == "row" and name not in self.names:
            return list(self._table.to_pylist())
        if name == "attributes":
            return self._attributes()
        return python_list(self._table[name])

    def _attributes(self) -> list[Mapping[str, Any] | None]:
        """Parsed, each text once; None where it can't be."""
        if "attributes" not in self.names:
            return [{}] * self._table.num_rows
        known: dict[object, Mapping[str, Any] | None] = {}
        made = []
        for value in python_list(self._table["attributes"]):
            key = value if isinstance(value, str) else None if value is None else id(value)
            if key not in known:
                try:
                    known[key] = attributes_of(value)
                except ValueError:
                    known[key] = None
            made.append(known[key])
        return made


def _flat(chunk: pa.Array) -> list[pa.Array] | None:
    """The three columns of names of a chunk's triplets, or None where its type is another."""
    if not (pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)):
        return None
    triplets, found = chunk.flatten(), []  # only the rows of this slice, and none of null lists
    for role in ROLES:
        names = _child(_child(triplets, role), "surfaceform", or_itself=True)
        if names is None or not _is_text(names.type):
            return None
        found.append(names.cast(pa.string()))
    return found


def _child(values: pa.Array | None, name: str, *, or_itself: bool = False) -> pa.Array | None:
    if values is None or not pa.types.is_struct(values.type):
        return values if or_itself else None
    return pc.struct_field(values, [name]) if values.type.get_field_index(name) >= 0 else None


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
