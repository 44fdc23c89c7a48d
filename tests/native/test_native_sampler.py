"""Graph and Sampler: what every set must be, what probability it has, and that position alone decides it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from obverse._core import Graph, Sampler

Edges = list[tuple[int, int, int]]


def graph_of(edges: Edges, num_entities: int, num_relations: int) -> Graph:
    heads, predicates, tails = np.array(edges, dtype=np.int32).reshape(-1, 3).T.copy()
    return Graph(num_entities, num_relations, heads, predicates, tails)


def sampler_of(
    graph: Graph,
    sizes: list[float],
    *,
    seed: int = 0,
    every: int = 10,
    powers: tuple[float, float] = (1.0, 1.0),
    relations: NDArray[np.uint8] | None = None,
    entities: NDArray[np.uint8] | None = None,
) -> Sampler:
    return Sampler(graph, seed, np.array(sizes, dtype=np.float64), every, *powers, relations, entities)


def sets_of(sampler: Sampler, count: int) -> list[Edges]:
    offsets, heads, predicates, tails = sampler.draw(count)
    assert offsets.dtype == np.int64
    assert heads.dtype == predicates.dtype == tails.dtype == np.int32
    rows = list(zip(heads.tolist(), predicates.tolist(), tails.tolist(), strict=True))
    return [rows[a:b] for a, b in pairwise(offsets.tolist())]


def skewed_edges(seed: int, num_entities: int, num_relations: int, count: int) -> Edges:
    """Heavy-tailed relations, and a third of the edges end in a handful of hubs."""
    rng = np.random.default_rng(seed)
    relations = np.minimum(rng.pareto(0.7, count).astype(np.int64), num_relations - 1)
    heads = rng.integers(0, num_entities, count)
    tails = np.where(rng.random(count) < 0.33, rng.integers(0, 5, count), rng.integers(0, num_entities, count))
    return list(zip(heads.tolist(), relations.tolist(), tails.tolist(), strict=True))


small_graphs = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=40
).filter(lambda edges: any(h != t for h, _, t in edges))


@settings(max_examples=150, deadline=None)
@given(edges=small_graphs, size=st.integers(1, 6), seed=st.integers(0, 2**64 - 1), every=st.integers(1, 7))
def test_native_sets_are_connected_simple_and_short_only_when_exhausted(
    edges: Edges, size: int, seed: int, every: int
) -> None:
    sampler = sampler_of(graph_of(edges, 10, 4), [0.0] * (size - 1) + [1.0], seed=seed, every=every)
    for drawn in sets_of(sampler, 20):
        assert drawn
        assert set(drawn) <= set(edges)
        nodes = {drawn[0][0], drawn[0][2]}
        pairs: set[frozenset[int]] = set()
        for head, _, tail in drawn:
            assert head != tail
            assert {head, tail} & nodes, "each edge must touch those before it"
            assert frozenset((head, tail)) not in pairs
            nodes |= {head, tail}
            pairs.add(frozenset((head, tail)))
        assert len(drawn) <= size
        if len(drawn) < size:
            free = [e for e in edges if e[0] != e[2] and {e[0], e[2]} & nodes and frozenset((e[0], e[2])) not in pairs]
            assert not free, "a short set must have used up its component"


@settings(max_examples=40, deadline=None)
@given(edges=small_graphs, cuts=st.lists(st.integers(0, 15), max_size=5), every=st.integers(1, 9))
def test_native_position_alone_decides_a_set(edges: Edges, cuts: list[int], every: int) -> None:
    def fresh(order: Edges) -> Sampler:
        return sampler_of(graph_of(order, 10, 4), [1.0, 1.0, 1.0], seed=3, every=every)

    whole = sets_of(fresh(edges), sum(cuts) + 5)
    parts = fresh(edges[::-1] + edges[:1])  # order and repeats of the input don't matter
    assert [s for cut in cuts for s in sets_of(parts, cut)] + sets_of(parts, 5) == whole
    skipped = fresh(edges)
    skipped.skip(sum(cuts))
    assert skipped.position == sum(cuts)
    assert sets_of(skipped, 5) == whole[sum(cuts) :]


def test_native_determinism_on_hubs_and_seeds_differ() -> None:
    graph = graph_of(skewed_edges(1, 400, 20, 4000), 400, 20)
    one, two = sampler_of(graph, [1, 1, 1, 1], every=50), sampler_of(graph, [1, 1, 1, 1], every=50)
    assert sets_of(one, 500) + sets_of(one, 500) == sets_of(two, 1000)
    assert sets_of(sampler_of(graph, [1, 1, 1, 1], every=50, seed=1), 200) != sets_of(
        sampler_of(graph, [1, 1, 1, 1], every=50, seed=2), 200
    )


def test_native_first_block_has_the_stated_probabilities() -> None:
    """A triangle with a tail, all weights one, one block: P(seed) and P(growth) by hand.

    Relation 0 has A-B and B-C, relation 1 has C-A, relation 2 has C-D: P(seed) = 1/6, 1/6, 1/3, 1/3.
    """
    edges = [(0, 0, 1), (1, 0, 2), (2, 1, 0), (2, 2, 3)]
    seed_probability = dict(zip(edges, (1 / 6, 1 / 6, 1 / 3, 1 / 3), strict=True))
    expected: Counter[tuple[tuple[int, int, int], ...]] = Counter()
    for first, probability in seed_probability.items():
        ways = []  # a node by chance, then one of its other edges; a node without any is passed over
        for node in (first[0], first[2]):
            others = [e for e in edges if e != first and node in (e[0], e[2])]
            ways.append(others)
        open_ways = [others for others in ways if others]
        for others in open_ways:
            for second in others:
                expected[first, second] += probability / len(open_ways) / len(others)  # type: ignore[assignment]
    count = 60_000
    seen = Counter(tuple(s) for s in sets_of(sampler_of(graph_of(edges, 4, 3), [0.0, 1.0], every=count, seed=9), count))
    assert set(seen) == set(expected)
    for key, probability in expected.items():
        deviation = (seen[key] - count * probability) / np.sqrt(count * probability * (1 - probability))
        assert abs(deviation) < 4.5, (key, seen[key] / count, probability)


@pytest.mark.parametrize(("relation_power", "entity_power"), [(1.0, 0.0), (0.5, 0.0), (0.0, 1.0), (2.0, 1.5)])
def test_native_reweighting_follows_its_formula(relation_power: float, entity_power: float) -> None:
    """Edges A-B (relation 0) and C-D, C-E (relation 1). After a block of 6 the next set's chances are known."""
    edges = [(0, 0, 1), (2, 1, 3), (2, 1, 4)]
    graph = graph_of(edges, 5, 2)
    surplus, variance = np.zeros(4), np.zeros(4)
    for seed in range(6000):
        *block, last = sets_of(sampler_of(graph, [1.0], every=6, seed=seed, powers=(relation_power, entity_power)), 7)
        counts = np.array([sum(s[0] == e for s in block) for e in edges])
        relation = (1.0 + np.array([counts[0], counts[1] + counts[2]])) ** -relation_power
        relation /= relation.sum()
        tails = (1.0 + counts[1:]) ** -entity_power  # C's own weight is common to both
        chance = np.array([relation[0], *(relation[1] * tails / tails.sum())])
        seen = np.array([last[0] == e for e in edges])
        # Edge by edge, and the edge that the block's last set drew: that set must have been counted.
        newest = edges.index(block[-1][0])
        surplus += [*(seen - chance), seen[newest] - chance[newest]]
        variance += [*(chance * (1 - chance)), chance[newest] * (1 - chance[newest])]
    assert np.all(np.abs(surplus) < 4.5 * np.sqrt(variance)), surplus / np.sqrt(variance)


