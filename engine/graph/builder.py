"""Builds a `KnowledgeGraph` from a stream of entities and edges: the one way in for every loader."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from obverse.engine.graph.graph import ENTITIES, RELATIONS, Edges, KnowledgeGraph
from obverse.engine.graph.names import clean_alias_lists

__all__ = ["GraphBuilder", "first_occurrences"]


def first_occurrences(heads: Edges, predicates: Edges, tails: Edges) -> npt.NDArray[np.int64]:
    """Positions of the edges that no earlier edge equals, ascending."""
    order = np.lexsort((tails, predicates, heads))  # stable: of equal edges the earliest comes first
    columns = [column[order] for column in (heads, predicates, tails)]
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    positions: npt.NDArray[np.int64] = np.sort(order[fresh])
    return positions


Rows = Sequence[int] | npt.NDArray[np.integer[Any]]


class GraphBuilder:
    """Collects entities and relations by uri, in order of first appearance, and edges by row.

    Names must be clean already (`names.clean_name`); aliases are cleaned here, all at once. An edge given twice counts
    once.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.notes: Counter[str] = Counter()
        self._entities: dict[str, int] = {}
        self._relations: dict[str, int] = {}
        self._names: list[str] = []
        self._types: list[str | None] = []
        self._alias_values: list[str] = []
        self._alias_offsets = array("q", [0])
        self._relation_names: list[str] = []
        self._edges = (array("i"), array("i"), array("i"))

    def entity(self, uri: str, name: str, kind: str | None = None, aliases: Iterable[str | None] = ()) -> int:
        """The row of the entity ``uri``; the first call for a uri adds it, later ones change nothing."""
        row = self._entities.get(uri)
        if row is None:
            row = self._entities[uri] = len(self._names)
            self._names.append(name)
            self._types.append(kind)
            self._alias_values.extend(dict.fromkeys(alias for alias in aliases if alias))
            self._alias_offsets.append(len(self._alias_values))
        return row

    def relation(self, uri: str, name: str) -> int:
        """The row of the relation ``uri``; the first call for a uri adds it, later ones change nothing."""
        row = self._relations.get(uri)
        if row is None:
            row = self._relations[uri] = len(self._relation_names)
            self._relation_names.append(name)
        return row

    def find(self, uri: str) -> int | None:
        """The row of the entity ``uri``, or None."""
        return self._entities.get(uri)

    def edge(self, head: int, predicate: int, tail: int) -> None:
        """Add the edge of three rows."""
        for column, row in zip(self._edges, (head, predicate, tail), strict=True):
            column.append(row)

    def add_edges(self, heads: Rows, predicates: Rows | int, tails: Rows) -> None:
        """Add edges of rows, elementwise; one int as ``predicates`` is the relation of all."""
        for column, rows in zip(self._edges, np.broadcast_arrays(heads, predicates, tails), strict=True):
            column.frombytes(rows.astype(np.int32).tobytes())

    def note(self, reason: str, count: int = 1) -> None:
        """Count something left out."""
        if count:
            self.notes[reason] += count

    def build(self) -> KnowledgeGraph:
        """The graph; edges in order of first appearance, repeats counted in the notes."""
        names = pa.array(self._names, pa.string())
        offsets = np.frombuffer(self._alias_offsets, dtype=np.int64).astype(np.int32)
        aliases = pa.ListArray.from_arrays(offsets, pa.array(self._alias_values, pa.string()))
        columns = [list(self._entities), names, clean_alias_lists(names, aliases), self._types]
        entities = pa.table(columns, schema=ENTITIES)
        relations = pa.table([list(self._relations), self._relation_names], schema=RELATIONS)
        heads, predicates, tails = (np.array(column, dtype=np.int32) for column in self._edges)
        first = first_occurrences(heads, predicates, tails)
        if len(first) < len(heads):
            self.note("repeated edges", len(heads) - len(first))
        heads, predicates, tails = heads[first], predicates[first], tails[first]
        return KnowledgeGraph(
            self.name, entities, relations, heads, predicates, tails, dict(sorted(self.notes.items()))
        )
