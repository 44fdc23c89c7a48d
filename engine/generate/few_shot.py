"""Examples before a prompt, the same for all rows of one relation or label, so that they share the whole prefix.

Which ones is decided by the run's seed, the relation or label, and what the examples say: never by the row, nor by the
order of the file. A row is never shown itself: where an example has the row's triplets or text, the next one in line
takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from obverse.engine.errors import InputError, RecipeError
from obverse.engine.generate.fields import Triplet, triples_in
from obverse.engine.generate.settings import FewShotSettings
from obverse.engine.records.files import read_table
from obverse.engine.records.keys import content_hash
from obverse.engine.records.linearise import linearise

__all__ = ["Example", "FewShot"]


class Example(NamedTuple):
    """One row of the examples' file."""

    values: dict[str, Any]
    """Its columns as templates see them, with ``triplets`` (a list), ``facts``, ``label`` and ``text``."""
    triples: frozenset[tuple[str, ...]]
    relations: frozenset[str]
    mark: str
    """A hash of its content."""


class FewShot:
    """The examples of one run."""

    def __init__(self, settings: FewShotSettings, seed: int) -> None:
        """Raises `InputError` naming file, row and field of an example that is none, or where there are none."""
        if settings.examples is None:
            raise ValueError("few_shot.examples names no file")
        self._file, self._shots, self._by, self._seed = settings.examples, settings.shots, settings.examples_by, seed
        found = {example.mark: example for example in _read(settings.examples)}
        self.examples = tuple(found.values())
        if not self.examples:
            raise InputError("at least one example", file=settings.examples)
        self._orders: dict[tuple[str | None, str | None], list[int]] = {}

    def key(self, triplets: Sequence[Triplet], label: str | None) -> str | None:
        """What a row shares with its examples: its first relation, its label, or nothing."""
        if self._by in ("auto", "relation") and triplets:
            return f"relation {triplets[0]['predicate']}"
        return f"label {label}" if self._by in ("auto", "label") and label is not None else None

    def choose(
        self, triplets: Sequence[Triplet], label: str | None, text: str | None = None, *, needs: str | None = None
    ) -> tuple[int, ...]:
        """Places in ``examples`` of those for a row, first to last.

        Examples of the row's key come first; others fill up where it has too few. With ``needs`` only examples that
        have that field; `RecipeError` where none has.
        """
        order = self._order(self.key(triplets, label), needs)
        own = frozenset(tuple(triplet.values()) for triplet in triplets)
        chosen = []
        for place in order:
            example = self.examples[place]
            if (own and example.triples == own) or example.values["text"] == text:
                continue
            chosen.append(place)
            if len(chosen) == self._shots:
                break
        return tuple(chosen)

    def _order(self, key: str | None, needs: str | None) -> list[int]:
        """All examples in line for ``key``."""
        if (key, needs) not in self._orders:
            if key is None:
                places = [i for i, example in enumerate(self.examples) if not needs or example.values[needs]]
                if not places:
                    raise RecipeError(
                        f"generate.few_shot: {self._file} has no row with {needs}, which the prompt shows"
                    )
                self._orders[key, needs] = self._drawn(places, None)
            else:
                rest = self._order(None, needs)
                own = self._drawn([place for place in rest if self._has(place, key)], key)
                known = set(own)
                self._orders[key, needs] = own + [place for place in rest if place not in known]
        return self._orders[key, needs]

    def _has(self, place: int, key: str) -> bool:
        kind, _, name = key.partition(" ")
        example = self.examples[place]
        return name in example.relations if kind == "relation" else example.values["label"] == name

    def _drawn(self, places: list[int], key: str | None) -> list[int]:
        return sorted(places, key=lambda i: content_hash([self._seed, key, self.examples[i].mark]))


def _read(file: Path) -> list[Example]:
    table = read_table(file.expanduser())
    found = []
    for number, row in enumerate(table.to_pylist(), start=1):
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or not text.strip():
            raise InputError("a text that isn't empty", file=file, row=number, field="text", seen=text)
        try:
            triples = triples_in({"id": number, "triplets": row.get("triplets")})
        except InputError as error:
            raise InputError(error.expected, file=file, row=number, field=error.field, seen=error.seen) from None
        values = row | {
            "text": text.strip(),
            "triplets": [Triplet(triple._asdict()) for triple in triples],
            "facts": linearise(triples),
            "label": None if label is None else str(label),
        }
        relations = frozenset(triple.predicate for triple in triples)
        mark = content_hash({name: value for name, value in row.items() if name != "id"})
        found.append(Example(values, frozenset(map(tuple, triples)), relations, mark))
    return found
