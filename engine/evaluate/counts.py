"""From a PREDICTIONS table to integers: what each record, and each relation in each record, got right.

Sets of triplets are compared exactly (SynthIE, arXiv 2303.04132, section 4.2): a repeated triplet counts once, and a
triplet is right when its subject, relation and object all equal a gold triplet's of the same record.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from obverse.engine.errors import InputError
from obverse.engine.records.schemas import PREDICTIONS, require_columns

__all__ = ["UNLINKED", "Entries", "LabelCounts", "TripletCounts", "count_labels", "count_triplets", "sorted_by_id"]

Ints = NDArray[np.int64]

# Marks a predicted name without a uri when matching by uri: no gold uri can equal it.
UNLINKED = "\x00unlinked:"


class Entries(NamedTuple):
    """A sparse [records x groups] matrix of counts, sorted by group; every group has at least one entry."""

    record: Ints
    """[E] row of each entry."""
    starts: Ints
    """[G] index of each group's first entry."""
    counts: Ints
    """[E, 3] correct, predicted, gold."""

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.starts)

    def totals(self) -> Ints:
        """[G, 3] sums over all records."""
        if not len(self.starts):
            return np.zeros((0, 3), np.int64)
        return np.add.reduceat(self.counts, self.starts, axis=0)


class TripletCounts(NamedTuple):
    """Counts of one predictions table of N records, in order of id."""

    ids: Ints
    """[N]"""
    per_record: Ints
    """[N, 3] correct, predicted, gold."""
    by_relation: Entries
    """Group g is relation ``relations[g]``."""
    relations: list[str]
    """[R] names (or uris, when linked), sorted."""
    relation_names: dict[str, str]
    """Name of each uri when linked, else empty."""
    gold_keys: tuple[str, ...]
    """[N] one string per record, equal where the gold sets are equal."""


class LabelCounts(NamedTuple):
    """Labels of one predictions table of N records, in order of id, as indices into ``labels``."""

    ids: Ints
    gold: Ints
    """[N] in [0, K)."""
    predicted: Ints
    """[N] in [0, K]; K stands for no label at all."""
    labels: list[str]
    """[K] sorted; every label in gold or prediction."""


def sorted_by_id(predictions: pa.Table, *columns: str) -> tuple[Ints, pa.Table]:
    """The ids in ascending order and ``columns`` in that order; raises `InputError` on none, nulls or repeats."""
    require_columns(predictions, "id", *columns, what="predictions")
    if predictions.num_rows == 0:
        raise InputError("at least one row in the predictions table", seen="an empty table")
    if predictions.column("id").null_count:
        raise InputError("an id in every row of the predictions table", field="id", seen="null")
    ids = predictions.column("id").to_numpy().astype(np.int64)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    repeats = np.flatnonzero(ids[1:] == ids[:-1])
    if len(repeats):
        raise InputError("each id once in the predictions table", field="id", seen=int(ids[repeats[0]]))
    return ids, predictions.select(list(columns)).take(pa.array(order))


