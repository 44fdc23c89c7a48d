"""What surrounds the names: SynthIE's two linearisations, a JSON form, and forms that users write down."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from obverse.engine.errors import InputError
from obverse.engine.records.linearise import Form
from obverse.engine.records.sequence import MarkerIds

__all__ = ["JSON", "Automaton", "Part", "Template", "from_template", "marked"]

Part = tuple[list[int] | str, list[int], bool]
"""(token ids of a literal or the name of a slot, the parts that may follow, whether the end may)."""

SUBJECT, RELATION, OBJECT = "subject", "relation", "object"
_SLOT = re.compile(r"\{(subject|relation|object)\}")


class Automaton(NamedTuple):
    """What `obverse._core.Constraint` is made of beside the names."""

    parts: list[Part]
    start: tuple[list[int], bool]


def marked(form: Form, markers: MarkerIds) -> Automaton:
    """The linearisations of SynthIE (arXiv 2303.04132, section 4), by the token ids of their markers.

    Fully expanded: ``( [s] S [r] R [o] O [e] )*``; subject collapsed: ``( [s] S ( [r] R [o] O )+ [e] )*``.
    """
    after_object = [6] if form == "fully_expanded" else [2, 6]
    parts: list[Part] = [
        (list(markers.subject), [1], False),
        (SUBJECT, [2], False),
        (list(markers.relation), [3], False),
        (RELATION, [4], False),
        (list(markers.object), [5], False),
        (OBJECT, after_object, False),
        (list(markers.end), [0], True),
    ]
    return Automaton(parts, ([0], True))


@dataclass(frozen=True)
class Template:
    """A linearisation written down: ``begin (item (separator item)*)? end``, or ``begin item end``.

    ``item`` holds ``{subject}``, ``{relation}`` and ``{object}``, each at most once, in any order, with text between
    every two (the rules unique, types and graph need the order subject, relation, object). All other braces are text.

    A slot after a space takes names as they stand after a space; else as they stand after the character before it
    (a quotation mark, say). All slots of an output must agree in this, for a catalogue holds one token sequence a name.

    Attributes:
        item: one triplet.
        begin, separator, end: what stands before, between and after the triplets.
        repeat: whether more than one item may be written; a form for entity linking writes one name.
        allow_empty: whether none may be written: ``begin end``.
        escape: names are written as the inside of a JSON string.

    Raises:
        InputError: a slot is missing or stands twice, or two slots or triplets touch.
    """

    item: str
    begin: str = ""
    separator: str = ""
    end: str = ""
    repeat: bool = True
    allow_empty: bool = True
    escape: bool = False

    def __post_init__(self) -> None:
        slots = self.slots
        if not slots or len(set(slots)) < len(slots):
            expected = "each of {subject}, {relation}, {object} at most once, and one at least"
            raise InputError(expected, field="item", seen=self.item)
        leading = [*self.texts[1:-1], *([self.between] if self.repeat else [])]
        if any(not text.strip() for text in leading):
            raise InputError("text between every two names", field="item", seen=self.item)
        if len({self._before(text) for text in (*leading, self.first)}) > 1:
            expected = "slots that all follow a space, or all follow the same character"
            raise InputError(expected, field="item", seen=self.item)

    @property
    def slots(self) -> list[str]:
        """The slots in their order."""
        return _SLOT.findall(self.item)

    @property
    def texts(self) -> list[str]:
        """The text before the first slot, between the slots, and after the last."""
        return _SLOT.split(self.item)[::2]

    @property
    def first(self) -> str:
        """What stands before the first name of an output."""
        return self.begin + self.texts[0]

    @property
    def between(self) -> str:
        """What stands between two triplets' names."""
        return self.texts[-1] + self.separator + self.texts[0]

    @property
    def context(self) -> str | None:
        """The character that every name follows directly; None: a space (or nothing), which is part of the name."""
        return self._before(self.first)

    @staticmethod
    def _before(text: str) -> str | None:
        return None if not text or text[-1] == " " else text[-1]


JSON = Template(
    item='{"subject": "{subject}", "relation": "{relation}", "object": "{object}"}',
    begin="[",
    separator=", ",
    end="]",
    escape=True,
)
"""A list of objects, as instruction-tuned models write it."""


def from_template(template: Template, encode: Callable[[str, bool], list[int]]) -> Automaton:
    """The automaton of ``template``.

    Args:
        encode: the token ids of a literal, and whether it opens the output (else it follows a name). A space that
            ends the literal is the next name's and is not passed.
    """
    slots, texts = template.slots, template.texts
    parts: list[Part] = []

    def literal(text: str, next_parts: list[int], can_end: bool, *, opens: bool = False) -> int:
        ids = encode(text[:-1] if next_parts and text[-1] == " " else text, opens)
        if not ids:
            raise InputError("text that makes at least one token", field="template", seen=text)
        parts.append((ids, next_parts, can_end))
        return len(parts) - 1

    parts.extend((slot, [], False) for slot in slots)
    last = len(slots) - 1
    for place in range(last):
        parts[place] = (slots[place], [literal(texts[place + 1], [place + 1], False)], False)
    more = [literal(template.between, [0], False)] if template.repeat else []
    closing = texts[-1] + template.end
    if closing:
        more.append(literal(closing, [], True))
    parts[last] = (slots[last], more, not closing)
    if not template.first.strip():
        return Automaton(parts, ([0], False))
    start = [literal(template.first, [0], False, opens=True)]
    nothing = template.begin + template.end
    if template.allow_empty and nothing:
        start.append(literal(nothing, [], True, opens=True))
    return Automaton(parts, (start, template.allow_empty and not nothing))
