"""Triplet sets as strings: SynthIE's fully-expanded and subject-collapsed forms (arXiv 2303.04132, section 4).

Fully expanded::       [s] Paris [r] capital of [o] France [e] [s] Paris [r] continent [o] Europe [e]
Subject collapsed::    [s] Paris [r] capital of [o] France [r] continent [o] Europe [e]

Names are plain here; SynthIE's files write entities with ``_`` for spaces (see `records.synthie`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

__all__ = ["Form", "Markers", "Triple", "linearise", "parse", "triples_of"]

Form = Literal["fully_expanded", "subject_collapsed"]


class Triple(NamedTuple):
    """One fact by surface forms; a subject's or object's spaces are spaces."""

    subject: str
    predicate: str
    object: str


class Markers(NamedTuple):
    """The four marker strings of a linearisation."""

    subject: str = "[s]"
    relation: str = "[r]"
    object: str = "[o]"
    end: str = "[e]"


MARKERS = Markers()
_SPLIT = re.compile(r"\[(s|r|o|e)\]")


def triples_of(triplets: Iterable[dict[str, Any]]) -> list[Triple]:
    """The surface forms of a ``triplets`` cell (a list of structs as pyarrow gives them)."""
    return [
        Triple(t["subject"]["surfaceform"], t["predicate"]["surfaceform"], t["object"]["surfaceform"]) for t in triplets
    ]


def linearise(triples: Sequence[Triple], form: Form = "fully_expanded") -> str:
    """Write ``triples`` in order; consecutive triples with one subject share its head when collapsed."""
    parts: list[str] = []
    previous: str | None = None
    for triple in triples:
        shared = form == "subject_collapsed" and triple.subject == previous
        if not shared:
            if previous is not None:
                parts.append("[e]")
            parts.append(f"[s] {triple.subject}")
        parts.append(f"[r] {triple.predicate} [o] {triple.object}")
        previous = triple.subject
    if previous is not None:
        parts.append("[e]")
    return " ".join(parts)


def parse(text: str, form: Form = "fully_expanded") -> list[Triple]:
    """Read triples back, in order, without repeats; an incomplete tail or malformed part is dropped.

    Fully expanded reads as SynthIE does: split on any marker, drop empties, group in threes.
    """
    triples = _parse_expanded(text) if form == "fully_expanded" else _parse_collapsed(text)
    return list(dict.fromkeys(triples))


def _parse_expanded(text: str) -> list[Triple]:
    pieces = [piece.strip() for piece in _SPLIT.split(text)[::2]]
    names = [piece for piece in pieces if piece]
    return [Triple(*names[i : i + 3]) for i in range(0, len(names) - 2, 3)]


def _parse_collapsed(text: str) -> list[Triple]:
    triples = []
    for group in text.split("[e]"):
        names = [piece.strip() for piece in _SPLIT.split(group)[::2]]
        names = [name for name in names if name]
        triples += [Triple(names[0], *names[i : i + 2]) for i in range(1, len(names) - 1, 2)]
    return triples
