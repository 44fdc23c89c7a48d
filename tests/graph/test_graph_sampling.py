from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from obverse.engine.errors import InputError
from obverse.engine.graph.graph import ENTITIES, RELATIONS, KnowledgeGraph
from obverse.engine.graph.sampling import (
    SampleSettings,
    TargetSampler,
    _components,
    gini,
    relation_coverage,
    sample_targets,
)
from obverse.engine.records.schemas import TARGETS

pytest.importorskip("obverse._core")

Edge = tuple[int, int, int]


def make_graph(num_entities: int, num_relations: int, edges: Sequence[Edge]) -> KnowledgeGraph:
    names = [f"entity {i}" for i in range(num_entities)]
    uris = [f"e:{i}" for i in range(num_entities)]
    empty: list[list[str]] = [[]] * num_entities
    entities = pa.table([uris, names, empty, [None] * num_entities], schema=ENTITIES)
    rows = range(num_relations)
    relations = pa.table([[f"r:{i}" for i in rows], [f"relation {i}" for i in rows]], schema=RELATIONS)
    columns = np.array(edges, dtype=np.int32).reshape(-1, 3).T
    return KnowledgeGraph("test", entities, relations, *columns)


def sets_of(targets: pa.Table) -> list[list[Edge]]:
    def number(name: dict[str, str]) -> int:
        uri_number, name_number = name["uri"].split(":")[1], name["surfaceform"].split(" ")[1]
        assert uri_number == name_number
        return int(uri_number)

    return [
        [(number(t["subject"]), number(t["predicate"]), number(t["object"])) for t in triplets]
        for triplets in targets["triplets"].to_pylist()
    ]


def is_connected(edges: Sequence[Edge]) -> bool:
    reached = {edges[0][0]}
    for _ in edges:
        reached |= {node for s, _, o in edges if s in reached or o in reached for node in (s, o)}
    return reached == {node for s, _, o in edges for node in (s, o)}


@st.composite
def graphs(draw: Any) -> KnowledgeGraph:
    num_entities = draw(st.integers(2, 12))
    num_relations = draw(st.integers(1, 4))
    entity = st.integers(0, num_entities - 1)
    edges = draw(st.lists(st.tuples(entity, st.integers(0, num_relations - 1), entity), min_size=1, max_size=40))
    first, second = draw(st.permutations(range(num_entities)))[:2]
    return make_graph(num_entities, num_relations, [*dict.fromkeys([*edges, (first, 0, second)])])


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), seed=st.integers(0, 5), cut=st.integers(0, 40))
def test_sets_are_connected_real_edges_and_independent_of_the_split(graph: KnowledgeGraph, seed: int, cut: int) -> None:
    options = SampleSettings(samples=40, max_triplets=4, reweight_every=7)
    targets = sample_targets(graph, 0, 40, options, seed=seed)
    assert targets.schema.equals(TARGETS)
    assert targets["id"].to_pylist() == list(range(40))
    edges = set(zip(graph.heads.tolist(), graph.predicates.tolist(), graph.tails.tolist(), strict=True))
    for triples in sets_of(targets):
        assert 1 <= len(triples) <= 4
        assert edges.issuperset(triples)
        assert is_connected(triples)
        pairs = [frozenset((s, o)) for s, _, o in triples]
        assert all(len(pair) == 2 for pair in pairs)
        assert len(set(pairs)) == len(pairs)
        subjects = [s for s, _, _ in triples]
        assert len([s for s, _ in itertools.groupby(subjects)]) == len(set(subjects))
    sampler = TargetSampler(graph, options, seed)
    parts = [sampler.draw(cut), sampler.draw(40 - cut)]
    assert pa.concat_tables(parts).combine_chunks().equals(targets.combine_chunks())
    assert sample_targets(graph, cut, 40 - cut, options, seed=seed).to_pylist() == parts[1].to_pylist()


