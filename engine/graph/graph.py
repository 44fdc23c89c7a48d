"""The knowledge graph in memory: two Arrow tables of names and three int32 arrays of edges.

A graph of a million entities is a few Arrow buffers, not a million Python objects; saved, it is a folder of Parquet
files with a small manifest that any reader of Parquet opens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from obverse.engine.errors import InputError

__all__ = ["ENTITIES", "RELATIONS", "Edges", "KnowledgeGraph", "is_saved_graph"]

Edges = npt.NDArray[np.int32]

ENTITIES = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        ("aliases", pa.list_(pa.string())),
        ("type", pa.string()),
    ]
)
RELATIONS = pa.schema([pa.field("uri", pa.string(), nullable=False), pa.field("name", pa.string(), nullable=False)])

_EDGES = pa.schema([pa.field(name, pa.int32(), nullable=False) for name in ("head", "predicate", "tail")])
_FORMAT = "obverse.graph"
_VERSION = 1
_MANIFEST = "graph.json"


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Entities, relations and the edges between them; edge ``i`` is (heads[i], predicates[i], tails[i]).

    Attributes:
        name: what the graph is called in manifests and reports.
        entities: `ENTITIES`, one row per entity; an entity's index is its row.
        relations: `RELATIONS`, one row per relation.
        heads, tails: rows of ``entities``, int32 ``[n]``.
        predicates: rows of ``relations``, int32 ``[n]``.
        notes: what the loader left out, by reason (literals, unnamed entities...).

    Raises `InputError` where an edge points at a row that is not there or the three arrays differ in length.
    """

    name: str
    entities: pa.Table
    relations: pa.Table
    heads: Edges
    predicates: Edges
    tails: Edges
    notes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "entities", self.entities.cast(ENTITIES))
        object.__setattr__(self, "relations", self.relations.cast(RELATIONS))
        sizes = {"heads": self.num_entities, "predicates": self.num_relations, "tails": self.num_entities}
        for label, size in sizes.items():
            indices = np.ascontiguousarray(getattr(self, label), dtype=np.int32).view()
            indices.setflags(write=False)
            object.__setattr__(self, label, indices)
            if len(indices) != len(self.heads):
                raise InputError(f"{len(self.heads)} values", field=label, seen=len(indices))
            if len(indices) and (indices.min() < 0 or indices.max() >= size):
                row = int(np.argmax((indices < 0) | (indices >= size)))
                raise InputError(f"an index in 0..{size - 1}", row=row, field=label, seen=int(indices[row]))

    @property
    def num_entities(self) -> int:
        """Rows of ``entities``."""
        return int(self.entities.num_rows)

    @property
    def num_relations(self) -> int:
        """Rows of ``relations``."""
        return int(self.relations.num_rows)

    def triples(self) -> pa.Table:
        """Every edge by uri (``subject``, ``predicate``, ``object``) and by name (``subject_name``, ...)."""
        ends = {
            "subject": (self.entities, self.heads),
            "predicate": (self.relations, self.predicates),
            "object": (self.entities, self.tails),
        }
        columns = {role: table["uri"].take(pa.array(at)) for role, (table, at) in ends.items()}
        columns |= {f"{role}_name": table["name"].take(pa.array(at)) for role, (table, at) in ends.items()}
        return pa.table(columns)

    @property
    def num_edges(self) -> int:
        """Number of (head, predicate, tail) edges."""
        return len(self.heads)

    def edges_per_relation(self) -> dict[str, int]:
        """Number of edges of every relation, by relation name, in the order of ``relations``.

        Two relations of one name (allowed: their uris differ) are added up.
        """
        counts = np.bincount(self.predicates, minlength=self.num_relations)
        result: dict[str, int] = {}
        for name, count in zip(self.relations["name"].to_pylist(), counts.tolist(), strict=True):
            result[name] = result.get(name, 0) + count
        return result

    def stats(self) -> dict[str, Any]:
        """Counts for a report: sizes, edges per relation, entities per type and without edge, what was left out."""
        degree = np.bincount(self.heads, minlength=self.num_entities)
        degree = degree + np.bincount(self.tails, minlength=self.num_entities)
        types = pc.value_counts(self.entities["type"].combine_chunks()).to_pylist()
        return {
            "name": self.name,
            "num_entities": self.num_entities,
            "num_relations": self.num_relations,
            "num_edges": self.num_edges,
            "num_aliases": int(pc.sum(pc.list_value_length(self.entities["aliases"])).as_py() or 0),
            "isolated_entities": int((degree == 0).sum()),
            "largest_degree": int(degree.max(initial=0)),
            "entities_per_type": {str(t["values"]): t["counts"] for t in sorted(types, key=lambda t: -t["counts"])},
            "edges_per_relation": self.edges_per_relation(),
            "notes": dict(self.notes),
        }

    def with_relations(self, allowed: Collection[str]) -> KnowledgeGraph:
        """The same graph with only the edges whose relation's uri or name is in ``allowed``.

        Entities and relations keep their rows. Raises `InputError` for a value that is no relation of this graph.
        """
        uris, names = self.relations["uri"].to_pylist(), self.relations["name"].to_pylist()
        unknown = sorted(set(allowed) - set(uris) - set(names))
        if unknown:
            raise InputError(f"uris or names of relations of the graph '{self.name}'", field="relations", seen=unknown)
        keep = np.array([u in allowed or n in allowed for u, n in zip(uris, names, strict=True)], dtype=bool)
        mask = keep[self.predicates]
        heads, predicates, tails = self.heads[mask], self.predicates[mask], self.tails[mask]
        return KnowledgeGraph(self.name, self.entities, self.relations, heads, predicates, tails, self.notes)

    def save(self, folder: str | Path) -> None:
        """Write entities.parquet, relations.parquet, edges.parquet and, last, graph.json into ``folder``.

        Each file appears whole (temporary name, then rename); a folder without graph.json is no saved graph.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MANIFEST).unlink(missing_ok=True)
        edges = pa.table([self.heads, self.predicates, self.tails], schema=_EDGES)
        for name, table in (("entities", self.entities), ("relations", self.relations), ("edges", edges)):
            temporary = folder / f".{name}.parquet.tmp"
            pq.write_table(table, temporary, compression="zstd")
            _publish(temporary, folder / f"{name}.parquet")
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "name": self.name,
            "num_entities": self.num_entities,
            "num_relations": self.num_relations,
            "num_edges": self.num_edges,
            "notes": dict(self.notes),
        }
        temporary = folder / f".{_MANIFEST}.tmp"
        temporary.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _publish(temporary, folder / _MANIFEST)

    @classmethod
    def load(cls, folder: str | Path) -> KnowledgeGraph:
        """Read a folder written by `save`.

        Raises `InputError` where the folder holds no saved graph or its files disagree with the manifest.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder / _MANIFEST)
        tables = {}
        for name in ("entities", "relations", "edges"):
            path = folder / f"{name}.parquet"
            if not path.is_file():
                raise InputError("the file of a saved graph", file=path, seen="no such file")
            tables[name] = pq.read_table(path)
            if tables[name].num_rows != manifest[f"num_{name}"]:
                expected = f"{manifest[f'num_{name}']} rows, as {_MANIFEST} says"
                raise InputError(expected, file=path, seen=tables[name].num_rows)
        heads, predicates, tails = (tables["edges"][name].to_numpy() for name in _EDGES.names)
        entities, relations = tables["entities"], tables["relations"]
        return cls(manifest["name"], entities, relations, heads, predicates, tails, manifest["notes"])


def is_saved_graph(path: str | Path) -> bool:
    """Whether ``path`` is a folder that `KnowledgeGraph.save` finished writing."""
    return (Path(path) / _MANIFEST).is_file()


def _publish(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError("a folder written by KnowledgeGraph.save", file=path, seen="no such file")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError("a JSON object", file=path, seen=str(error)) from error
    wanted = {"format", "version", "name", "num_entities", "num_relations", "num_edges", "notes"}
    if not isinstance(manifest, dict) or not wanted <= manifest.keys():
        raise InputError(f"a JSON object with {sorted(wanted)}", file=path, seen=manifest)
    if (manifest["format"], manifest["version"]) != (_FORMAT, _VERSION):
        seen = f"{manifest['format']} version {manifest['version']}"
        raise InputError(f"{_FORMAT} version {_VERSION}", file=path, field="version", seen=seen)
    return manifest
