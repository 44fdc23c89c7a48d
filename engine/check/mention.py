"""Does a text name the entities of its target?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from obverse.engine.check.normalise import is_spaceless, normalise, normalise_lines, occurrences

__all__ = ["Entity", "MentionMatcher"]

_CACHED_ALIASES = 100_000
_PARENTHESIS = re.compile(r" \([^()]*\)$")


class Entity(NamedTuple):
    """One entity of a target: its identifier, where known, and its surface form."""

    uri: str | None
    name: str


class MentionMatcher:
    """Finds entities in texts by name or alias, as whole words.

    ``aliases`` gives further names by uri. An alias counts from three characters on (two in scripts such as Han
    or Hangul, where two characters make a name); the entity's own name counts at any length. A name that stands
    only inside a longer name of another entity of the same target is not a mention: "Mexico City" does not name
    Mexico. A parenthesis that closes a name, as in "Georgia (U.S. state)", tells namesakes apart and need not be
    written.
    """

    def __init__(self, aliases: Mapping[str, Sequence[str]] | None = None) -> None:
        self._aliases = aliases or {}
        self._cache: dict[str, str] = {}

    def found(self, text: str, entities: Sequence[Entity]) -> int:
        """How many of ``entities`` the normalised ``text`` names."""
        names = [normalise(entity.name) for entity in entities]
        return sum(self._is_named(text, entities, names, position) for position in range(len(entities)))

    def _is_named(self, text: str, entities: Sequence[Entity], names: Sequence[str], own: int) -> bool:
        if self._stands(text, names[own], entities, names, own):
            return True
        forms = filter(_is_long_enough, self._lines(entities[own]).split("\n"))
        return any(self._stands(text, form, entities, names, own) for form in forms)

    def _stands(self, text: str, form: str, entities: Sequence[Entity], names: Sequence[str], own: int) -> bool:
        """Whether ``form``, a name of entity ``own``, stands in ``text`` outside longer names of the others."""
        if form not in text:
            return False
        spans = list(occurrences(text, form))
        if not spans:
            return False
        covers: list[tuple[int, int]] = []
        for other, name in enumerate(names):
            if other == own:
                continue
            lines = self._lines(entities[other])
            longer = [name, *(lines.split("\n") if form in lines else ())]
            for cover in longer:
                if len(cover) > len(form) and form in cover and cover in text:
                    covers.extend(occurrences(text, cover))
        return any(not any(a <= start and end <= b for a, b in covers) for start, end in spans)

    def _lines(self, entity: Entity) -> str:
        """The entity's other names, normalised, each a line."""
        short = _PARENTHESIS.sub("", normalise(entity.name)) if entity.name.endswith(")") else ""
        known = self._known(entity.uri) if entity.uri is not None else ""
        return f"{short}\n{known}" if short and known else short or known

    def _known(self, uri: str) -> str:
        lines = self._cache.get(uri)
        if lines is None:
            lines = normalise_lines(self._aliases.get(uri, ()))
            if len(self._cache) >= _CACHED_ALIASES:
                self._cache.clear()
            self._cache[uri] = lines
        return lines


def _is_long_enough(form: str) -> bool:
    return len(form) >= 3 or (len(form) == 2 and all(is_spaceless(char) for char in form))