def test_seek_goes_both_ways_and_position_follows() -> None:
    graph = make_graph(6, 2, [(i, i % 2, (i + 1) % 6) for i in range(6)])
    options = SampleSettings(samples=100, reweight_every=10)
    whole = sample_targets(graph, 0, 100, options, seed=3).to_pylist()
    sampler = TargetSampler(graph, options, 3)
    for start in (70, 20, 20, 95):
        sampler.seek(start)
        assert sampler.position == start
        assert sampler.draw(5).to_pylist() == whole[start : start + 5]
        assert sampler.position == start + 5
    with pytest.raises(InputError, match="start"):
        sampler.seek(-1)


def test_the_seed_matters_and_only_the_seed() -> None:
    graph = make_graph(30, 1, [(i, 0, j) for i in range(30) for j in range(i)])
    options = SampleSettings(samples=50)
    first, same, other = (sample_targets(graph, 0, 50, options, seed=seed).to_pylist() for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_an_empty_draw_is_an_empty_table() -> None:
    graph = make_graph(2, 1, [(0, 0, 1)])
    targets = sample_targets(graph, 4, 0, SampleSettings(samples=1), seed=0)
    assert targets.num_rows == 0
    assert targets.schema.equals(TARGETS)


def test_subjects_stand_together_in_order_of_first_appearance() -> None:
    # A star around 0: its edges alternate direction, so walk order mixes subjects.
    edges = [(0, 0, i) if i % 2 else (i, 0, 0) for i in range(1, 9)]
    targets = sample_targets(
        make_graph(9, 1, edges), 0, 200, SampleSettings(samples=200, min_triplets=5, max_triplets=5), seed=1
    )
    mixed = 0
    for triples in sets_of(targets):
        subjects = [s for s, _, _ in triples]
        runs = [s for s, _ in itertools.groupby(subjects)]
        assert len(runs) == len(set(runs))
        mixed += runs[0] != 0 and 0 in runs
    assert mixed > 20  # other subjects before 0 too: the order is the walk's, not a sort by subject


def test_min_triplets_leaves_small_components_out() -> None:
    # 0-1 alone (twice, both ways: one pair only), a path of three edges 2-3-4-5, a triangle 6-7-8 with a self loop.
    edges = [(0, 0, 1), (1, 1, 0), (2, 0, 3), (3, 0, 4), (4, 0, 5), (6, 1, 7), (7, 1, 8), (8, 1, 6), (8, 1, 8)]
    graph = make_graph(9, 2, edges)
    targets = sample_targets(graph, 0, 100, SampleSettings(samples=100, min_triplets=3, max_triplets=4), seed=5)
    drawn = sets_of(targets)
    assert {len(triples) for triples in drawn} == {3}
    assert {node for triples in drawn for s, _, o in triples for node in (s, o)} == set(range(2, 9))
    without = SampleSettings(samples=9, min_triplets=3, exclude_relations=["relation 1"])
    only_path = sets_of(sample_targets(graph, 0, 50, without, seed=5))
    assert {node for triples in only_path for s, _, o in triples for node in (s, o)} == {2, 3, 4, 5}
    with pytest.raises(InputError, match="edges that may be drawn"):
        sample_targets(graph, 0, 1, SampleSettings(samples=1, min_triplets=4, max_triplets=4), seed=0)


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 25), pairs=st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), max_size=40))
def test_components_agree_with_a_search(size: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(a, b) for a, b in pairs if a < size and b < size]
    expected = list(range(size))
    for _ in range(size):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    low, high = (np.array([pair[k] for pair in pairs], dtype=np.int64) for k in (0, 1))
    assert _components(size, low, high).tolist() == expected


def test_excluded_relations_are_never_drawn() -> None:
    graph = make_graph(10, 3, [(i, i % 3, (i + 1) % 10) for i in range(10)])
    options = SampleSettings(samples=200, exclude_relations=["relation 1", "r:2"])
    assert set(relation_coverage(sample_targets(graph, 0, 200, options, seed=0))) == {"relation 0"}
    with pytest.raises(InputError, match=r"exclude_relations.*'no such'"):
        sample_targets(graph, 0, 1, SampleSettings(samples=1, exclude_relations=["no such"]), seed=0)
    with pytest.raises(InputError, match="may be drawn"):
        sample_targets(graph, 0, 1, SampleSettings(samples=1, exclude_relations=["r:0", "r:1", "r:2"]), seed=0)


