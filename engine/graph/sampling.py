"""Draw sets of triples that hang together and cover the graph evenly: the run's targets.

The walk itself is native (`obverse._core.Sampler`; SynthIE, arXiv 2303.04132, section 3.2); here are its settings, the
order of triples inside a set and the Arrow table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from obverse.engine.errors import InputError
from obverse.engine.graph.graph import Edges, KnowledgeGraph
from obverse.engine.records.keys import derive_seed
from obverse.engine.records.schemas import TARGETS, TRIPLET, require_columns
from obverse.engine.records.settings import StageSettings

if TYPE_CHECKING:
    from obverse._core import Sampler

__all__ = ["SampleSettings", "TargetSampler", "gini", "relation_coverage", "sample_targets"]

# Triples per set in 1,000 gold records of SynthIE's Wiki-cIE Text test set, sizes 1 to 10.
SYNTHIE_SIZES = (116.0, 219.0, 228.0, 213.0, 98.0, 75.0, 43.0, 6.0, 1.0, 1.0)

Indices = npt.NDArray[np.int64]


class SampleSettings(StageSettings):
    """How targets are drawn from a graph."""

    graph: str = "geography"
    """What `load_graph` reads: "geography", a saved graph's folder or a file."""
    samples: int = Field(default=1000, ge=1)
    """Number of targets of the whole run."""
    min_triplets: int = Field(default=1, ge=1)
    """Fewest triples in a set; components of the graph with fewer are left out."""
    max_triplets: int = Field(default=5, ge=1)
    """Most triples in a set."""
    size_weights: list[float] | None = None
    """Weights of the sizes 1, 2 ... max_triplets (any scale); by default close to SynthIE's sizes."""
    reweight_every: int = Field(default=1000, ge=1)
    """Sets between two updates of the weights of relations and entities."""
    relation_power: float = Field(default=1.0, ge=0.0, le=8.0)
    """A relation drawn c times weighs (1 + c) ** -relation_power; 0 turns it off."""
    entity_power: float = Field(default=1.0, ge=0.0, le=8.0)
    """An entity drawn c times weighs (1 + c) ** -entity_power; 0 turns it off."""
    exclude_relations: list[str] = Field(default_factory=list)
    """Names or uris of relations that are never drawn."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> SampleSettings:
        if self.max_triplets < self.min_triplets:
            raise ValueError(f"max_triplets ({self.max_triplets}) is below min_triplets ({self.min_triplets})")
        if self.size_weights is not None:
            if len(self.size_weights) != self.max_triplets:
                raise ValueError(f"size_weights needs max_triplets = {self.max_triplets} values")
            if not all(0 <= weight < float("inf") for weight in self.size_weights):
                raise ValueError("size_weights must be finite and not below 0")
        if not self.size_law().any():
            raise ValueError("size_weights are all 0 from min_triplets to max_triplets")
        return self

    def size_law(self) -> npt.NDArray[np.float64]:
        """Weights of the sizes 1 .. max_triplets, float64 ``[max_triplets]``, 0 below min_triplets.

        Sizes above SynthIE's largest (10) weigh what its largest weighs.
        """
        if self.size_weights is not None:
            law = np.array(self.size_weights, dtype=np.float64)
        else:
            law = np.full(self.max_triplets, SYNTHIE_SIZES[-1])
            law[: len(SYNTHIE_SIZES)] = SYNTHIE_SIZES[: self.max_triplets]
        law[: self.min_triplets - 1] = 0.0
        return law


class TargetSampler:
    """A stream of targets; target ``i`` is the same however the stream is split into calls.

    Args:
        graph: the graph to draw from.
        settings: `SampleSettings`; ``graph`` and ``samples`` are not read here.
        seed: the run's seed.

    Raises `InputError` for an excluded relation that the graph has not, or where nothing is left to draw from.
    """

    def __init__(self, graph: KnowledgeGraph, settings: SampleSettings, seed: int) -> None:
        from obverse._core import Graph

        self._entities = _names(graph.entities)
        self._relations = _names(graph.relations)
        self._settings = settings
        self._seed = derive_seed(seed, "graph")
        self._relation_allowed = _allowed_relations(graph, settings)
        self._entity_allowed = _large_components(graph, self._relation_allowed, settings.min_triplets)
        self._graph = Graph(graph.num_entities, graph.num_relations, graph.heads, graph.predicates, graph.tails)
        self.seek(0)

    @property
    def position(self) -> int:
        """The id of the next target."""
        return int(self._sampler.position)

    def seek(self, start: int) -> None:
        """Make ``start`` the next target's id. Costs the drawing of all targets between (from 0 when going back)."""
        if start < 0:
            raise InputError("a start of 0 or more", field="start", seen=start)
        if not hasattr(self, "_sampler") or start < self.position:
            self._sampler = self._fresh()
        self._sampler.skip(start - self.position)

    def draw(self, count: int) -> pa.Table:
        """The next ``count`` targets, `TARGETS`; triples in walk order, those of one subject together."""
        start = self.position
        offsets, heads, predicates, tails = self._sampler.draw(count)
        order = _by_subject(offsets, heads)
        columns = [(self._entities, heads), (self._relations, predicates), (self._entities, tails)]
        triplets = pa.StructArray.from_arrays(
            [names.take(pa.array(rows[order])) for names, rows in columns], fields=list(TRIPLET)
        )
        return pa.table(
            [
                pa.array(np.arange(start, start + count, dtype=np.int64)),
                pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), triplets),
                pa.nulls(count, pa.string()),
                pa.nulls(count, pa.string()),
                pa.array(np.zeros(count, dtype=bool)),
            ],
            schema=TARGETS,
        )

    def _fresh(self) -> Sampler:
        from obverse._core import Sampler

        settings = self._settings
        try:
            return Sampler(
                self._graph,
                self._seed,
                settings.size_law(),
                settings.reweight_every,
                settings.relation_power,
                settings.entity_power,
                self._relation_allowed,
                self._entity_allowed,
            )
        except ValueError as error:
            raise InputError("a graph with edges that may be drawn", field="graph", seen=str(error)) from error


