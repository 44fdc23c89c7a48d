"""Graphs from a Wikidata JSON dump (.json, .json.gz, .json.bz2), by SynthIE's rules (arXiv 2303.04132).

- Disambiguation, list, category and Wikimedia-internal items are skipped, told by "instance of" (P31).
- Subject and object must have an English Wikipedia title; the title is the name, uris are ``Q...`` and ``P...``.
- Of a property's statements the first preferred one counts, else all normal ones; never a deprecated one.
- Only statements whose value is an item are edges; other values are counted as literals.

The dump is one JSON array with one entity a line. It is read once, a line at a time: kept are the names and aliases of
items that count (as Arrow), 16 bytes an edge, and the names of properties.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from obverse.engine.errors import InputError
from obverse.engine.graph.builder import first_occurrences
from obverse.engine.graph.graph import ENTITIES, RELATIONS, KnowledgeGraph
from obverse.engine.graph.lines import graph_name, read_lines
from obverse.engine.graph.names import clean_alias_lists, clean_name, has_brackets

__all__ = ["SKIPPED_CLASSES", "load_wikidata"]

SKIPPED_CLASSES = frozenset({4167410, 13406463, 17442446, 4167836})
_INSTANCE_OF = "P31"
_CHUNK = 65_536  # items turned into Arrow at once
_STEP = 10_000  # lines between two calls of on_progress


def load_wikidata(
    path: Path, *, relations: Collection[str] | None = None, on_progress: Callable[[int], None] | None = None
) -> KnowledgeGraph:
    """The graph of a Wikidata JSON dump (see the module's text).

    Args:
        path: the dump.
        relations: property ids (``P31``) that count; None for all.
        on_progress: called with the lines newly read.

    An entity's type is the name of its first P31 class, or the class's id where the class has no title. A property
    whose own entity is not in the dump is named by its id. Raises `InputError` for a line that is not an entity, with
    its row, and for a dump without a single edge.
    """
    for relation in relations or ():
        if not _number(relation, "P"):
            raise InputError("a property id such as P31", field="relations", seen=relation)
    reader = _Reader(path, None if relations is None else frozenset(relations))
    row = 0
    for row, line in read_lines(path):
        reader.read(line, row)
        if on_progress and row % _STEP == 0:
            on_progress(_STEP)
    if on_progress and row % _STEP:
        on_progress(row % _STEP)
    return reader.graph()


def _number(identifier: object, letter: str) -> int:
    """17 for "Q17"; 0 for anything that is no such id."""
    if isinstance(identifier, str) and identifier[:1] == letter and identifier[1:].isdecimal():
        return int(identifier[1:])
    return 0


class _Reader:
    def __init__(self, path: Path, allowed: frozenset[str] | None) -> None:
        self._path = path
        self._allowed = allowed
        self._notes: Counter[str] = Counter()
        self._ids, self._classes = array("q"), array("q")
        self._names: list[str] = []
        self._aliases: list[list[str]] = []
        self._chunks: list[pa.Table] = []
        self._properties: dict[str, int] = {}
        self._property_names: dict[str, str] = {}
        self._heads, self._predicates, self._tails = array("i"), array("i"), array("q")

    def read(self, line: bytes, row: int) -> None:
        text = line.strip().removesuffix(b",")
        if text in (b"[", b"]", b""):
            return
        if not (text.startswith(b"{") and text.endswith(b"}")):
            self._fail("one JSON object a line, inside [ ]", row, "line", text[:80])
        # Nine items in ten have no English title: a search for its key spares their parsing.
        if b'"enwiki"' not in text and b'"type":"property"' not in text and b'"type": "property"' not in text:
            self._notes["items without an English Wikipedia title"] += 1
            return
        try:
            entity = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            self._fail("a JSON object", row, "line", str(error), error)
        try:
            self._entity(entity, row)
        except (KeyError, TypeError, AttributeError) as error:
            self._fail(
                "an entity as in Wikidata's dumps",
                row,
                str(entity.get("id")),
                f"no {error}" if isinstance(error, KeyError) else str(error),
                error,
            )

    def _fail(self, expected: str, row: int, field: str, seen: object, cause: Exception | None = None) -> NoReturn:
        raise InputError(expected, file=self._path, row=row, field=field, seen=seen) from cause

    def _entity(self, entity: dict[str, Any], row: int) -> None:
        if entity["type"] == "property":
            if not _number(entity["id"], "P"):
                self._fail("a property id such as P31", row, "id", entity["id"])
            self._property_names[entity["id"]] = clean_name(_english(entity, "labels"))
            return
        if entity["type"] != "item":
            self._notes["entities that are no items"] += 1
            return
        number = _number(entity["id"], "Q")
        if not number:
            self._fail("an item id such as Q42", row, "id", entity["id"])
        title = clean_name((entity.get("sitelinks") or {}).get("enwiki", {}).get("title", ""))
        if not title:
            self._notes["items without an English Wikipedia title"] += 1
            return
        claims = entity.get("claims") or {}  # an item without statements has an empty list
        classes = list(_items(claims.get(_INSTANCE_OF, ())))
        if SKIPPED_CLASSES.intersection(classes):
            self._notes["disambiguation, list, category and internal items"] += 1
        elif has_brackets(title):
            self._notes["items with square brackets in the title"] += 1
        else:
            self._item(number, title, entity, next(_items(_chosen(claims.get(_INSTANCE_OF, ()))), 0))
            for property_id in sorted(claims, key=lambda pid: _number(pid, "P")):
                self._claims(len(self._ids) - 1, property_id, claims[property_id])

    def _item(self, number: int, title: str, entity: dict[str, Any], kind: int) -> None:
        given = (entity.get("aliases") or {}).get("en", ())
        aliases = [clean_name(value) for value in (_english(entity, "labels"), *(a["value"] for a in given))]
        self._ids.append(number)
        self._classes.append(kind)
        self._names.append(title)
        self._aliases.append([alias for alias in dict.fromkeys(aliases) if alias])
        if len(self._names) == _CHUNK:
            self._flush()

    def _claims(self, head: int, property_id: str, statements: list[dict[str, Any]]) -> None:
        if self._allowed is not None and property_id not in self._allowed:
            return
        chosen = _chosen(statements)
        targets = list(_items(chosen))
        self._notes["literals"] += sum(s["mainsnak"]["snaktype"] == "value" for s in chosen) - len(targets)
        if targets:
            predicate = self._properties.setdefault(property_id, len(self._properties))
            for target in targets:
                self._heads.append(head)
                self._predicates.append(predicate)
                self._tails.append(target)

    def _flush(self) -> None:
        names = pa.array(self._names, pa.string())
        aliases = clean_alias_lists(names, pa.array(self._aliases, pa.list_(pa.string())))
        self._chunks.append(pa.table({"name": names, "aliases": aliases}))
        self._names, self._aliases = [], []

    def graph(self) -> KnowledgeGraph:
        self._flush()
        items = pa.concat_tables(self._chunks)
        ids, classes = np.array(self._ids, dtype=np.int64), np.array(self._classes, dtype=np.int64)
        heads, predicates = np.array(self._heads, dtype=np.int32), np.array(self._predicates, dtype=np.int32)
        order = np.argsort(ids, kind="stable")
        repeated = np.flatnonzero(np.diff(ids[order]) == 0)
        if len(repeated):
            raise InputError("each item once", file=self._path, field="id", seen=f"Q{ids[order][repeated[0]]} twice")
        tails = _rows(ids, order, np.array(self._tails, dtype=np.int64))
        known = np.flatnonzero(tails >= 0)
        if not len(known):
            raise InputError("at least one edge between items that count", file=self._path, seen="none")
        self._notes["edges to items that don't count"] += len(tails) - len(known)
        heads, predicates, tails = heads[known], predicates[known], tails[known]
        first = first_occurrences(heads, predicates, tails)
        self._notes["repeated edges"] += len(heads) - len(first)
        columns = {
            "uri": pa.array([f"Q{number}" for number in ids.tolist()], pa.string()),
            "name": items["name"],
            "aliases": items["aliases"],
            "type": self._types(classes, _rows(ids, order, classes), items["name"]),
        }
        names = [self._property_names.get(property_id) or property_id for property_id in self._properties]
        return KnowledgeGraph(
            graph_name(self._path),
            pa.table(columns, schema=ENTITIES),
            pa.table([list(self._properties), names], schema=RELATIONS),
            heads[first],
            predicates[first],
            tails[first],
            {reason: count for reason, count in sorted(self._notes.items()) if count},
        )

    @staticmethod
    def _types(classes: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], names: pa.ChunkedArray) -> pa.Array:
        distinct, first, place = np.unique(classes, return_index=True, return_inverse=True)
        labels = [
            names[row].as_py() if row >= 0 else f"Q{number}" if number else None
            for number, row in zip(distinct.tolist(), rows[first].tolist(), strict=True)
        ]
        return pa.array(labels, pa.string()).take(pa.array(place))


def _english(entity: dict[str, Any], field: str) -> str:
    return str(((entity.get(field) or {}).get("en") or {}).get("value", ""))


def _chosen(statements: Collection[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first preferred statement, else all normal ones."""
    for statement in statements:
        if statement["rank"] == "preferred":
            return [statement]
    return [statement for statement in statements if statement["rank"] == "normal"]


def _items(statements: Collection[dict[str, Any]]) -> Iterator[int]:
    """Numbers of the items that statements have as values; other values, unknown and none are left out."""
    for statement in statements:
        snak = statement["mainsnak"]
        if snak["snaktype"] == "value" and snak["datavalue"]["type"] == "wikibase-entityid":
            value = snak["datavalue"]["value"]
            number = value.get("numeric-id") if value.get("entity-type") == "item" else _number(value.get("id"), "Q")
            if number:
                yield int(number)


def _rows(ids: np.ndarray[Any, Any], order: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The row of each wanted id, int32; -1 where there is none. ``order`` sorts ``ids``."""
    if not len(ids):
        return np.full(len(wanted), -1, dtype=np.int32)
    place = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    rows = order[place]
    return np.where(ids[rows] == wanted, rows, -1).astype(np.int32)