def test_native_hub_edges_follow_entity_weights_approximately() -> None:
    """A hub with 2,000 leaves: after each leaf's first draw its weight falls, so leaves are covered evenly."""
    edges = [(leaf, 0, 0) for leaf in range(1, 2001)]
    graph = graph_of(edges, 2001, 1)

    def spread(power: float) -> float:
        drawn = sets_of(sampler_of(graph, [0.0, 0.0, 1.0], every=20, powers=(0.0, power)), 4000)
        counts = np.bincount([h for s in drawn for h, _, _ in s], minlength=2001)[1:]
        return float(np.var(counts) / np.mean(counts))

    assert 0.8 < spread(0.0) < 1.2  # independent draws: Poisson
    assert spread(1.0) < 0.5  # exact choice by 1 / (1 + count) tends to a third


def test_native_reweighting_flattens_relations_and_entities() -> None:
    graph = graph_of(skewed_edges(4, 2000, 50, 20_000), 2000, 50)

    def shares(power: float) -> tuple[float, int]:
        drawn = sets_of(sampler_of(graph, [1, 2, 2, 1], every=100, powers=(power, power)), 20_000)
        relations = np.bincount([r for s in drawn for _, r, _ in s], minlength=50)
        entities = {n for s in drawn for h, _, t in s for n in (h, t)}
        return float(relations.max() / np.median(relations)), len(entities)

    (plain_ratio, plain_entities), (flat_ratio, flat_entities) = shares(0.0), shares(1.0)
    assert flat_ratio < 0.5 * plain_ratio
    assert flat_entities >= plain_entities


