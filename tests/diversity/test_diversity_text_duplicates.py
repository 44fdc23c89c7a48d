"""Near-duplicate texts against sets of n-grams compared one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from obverse import _core
from obverse.engine.diversity.text_duplicates import choose_bands, text_near_duplicates
from obverse.engine.errors import InputError

WORDS = [
    "the",
    "river",
    "Köln",
    "flows",
    "through",
    "東京",
    "capital",
    "of",
    "naïve",
    "🜚",
    "gold",
    "mayor",
    "north",
    "sea",
    "and",
    "border",
    "region",
    "old",
    "new",
]


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    return np.random.default_rng(seed)


def shingles(text: str, n: int) -> set[str]:
    return {text[i : i + n] for i in range(len(text) - n + 1)} if len(text) > n else {text}


def jaccards(texts: list[str], n: int) -> NDArray[np.float64]:
    sets = [shingles(text, n) for text in texts]
    result = np.eye(len(texts))
    for i, a in enumerate(sets):
        for j, b in enumerate(sets[:i]):
            shared = len(a & b)
            result[i, j] = result[j, i] = shared / (len(a) + len(b) - shared)
    return result


def random_texts(rng: Any, count: int) -> list[str]:
    """Edits of edits, copies, short and empty texts, repeated n-grams; all similarities occur."""
    texts: list[str] = []
    for i in range(count):
        kind = rng.random()
        if i and kind < 0.55:
            words = texts[int(rng.integers(max(0, i - 40), i))].split(" ")
            for _ in range(int(rng.integers(0, 4))):
                words[int(rng.integers(len(words)))] = str(rng.choice(WORDS))
        elif kind < 0.6:
            words = [str(rng.choice(["", "a", "ab", "abcde", "東", "aaaaaaaaaa"]))]
        else:
            words = rng.choice(WORDS, int(rng.integers(6, 24))).tolist()
        texts.append(" ".join(words))
    return texts


def plain(similar: NDArray[np.bool_], scores: NDArray[Any] | None) -> tuple[list[int], list[bool], list[int]]:
    """The rule as it is worded: components by repeated minima, priority by score."""
    group = np.arange(len(similar))
    while True:
        lowest = np.where(similar, group[None, :], len(similar)).min(axis=1)
        if (lowest >= group).all():
            break
        group = np.minimum(group, lowest)
    order = np.lexsort((np.arange(len(similar)), np.zeros(len(similar)) if scores is None else -scores))
    stay: list[int] = []
    duplicate_of = [-1] * len(similar)
    for row in order.tolist():
        near = [other for other in stay if similar[row, other]]
        if near:
            duplicate_of[row] = near[0]
        else:
            stay.append(row)
    return group.tolist(), [of < 0 for of in duplicate_of], duplicate_of


@pytest.mark.parametrize("ngram", [1, 3, 5, 9])
@pytest.mark.parametrize("scored", [False, True])
def test_diversity_text_duplicates_are_those_of_true_jaccard(rng: Any, ngram: int, scored: bool) -> None:
    texts = random_texts(rng, 220)
    scores = rng.integers(0, 4, len(texts)).astype(float) if scored else None
    true = jaccards(texts, ngram)
    # Bands of one entry: a pair at 0.5 is missed with a chance of 2^-128 and by the sketch of at most 1e-6.
    for threshold in (0.5, 0.8, 1.0):
        raw = [text.encode() for text in texts]
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in raw])]).astype(np.int64)
        order = None if scores is None else np.argsort(-scores, kind="stable")
        search = _core.TextDuplicates(
            np.frombuffer(b"".join(raw), np.uint8),
            offsets,
            order=order,
            threshold=threshold,
            bands=128,
            width=1,
            ngram=ngram,
            seed=int(rng.integers(2**31)),
        )
        assert search.num_distinct == len(set(texts))
        search.sign(0, search.num_distinct, 2)
        for band in range(128):
            search.gather(band)
        search.keep(0, search.num_distinct)
        for band in range(128):
            search.link(band)
        group, kept, duplicate_of, similarity = search.groups()
        expected = plain(true >= threshold, scores)
        assert (group.tolist(), (kept == 1).tolist(), duplicate_of.tolist()) == expected
        gone = np.flatnonzero(kept == 0)
        assert np.array_equal(similarity[gone], true[gone, duplicate_of[gone]].astype(np.float32))


def test_diversity_text_duplicates_of_every_row_that_goes_stay(rng: Any) -> None:
    texts = random_texts(rng, 3000)
    scores = rng.random(len(texts))
    found = text_near_duplicates(texts, 0.7, scores=scores, seed=int(rng.integers(2**31)))
    gone = np.flatnonzero(~found.kept)
    assert len(gone) > 300
    assert found.kept[found.duplicate_of[gone]].all()
    assert (found.duplicate_of[found.kept] == -1).all()
    assert (scores[found.duplicate_of[gone]] >= scores[gone]).all()
    for row in gone.tolist():
        a, b = shingles(texts[row], 5), shingles(texts[int(found.duplicate_of[row])], 5)
        assert np.float32(len(a & b) / len(a | b)) == found.similarity[row] >= np.float32(0.7)
    assert np.array_equal(found.group[gone], found.group[found.duplicate_of[gone]])
    assert (found.group <= np.arange(len(texts))).all()
    assert np.array_equal(found.group[found.group], found.group)


def test_diversity_recall_of_text_duplicates_is_as_expected(rng: Any) -> None:
    """Independent pairs of known similarity, through bands that miss many of them."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    texts, expected = [], []
    for _ in range(3000):
        text = rng.choice(letters, 90)
        other = text.copy()
        at = int(rng.integers(0, 60))
        other[at : at + int(rng.integers(2, 14))] = "#"
        a, b = shingles("".join(text), 5), shingles("".join(other), 5)
        texts += ["".join(text), "".join(other)]
        expected.append(len(a & b) / len(a | b))
    raw = np.frombuffer("".join(texts).encode(), np.uint8)
    threshold, bands, width = 0.6, 6, 9
    search = _core.TextDuplicates(
        raw,
        np.arange(0, 90 * len(texts) + 1, 90),
        threshold=threshold,
        bands=bands,
        width=width,
        seed=int(rng.integers(2**31)),
    )
    search.sign(0, len(texts), 1)
    for band in range(bands):
        search.gather(band)
    search.keep(0, len(texts))
    for band in range(bands):
        search.link(band)
    found = search.groups()[1].reshape(-1, 2)[:, 1] == 0
    chances = np.array(
        [
            _core.expected_recall(one, threshold=threshold, bands=bands, width=width) if one >= threshold else 0.0
            for one in expected
        ]
    )
    assert not found[chances == 0].any()
    assert 0.2 < chances.mean() < 0.9
    # All pairs share one draw of the hash functions: the deviation is wider than of independent trials, by the
    # little that similar texts' signatures have in common. Twice six standard deviations hold.
    deviation = np.sqrt((chances * (1 - chances)).sum())
    assert abs(found.sum() - chances.sum()) < 12 * deviation


