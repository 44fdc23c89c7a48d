"""Equal and nearly equal texts, over the whole set and against the held-out one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Protocol

import numpy as np
import numpy.typing as npt

from obverse._core import DuplicateIndex, MinHasher

__all__ = ["ExactIndex", "Fingerprints", "HeldOutIndex", "NearIndex", "TextIndex", "make_index", "text_key"]

Ids = npt.NDArray[np.int64]

_PERMUTATIONS = 128
_NGRAM = 5
_SEED = 0x0B5E


def text_key(text: str) -> int:
    """A 64-bit key of a string; two of ten million strings share one with a chance below 3e-6."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Fingerprints:
    """What indices know of a batch of normalised texts; each part is computed once, when first asked for."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self._whole: tuple[Fingerprints, npt.NDArray[np.intp]] | None = None

    @cached_property
    def keys(self) -> list[int]:
        """One `text_key` a text."""
        if self._whole:
            keys = self._whole[0].keys
            return [keys[row] for row in self._whole[1]]
        return [text_key(text) for text in self.texts]

    @cached_property
    def signatures(self) -> npt.NDArray[np.uint32]:
        """MinHash signatures ``[N, 128]`` of character 5-grams."""
        if self._whole:
            return self._whole[0].signatures[self._whole[1]]
        hasher = MinHasher(num_perm=_PERMUTATIONS, bands=32, ngram=_NGRAM, seed=_SEED)
        return hasher.signatures(list(self.texts))

    def take(self, rows: npt.NDArray[np.intp]) -> Fingerprints:
        """The fingerprints of some rows; they share what the whole computes."""
        part = Fingerprints([self.texts[row] for row in rows])
        part._whole = self, rows
        return part


class TextIndex(Protocol):
    """Texts by id; of texts that are duplicates of each other it holds the first."""

    def insert_or_find(self, ids: Ids, prints: Fingerprints) -> Ids:
        """For each row in order: the id of the held text that it repeats, or -1 and the row is held from now."""

    def find(self, prints: Fingerprints) -> Ids:
        """For each row: the id of a held text that it repeats, or -1."""


class ExactIndex:
    """Equal normalised texts."""

    def __init__(self) -> None:
        self._ids: dict[int, int] = {}

    def insert_or_find(self, ids: Ids, prints: Fingerprints) -> Ids:
        """As `TextIndex.insert_or_find`."""
        result = np.full(len(ids), -1, np.int64)
        for row, (own, key) in enumerate(zip(ids.tolist(), prints.keys, strict=True)):
            first = self._ids.setdefault(key, own)
            if first != own:
                result[row] = first
        return result

    def find(self, prints: Fingerprints) -> Ids:
        """As `TextIndex.find`."""
        return np.array([self._ids.get(key, -1) for key in prints.keys], np.int64)


class NearIndex:
    """Texts whose estimated Jaccard similarity reaches ``threshold``, by banded MinHash."""

    def __init__(self, threshold: float) -> None:
        # A pair of similarity s meets in one of b bands of r rows with 1 - (1 - s^r)^b: with 32 x 4 that is
        # 0.99 at 0.6, 0.87 at 0.5; lower thresholds need 64 x 2 (0.998 at 0.3), at the cost of more candidates.
        self._index = DuplicateIndex(num_perm=_PERMUTATIONS, bands=32 if threshold >= 0.6 else 64, threshold=threshold)

    def insert_or_find(self, ids: Ids, prints: Fingerprints) -> Ids:
        """As `TextIndex.insert_or_find`."""
        return self._index.insert_or_find(ids, prints.signatures)

    def find(self, prints: Fingerprints) -> Ids:
        """As `TextIndex.find`."""
        return self._index.find(prints.signatures)


def make_index(threshold: float) -> TextIndex:
    """An index of equal texts where ``threshold`` is 1.0, of nearly equal texts below."""
    return ExactIndex() if threshold >= 1.0 else NearIndex(threshold)


class HeldOutIndex:
    """All held-out texts, also those that repeat each other, for queries.

    A single index holds only the first of several near-duplicates, and a text near the second need not be near
    the first; so the texts that one layer turns away go to the next.
    """

    def __init__(self, threshold: float, ids: Ids, texts: Sequence[str]) -> None:
        self._layers: list[TextIndex] = []
        first = np.unique(np.array([text_key(text) for text in texts], np.uint64), return_index=True)[1]
        rows = np.sort(first)
        prints = Fingerprints(texts).take(rows)
        ids = ids[rows]
        while len(ids):
            layer = make_index(threshold)
            turned_away = np.flatnonzero(layer.insert_or_find(ids, prints) >= 0)
            self._layers.append(layer)
            ids, prints = ids[turned_away], prints.take(turned_away)

    def find(self, prints: Fingerprints) -> Ids:
        """For each row: the id of a held-out text that it repeats, or -1."""
        result = np.full(len(prints.texts), -1, np.int64)
        for layer in self._layers:
            open_rows = np.flatnonzero(result < 0)
            if not len(open_rows):
                break
            result[open_rows] = layer.find(prints.take(open_rows))
        return result
