"""Near-duplicate vectors against a plain search over all pairs in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from obverse import _core
from obverse.engine.diversity.duplicates import listed_near_duplicates, near_duplicates
from obverse.engine.diversity.groups import Duplicates
from obverse.engine.errors import InputError


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    return np.random.default_rng(seed)


def clustered(rng: np.random.Generator, rows: int, dim: int, dtype: Any = np.float32) -> NDArray[Any]:
    """Rows around few centres at all distances, so that chains occur, of lengths that differ, some equal."""
    centres = rng.standard_normal((max(rows // 8, 1), dim))
    noise = rng.standard_normal((rows, dim)) * rng.choice([0.05, 0.2, 0.4], (rows, 1))
    x = (centres[rng.integers(len(centres), size=rows)] + noise) * rng.uniform(0.1, 30, (rows, 1))
    copies = rng.random(rows) < 0.2
    x[copies] = x[rng.integers(rows, size=int(copies.sum()))]
    return np.ascontiguousarray(x, dtype)


def plain(similar: NDArray[np.bool_], scores: NDArray[Any] | None) -> tuple[list[int], list[bool], list[int]]:
    """Components by search, and the greedy rule as it is worded."""
    rows = len(similar)
    group = [-1] * rows
    for row in range(rows):
        todo = [row] if group[row] < 0 else []
        while todo:
            at = todo.pop()
            if group[at] < 0:
                group[at] = row
                todo += np.flatnonzero(similar[at]).tolist()
    order = sorted(range(rows), key=lambda row: (0.0 if scores is None else -scores[row], row))
    kept, duplicate_of, stay = [False] * rows, [-1] * rows, []
    for row in order:
        near = [other for other in stay if similar[row, other]]
        if near:
            duplicate_of[row] = near[0]
        else:
            kept[row] = True
            stay.append(row)
    return group, kept, duplicate_of


def cosines(x: NDArray[Any]) -> NDArray[np.float32]:
    wide = x.astype(np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1))
    return ((wide @ wide.T) / np.outer(norms, norms)).astype(np.float32)


def check(found: Duplicates, similarities: NDArray[np.float32], similar: NDArray[np.bool_], scores: Any) -> None:
    group, kept, duplicate_of = plain(similar, scores)
    assert found.group.tolist() == group
    assert found.kept.tolist() == kept
    assert found.duplicate_of.tolist() == duplicate_of
    gone = np.flatnonzero(~found.kept)
    np.testing.assert_allclose(
        found.similarity[gone], similarities[gone, found.duplicate_of[gone]], rtol=2**-22, atol=2**-22
    )
    assert (found.similarity[found.kept] == 1).all()
    assert found.facts["kept"] == sum(kept)
    sizes = np.bincount(group)
    assert found.facts["groups"] == int((sizes > 1).sum())
    assert found.facts["largest_group"] == int(sizes.max())


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("scored", [False, True])
def test_diversity_near_duplicates_are_those_of_a_plain_search(rng: Any, dtype: Any, scored: bool) -> None:
    for rows, dim in ((1, 3), (2, 1), (37, 5), (300, 70)):
        x = clustered(rng, rows, dim, dtype)
        scores = rng.integers(0, 5, rows).astype(float) if scored else None
        similarities = cosines(x)
        # Between two values that occur, so that rounding can't move a pair across.
        values = np.unique(similarities)
        pick = int(rng.integers(len(values))) if len(values) > 1 else 0
        low = float(values[max(pick - 1, 0)])
        threshold = min(max((low + float(values[pick])) / 2, 0.3), 1.0)
        if np.abs(values.astype(np.float64) - threshold).min() < 1e-6 and threshold < 1.0:
            threshold += 3e-6
        similar = similarities >= np.float32(threshold)
        found = near_duplicates(x, threshold, scores=scores)
        check(found, similarities, similar, scores)


def test_diversity_chains_are_not_deleted_whole() -> None:
    angles = np.arange(7) * 0.2
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = near_duplicates(x, float(np.cos(0.25)))  # only neighbours in the chain are within it
    assert found.kept.tolist() == [True, False, True, False, True, False, True]
    assert found.duplicate_of.tolist() == [-1, 0, -1, 2, -1, 4, -1]
    assert (found.group == 0).all()
    best_last = near_duplicates(x, float(np.cos(0.25)), scores=np.array([0, 5, 0, 0, 9, 0, 1.0]))
    assert best_last.kept.tolist() == [False, True, False, False, True, False, True]
    assert best_last.duplicate_of.tolist() == [1, -1, 1, 4, -1, 4, -1]


@pytest.mark.parametrize("scored", [False, True])
def test_diversity_thousands_of_equal_rows_make_no_pairs(rng: Any, scored: bool) -> None:
    x = clustered(rng, 3000, 16)
    where = np.sort(rng.choice(len(x) + 20_000, 20_000, replace=False))
    crowd = np.insert(x, np.searchsorted(np.arange(len(x) + 1), np.arange(20_000) * 0 + 1500), x[7], axis=0)
    assert len(where) == 20_000
    assert len(crowd) == 23_000
    scores = rng.random(len(crowd)) if scored else None
    found = near_duplicates(crowd, 0.9, scores=scores)
    assert int(found.facts["pairs"]) < 200_000
    members = np.flatnonzero((crowd == x[7]).all(axis=1))
    assert found.kept[members].sum() <= 1
    assert len(np.unique(found.group[members])) == 1
    gone = ~found.kept
    assert found.kept[found.duplicate_of[gone]].all()
    # The same without the crowd's pairs: the core's own answer on what differs.
    few = np.flatnonzero(_core.first_equal_rows(crowd) == np.arange(len(crowd)))
    alone = near_duplicates(crowd[few], 0.9)
    assert np.array_equal(few[alone.group], found.group[few])
    if not scored:
        assert np.array_equal(alone.kept, found.kept[few])
        assert not found.kept[np.setdiff1d(np.arange(len(crowd)), few)].any()


def test_diversity_equal_rows_are_found_by_their_bytes(rng: Any) -> None:
    for width in (1, 3, 8, 13):
        x = rng.integers(0, 2, (500, width)).astype(np.float16)
        order = rng.permutation(500)
        first = _core.first_equal_rows(x, order=order, threads=2)
        seen: dict[bytes, int] = {}
        expected = np.empty(500, np.int64)
        for row in order:
            expected[row] = seen.setdefault(x[row].tobytes(), int(row))
        assert np.array_equal(first, expected)


def test_diversity_listed_duplicates_are_those_of_the_lists(rng: Any) -> None:
    rows, k = 200, 6
    indices = rng.integers(-1, rows, (rows, k))
    similarities = rng.random((rows, k)).astype(np.float32)
    scores = rng.random(rows)
    for threshold in (0.2, 0.85, 0.97):
        similar = np.zeros((rows, rows), bool)
        dense = np.zeros((rows, rows), np.float32)
        for row in range(rows):
            for other, value in zip(indices[row], similarities[row], strict=True):
                if other >= 0 and other != row and value >= np.float32(threshold):
                    similar[row, other] = similar[other, row] = True
                    dense[row, other] = dense[other, row] = value
        found = listed_near_duplicates(indices, similarities, threshold, scores=scores)
        group, kept, duplicate_of = plain(similar, scores)
        assert (found.group.tolist(), found.kept.tolist(), found.duplicate_of.tolist()) == (group, kept, duplicate_of)


def test_diversity_duplicates_refuse_what_they_cannot_use(rng: Any) -> None:
    x = clustered(rng, 20, 4)
    for threshold in (0.0, -0.5, 1.01, float("nan")):
        with pytest.raises(InputError, match=r"threshold in \(0, 1\]"):
            near_duplicates(x, threshold)
    for value in (np.nan, np.inf, 0.0):
        bad = x.copy()
        bad[11] = value
        with pytest.raises(InputError, match="row 11"):
            near_duplicates(bad)
    with pytest.raises(InputError, match="float16 or float32"):
        near_duplicates(x.astype(np.float64))
    with pytest.raises(InputError, match="scores"):
        near_duplicates(x, scores=np.zeros(19))
    scores = np.zeros(20)
    scores[5] = np.nan
    with pytest.raises(InputError, match="row 5, field 'scores'"):
        near_duplicates(x, scores=scores)
    with pytest.raises(InputError, match="row 1, field 'indices'"):
        listed_near_duplicates(np.array([[1], [9]]), np.ones((2, 1), np.float32))
    with pytest.raises(ValueError, match="each of 3 rows once"):
        _core.group_pairs(3, *(np.zeros(0, np.int64),) * 2, np.zeros(0, np.float32), order=np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="two of 3 rows"):
        _core.group_pairs(3, np.array([1]), np.array([3]), np.ones(1, np.float32))
