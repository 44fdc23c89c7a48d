"""Figures of diversity of a whole set that cost little at any size; `full_metrics` has the others too."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.diversity.ngram_metrics import distinct_ngrams, ngram_metrics
from obverse.engine.diversity.vectors import Rows, open_vectors
from obverse.engine.diversity.vendi import mean_cosine, vendi_score
from obverse.engine.records.schemas import require_columns

__all__ = ["distinct_ngrams", "set_metrics"]


def set_metrics(
    vectors: pa.Table | Rows, texts: pa.Table | None = None, *, scores: pa.Table | None = None
) -> dict[str, float]:
    """Diversity of a set from its ``vectors`` and, where given, its ``texts`` and SCORES. All exact, no sampling.

    ``n``: rows. ``vendi``: exp of the entropy of the eigenvalues of K / n, K the n x n matrix of cosines (Friedman
    and Dieng, arXiv 2210.02410); computed from the D x D matrix X'X / n, which has the same non-zero eigenvalues;
    between 1 and min(n, D). ``mean_cosine``: mean over pairs of different rows, from the sum of all vectors.
    ``distinct_1`` to ``distinct_4``: different word n-grams over all n-grams (falls with the size of the set:
    compare sets of one size). ``self_bleu``: mean BLEU-4 of each text with all others as references.
    ``mean_knn_distance``: mean of that column of ``scores``.

    A figure that isn't defined (of one row, of no texts) is left out. Raises `InputError` as `open_vectors` does.
    """
    result: dict[str, float] = {"n": float(len(vectors.ids) if isinstance(vectors, Rows) else vectors.num_rows)}
    if result["n"]:
        matrix = (vectors if isinstance(vectors, Rows) else open_vectors(vectors)).matrix
        result["vendi"] = vendi_score(matrix)
        if len(matrix) > 1:
            result["mean_cosine"] = mean_cosine(matrix)
    elif not isinstance(vectors, Rows):
        require_columns(vectors, "id", "vector", what="vectors")
    if scores is not None:
        require_columns(scores, "mean_knn_distance", what="scores")
        mean = pc.mean(scores["mean_knn_distance"].cast(pa.float64())).as_py()
        if mean is not None:
            result["mean_knn_distance"] = mean
    if texts is not None:
        require_columns(texts, "text", what="texts")
        result |= ngram_metrics(_present(texts["text"]))
    return result


def _present(column: pa.ChunkedArray) -> Iterator[str]:
    """Texts that are neither null nor empty, a batch of them in memory at a time."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), 8192):
            yield from (text for text in chunk.slice(start, 8192).to_pylist() if text)
