"""From output ids to triples: by their words, or exactly, by the catalogue's tries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from obverse.engine.decode.catalog import Catalog
from obverse.engine.records.linearise import Triple
from obverse.engine.records.sequence import SequenceFormat

__all__ = ["read_triples"]


def read_triples(ids: Sequence[int], form: SequenceFormat, catalog: Catalog | None = None) -> list[Triple]:
    """Triples of output ids, in order, without repeats; a part cut off before its end is left out.

    Without ``catalog`` the output is read as text. With it (constrained output) names are found by their token
    ids: exact even where decoding changes a name (a tokenizer that lowers case, say), and nothing but the
    catalogue's names comes out; the first part that is none of them ends the reading.
    """
    if catalog is None:
        return form.triples(ids)
    triples: list[Triple] = []
    subject = relation = None
    for marker, span, closed in _spans(ids, form):
        if marker == "end":
            subject = relation = None
            continue
        name = (catalog.relations if marker == "relation" else catalog.entities).name_of(span)
        if name is None or not closed:
            break
        if marker == "subject":
            subject = name
        elif marker == "relation":
            relation = name
        elif subject is not None and relation is not None:
            triples.append(Triple(subject, relation, name))
    return list(dict.fromkeys(triples))


def _spans(ids: Sequence[int], form: SequenceFormat) -> Iterator[tuple[str, list[int], bool]]:
    """Each marker's name, the ids between it and the next marker, and whether a next marker closes them."""
    markers = form.markers._asdict().items()
    ids = [int(token) for token in ids]
    current: str | None = None
    span: list[int] = []
    place = 0
    while place < len(ids) and ids[place] != form.eos_id:
        found = next((name for name, tokens in markers if ids[place : place + len(tokens)] == tokens), None)
        if found is None:
            span.append(ids[place])
            place += 1
            continue
        if current is not None:
            yield current, span, True
        current, span = found, []
        place += len(form.markers._asdict()[found])
    if current is not None:
        yield current, span, False
