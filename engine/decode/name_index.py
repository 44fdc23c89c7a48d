"""The names of one kind: from tokens to names to entities and back, without reading the whole table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.records.utf8 import utf8_bytes

if TYPE_CHECKING:
    from obverse._core import Trie

__all__ = ["Entity", "HashIndex", "NameIndex", "hash_names"]

_POWERS = 1024
_ROWS = 1 << 17


class Entity(NamedTuple):
    """One thing that a name can mean."""

    uri: str
    name: str
    """Its main name; the name looked up may be another of its names."""
    types: list[str]


class HashIndex(NamedTuple):
    """The names' hashes, ascending, and the row that each belongs to: uint32 [n] both; 8 bytes a name."""

    hashes: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, names: pa.ChunkedArray) -> HashIndex:
        """Index all ``names``."""
        hashes = hash_names(names)
        order = np.argsort(hashes, kind="stable").astype(np.uint32)
        return cls(hashes[order], order)


@cache
def _powers() -> np.ndarray:
    """Odd 64-bit constants (splitmix64), one a place of a byte."""
    with np.errstate(over="ignore"):
        z = np.arange(1, _POWERS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray((z ^ (z >> np.uint64(31))) | np.uint64(1))


def hash_names(names: pa.ChunkedArray) -> np.ndarray:
    """A hash of each name's UTF-8 bytes, uint32 [n]: high half of sum_j (byte_j + 1) * power_j mod 2^64.

    Multilinear hashing; the powers repeat after 1,024 bytes. Names are compared after a look-up, so that two names
    with one hash cost time and nothing else.
    """
    parts = [np.zeros(0, np.uint32)]
    for chunk in names.chunks:
        for start in range(0, len(chunk), _ROWS):
            parts.append(_hash(*utf8_bytes(chunk.slice(start, _ROWS))))
    return np.concatenate(parts)


def _hash(content: np.ndarray, ends: np.ndarray) -> np.ndarray:
    places = np.arange(len(content)) - np.repeat(ends[:-1], np.diff(ends))
    with np.errstate(over="ignore"):
        terms = (content.astype(np.uint64) + np.uint64(1)) * _powers()[places % _POWERS]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        totals = sums[ends[1:]] - sums[ends[:-1]]
    return np.asarray(totals >> np.uint64(32), np.uint32)


class NameIndex:
    """The names of one kind (entities or relations).

    Args:
        trie: the names' token sequences; sequence i is row i of the table.
        table: the linking table, or what opens it when it is first needed. Columns: ``name`` (unique), ``uris``
            (list<string>, in the source's order), and, where they say anything, ``canonical`` (list<string>, the main
            name of each URI) and ``types`` (list<list<string>>, the types of each URI).
        hashes: the `HashIndex` of ``name``, or what opens it.
    """

    def __init__(
        self, trie: Trie, table: Callable[[], pa.Table] | pa.Table, hashes: Callable[[], HashIndex] | None = None
    ) -> None:
        self.trie = trie
        self._table, self._hashes = table, hashes

    def __len__(self) -> int:
        return int(self.trie.num_sequences)

    @cached_property
    def table(self) -> pa.Table:
        """The linking table; opened when first used, never copied."""
        return self._table() if callable(self._table) else self._table

    @cached_property
    def hashes(self) -> HashIndex:
        """What finds a name's row without reading the table."""
        return HashIndex.of(self._names) if self._hashes is None else self._hashes()

    @cached_property
    def _names(self) -> pa.ChunkedArray:
        return self.table["name"]

    @cached_property
    def _nodes(self) -> np.ndarray:
        return np.asarray(self.trie.nodes_of_sequences())

    def rows_of(self, names: Sequence[str]) -> list[int | None]:
        """The row of each name; None where the catalogue lacks it."""
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        ends = np.concatenate([[0], np.cumsum([len(name) for name in encoded], dtype=np.int64)])
        wanted = _hash(np.frombuffer(b"".join(encoded), np.uint8), ends)
        index = self.hashes
        starts = np.searchsorted(index.hashes, wanted)
        ends = np.searchsorted(index.hashes, wanted, side="right")
        found: list[int | None] = []
        for name, start, end in zip(names, starts, ends, strict=True):
            rows = (int(row) for row in index.rows[start:end])
            found.append(next((row for row in rows if self._names[row].as_py() == name), None))
        return found

    def link(self, names: Sequence[str]) -> list[str | None]:
        """The URI of each name, None where the catalogue lacks it; of a name with several URIs the first."""
        uris = self.table["uris"]
        return [None if row is None else uris[row].as_py()[0] for row in self.rows_of(names)]

    def node_of(self, name: str) -> int | None:
        """The trie node at which ``name`` ends."""
        row = self.rows_of([name])[0]
        return None if row is None else int(self._nodes[row])

    def nodes_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The trie node of each row, int64."""
        nodes: np.ndarray = self._nodes[np.asarray(rows, dtype=np.int64)]
        return nodes

    def rows_of_node(self, node: int) -> list[int]:
        """The rows of the names that end at ``node``: several where the tokenizer makes them one."""
        return [int(row) for row in self.trie.sequence_ids(node)]

    def rows_of_tokens(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        """The rows of the names with exactly these token ids."""
        node = self.trie.walk(np.ascontiguousarray(ids, dtype=np.int32))
        return self.rows_of_node(node) if node > 0 and self.trie.is_terminal(node) else []

    def name_of(self, ids: Sequence[int] | np.ndarray) -> str | None:
        """The name with exactly these token ids (the first, where a tokenizer makes two names one); else None."""
        rows = self.rows_of_tokens(ids)
        return self.name_at(rows[0]) if rows else None

    def name_at(self, row: int) -> str:
        """The name in a row."""
        name: str = self._names[row].as_py()
        return name

    def entities_at(self, row: int) -> list[Entity]:
        """Everything that the name in ``row`` can mean, in the source's order."""
        values = {name: self.table[name][row].as_py() for name in self.table.column_names}
        names = values.get("canonical") or [values["name"]] * len(values["uris"])
        types = values.get("types") or [[] for _ in values["uris"]]
        return [Entity(*parts) for parts in zip(values["uris"], names, types, strict=True)]

    def entity_of(self, name: str | Sequence[int] | np.ndarray, *, types: Sequence[str] | None = None) -> Entity | None:
        """What a name, or the token ids of one, means: its first entity (of one of ``types``, where given)."""
        rows = self.rows_of([name]) if isinstance(name, str) else self.rows_of_tokens(name)
        found = (entity for row in rows if row is not None for entity in self.entities_at(row))
        return next((e for e in found if types is None or not set(types).isdisjoint(e.types)), None)

    def tokens_at(self, row: int) -> list[int]:
        """The token ids of the name in ``row``, read off the trie."""
        node, ids = int(self._nodes[row]), []
        while node:
            parent = self.trie.parent(node)
            children = self.trie.children(parent)
            first = self.trie.step(parent, int(children[0]))
            ids.append(int(children[node - first]))
            node = parent
        return ids[::-1]

    def type_codes(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Types of every row as numbers: their names, int32 codes end to end, and int64 offsets [n + 1].

        A row's types are those of all it can mean, each once, ascending.
        """
        count = len(self)
        if "types" not in self.table.column_names:
            return [], np.zeros(0, np.int32), np.zeros(count + 1, np.int64)
        lists = self.table["types"].combine_chunks()
        lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
        inner = lists.flatten()
        coded = inner.flatten()
        coded = coded if pa.types.is_dictionary(coded.type) else coded.dictionary_encode()
        rows = np.repeat(np.arange(count), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
        rows = np.repeat(rows, pc.list_value_length(inner).to_numpy(zero_copy_only=False))
        names = coded.dictionary.to_pylist()
        keys = np.unique(rows * max(1, len(names)) + coded.indices.to_numpy(zero_copy_only=False))
        offsets = np.searchsorted(keys, np.arange(count + 1) * max(1, len(names)))
        return names, (keys % max(1, len(names))).astype(np.int32), offsets.astype(np.int64)
