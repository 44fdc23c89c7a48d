"""What triplets may be, in the users' words (names, URIs, types, texts), as the numbers that the core wants."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.errors import InputError
from obverse.engine.records.schemas import require_columns

if TYPE_CHECKING:
    from obverse._core import Subset
    from obverse.engine.decode.catalog import Catalog
    from obverse.engine.decode.name_index import NameIndex

__all__ = ["TripletRules", "graph_rules", "mentioned", "subset_of", "type_rules"]

# Scripts that write no spaces between words, or add particles to them: Thai to Tibetan, Burmese, Khmer, kana and
# ideographs, Hangul. There every character may begin or end a name.
_UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
_PIECE = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_LONGEST = 16


@dataclass(frozen=True)
class TripletRules:
    """What triplets may be; see `Catalog.constraint`.

    Attributes:
        types: subject and object types by relation.
        graph: ``subject``, ``predicate``, ``object``.
        only_graph: whether nothing but the graph's triplets, or none of them, may be written.
    """

    types: Mapping[str, tuple[Sequence[str], Sequence[str]]] | None = None
    graph: pa.Table | None = None
    only_graph: bool = True


def type_rules(
    catalog: Catalog, rules: Mapping[str, tuple[Sequence[str], Sequence[str]]]
) -> tuple[list[list[int]], list[list[int]], np.ndarray, np.ndarray]:
    """``Constraint(types=...)`` from subject and object types by relation (a name or a URI).

    An empty sequence means any entity, as do relations that are not named. Of a type that no entity has nothing is
    said: it only excludes.

    Raises:
        InputError: a relation is not in the catalogue, or the catalogue's entities have no types.
    """
    assert catalog.relations is not None
    names, codes, offsets = catalog.entities.type_codes()
    if not names:
        raise InputError("a catalogue whose entities have types (a column `types`)", field="types")
    code = {name: i for i, name in enumerate(names)}
    subject: list[list[int]] = [[] for _ in range(len(catalog.relations))]
    object_: list[list[int]] = [[] for _ in range(len(catalog.relations))]
    rows = _rows_by_value(catalog.relations, list(rules))
    for (relation, wanted), found in zip(rules.items(), rows, strict=True):
        if not len(found):
            raise InputError("a relation of the catalogue, by name or URI", field="types", seen=relation)
        for row in found:
            for side, kinds in ((subject, wanted[0]), (object_, wanted[1])):
                # One more than the largest code is a type that nothing has.
                side[row] = [code.get(kind, len(names)) for kind in kinds]
    return subject, object_, codes, offsets


def graph_rules(catalog: Catalog, triples: pa.Table, *, only: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """``Constraint(graph=...)`` from a table of ``subject``, ``predicate``, ``object``: URIs or names.

    A URI stands for every name of its entity. Where the table has ``subject_name`` and so on, they serve for what is
    not found by the first. Triplets with an entity or relation that the catalogue lacks can't be
    written anyway and are left out.

    Raises:
        InputError: a column is missing, or no triplet at all is the catalogue's.
    """
    require_columns(triples, "subject", "predicate", "object", what="graph")
    assert catalog.relations is not None
    columns = []
    for column, index in (
        ("subject", catalog.entities),
        ("predicate", catalog.relations),
        ("object", catalog.entities),
    ):
        columns.append(_coded_rows(index, triples[column]))
        if f"{column}_name" in triples.column_names:
            columns[-1] = _or_else(columns[-1], _coded_rows(index, triples[f"{column}_name"]))
    subjects, predicates, objects = (_expand(columns, place) for place in range(3))
    if not len(subjects):
        raise InputError("triplets of the catalogue's names or URIs", field="graph", seen=f"{len(triples)} others")
    return subjects, predicates, objects, only


Coded = tuple[np.ndarray, list[np.ndarray]]
"""A column as codes, and the rows of the catalogue that each code stands for."""


def _coded_rows(index: NameIndex, values: pa.ChunkedArray) -> Coded:
    coded = values.cast(pa.string()).combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    return coded.indices.to_numpy(zero_copy_only=False), _rows_by_value(index, coded.dictionary.to_pylist())


def _or_else(first: Coded, second: Coded) -> Coded:
    """The first column, and the second where the first stands for nothing."""
    found = np.array([len(rows) > 0 for rows in first[1]], bool)
    codes = np.where(found[first[0]], first[0], second[0] + len(first[1]))
    return codes, [*first[1], *second[1]]


def _expand(columns: list[Coded], place: int) -> np.ndarray:
    """One column of row numbers, each triplet repeated for every choice of names."""
    counts = [np.array([len(rows) for rows in found], np.int64)[codes] for codes, found in columns]
    repeats = counts[0] * counts[1] * counts[2]
    codes, found = columns[place]
    flat = np.concatenate([np.zeros(0, np.int64), *found])
    starts = np.concatenate([[0], np.cumsum([len(rows) for rows in found])])[:-1].astype(np.int64)
    within = np.arange(int(repeats.sum())) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    inner = np.prod(counts[place + 1 :], axis=0, dtype=np.int64) * np.ones(len(codes), np.int64)
    choice = (within // np.repeat(inner, repeats)) % np.repeat(counts[place], repeats)
    rows: np.ndarray = flat[np.repeat(starts[codes], repeats) + choice].astype(np.int32)
    return rows


def _rows_by_value(index: NameIndex, values: list[str | None]) -> list[np.ndarray]:
    """For each value the rows that it names: those of a URI, else the row of a name, else none."""
    known = [value or "" for value in values]
    uris = index.table["uris"].combine_chunks()
    uris = uris.chunk(0) if isinstance(uris, pa.ChunkedArray) else uris
    owners = np.repeat(np.arange(len(index)), pc.list_value_length(uris).to_numpy(zero_copy_only=False))
    place = pc.index_in(uris.flatten(), value_set=pa.array(dict.fromkeys(known), pa.string()))
    place = place.fill_null(-1).to_numpy(zero_copy_only=False)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(known) + 1))
    number = {value: i for i, value in enumerate(dict.fromkeys(known))}
    by_name = index.rows_of(known)
    found = []
    for value, row in zip(known, by_name, strict=True):
        at = number[value]
        rows = owners[order[starts[at] : starts[at + 1]]]
        found.append(rows if len(rows) else np.array([] if row is None else [row], np.int64))
    return found


def subset_of(catalog: Catalog, values: Iterable[str]) -> Subset:
    """These entities alone, by name or URI. Raises `InputError` on one that the catalogue lacks."""
    from obverse._core import Subset

    wanted = list(values)
    rows = _rows_by_value(catalog.entities, list(wanted))
    for place, (value, found) in enumerate(zip(wanted, rows, strict=True)):
        if not len(found):
            raise InputError("an entity of the catalogue, by name or URI", row=place, field="entities", seen=value)
    nodes = catalog.entities.nodes_of(np.concatenate([np.zeros(0, np.int64), *rows]))
    return Subset(catalog.entities.trie, nodes)


def mentioned(catalog: Catalog, text: str) -> Subset:
    """The entities whose name stands in ``text`` as it is written there, from word border to word border.

    Looks up every run of up to 16 words, punctuation marks and (in scripts without spaces) characters: about a
    millisecond for a paragraph, whatever the catalogue's size.
    """
    from obverse._core import Subset

    pieces = [match.span() for match in _PIECE.finditer(text)]
    spans = {text[start:end] for place, (start, _) in enumerate(pieces) for _, end in pieces[place : place + _LONGEST]}
    rows = [row for row in catalog.entities.rows_of(sorted(spans)) if row is not None]
    return Subset(catalog.entities.trie, catalog.entities.nodes_of(rows))
