from __future__ import annotations

import collections
import math
import os
import random
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.diversity.ngram_metrics import (
    _TOKEN,
    compression_ratio,
    distinct_ngrams,
    ngram_metrics,
    self_bleu,
    self_bleu_scores,
    tokenise,
)
from obverse.engine.errors import InputError


def plain_bleu(texts: Sequence[str], which: int, max_order: int, epsilon: float) -> float:
    """BLEU by its definition: each other text is looked at."""
    words = [_TOKEN.findall(text.casefold()) for text in texts]
    mine, others = words[which], words[:which] + words[which + 1 :]
    logs = []
    for order in range(1, max_order + 1):

        def grams(one: list[str], order: int = order) -> collections.Counter[tuple[str, ...]]:
            return collections.Counter(tuple(one[i : i + order]) for i in range(len(one) - order + 1))

        most: dict[tuple[str, ...], int] = {}
        for other in others:
            for gram, count in grams(other).items():
                most[gram] = max(most.get(gram, 0), count)
        matched = sum(min(count, most.get(gram, 0)) for gram, count in grams(mine).items())
        if order == 1 and not matched:
            return 0.0
        precision = (matched or epsilon) / max(len(mine) - order + 1, 1)
        if not precision:
            return 0.0
        logs.append(math.log(precision) / max_order)
    closest = min((abs(len(other) - len(mine)), len(other)) for other in others)[1]
    penalty = 1.0 if len(mine) > closest else math.exp(1 - closest / len(mine))
    return penalty * math.exp(math.fsum(logs))


words = st.lists(st.sampled_from(["a", "B", "b", "cat", "É", "ß", "東京", "x_1"]), max_size=9)


@settings(max_examples=150, deadline=None)
@given(st.lists(words.map(" ".join), min_size=2, max_size=8), st.integers(1, 5), st.sampled_from([0.1, 0.0, 1.0]))
def test_self_bleu_against_all_others(texts: list[str], order: int, epsilon: float) -> None:
    expected = [plain_bleu(texts, i, order, epsilon) for i in range(len(texts))]
    got = self_bleu_scores(texts, order, epsilon=epsilon, threads=2)
    # A few logarithms and one exponential of a sum of magnitude 50 at most.
    assert got == pytest.approx(expected, rel=1e-13, abs=0)
    assert self_bleu(texts, order, epsilon=epsilon) == pytest.approx(math.fsum(expected) / len(texts), rel=1e-12)


def test_self_bleu_of_more_texts_than_a_batch() -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    generator = random.Random(seed)
    names = [f"w{i}" for i in range(300)]
    texts = [
        " ".join(generator.choices(names[: generator.randrange(2, 300)], k=generator.randrange(0, 14)))
        for _ in range(9001)
    ]
    got = self_bleu_scores(texts, threads=1)
    assert self_bleu_scores(iter(texts), threads=3).tobytes() == got.tobytes()
    # The clipped maximum over 9,000 others, by counters of all texts with the one in question left out.
    for which in generator.sample(range(len(texts)), 3):
        assert got[which] == pytest.approx(plain_bleu(texts, which, 4, 0.1), rel=1e-13)


def test_self_bleu_equals_nltk() -> None:
    # Recorded from nltk 3.10.4, sentence_bleu(all others, text), weights (0.25, 0.25, 0.25, 0.25) and (0.5, 0.5), with
    # SmoothingFunction().method1. Without smoothing nltk takes 2.2e-308 for a precision of 0; here it is 0.
    texts = [
        "the cat sat on the mat",
        "the cat sat on the mat today",
        "a dog ran",
        "",
        "the the the the the cat",
        "on the mat sat the dog",
        "birds",
        "a dog ran on the mat after a cat that sat",
    ]
    four = [
        1.0,
        0.8091067115702212,
        0.5623413251903491,
        0,
        0.09554427922043669,
        0.24028114141347542,
        0,
        0.16860237892968197,
    ]
    two = [1.0, 0.8451542547285166, 1.0, 0.0, 0.316227766016838, 0.6324555320336759, 0.0, 0.5393598899705937]
    assert self_bleu_scores(texts) == pytest.approx(four, rel=1e-14)
    assert self_bleu_scores(texts, 2) == pytest.approx(two, rel=1e-14)
    assert self_bleu_scores(texts, epsilon=0.0) == pytest.approx([*four[:2], 0, 0, 0, 0, 0, 0], rel=1e-14)
    assert self_bleu(texts) == pytest.approx(sum(four) / 8, rel=1e-14)


