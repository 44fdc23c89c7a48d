"""The sample gallery: texts with their set's names marked, and which names are missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from obverse.engine.report.values import get, listing, mapping, number, plain, text

__all__ = ["Group", "Sample", "groups", "highlight"]

_TITLES = {
    "good": ("Good", "kept, and says what it should"),
    "bad": ("Doubtful", "kept, but weak"),
    "dropped": ("Dropped", "the checks refused these"),
    "extractions": ("Extractions", "what the trained model reads from a text"),
}
_COLOURS = 6
_LIMIT = 12


class Sample(NamedTuple):
    """One row of the gallery, ready to show."""

    id: str
    text: Markup
    facts: Sequence[Sequence[Markup]]
    label: str
    note: str


class Group(NamedTuple):
    """Samples of one kind."""

    title: str
    meaning: str
    samples: Sequence[Sample]


def groups(metrics: object) -> list[Group]:
    """The groups of ``metrics["samples"]`` that hold anything, good ones first."""
    samples = mapping(get(metrics, "samples"))
    ordered = [*(name for name in _TITLES if name in samples), *sorted(samples.keys() - _TITLES.keys())]
    found = []
    for name in ordered:
        shown = [_sample(item) for item in listing(samples[name])[:_LIMIT] if isinstance(item, dict)]
        if shown:
            title, meaning = _TITLES.get(name, (name.replace("_", " "), ""))
            found.append(Group(title, meaning, shown))
    return found


def highlight(body: str, names: Sequence[str]) -> tuple[Markup, set[str]]:
    """``body`` as HTML with each of ``names`` marked in its colour, and the names found.

    Longest names first, ignoring case, never inside a word of a script that puts spaces between words.
    """
    spans: list[tuple[int, int, str]] = []
    for name in sorted(dict.fromkeys(names), key=lambda n: (-len(n), n)):
        for match in _pattern(name).finditer(body):
            if all(match.end() <= start or match.start() >= stop for start, stop, _ in spans):
                spans.append((match.start(), match.end(), name))
    colour = {name: i % _COLOURS + 1 for i, name in enumerate(dict.fromkeys(names))}
    parts, at = [], 0
    for start, stop, name in sorted(spans):
        parts += [escape(body[at:start]), Markup('<mark class="e{}">{}</mark>').format(colour[name], body[start:stop])]
        at = stop
    parts.append(escape(body[at:]))
    return Markup("").join(parts), {name for _, _, name in spans}


def _pattern(name: str) -> re.Pattern[str]:
    def edge(character: str) -> bool:
        return character.isalnum() and ord(character) < 0x2E80  # not Chinese, Japanese, ...: no spaces to go by

    before = r"(?<!\w)" if edge(name[0]) else ""
    after = r"(?!\w)" if edge(name[-1]) else ""
    return re.compile(before + re.escape(name) + after, re.IGNORECASE)


def _sample(item: dict[str, object]) -> Sample:
    triples = [row for row in (_triple(entry) for entry in listing(item.get("triplets"))) if row]
    body = text(item.get("text")) or ""
    names = [name for s, _, o in triples for name in (s, o)]
    marked, found = highlight(body, names)
    colour = {name: i % _COLOURS + 1 for i, name in enumerate(dict.fromkeys(names))}

    def chip(name: str) -> Markup:
        if name in found:
            return Markup('<span class="e{}">{}</span>').format(colour[name], name)
        return Markup('<span class="missing" title="not in the text">{}</span>').format(name)

    facts = [(chip(s), escape(p), chip(o)) for s, p, o in triples]
    key = number(item.get("id"))
    shown = plain(key).replace(",", "") if key is not None else text(item.get("id")) or ""
    return Sample(shown, marked, facts, text(item.get("label")) or "", text(item.get("note")) or "")


def _triple(entry: object) -> tuple[str, str, str] | None:
    """A triple written as three strings or as SynthIE's mapping of surface forms."""
    if isinstance(entry, dict):
        found = [text(get(entry, part, "surfaceform")) for part in ("subject", "predicate", "object")]
    else:
        found = [text(part) for part in listing(entry)]
    if len(found) != 3 or not all(found):
        return None
    return str(found[0]), str(found[1]), str(found[2])