def test_reweighting_evens_out_relations() -> None:
    # Relation 0 has 900 edges, relations 1 to 9 have ten each.
    edges = [(i, 0, 100 + j) for i in range(30) for j in range(30)]
    edges += [(i, 1 + i % 9, 200 + i) for i in range(90)]
    graph = make_graph(300, 10, edges)

    def spread(power: float) -> float:
        options = SampleSettings(samples=2000, reweight_every=100, relation_power=power, entity_power=0.0)
        targets = sample_targets(graph, 0, 2000, options, seed=0)
        return gini(relation_coverage(targets, graph.relations["name"].to_pylist()))

    assert spread(1.0) < spread(0.0) - 0.05


def test_sizes_follow_the_law() -> None:
    graph = make_graph(60, 1, [(i, 0, j) for i in range(60) for j in range(i)])
    targets = sample_targets(graph, 0, 8000, SampleSettings(samples=8000, max_triplets=7), seed=1)
    sizes = np.bincount([len(triples) for triples in targets["triplets"].to_pylist()], minlength=8)[1:] / 8000
    law = np.array([116, 219, 228, 213, 98, 75, 43]) / 992
    assert np.abs(sizes - law).max() < 4 * np.sqrt(0.25 / 8000)
    given_law = SampleSettings(samples=1, max_triplets=3, size_weights=[0.0, 1.0, 3.0])
    sizes = np.bincount([len(t) for t in sample_targets(graph, 0, 4000, given_law, seed=1)["triplets"].to_pylist()])
    assert sizes[:2].tolist() == [0, 0]
    assert abs(sizes[3] / 4000 - 0.75) < 4 * np.sqrt(0.1875 / 4000)


def test_size_law() -> None:
    assert SampleSettings(samples=1).size_law().tolist() == [116, 219, 228, 213, 98]
    assert SampleSettings(samples=1, min_triplets=3).size_law().tolist() == [0, 0, 228, 213, 98]
    long = SampleSettings(samples=1, max_triplets=12).size_law().tolist()
    assert long == [116, 219, 228, 213, 98, 75, 43, 6, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 0}, "greater than or equal to 1"),
        ({"min_triplets": 6}, "below min_triplets"),
        ({"size_weights": [1.0]}, "needs max_triplets = 5 values"),
        ({"size_weights": [1.0, -1.0, 0, 0, 0]}, "not below 0"),
        ({"size_weights": [1.0, 0, 0, 0, 0], "min_triplets": 2}, "all 0 from min_triplets"),
        ({"relation_power": -1.0}, "greater than or equal to 0"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SampleSettings(**({"samples": 1} | wrong))


def test_relation_coverage_counts_targets_not_triples() -> None:
    def triple(relation: str) -> dict[str, dict[str, str]]:
        return {
            key: {"uri": "", "surfaceform": form}
            for key, form in zip(("subject", "predicate", "object"), ("a", relation, "b"), strict=True)
        }

    rows = [[triple("x"), triple("x"), triple("y")], [triple("x")], None, []]
    targets = pa.table({"id": [0, 1, 2, 3], "triplets": pa.array(rows, TARGETS.field("triplets").type)})
    assert relation_coverage(targets) == {"x": 2, "y": 1}
    chunked = pa.concat_tables([targets.slice(0, 1), targets.slice(1)])
    assert list(relation_coverage(chunked, ["z", "y"]).items()) == [("x", 2), ("y", 1), ("z", 0)]
    assert relation_coverage(targets.slice(0, 0)) == {}


def test_gini() -> None:
    assert gini([5, 5, 5]) == 0.0
    assert gini([0, 0, 0, 8]) == pytest.approx(0.75)
    assert gini({"a": 1, "b": 3}) == pytest.approx(0.25)
    assert gini([]) == gini([0, 0]) == 0.0
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    pairs = sum(abs(a - b) for a in values for b in values)
    assert gini(values) == pytest.approx(pairs / (2 * len(values) * sum(values)))
