from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.diversity import set_metrics
from obverse.engine.diversity.set_metrics import distinct_ngrams


def table(values: npt.NDArray[np.float64]) -> pa.Table:
    flat = pa.array(values.astype(np.float32).reshape(-1))
    return pa.table({"id": np.arange(len(values)), "vector": pa.FixedSizeListArray.from_arrays(flat, values.shape[1])})


def vendi_directly(values: npt.NDArray[np.float64]) -> float:
    """By the eigenvalues of the n x n kernel itself."""
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    eigenvalues = eigenvalues[eigenvalues > 1e-15]
    return float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


@pytest.mark.parametrize(("rows", "dim"), [(5, 40), (40, 5), (300, 64), (2, 2)])
def test_vendi_and_mean_cosine_against_the_kernel(rows: int, dim: int) -> None:
    values = np.random.default_rng(rows).normal(size=(rows, dim)) + 0.5
    got = set_metrics(table(values))
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    kernel = unit @ unit.T
    assert got["vendi"] == pytest.approx(vendi_directly(values), rel=1e-5)
    assert got["mean_cosine"] == pytest.approx(kernel[~np.eye(rows, dtype=bool)].mean(), abs=1e-6)
    assert got["n"] == rows


def test_known_values() -> None:
    assert set_metrics(table(np.eye(6)))["vendi"] == pytest.approx(6)
    assert set_metrics(table(np.ones((6, 3))))["vendi"] == pytest.approx(1)
    # Two directions, three to one: exp of the entropy of (3/4, 1/4).
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert set_metrics(table(np.array([[1, 0], [1, 0], [2, 0], [0, 5]], float)))["vendi"] == pytest.approx(expected)
    assert set_metrics(table(np.array([[1.0, 0.0], [-1.0, 0.0]])))["mean_cosine"] == pytest.approx(-1)
    assert set_metrics(table(np.ones((1, 2)))) == {"n": 1.0, "vendi": pytest.approx(1.0)}
    assert set_metrics(table(np.ones((0, 2)))) == {"n": 0.0}


def test_more_rows_than_a_block() -> None:
    values = np.random.default_rng(0).normal(size=(9000, 6)) + 1
    got = set_metrics(table(values))
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit.T @ unit / len(unit))
    assert got["vendi"] == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()), rel=1e-6)
    assert got["mean_cosine"] == pytest.approx((np.sum(unit @ unit.sum(axis=0)) - 9000) / (9000 * 8999), abs=1e-7)


def test_distinct_by_hand() -> None:
    # words: the cat sat | the cat ran -> 4 of 6; pairs: the-cat, cat-sat, the-cat, cat-ran -> 3 of 4; threes 2 of 2
    texts = pa.table({"id": [0, 1, 2], "text": ["The cat sat.", "the  CAT ran", None]})
    got = set_metrics(table(np.eye(3)), texts)
    assert (got["distinct_1"], got["distinct_2"], got["distinct_3"]) == (4 / 6, 3 / 4, 1.0)
    assert distinct_ngrams(["one", "two"]) == {"distinct_1": 1.0}
    assert distinct_ngrams(["", "!"]) == {}
    assert distinct_ngrams(["東京東京"])["distinct_1"] == 0.5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=7), max_size=6))
def test_distinct_against_sets(texts: Sequence[Sequence[str]]) -> None:
    expected = {}
    for order in (1, 2, 3):
        grams = [tuple(words[i : i + order]) for words in texts for i in range(len(words) - order + 1)]
        if grams:
            expected[f"distinct_{order}"] = len(set(grams)) / len(grams)
    assert distinct_ngrams(" ".join(words) for words in texts) == expected


def test_mean_knn_distance_comes_from_scores() -> None:
    scores = pa.table({"mean_knn_distance": pa.array([0.5, None, 0.25], pa.float32())})
    assert set_metrics(table(np.eye(3)), scores=scores)["mean_knn_distance"] == 0.375
