"""MinHasher and DuplicateIndex: estimates within their error, and the index against a plain search."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from obverse._core import DuplicateIndex, MinHasher

WORDS = ["river", "Köln", "flows", "through", "東京", "capital", "of", "naïve", "🜚 gold", "mayor", "north", "sea"]


def shingles(text: str, n: int) -> set[str]:
    return {text[i : i + n] for i in range(len(text) - n + 1)} if len(text) > n else {text}


def jaccard(a: str, b: str, n: int) -> float:
    x, y = shingles(a, n), shingles(b, n)
    return len(x & y) / len(x | y)


def random_texts(seed: int, count: int) -> list[str]:
    """Half the texts are edits of an earlier one, so that all similarities occur."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for i in range(count):
        if i and rng.random() < 0.5:
            words = texts[int(rng.integers(i))].split(" ")
            for _ in range(int(rng.integers(0, 5))):
                words[int(rng.integers(len(words)))] = str(rng.choice(WORDS))
        else:
            words = rng.choice(WORDS, int(rng.integers(8, 20))).tolist()
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("ngram", [3, 5])
def test_native_estimated_jaccard_is_within_its_error(ngram: int) -> None:
    texts = random_texts(0, 200)
    num_perm = 1024
    rows = MinHasher(num_perm, 32, ngram, 7).signatures(texts)
    assert rows.dtype == np.uint32
    assert rows.shape == (200, num_perm)
    z = []
    for i in range(0, 200, 2):
        for j in range(i + 1, 200, 5):
            true = jaccard(texts[i], texts[j], ngram)
            estimate = float(np.mean(rows[i] == rows[j]))
            if true in (0.0, 1.0):
                assert estimate == true or (true == 0.0 and estimate < 0.01)
            else:
                z.append((estimate - true) / np.sqrt(true * (1 - true) / num_perm))
    assert len(z) > 1000
    assert np.max(np.abs(z)) < 5.0
    assert abs(np.mean(z)) < 0.3  # pairs share texts, so this mean is looser than 1 / sqrt(n)
    assert 0.8 < np.std(z) < 1.2


def test_native_signatures_depend_on_the_set_of_characters_and_the_seed_only() -> None:
    hasher = MinHasher(seed=3)
    assert (hasher.num_perm, hasher.bands, hasher.ngram) == (128, 32, 5)
    texts = random_texts(1, 50)
    rows = hasher.signatures(texts)
    assert np.array_equal(rows[10:20], hasher.signatures(texts[10:20]))
    assert np.array_equal(hasher.signatures(["abcdefabcdefabcdef"]), hasher.signatures(["abcdefabcdefabcdefabcdef"]))
    short = hasher.signatures(["", "a", "abcde", "abcd", "東京タワー"])
    assert len({row.tobytes() for row in short}) == 5
    assert not np.array_equal(rows, MinHasher(seed=4).signatures(texts))
    assert hasher.signatures([]).shape == (0, 128)


def plain_search(rows: NDArray[np.uint32], ids: list[int], threshold: float) -> list[int]:
    kept: list[int] = []
    found = []
    for i, row in enumerate(rows):
        hit = next((k for k in kept if np.mean(rows[k] == row) >= threshold), None)
        found.append(-1 if hit is None else ids[hit])
        if hit is None:
            kept.append(i)
    return found


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(128, 32, 0.8), (64, 32, 0.55), (60, 20, 0.7), (128, 128, 0.3)]),
    cuts=st.lists(st.integers(0, 150), max_size=4),
)
def test_native_index_misses_nothing_where_it_says_so(
    seed: int, shape: tuple[int, int, float], cuts: list[int]
) -> None:
    """bands > (1 - threshold) * num_perm in each shape; and how the rows are cut into calls doesn't matter."""
    num_perm, bands, threshold = shape
    assert bands > (1 - threshold) * num_perm
    hasher = MinHasher(num_perm, bands, 4, seed)
    rows = hasher.signatures(random_texts(seed, 150))
    ids = np.random.default_rng(seed).permutation(150).astype(np.int64)
    index = hasher.index(threshold)
    edges = sorted({0, 150, *cuts})
    found = np.concatenate([index.insert_or_find(ids[a:b].copy(), rows[a:b].copy()) for a, b in pairwise(edges)])
    assert found.tolist() == plain_search(rows, ids.tolist(), threshold)
    assert len(index) == int((found == -1).sum())
    queried = index.find(rows)
    assert np.array_equal(queried[found == -1], ids[found == -1])
    assert np.array_equal(queried[found >= 0], found[found >= 0])
    assert len(index) == int((found == -1).sum()), "find inserts nothing"


def test_native_index_recall_follows_the_banding_formula() -> None:
    """Long bands miss pairs at the stated rate: rows that agree in 80 % of 128 entries, 8 bands of 16."""
    rng = np.random.default_rng(5)
    first = rng.integers(0, 2**32, (4000, 128), dtype=np.uint32)
    second = np.where(rng.random((4000, 128)) < 0.8, first, rng.integers(0, 2**32, (4000, 128), dtype=np.uint32))
    index = DuplicateIndex(128, 8, 0.5)
    ids = np.arange(4000, dtype=np.int64)
    assert (index.insert_or_find(ids, first) == -1).all()
    found = index.find(second)
    assert set(found[found >= 0] - ids[found >= 0]) == {0}
    expected = 1 - (1 - 0.8**16) ** 8
    assert abs(float((found >= 0).mean()) - expected) < 4.5 * np.sqrt(expected * (1 - expected) / 4000)


def test_native_index_refuses_bad_values() -> None:
    index = DuplicateIndex(8, 4, 0.5)
    rows = np.zeros((2, 8), dtype=np.uint32)
    with pytest.raises(ValueError, match=r"bands must divide num_perm = 128, got 33"):
        MinHasher(128, 33)
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\], got 0"):
        DuplicateIndex(8, 4, 0.0)
    with pytest.raises(ValueError, match=r"signatures must have shape \(n, 8\), got \(2, 4\)"):
        index.find(rows[:, :4].copy())
    with pytest.raises(ValueError, match=r"signatures must be C-contiguous"):
        index.find(np.zeros((2, 16), dtype=np.uint32)[:, ::2])
    with pytest.raises(ValueError, match=r"ids must have one entry a signature, 2, got 1"):
        index.insert_or_find(np.zeros(1, dtype=np.int64), rows)
    with pytest.raises(ValueError, match=r"ids\[1\] must be >= 0"):
        index.insert_or_find(np.array([4, -1], dtype=np.int64), rows)
    assert len(index) == 0, "a refused call inserts nothing"
    with pytest.raises(ValueError, match=r"texts\[1\] must be a str, got bytes"):
        MinHasher().signatures(["a", b"b"])  # type: ignore[list-item]
    with pytest.raises(UnicodeEncodeError):
        MinHasher().signatures(["\ud800"])