def sample_targets(graph: KnowledgeGraph, start: int, count: int, settings: SampleSettings, *, seed: int) -> pa.Table:
    """Targets ``start`` to ``start + count - 1`` as a `TARGETS` table: equal to any other split of the range.

    For a stream of shards use one `TargetSampler`: this function draws everything before ``start`` again.
    """
    sampler = TargetSampler(graph, settings, seed)
    sampler.seek(start)
    return sampler.draw(count)


def relation_coverage(targets: pa.Table, relations: Iterable[str] = ()) -> dict[str, int]:
    """How many targets hold each relation (by surface form), most frequent first.

    Args:
        targets: a `TARGETS` table; rows without triplets count nothing.
        relations: names to count even where no target has them (with 0).
    """
    require_columns(targets, "triplets", what="targets")
    column = targets["triplets"].combine_chunks()
    names = pc.struct_field(column.flatten(), ["predicate", "surfaceform"])
    pairs = pa.table({"row": pc.list_parent_indices(column), "name": names}).group_by(["row", "name"]).aggregate([])
    counts = dict.fromkeys(relations, 0)
    for item in pc.value_counts(pairs["name"].combine_chunks()).to_pylist():
        counts[item["values"]] = item["counts"]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def gini(counts: Iterable[float] | Mapping[str, int]) -> float:
    """The Gini coefficient of counts: 0 when all are equal, (n - 1) / n when one has everything, 0 for no counts."""
    given = counts.values() if isinstance(counts, Mapping) else counts
    values = np.sort(np.fromiter(given, dtype=np.float64))
    total = values.sum()
    if total == 0:
        return 0.0
    ranks = np.arange(1, len(values) + 1)
    return float((2 * ranks - len(values) - 1) @ values / (len(values) * total))


def _names(table: pa.Table) -> pa.StructArray:
    """Rows as struct<uri, surfaceform>."""
    columns = [table[name].combine_chunks() for name in ("uri", "name")]
    return pa.StructArray.from_arrays(columns, fields=list(TRIPLET.field("subject").type))


def _allowed_relations(graph: KnowledgeGraph, settings: SampleSettings) -> npt.NDArray[np.uint8] | None:
    if not settings.exclude_relations:
        return None
    excluded = set(settings.exclude_relations)
    uris, names = graph.relations["uri"].to_pylist(), graph.relations["name"].to_pylist()
    unknown = sorted(excluded - set(uris) - set(names))
    if unknown:
        raise InputError(
            f"names or uris of relations of the graph '{graph.name}'", field="exclude_relations", seen=unknown
        )
    pairs = zip(uris, names, strict=True)
    return np.array([uri not in excluded and name not in excluded for uri, name in pairs], dtype=np.uint8)


def _large_components(
    graph: KnowledgeGraph, relation_allowed: npt.NDArray[np.uint8] | None, least: int
) -> npt.NDArray[np.uint8] | None:
    """Entities of components that can fill a set of ``least`` triples, uint8 ``[num_entities]``; None for all.

    A set takes one edge for each pair of different entities, so pairs are what is counted.
    """
    if least <= 1:
        return None
    usable = graph.heads != graph.tails
    if relation_allowed is not None:
        usable &= relation_allowed[graph.predicates].astype(bool)
    low = np.minimum(graph.heads, graph.tails)[usable]
    high = np.maximum(graph.heads, graph.tails)[usable]
    keys = np.unique(low.astype(np.int64) * graph.num_entities + high)
    low, high = keys // max(graph.num_entities, 1), keys % max(graph.num_entities, 1)
    component = _components(graph.num_entities, low, high)
    pairs = np.bincount(component[low], minlength=graph.num_entities)
    return (pairs[component] >= least).astype(np.uint8)


def _components(size: int, low: Indices, high: Indices) -> Indices:
    """The smallest entity of each entity's connected component, int64 ``[size]``: minimum labels, pointer jumping."""
    label: Indices = np.arange(size, dtype=np.int64)
    while True:
        before = label.copy()
        smaller = np.minimum(label[low], label[high])
        for side in (low, high):
            np.minimum.at(label, label[side], smaller)  # hook the old root
            np.minimum.at(label, side, smaller)
        while not np.array_equal(label, label[label]):
            label = label[label]
        if np.array_equal(label, before):
            return label


def _by_subject(offsets: Indices, heads: Edges) -> Indices:
    """Positions of all edges, set by set, those of one head together and heads by first appearance."""
    positions = np.arange(len(heads))
    sets = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    grouped = np.lexsort((positions, heads, sets))
    fresh = np.ones(len(heads), dtype=bool)
    same_set, same_head = np.diff(sets[grouped]) == 0, np.diff(heads[grouped]) == 0
    fresh[1:] = ~(same_set & same_head)
    first = np.empty(len(heads), dtype=np.int64)
    first[grouped] = grouped[fresh][np.cumsum(fresh) - 1]
    order: Indices = np.lexsort((positions, first))  # first positions are unique to a (set, head)
    return order