def test_native_size_weights_are_met() -> None:
    graph = graph_of(skewed_edges(2, 500, 5, 8000), 500, 5)
    weights = np.array([1.0, 0.0, 3.0, 4.0])
    sizes = np.bincount([len(s) for s in sets_of(sampler_of(graph, weights.tolist()), 8000)], minlength=5)[1:]
    expected = 8000 * weights / weights.sum()
    assert sizes[1] == 0
    assert np.all(np.abs(sizes - expected) <= 4.5 * np.sqrt(expected + 1e-9))


def test_native_masks_leave_relations_and_entities_out() -> None:
    edges = skewed_edges(3, 100, 6, 3000)
    relations = np.array([1, 0, 1, 1, 0, 1], dtype=np.uint8)
    entities = np.ones(100, dtype=np.uint8)
    entities[:3] = 0
    sampler = sampler_of(graph_of(edges, 100, 6), [1, 1, 1], relations=relations, entities=entities)
    drawn = [edge for s in sets_of(sampler, 1500) for edge in s]
    assert {r for _, r, _ in drawn} <= {0, 2, 3, 5}
    assert not {0, 1, 2} & {n for h, _, t in drawn for n in (h, t)}
    only_masked = sampler_of(
        graph_of([e for e in edges if relations[e[1]] and entities[e[0]] and entities[e[2]]], 100, 6), [1, 1, 1]
    )
    assert [edge for s in sets_of(only_masked, 1500) for edge in s] == drawn


def test_native_sampler_refuses_bad_values() -> None:
    graph = graph_of([(0, 0, 1), (1, 0, 1)], 2, 1)
    assert graph.num_edges == 1
    with pytest.raises(ValueError, match=r"reweight_every must be >= 1, got 0"):
        sampler_of(graph, [1.0], every=0)
    with pytest.raises(ValueError, match=r"size_weights must have a positive finite sum"):
        sampler_of(graph, [0.0])
    with pytest.raises(ValueError, match=r"size_weights\[1\] must be finite"):
        sampler_of(graph, [1.0, float("nan")])
    with pytest.raises(ValueError, match=r"relation_allowed must have length 1, got 2"):
        sampler_of(graph, [1.0], relations=np.ones(2, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"at least one allowed edge"):
        sampler_of(graph, [1.0], entities=np.zeros(2, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"count must be >= 0, got -1"):
        sampler_of(graph, [1.0]).draw(-1)
    with pytest.raises(ValueError, match=r"predicates\[0\] must be in \[0, 1\), got 3"):
        graph_of([(0, 3, 1)], 2, 1)
    ints = np.zeros(1, dtype=np.int32)
    with pytest.raises(ValueError, match=r"heads must be a 1-D numpy array of int32, got dtype int64"):
        Graph(2, 1, np.zeros(1, dtype=np.int64), ints, ints)
    with pytest.raises(ValueError, match=r"tails must be C-contiguous, got strides \(8,\)"):
        Graph(2, 1, ints, ints, np.zeros(4, dtype=np.int32)[::2])
    with pytest.raises(ValueError, match=r"got list"):
        Graph(2, 1, [0], ints, ints)  # type: ignore[arg-type]