anything = st.text(st.one_of(st.characters(), st.sampled_from("aZ_9 .'-éÉßİıſK東ก\u0301\u00a0\u2028")), max_size=30)


@settings(max_examples=300, deadline=None)
@given(st.lists(anything, max_size=6))
def test_words_are_those_of_the_regular_expression(texts: list[str]) -> None:
    expected = [_TOKEN.findall(text.casefold()) for text in texts]
    got = tokenise(texts)
    assert got.lengths().tolist() == [len(one) for one in expected]
    assert got.num_words == len({word for one in expected for word in one})
    assert len(got) == len(texts)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join), max_size=9))
def test_distinct_against_sets(texts: list[str]) -> None:
    expected = {}
    for order in range(1, 7):
        lists = [text.split() for text in texts]
        grams = [tuple(one[i : i + order]) for one in lists for i in range(len(one) - order + 1)]
        if grams:
            expected[f"distinct_{order}"] = len(set(grams)) / len(grams)
    assert distinct_ngrams(texts, range(1, 7)) == expected
    assert distinct_ngrams(texts, (3, 1), threads=3) == {
        name: value for name, value in expected.items() if name in ("distinct_1", "distinct_3")
    }
    figures = ngram_metrics(texts, (1, 2))
    assert figures.pop("self_bleu", None) == (self_bleu(texts) if len(texts) > 1 else None)
    assert figures == distinct_ngrams(texts, (1, 2))


def test_words_are_found_once_for_all_figures() -> None:
    texts = ["one two three", "two three four", "five"]
    kept = tokenise(iter(texts))
    assert ngram_metrics(kept) == ngram_metrics(texts)
    assert self_bleu(kept) == self_bleu(texts)
    assert kept.nbytes > 0


def test_compression_ratio_is_of_one_stream() -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    generator = random.Random(seed)
    texts = [f"text {generator.randrange(10**9)} \u00e9" for _ in range(9000)]
    data = "".join(text + "\n" for text in texts).encode()
    for level in (1, 6, 9):
        assert compression_ratio(iter(texts), level=level) == len(data) / len(zlib.compress(data, level))
    assert compression_ratio(["same words"] * 5000) > 50 > compression_ratio(texts) > 1
    assert compression_ratio([""]) == 1 / len(zlib.compress(b"\n"))
    assert compression_ratio(["\ud800"]) > 0


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="row 8195, field 'text': expected a text, saw 7"):
        tokenise(["a"] * 8195 + [7])  # type: ignore[list-item]
    for texts in ([], ["alone"]):
        with pytest.raises(InputError, match=f"at least two texts, saw {len(texts)}"):
            self_bleu(texts)
    with pytest.raises(InputError, match="1 to 16, saw 17"):
        self_bleu(["a", "b"], 17)
    with pytest.raises(InputError, match="field 'epsilon'"):
        self_bleu(["a", "b"], epsilon=math.nan)
    with pytest.raises(InputError, match="at least one text"):
        compression_ratio([])
    with pytest.raises(InputError, match="level of 0 to 9, saw 10"):
        compression_ratio(["a"], level=10)
    assert ngram_metrics([]) == {}
    assert ngram_metrics(["alone"]) == {"distinct_1": 1.0}
    assert np.isfinite(self_bleu(["", ""]))
