"""Selections against plain greedy ones, and against the best there is on tiny sets."""

from __future__ import annotations

import heapq
import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from obverse import _core
from obverse.engine.diversity.duplicates import listed_near_duplicates
from obverse.engine.diversity.selection import facility_location, graph_k_center, k_center, top_by_score
from obverse.engine.errors import InputError


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    return np.random.default_rng(seed)


def random_lists(rng: Any, rows: int, k: int, coarse: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Symmetric values, one-sided lists, absent entries; coarse values make sums exact and ties many."""
    dense = rng.uniform(-0.2, 1.0, (rows, rows))
    dense = np.maximum(dense, dense.T)
    if coarse:
        dense = np.round(dense * 8) / 8
    indices = rng.integers(-1, rows, (rows, k))
    similarities = np.where(indices >= 0, np.take_along_axis(dense, np.maximum(indices, 0), 1), 0)
    return indices, similarities.astype(np.float32)


def edges_of(indices: NDArray[Any], similarities: NDArray[np.float32]) -> list[dict[int, float]]:
    edges: list[dict[int, float]] = [{} for _ in indices]
    for row, (others, values) in enumerate(zip(indices.tolist(), similarities.tolist(), strict=True)):
        for other, value in zip(others, values, strict=True):
            if other not in (-1, row):
                for a, b in ((row, other), (other, row)):
                    edges[a][b] = max(value, edges[a].get(b, -math.inf))
    return edges


def plain_greedy(
    edges: list[dict[int, float]], n: int, w: NDArray[np.float64], q: NDArray[np.float64]
) -> tuple[list[int], list[float]]:
    """Every gain anew at every step; sums in the order that the header names."""
    covered = [0.0] * len(edges)
    chosen: list[int] = []
    gains: list[float] = []
    for _ in range(n):
        best, best_row = -1.0, -1
        for row, near in enumerate(edges):
            if row in chosen:
                continue
            gain = 0.0
            for i, value in [(row, 1.0), *sorted(near.items())]:
                if q[row] * value > covered[i]:
                    gain += w[i] * (q[row] * value - covered[i])
            if gain > best:
                best, best_row = gain, row
        chosen.append(best_row)
        gains.append(best)
        for i, value in [(best_row, 1.0), *edges[best_row].items()]:
            covered[i] = max(covered[i], float(q[best_row] * value))
    return chosen, gains


def objective(edges: list[dict[int, float]], chosen: Any, w: NDArray[Any], q: NDArray[Any]) -> float:
    total = 0.0
    for i in range(len(edges)):
        values = [q[j] * (1.0 if i == j else edges[i].get(j, 0.0)) for j in chosen]
        total += w[i] * max(0.0, *values)
    return total


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("factors", [False, True])
def test_diversity_lazy_greedy_is_the_plain_greedy(rng: Any, coarse: bool, factors: bool) -> None:
    for rows, k in ((1, 2), (2, 1), (23, 3), (70, 7)):
        indices, similarities = random_lists(rng, rows, k, coarse)
        w = rng.integers(0, 5, rows) / 4 if factors else np.ones(rows)
        q = rng.integers(0, 9, rows) / 8 if factors else np.ones(rows)
        given = {"weight": w, "quality": q} if factors else {}
        edges = edges_of(indices, similarities)
        chosen, gains = plain_greedy(edges, rows, w, q)
        for lists in (indices, indices.astype(np.int32)):
            found = facility_location(lists, similarities, rows, **given)
            assert found.rows.tolist() == chosen
            assert found.gains.tolist() == gains
        part = facility_location(indices, similarities, max(rows // 3, 1), **given)
        assert part.rows.tolist() == chosen[: max(rows // 3, 1)]
        reached = objective(edges, part.rows.tolist(), w, q)
        assert part.facts["objective"] == pytest.approx(reached, rel=1e-12, abs=1e-12)
        whole = objective(edges, range(rows), w, q)
        assert part.facts["coverage"] == pytest.approx(reached / whole if whole else 1.0, rel=1e-12)


def test_diversity_facility_location_keeps_its_guarantee(rng: Any) -> None:
    for _ in range(20):
        rows, n = 9, int(rng.integers(1, 5))
        indices, similarities = random_lists(rng, rows, 3, False)
        w, q = rng.random(rows), rng.random(rows)
        edges = edges_of(indices, similarities)
        best = max(objective(edges, chosen, w, q) for chosen in combinations(range(rows), n))
        found = facility_location(indices, similarities, n, weight=w, quality=q)
        assert found.facts["objective"] >= (1 - 1 / math.e) * best - 1e-12
        assert found.facts["objective"] <= best + 1e-12


def test_diversity_quality_decides_between_copies() -> None:
    indices = np.array([[1, 2], [0, 2], [0, 1], [-1, -1]])
    similarities = np.array([[1, 1], [1, 1], [1, 1], [0, 0]], np.float32)
    assert facility_location(indices, similarities, 2).rows.tolist() == [0, 3]
    assert facility_location(indices, similarities, 2, quality=[0.5, 0.75, 1, 1]).rows.tolist() == [2, 3]
    assert facility_location(indices, similarities, 1, weight=[0, 0, 0, 1]).rows.tolist() == [3]


def plain_centers(similarities: NDArray[np.float32], n: int, first: int) -> tuple[list[int], list[float], float]:
    nearest = np.full(len(similarities), -2.0, np.float32)
    chosen, values = [first], [-1.0]
    for _ in range(n):
        nearest = np.maximum(nearest, similarities[chosen[-1]])
        nearest[chosen] = 1
        left = np.setdiff1d(np.arange(len(similarities)), chosen)
        if len(chosen) == n or not len(left):
            break
        chosen.append(int(left[nearest[left].argmin()]))
        values.append(float(nearest[chosen[-1]]))
    return chosen, values, float(nearest.min())


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_diversity_k_center_is_farthest_first(rng: Any, dtype: Any) -> None:
    for rows, dim in ((1, 4), (2, 1), (40, 3), (400, 37)):
        x = (rng.standard_normal((rows, dim)) * rng.uniform(0.1, 20, (rows, 1))).astype(dtype)
        x[rng.random(rows) < 0.2] = x[0]
        x[~x.any(axis=1)] = 1
        wide = x.astype(np.float64)
        norms = np.sqrt((wide * wide).sum(axis=1))
        cosines = np.clip((wide @ wide.T) / np.outer(norms, norms), -1, 1).astype(np.float32)
        first = int(rng.integers(rows))
        for n in (1, rows // 2 + 1, rows + 3):
            chosen, values, least = plain_centers(cosines, n, first)
            found = k_center(x, n, first=first)
            assert found.rows.tolist() == chosen
            expected = np.sqrt(np.maximum(2 - 2 * np.array(values, np.float64), 0))
            np.testing.assert_allclose(found.gains[1:], expected[1:], atol=1e-6)
            assert np.isinf(found.gains[0])
            # A cosine next to 1 is rounded by up to 2^-25, a chord there by the root of twice that.
            assert found.facts["radius"] == pytest.approx(math.sqrt(max(2 - 2 * least, 0)), abs=1e-6 + 2**-12)
        parts = [
            _core.VectorCenters(x, first=first, threads=threads, isa=isa).choose(rows)[0].tolist()
            for threads in (1, 2)
            for isa in range(3)
        ]
        assert all(part == plain_centers(cosines, rows, first)[0] for part in parts)


def test_diversity_k_center_is_within_twice_the_best(rng: Any) -> None:
    for _ in range(20):
        x = rng.standard_normal((11, 3)).astype(np.float32)
        unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        distance = np.sqrt(np.maximum(2 - 2 * unit @ unit.T, 0))
        n = int(rng.integers(1, 5))
        best = min(distance[list(chosen)].min(axis=0).max() for chosen in combinations(range(11), n))
        found = k_center(x, n, first=int(rng.integers(11)))
        radius = distance[found.rows].min(axis=0).max()
        assert radius <= 2 * best + 1e-9
        assert found.facts["radius"] == pytest.approx(radius, abs=1e-3)


def shortest(edges: list[dict[int, float]], sources: list[int]) -> list[float]:
    distance = [math.inf] * len(edges)
    queue = [(0.0, source) for source in sources]
    while queue:
        reached, row = heapq.heappop(queue)
        if reached >= distance[row]:
            continue
        distance[row] = reached
        for other, value in edges[row].items():
            heapq.heappush(queue, (reached + math.sqrt(max(0.0, 2.0 - 2.0 * value)), other))
    return distance


@pytest.mark.parametrize("coarse", [False, True])
def test_diversity_graph_k_center_is_farthest_first(rng: Any, coarse: bool) -> None:
    for rows, k in ((1, 1), (2, 1), (30, 1), (80, 3)):
        indices, similarities = random_lists(rng, rows, k, coarse)
        edges = edges_of(indices, similarities)
        first = int(rng.integers(rows))
        chosen, gains = [first], [math.inf]
        while len(chosen) < rows:
            distance = shortest(edges, chosen)
            left = [row for row in range(rows) if row not in chosen]
            chosen.append(max(left, key=lambda row: (distance[row], -row)))
            gains.append(distance[chosen[-1]])
        found = graph_k_center(indices, similarities, rows, first=first)
        assert found.rows.tolist() == chosen
        assert found.gains.tolist() == gains
        half = graph_k_center(indices, similarities, max(rows // 2, 1), first=first)
        assert half.rows.tolist() == chosen[: max(rows // 2, 1)]
        assert half.facts["radius"] == max(shortest(edges, half.rows.tolist()))


def test_diversity_best_scores_without_their_copies(rng: Any) -> None:
    scores = np.array([0.5, 0.9, 0.9, 0.1, 0.7])
    assert top_by_score(scores, 3).rows.tolist() == [1, 2, 4]
    lists = np.array([[1], [2], [1], [4], [0]]), np.array([[0.2], [0.99], [0.99], [0.3], [0.97]], np.float32)
    kept = listed_near_duplicates(*lists, 0.95, scores=scores)
    found = top_by_score(scores, 10, duplicates=kept)
    assert found.rows.tolist() == [1, 4, 3]
    assert found.gains.tolist() == [0.9, 0.7, 0.1]
    many = rng.integers(0, 50, 2000) / 7
    assert top_by_score(many, 700).rows.tolist() == np.lexsort((np.arange(2000), -many))[:700].tolist()


def test_diversity_selection_goes_on_where_it_stopped(rng: Any) -> None:
    indices, similarities = random_lists(rng, 300, 5, False)
    graph = _core.NeighbourGraph(indices, similarities)
    whole = _core.FacilityLocation(graph).choose(300)
    steps = _core.FacilityLocation(graph)
    parts = [steps.choose(count) for count in (0, 1, 99, 150, 500, 3)]
    assert np.concatenate([part[0] for part in parts]).tolist() == whole[0].tolist()
    assert np.concatenate([part[1] for part in parts]).tolist() == whole[1].tolist()
    told: list[int] = []
    facility_location(indices, similarities, 120, on_progress=told.append)
    assert sum(told) == 120


def test_diversity_selection_refuses_what_it_cannot_use(rng: Any) -> None:
    indices, similarities = random_lists(rng, 10, 2, False)
    for method in (facility_location, graph_k_center):
        with pytest.raises(InputError, match="at least one row"):
            method(indices, similarities, 0)
        with pytest.raises(InputError, match="one shape"):
            method(indices, similarities[:, :1], 3)
        bad = indices.copy()
        bad[4, 1] = 10
        with pytest.raises(InputError, match=r"indices\[4, 1\] must be -1 or a row below 10, got 10"):
            method(bad, similarities, 3)
        broken = similarities.copy()
        broken[np.nonzero(indices != np.arange(10)[:, None])[0][0]] = np.nan
        if (indices[np.isnan(broken)] >= 0).any():
            with pytest.raises(InputError, match="must be finite"):
                method(indices, broken, 3)
    with pytest.raises(InputError, match=r"row 3, field 'quality'.*at least 0"):
        facility_location(indices, similarities, 3, quality=[1, 1, 1, -1, 1, 1, 1, 1, 1, 1])
    with pytest.raises(InputError, match="field 'weight'"):
        facility_location(indices, similarities, 3, weight=[1.0])
    x = rng.standard_normal((10, 3)).astype(np.float32)
    with pytest.raises(InputError, match="row below 10"):
        k_center(x, 3, first=10)
    x[6] = np.nan
    with pytest.raises(InputError, match="row 6"):
        k_center(x, 3)
    with pytest.raises(InputError, match="row 1, field 'scores'"):
        top_by_score([0.0, np.nan], 1)
