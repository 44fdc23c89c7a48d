"""Near-duplicate texts over a whole set: MinHash proposes pairs, their true Jaccard similarity decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from obverse._core import TextDuplicates, expected_recall
from obverse.engine.diversity.groups import Duplicates, checked_threshold, make_duplicates, priority
from obverse.engine.diversity.quantise import num_threads
from obverse.engine.errors import InputError

__all__ = ["Texts", "choose_bands", "text_near_duplicates"]

Texts: TypeAlias = Sequence[str] | Any  # or an Arrow array of strings, whole or in chunks

_PERMUTATIONS = 128
# Texts between two looks at the keyboard.
_BLOCK = 8192


def choose_bands(threshold: float, recall: float = 0.99) -> tuple[int, int]:
    """Bands, and signature entries a band, of 128 permutations: the fewest chance meetings for the recall asked for.

    The widest band such that a pair right at ``threshold`` is found with a chance of at least ``recall``; bands of a
    single entry where none is. More similar pairs are found more often (`obverse._core.expected_recall`).
    """
    for width in range(_PERMUTATIONS, 0, -1):
        bands = _PERMUTATIONS // width
        if expected_recall(threshold, threshold=threshold, bands=bands, width=width) >= recall:
            return bands, width
    return _PERMUTATIONS, 1


def text_near_duplicates(
    texts: Texts,
    threshold: float = 0.8,
    *,
    scores: npt.ArrayLike | None = None,
    ngram: int = 5,
    recall: float = 0.99,
    threads: int = 0,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Duplicates:
    """Groups of near-duplicate ``texts [N]``, and which rows stay: of near-copies the one of the highest score.

    A text is the set of its character ``ngram``-grams (code points, nothing normalised; a shorter text is one). Two
    are near-duplicates if the Jaccard similarity of these sets, counted truly, is at least ``threshold``. Which pairs
    are compared is up to MinHash (Broder 1997) with 128 permutations in bands; ``facts`` has ``expected_recall``, the
    chance that a pair right at the threshold is found, at least ``recall`` where 128 permutations allow it. Without
    ``scores [N]`` rows take priority in their order. Neither ``threads`` (0: all) nor order of work change the result.

    Memory a text, beside the texts: about 0.2 kB at a threshold of 0.8 and at most 0.5 kB, so 2 to 5 GB for ten
    million. Time grows with the texts, and with pairs that resemble each other without being duplicates: a set that
    is nearly all boilerplate has very many.

    ``on_progress`` hears of every text twice: when it is signed, and when its fate is known. Raises `InputError` for
    a text that is null or no string, naming its row, and for settings and scores out of range.
    """
    checked_threshold(threshold)
    if not 1 <= ngram <= 64:
        raise InputError("an ngram in [1, 64]", field="ngram", seen=ngram)
    if not 0.0 < recall < 1.0:
        raise InputError("a recall in (0, 1)", field="recall", seen=recall)
    tell = on_progress or (lambda _: None)
    started = time.perf_counter()
    raw, offsets = _utf8(texts)
    rows = len(offsets) - 1
    order = priority(scores, rows)
    bands, width = choose_bands(threshold, recall)
    shape = {"threshold": threshold, "bands": bands, "width": width}
    search = TextDuplicates(raw, offsets, order=order, ngram=ngram, seed=seed, **shape)  # type: ignore[arg-type]
    tell(2 * (rows - search.num_distinct))
    _carry_out(search, bands, num_threads(threads), tell)
    facts: dict[str, int | float | str] = {
        "distinct": search.num_distinct,
        "compared_pairs": search.num_compared,
        "expected_recall": expected_recall(threshold, **shape),  # type: ignore[arg-type]
        **shape,
        "ngram": ngram,
        "memory_bytes": search.nbytes,
        "seconds": time.perf_counter() - started,
    }
    return make_duplicates(search.groups(), facts)


def _carry_out(search: TextDuplicates, bands: int, threads: int, tell: Callable[[int], None]) -> None:
    """Every step in turn, in parts, so that progress shows and Ctrl-C is answered."""
    count = search.num_distinct
    blocks = [(first, min(first + _BLOCK, count)) for first in range(0, count, _BLOCK)]
    for first, last in blocks:
        search.sign(first, last, threads)
        tell(last - first)
    for band in range(bands):
        search.gather(band)
    # One call where there is nothing to decide: it readies what the links use.
    for first, last in blocks or [(0, 0)]:
        search.keep(first, last)
        tell(last - first)
    for band in range(bands):
        search.link(band)


def _utf8(texts: Texts) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes of all texts, and offsets ``[N + 1]`` of each; large string arrays are used where they lie."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks() if texts.num_chunks != 1 else texts.chunk(0)
    if not isinstance(texts, pa.Array):
        texts = _as_array(texts)
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise InputError("strings", field="text", seen=str(texts.type))
    if texts.null_count:
        row = int(texts.is_null().to_numpy(zero_copy_only=False).argmax())
        raise InputError("a text", row=row, field="text", seen="null")
    wide = texts.cast(pa.large_string())
    _, bounds, data = wide.buffers()
    if not len(wide):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    offsets = np.frombuffer(bounds, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    raw = np.frombuffer(data, np.uint8)[first:last] if last > first else np.empty(0, np.uint8)
    return raw, np.ascontiguousarray(offsets - first if first else offsets)


def _as_array(texts: Sequence[str]) -> Any:
    if isinstance(texts, str):
        raise InputError("a sequence of texts", field="text", seen=texts)
    try:
        return pa.array(texts, pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError("a text", row=row, field="text", seen=text) from None
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise InputError("a text without lone surrogates", row=row, field="text", seen=text) from None
        raise
