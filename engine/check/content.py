"""Checks of one text by itself: length, echo of the prompt, script."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from obverse.engine.check.normalise import normalise, script_of
from obverse.engine.records.linearise import Form, Triple, linearise

__all__ = ["echo_of", "script_share"]

_MARKERS = re.compile(
    r"\[(?:s|r|o|e|text|facts|/?INST)\]"  # of linearisations and chat templates
    r"|<\|[\w ]{1,40}\|>"  # control tokens of chat templates
    r"|</?s>|<(?:bos|eos|pad|unk)>|<</?SYS>>",
    re.IGNORECASE,
)
_BARE = re.compile(r"\[(?:s|r|o|e)\]")


def echo_of(text: str, normalised: str, triples: Sequence[Triple]) -> str | None:
    """What of the prompt the text repeats, or None.

    Either a marker or control token, or the whole linearisation of two or more triples with its markers lost in
    decoding (one triple without markers may be an honest sentence: "Lyon is in France"). ``text`` is raw,
    ``normalised`` the same text normalised.
    """
    marker = _MARKERS.search(text)
    if marker:
        return marker[0]
    if len(triples) < 2 or normalise(" ".join(triples[0])) not in normalised:
        return None
    forms: tuple[Form, ...] = ("fully_expanded", "subject_collapsed")
    bare = (normalise(_BARE.sub(" ", linearise(triples, form))) for form in forms)
    return "the prompt's facts" if any(facts in normalised for facts in bare) else None


def script_share(text: str, scripts: Sequence[str]) -> float:
    """Greatest share of the text's letters in one of ``scripts``; 1.0 for a text without letters.

    Japanese mixes three scripts: listed together, ``han``, ``hiragana`` and ``katakana`` count as one.
    """
    counts = Counter(script_of(char) for char in text)
    counts.pop("", None)
    total = sum(counts.values())
    if not total:
        return 1.0
    japanese = {"han", "hiragana", "katakana"} & set(scripts)
    best = max((counts[script] for script in scripts), default=0)
    return max(best, sum(counts[script] for script in japanese)) / total
