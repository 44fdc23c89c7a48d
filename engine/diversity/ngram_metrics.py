"""Figures of a set of texts: distinct n-grams, self-BLEU and compression ratio, exact and in linear time."""

from __future__ import annotations

import itertools
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from obverse._core import WordTexts
from obverse.engine.errors import InputError

__all__ = ["compression_ratio", "distinct_ngrams", "ngram_metrics", "self_bleu", "self_bleu_scores", "tokenise"]

Texts = Iterable[str] | WordTexts
Wide = npt.NDArray[np.float64]

_BATCH = 8192
# Words; characters of scripts that put no spaces between them count one by one.
_TOKEN = re.compile(
    r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|[^\W\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


def tokenise(texts: Iterable[str]) -> WordTexts:
    """Words of ``texts``, case-folded, as numbers: what the functions here take in place of texts.

    A word is a run of letters, digits and underscores; characters of scripts written without spaces count one by one.
    Texts are read once, in batches; what is kept is 4 bytes a word, 8 a text, and the distinct words. Raises
    `InputError` for what isn't a string.
    """
    words = WordTexts()
    for batch in _batches(texts):
        # The core finds the words of ASCII itself; those of other texts come to it with spaces between.
        words.add([text if text.isascii() else " ".join(_TOKEN.findall(text.casefold())) for text in batch])
    return words


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    rest, row = iter(texts), 0
    while batch := list(itertools.islice(rest, _BATCH)):
        for place, text in enumerate(batch):
            if not isinstance(text, str):
                raise InputError("a text", row=row + place, field="text", seen=text)
        yield batch
        row += len(batch)


def distinct_ngrams(texts: Texts, orders: Sequence[int] = (1, 2, 3), *, threads: int = 0) -> dict[str, float]:
    """Different word n-grams over all n-grams, for each n of ``orders`` that the texts have.

    distinct-n of Li et al. (arXiv 1510.03055) over a whole set; it falls with the size of the set, so compare sets of
    one size. Words are case-folded; no n-gram spans two texts. Exact: see csrc/include/obverse/ngrams.hpp.
    """
    counts = _words(texts).count_ngrams(max(orders), False, _threads(threads))
    return _distinct([one[:2] for one in counts], orders)


def self_bleu(texts: Texts, max_order: int = 4, *, epsilon: float = 0.1, threads: int = 0) -> float:
    """Mean over ``texts`` of BLEU with all other texts as references (Zhu et al., Texygen, arXiv 1802.01886).

    0 where no text shares a word with another, towards 1 where each repeats others. See `self_bleu_scores`.
    """
    return float(self_bleu_scores(texts, max_order, epsilon=epsilon, threads=threads).mean())


def self_bleu_scores(texts: Texts, max_order: int = 4, *, epsilon: float = 0.1, threads: int = 0) -> Wide:
    """BLEU ``[N]`` of each text with all other texts as references, over orders 1 to ``max_order`` of equal weight.

    As BLEU is defined (Papineni et al., ACL 2002): counts clipped by the greatest count in any one reference, brevity
    penalty by the closest reference length, the shorter of two as close. A precision of 0 becomes ``epsilon`` over
    the number of n-grams (Chen and Cherry, WMT 2014, method 1, as in Texygen; with 0 such a text scores 0), but a text
    with no word in common with the others scores 0. A text without words scores 0 too, and counts as a reference.

    Linear in the words of all texts; memory as in csrc/include/obverse/ngrams.hpp. Raises `InputError` for fewer than
    two texts, orders outside 1 to 16, and epsilon below 0.
    """
    words = _words(texts)
    _check_bleu(words, max_order, epsilon)
    counts = words.count_ngrams(max_order, True, _threads(threads))
    return _bleu(words, [_matches(one[2]) for one in counts], epsilon)


def ngram_metrics(
    texts: Texts, orders: Sequence[int] = (1, 2, 3, 4), *, bleu_order: int = 4, epsilon: float = 0.1, threads: int = 0
) -> dict[str, float]:
    """`distinct_ngrams` and `self_bleu` with the words found and counted once; what isn't defined is left out."""
    words = _words(texts)
    counts = words.count_ngrams(max(*orders, bleu_order), len(words) > 1, _threads(threads))
    result = _distinct([one[:2] for one in counts], orders)
    if len(words) > 1:
        _check_bleu(words, bleu_order, epsilon)
        scores = _bleu(words, [_matches(one[2]) for one in counts[:bleu_order]], epsilon)
        result["self_bleu"] = float(scores.mean())
    return result


def compression_ratio(texts: Iterable[str], *, level: int = 6) -> float:
    """Bytes of the texts over their bytes when deflated: greater where texts repeat each other.

    UTF-8, a newline after each text, one zlib stream at ``level`` (0 to 9) (Shaib et al., arXiv 2403.00553). It looks
    back 32 KiB only, so it depends on the order of the texts: shuffle what was written label by label. Reads the
    texts once and keeps none. Raises `InputError` where there are no bytes.
    """
    if not 0 <= level <= 9:
        raise InputError("a zlib level of 0 to 9", field="level", seen=level)
    deflate = zlib.compressobj(level)
    before = after = 0
    for batch in _batches(texts):
        # A lone half of a surrogate pair is no UTF-8, but may stand in a str.
        data = ("\n".join(batch) + "\n").encode("utf-8", "surrogatepass")
        before += len(data)
        after += len(deflate.compress(data))
    if not before:
        raise InputError("at least one text", field="text")
    return before / (after + len(deflate.flush()))


def _words(texts: Texts) -> WordTexts:
    return texts if isinstance(texts, WordTexts) else tokenise(texts)


def _threads(threads: int) -> int:
    return threads or os.cpu_count() or 1


def _check_bleu(words: WordTexts, max_order: int, epsilon: float) -> None:
    if len(words) < 2:
        raise InputError("at least two texts", field="text", seen=len(words))
    if not 1 <= max_order <= 16:
        raise InputError("an order of 1 to 16", field="max_order", seen=max_order)
    if not epsilon >= 0:
        raise InputError("0 or more", field="epsilon", seen=epsilon)


def _matches(counted: npt.NDArray[np.uint32] | None) -> npt.NDArray[np.uint32]:
    assert counted is not None
    return counted


def _distinct(counts: Sequence[tuple[int, int]], orders: Sequence[int]) -> dict[str, float]:
    return {f"distinct_{n}": counts[n - 1][1] / counts[n - 1][0] for n in sorted(set(orders)) if counts[n - 1][0]}


def _bleu(words: WordTexts, matches: Sequence[npt.NDArray[np.uint32]], epsilon: float) -> Wide:
    lengths = words.lengths()
    closest = _closest(lengths)
    logs = np.zeros(len(lengths))
    with np.errstate(divide="ignore"):
        for order, matched in enumerate(matches, start=1):
            ngrams = np.maximum(lengths - order + 1, 1)
            logs += np.log(np.where(matched, matched, epsilon) / ngrams)
    # 1 for a text as long as the closest reference or longer. (A text without words matches nothing.)
    penalty = np.minimum(1.0 - closest / np.maximum(lengths, 1), 0.0)
    scores: Wide = np.where(matches[0] > 0, np.exp(penalty + logs / len(matches)), 0.0)
    return scores


def _closest(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each text the length closest to its own among all other texts, the shorter of two as close."""
    values, inverse, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    far = np.iinfo(np.int64).max // 4
    below = np.concatenate([[-far], values[:-1]])
    above = np.concatenate([values[1:], [far]])
    nearest = np.where(values - below <= above - values, below, above)
    return np.where(counts > 1, values, nearest)[inverse.reshape(-1)]
