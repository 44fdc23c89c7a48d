"""The training corpus: triplet sets walked from the geography graph, some renamed, each with a paraphrase.

Everything is made on demand from (seed, number): example i is the same whoever asks for it, in whatever order.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from obverse.engine.graph.graph import KnowledgeGraph
from obverse.engine.records.keys import derive_seed
from obverse.engine.records.linearise import Triple

from .grammar import verbalise
from .names import invent

__all__ = ["Corpus", "Example", "is_held_out"]

_CLOSED = frozenset({"continent", "subdivision type"})  # small closed lists: never held out, seldom renamed
_HELD_OUT_PER_MILLE = 20


class Example(NamedTuple):
    """One training pair."""

    triples: list[Triple]
    text: str


def is_held_out(uri: str, kind: str) -> bool:
    """Whether an entity is kept out of the corpus for the copy test: 2% by a hash of its uri."""
    digest = hashlib.blake2b(f"demo held out {uri}".encode(), digest_size=4).digest()
    return kind not in _CLOSED and int.from_bytes(digest, "little") % 1000 < _HELD_OUT_PER_MILLE


@dataclass(frozen=True)
class _Edges:
    """Edges grouped by (node, relation), from both ends: ``group_start[node]`` → ``edge_start[group]`` → ``edge``."""

    group_start: np.ndarray
    edge_start: np.ndarray
    edge: np.ndarray


class Corpus:
    """Sets of 1 to ``max_size`` connected triples of ``graph`` and their paraphrases, by number."""

    def __init__(self, graph: KnowledgeGraph, *, seed: int) -> None:
        self.seed = seed
        self.names: list[str] = graph.entities.column("name").to_pylist()
        self.kinds: list[str] = graph.entities.column("type").to_pylist()
        uris = graph.entities.column("uri").to_pylist()
        self.relations: list[str] = graph.relations.column("name").to_pylist()
        self.heads, self.predicates, self.tails = graph.heads, graph.predicates, graph.tails
        self.held_out = np.array([is_held_out(u, k) for u, k in zip(uris, self.kinds, strict=True)])
        self._open = ~(self.held_out[self.heads] | self.held_out[self.tails])
        hidden_names = {self.names[i] for i in np.flatnonzero(self.held_out)}
        self.real_names = [n for n, h in zip(self.names, self.held_out, strict=True) if not h and n not in hidden_names]

    def example(self, number: int, *, max_size: int = 5, renamed: float = 0.5) -> Example:
        """Training pair ``number``: no held-out entity in it; a share ``renamed`` of sets gets invented names."""
        rng = random.Random(derive_seed(self.seed, "corpus", number))
        edges = self._walk(rng, self._visible, rng.randint(1, max_size), None)
        return self._finish(edges, rng, rename=0.75 if rng.random() < renamed else 0.0)

    def probe(self, number: int, group: str, *, max_size: int = 5) -> Example:
        """Test pair ``number`` of the group "seen", "held_out" (real, never trained on) or "invented"."""
        rng = random.Random(derive_seed(self.seed + 1, f"probe {group}", number))
        size = 1 + number % max_size
        if group == "held_out":
            hidden = self._hidden_edges
            first = int(hidden[rng.randrange(len(hidden))])
            return self._finish(self._walk(rng, self._all, size, first), rng, rename=0.0)
        edges = self._walk(rng, self._visible, size, None)
        return self._finish(edges, rng, rename=1.0 if group == "invented" else 0.0)

    @cached_property
    def _visible(self) -> _Edges:
        return self._index(np.flatnonzero(self._open))

    @cached_property
    def _all(self) -> _Edges:
        return self._index(np.arange(len(self.heads)))

    @cached_property
    def _hidden_edges(self) -> np.ndarray:
        return np.flatnonzero(~self._open)

    @cached_property
    def _by_relation(self) -> list[np.ndarray]:
        visible = [np.flatnonzero(self._open & (self.predicates == r)) for r in range(len(self.relations))]
        return [rows for rows in visible if len(rows)]

    def _index(self, edges: np.ndarray) -> _Edges:
        node = np.concatenate([self.heads[edges], self.tails[edges]]).astype(np.int64)
        both = np.concatenate([edges, edges])
        key = node * len(self.relations) + self.predicates[both]
        order = np.argsort(key, kind="stable")
        keys, starts = np.unique(key[order], return_index=True)
        group_start = np.searchsorted(keys // len(self.relations), np.arange(len(self.names) + 1))
        return _Edges(group_start, np.append(starts, len(order)), both[order])

    def _walk(self, rng: random.Random, index: _Edges, size: int, first: int | None) -> list[int]:
        """A connected set of edges, no two between one pair of nodes; relations drawn evenly at every step."""
        if first is None:
            rows = self._by_relation[rng.randrange(len(self._by_relation))]
            first = int(rows[rng.randrange(len(rows))])
        chosen = [first]
        nodes = [int(self.heads[first]), int(self.tails[first])]
        pairs = {frozenset(nodes)}
        for _ in range(8 * size):
            if len(chosen) >= size:
                break
            node = nodes[rng.randrange(len(nodes))]
            lo, hi = int(index.group_start[node]), int(index.group_start[node + 1])
            if lo == hi:
                continue
            group = rng.randrange(lo, hi)
            edge = int(index.edge[rng.randrange(int(index.edge_start[group]), int(index.edge_start[group + 1]))])
            ends = [int(self.heads[edge]), int(self.tails[edge])]
            if len(set(ends)) == 2 and frozenset(ends) not in pairs:
                pairs.add(frozenset(ends))
                chosen.append(edge)
                nodes += [end for end in ends if end not in nodes]
        return chosen

    def _finish(self, edges: list[int], rng: random.Random, *, rename: float) -> Example:
        nodes = dict.fromkeys(int(n) for e in edges for n in (self.heads[e], self.tails[e]))
        called = {n: self._call(n, rng, rename) for n in nodes}
        if rng.random() < 0.4:
            edges = sorted(edges, key=lambda e: list(nodes).index(int(self.heads[e])))
        triples = [self._triple(e, called) for e in edges]
        return Example(triples, verbalise(triples, rng.getrandbits(31)))

    def _call(self, node: int, rng: random.Random, rename: float) -> str:
        kind = self.kinds[node]
        if rng.random() < (rename * 0.2 if kind in _CLOSED else rename):
            return invent(rng, kind, self.real_names)
        return self.names[node]

    def _triple(self, edge: int, called: Mapping[int, str]) -> Triple:
        head, tail = int(self.heads[edge]), int(self.tails[edge])
        return Triple(called[head], self.relations[int(self.predicates[edge])], called[tail])