def count_triplets(predictions: pa.Table, *, linked: bool) -> TripletCounts:
    """Compare ``gold`` and ``predicted`` of every record.

    A null ``predicted`` is an empty set; a null ``gold`` is an error, as is a table without any gold triplet.
    """
    ids, table = sorted_by_id(predictions, "gold", "predicted")
    gold_list, predicted_list = (_triplets(table, name, ids) for name in ("gold", "predicted"))
    if gold_list.null_count:
        row = int(np.flatnonzero(gold_list.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError("gold triplets (a list, perhaps empty)", field="gold", seen=f"null at id {ids[row]}")
    if predicted_list.null_count == len(ids):
        raise InputError("predicted triplets", field="predicted", seen="null in every row")
    gold_record, gold_names = _names(gold_list, ids, "gold", linked=linked)
    predicted_record, predicted_names = _names(predicted_list, ids, "predicted", linked=linked)
    if not len(gold_record):
        raise InputError("at least one gold triplet", field="gold", seen="only empty lists")
    triple, relation_of, relations = _encode(gold_names, predicted_names)
    num = len(relation_of)
    gold = np.unique(gold_record * num + triple[: len(gold_record)])
    predicted = np.unique(predicted_record * num + triple[len(gold_record) :])
    correct = np.intersect1d(gold, predicted, assume_unique=True)
    facts = (correct, predicted, gold)
    per_record = np.stack([np.bincount(f // num, minlength=len(ids)) for f in facts], axis=1)
    by_relation = _entries([(f // num, relation_of[f % num]) for f in facts], len(relations))
    names = _relation_names([predicted_list, gold_list]) if linked else {}
    keys = _gold_keys(gold_record, gold_names, len(ids))
    return TripletCounts(ids, per_record.astype(np.int64), by_relation, relations, names, keys)


def count_labels(predictions: pa.Table) -> LabelCounts:
    """Encode ``gold_label`` and ``predicted_label``; a null prediction is wrong and of no class."""
    ids, table = sorted_by_id(predictions, "gold_label", "predicted_label")
    gold, predicted = (_strings(table.column(name), name) for name in ("gold_label", "predicted_label"))
    if gold.null_count:
        row = int(np.flatnonzero(gold.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError("a gold label", field="gold_label", seen=f"null at id {ids[row]}")
    if predicted.null_count == len(ids):
        raise InputError("predicted labels", field="predicted_label", seen="null in every row")
    labels = sorted({*gold.unique().to_pylist(), *predicted.drop_null().unique().to_pylist()})
    values = pa.array(labels, pa.string())
    index = [pc.fill_null(pc.index_in(column, values), len(labels)) for column in (gold, predicted)]
    codes = [i.to_numpy().astype(np.int64) for i in index]
    return LabelCounts(ids, codes[0], codes[1], labels)


def _strings(column: pa.ChunkedArray, name: str) -> pa.Array:
    try:
        return _one(column.cast(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError("strings", field=name, seen=str(column.type)) from error


def _one(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)


def _triplets(table: pa.Table, name: str, ids: Ints) -> pa.Array:
    """The list column ``name`` as PREDICTIONS has it: [N] lists of triplets."""
    try:
        return _one(table.column(name).cast(PREDICTIONS.field(name).type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, ValueError) as error:
        seen = str(table.column(name).type)
        raise InputError("lists of triplets (subject, predicate, object)", field=name, seen=seen) from error


def _names(lists: pa.Array, ids: Ints, column: str, *, linked: bool) -> tuple[Ints, list[pa.Array]]:
    """The record of each triplet, and its three names as string arrays."""
    record = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    flat = lists.flatten()
    return record, [_part(flat, part, column, record, ids, linked) for part in ("subject", "predicate", "object")]


def _part(flat: pa.Array, part: str, column: str, record: Ints, ids: Ints, linked: bool) -> pa.Array:
    surface = pc.struct_field(flat, [part, "surfaceform"])
    names = surface
    if linked:
        names = pc.struct_field(flat, [part, "uri"])
        if column == "predicted":
            names = pc.coalesce(names, pc.binary_join_element_wise(UNLINKED, surface, ""))
    if names.null_count:
        row = int(np.flatnonzero(names.is_null().to_numpy(zero_copy_only=False))[0])
        what = "uri" if linked and column == "gold" else "surfaceform"
        seen = f"null at id {ids[record[row]]}"
        raise InputError(f"a {what} of every {part}", field=f"{column}.{part}.{what}", seen=seen)
    return names


def _relation_names(lists: list[pa.Array]) -> dict[str, str]:
    """A name of each relation's uri; a later list's names win; a name without a uri stands for itself."""
    names: dict[str, str] = {}
    for array in lists:
        parts = (pc.struct_field(array.flatten(), ["predicate", part]).to_pylist() for part in ("uri", "surfaceform"))
        found = {uri or UNLINKED + name: name or uri for uri, name in dict.fromkeys(zip(*parts, strict=True))}
        names |= found
    return names


def _encode(gold: list[pa.Array], predicted: list[pa.Array]) -> tuple[Ints, Ints, list[str]]:
    """A number for each distinct triplet: ([gold + predicted] numbers, [T] relation of each, relation names)."""
    codes, relations = [], []
    for part, (left, right) in enumerate(zip(gold, predicted, strict=True)):
        encoded = pa.concat_arrays([left, right]).dictionary_encode()
        names = encoded.dictionary.to_pylist()
        code = encoded.indices.to_numpy().astype(np.int64)
        if part == 1:  # relations in order of name, so that tables don't depend on order of rows
            rank = np.empty(len(names), np.int64)
            rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
            code, relations = rank[code], sorted(names)
        codes.append(code)
    subject, relation, obj = codes
    _, pair = np.unique(subject * (obj.max(initial=0) + 1) + obj, return_inverse=True)
    distinct, triple = np.unique(pair * len(relations) + relation, return_inverse=True)
    return triple.astype(np.int64), distinct % len(relations), relations


def _entries(facts: list[tuple[Ints, Ints]], num_groups: int) -> Entries:
    """Count (record, group) pairs of correct, predicted and gold facts; group-major order."""
    num_records = max((int(record.max(initial=-1)) for record, _ in facts), default=-1) + 1
    keys = [group * num_records + record for record, group in facts]
    distinct = np.unique(np.concatenate(keys))
    counts = np.zeros((len(distinct), len(keys)), np.int64)
    for column, key in enumerate(keys):
        counts[:, column] = np.bincount(np.searchsorted(distinct, key), minlength=len(distinct))
    starts = np.searchsorted(distinct // num_records, np.arange(num_groups))
    return Entries(distinct % num_records, starts.astype(np.int64), counts)


def _gold_keys(record: Ints, names: list[pa.Array], num_records: int) -> tuple[str, ...]:
    """One string per record that is equal exactly where the gold sets are equal."""
    joined = pc.binary_join_element_wise(*names, "\x1f").to_pylist()
    sets: list[set[str]] = [set() for _ in range(num_records)]
    for row, text in zip(record.tolist(), joined, strict=True):
        sets[row].add(text)
    return tuple("\x1e".join(sorted(found)) for found in sets)
