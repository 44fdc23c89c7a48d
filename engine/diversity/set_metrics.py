"""Figures of diversity of a whole set: Vendi score, mean cosine, distinct n-grams."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.diversity.vectors import unit_matrix
from obverse.engine.records.schemas import require_columns

__all__ = ["distinct_ngrams", "set_metrics"]

_BLOCK = 8192
# Words; characters of scripts that put no spaces between them count one by one.
_TOKEN = re.compile(
    r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|[^\W\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


def set_metrics(
    vectors: pa.Table, texts: pa.Table | None = None, *, scores: pa.Table | None = None
) -> dict[str, float]:
    """Diversity of a set from its ``vectors`` and, where given, its ``texts`` and SCORES. All exact, no sampling.

    ``n``: rows. ``vendi``: exp of the entropy of the eigenvalues of K / n, K the n x n matrix of cosines (Friedman
    and Dieng, arXiv 2210.02410); computed from the D x D matrix X'X / n, which has the same non-zero eigenvalues;
    between 1 and min(n, D). ``mean_cosine``: mean over pairs of different rows, from the sum of all vectors.
    ``distinct_1`` to ``distinct_3``: different word n-grams over all n-grams (falls with the size of the set:
    compare sets of one size). ``mean_knn_distance``: mean of that column of ``scores``.

    A figure that isn't defined (of one row, of no texts) is left out.
    """
    matrix = unit_matrix(vectors)[1]
    result: dict[str, float] = {"n": float(len(matrix))}
    if len(matrix):
        result["vendi"] = _vendi(matrix)
    if len(matrix) > 1:
        result["mean_cosine"] = _mean_cosine(matrix)
    if scores is not None:
        require_columns(scores, "mean_knn_distance", what="scores")
        mean = pc.mean(scores["mean_knn_distance"].cast(pa.float64())).as_py()
        if mean is not None:
            result["mean_knn_distance"] = mean
    if texts is not None:
        require_columns(texts, "text", what="texts")
        result |= distinct_ngrams(text for chunk in texts["text"].chunks for text in chunk.to_pylist() if text)
    return result


def _vendi(matrix: npt.NDArray[np.float32]) -> float:
    dim = matrix.shape[1]
    gram = np.zeros((dim, dim))
    for start in range(0, len(matrix), _BLOCK):
        block = matrix[start : start + _BLOCK].astype(np.float64)
        gram += block.T @ block
    eigenvalues = np.linalg.eigvalsh(gram / np.trace(gram))
    positive = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def _mean_cosine(matrix: npt.NDArray[np.float32]) -> float:
    total = np.zeros(matrix.shape[1])
    squares = 0.0
    for start in range(0, len(matrix), _BLOCK):
        block = matrix[start : start + _BLOCK].astype(np.float64)
        total += block.sum(axis=0)
        squares += float((block * block).sum())
    return (float(total @ total) - squares) / (len(matrix) * (len(matrix) - 1))


def distinct_ngrams(texts: Iterable[str], orders: tuple[int, ...] = (1, 2, 3)) -> dict[str, float]:
    """Different word n-grams over all n-grams, for each n of ``orders`` that the texts have.

    Words are case-folded; no n-gram spans two texts. Exact: an n-gram is numbered by the number of its first
    n - 1 words' n-gram and its last word, so memory is that of one integer a word.
    """
    vocabulary: dict[str, int] = {}
    tokens: list[npt.NDArray[np.int64]] = []
    lengths: list[int] = []
    for text in texts:
        words = _TOKEN.findall(text.casefold())
        tokens.append(np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words], np.int64))
        lengths.append(len(words))
    flat = np.concatenate(tokens) if tokens else np.empty(0, np.int64)
    # Words left in its text from each place on, itself included.
    ends = np.repeat(np.cumsum(lengths, dtype=np.int64), lengths)
    left = ends - np.arange(len(flat))
    starts, numbers = np.arange(len(flat)), flat
    result = {}
    for order in range(1, max(orders) + 1):
        if order > 1:
            going_on = left[starts] >= order
            starts = starts[going_on]
            keys = numbers[going_on] * len(vocabulary) + flat[starts + order - 1]
            numbers = np.unique(keys, return_inverse=True)[1].reshape(-1)
        if order in orders and len(starts):
            result[f"distinct_{order}"] = (int(numbers.max()) + 1) / len(starts)
    return result