def test_diversity_bands_reach_the_recall_asked_for() -> None:
    for threshold in (0.05, 0.3, 0.5, 0.61, 0.8, 0.9, 0.97, 1.0):
        for recall in (0.5, 0.9, 0.99, 0.9999):
            bands, width = choose_bands(threshold, recall)
            assert bands * width <= 128
            formula = 1 - (1 - threshold**width) ** bands
            reached = _core.expected_recall(threshold, threshold=threshold, bands=bands, width=width)
            assert formula - 1.1e-6 <= reached <= formula + 1e-12
            assert reached >= recall or width == 1
            wider = 128 // (width + 1)
            if width < 128 and wider:
                assert 1 - (1 - threshold ** (width + 1)) ** wider < recall + 2e-6


def test_diversity_text_duplicates_are_the_same_for_any_threads_and_input(rng: Any) -> None:
    texts = [*random_texts(rng, 2000), *["the same text twenty thousand times"] * 20_000]
    one = text_near_duplicates(texts, 0.75, threads=1)
    assert one.facts["distinct"] == len(set(texts))
    assert one.kept[2000:].sum() <= 1
    arrays = (
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.chunked_array([texts[:7], texts[7:3000], texts[3000:]]),
        pa.array(["left out", *texts, "too"], pa.large_string()).slice(1, len(texts)),
    )
    told: list[int] = []
    for other in arrays:
        two = text_near_duplicates(other, 0.75, threads=2, on_progress=told.append)
        for name in ("group", "kept", "duplicate_of", "similarity"):
            assert np.array_equal(getattr(one, name), getattr(two, name))
    assert sum(told) == 2 * len(arrays) * len(texts)


def test_diversity_text_duplicates_of_few_texts() -> None:
    empty = text_near_duplicates([])
    assert len(empty.kept) == 0
    assert empty.facts["kept"] == 0
    for texts, kept in ((["one"], [True]), (["", ""], [True, False]), (["", "a"], [True, True])):
        found = text_near_duplicates(texts)
        assert found.kept.tolist() == kept
    twice = text_near_duplicates(["a text", "another", "a text"], scores=[0, 0, 1])
    assert twice.kept.tolist() == [False, True, True]
    assert twice.duplicate_of.tolist() == [2, -1, -1]
    assert twice.group.tolist() == [0, 1, 0]


def test_diversity_text_duplicates_refuse_what_they_cannot_use() -> None:
    with pytest.raises(InputError, match="row 1, field 'text'"):
        text_near_duplicates(["a", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="row 2, field 'text': expected a text, saw 7"):
        text_near_duplicates(["a", "b", 7])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"row 0, field 'text'.*surrogates"):
        text_near_duplicates(["\ud800"])
    with pytest.raises(InputError, match="field 'text': expected strings"):
        text_near_duplicates(pa.array([1, 2]))
    with pytest.raises(InputError, match="sequence of texts"):
        text_near_duplicates("a text")
    for values in ({"threshold": 0.0}, {"threshold": 1.5}, {"ngram": 0}, {"recall": 1.0}, {"scores": [1.0]}):
        with pytest.raises(InputError):
            text_near_duplicates(["a", "b"], **values)  # type: ignore[arg-type]
    bad: dict[str, Any] = {"threshold": 0.5, "bands": 3, "width": 50}
    with pytest.raises(ValueError, match=r"bands \* width"):
        _core.TextDuplicates(np.empty(0, np.uint8), np.zeros(1, np.int64), **bad)
