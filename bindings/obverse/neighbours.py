"""Nearest neighbours by cosine: of every row among all others, of one set in another, and all pairs that are near.

::

    from obverse import neighbours

    ids, x = neighbours.open_vectors("vectors.parquet")
    found = neighbours.self_join(x, k=10)
    found.indices, found.similarities, found.engine, found.reason, found.recall
"""

from __future__ import annotations

from obverse.engine.diversity.estimate import Estimate
from obverse.engine.diversity.faiss_index import FaissIndex
from obverse.engine.diversity.neighbours import ApproximationWarning, Neighbours, join, pairs_above, self_join
from obverse.engine.diversity.vectors import open_vectors

__all__ = [
    "ApproximationWarning",
    "Estimate",
    "FaissIndex",
    "Neighbours",
    "join",
    "open_vectors",
    "pairs_above",
    "self_join",
]
