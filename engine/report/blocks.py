"""What a section of the page is made of: figures, tables, facts and notes. The template knows how each looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

__all__ = ["NARROW", "WIDE", "Block", "Facts", "Figure", "Notes", "Section", "Table", "figure"]

WIDE, NARROW = 520.0, 350.0
"""Each figure is drawn twice, for a screen and for a phone, so that its text keeps its size on both."""


class Figure(NamedTuple):
    """A drawing under the question it answers and, where the numbers tell, the answer."""

    question: str
    answer: str
    wide: Markup
    narrow: Markup
    kind: str = "figure"


class Table(NamedTuple):
    """A table; ``align`` has l or r per column (default: only the first left); ``folded`` opens on a click."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    align: str = ""
    full: bool = False
    folded: bool = False
    kind: str = "table"

    def right(self, column: int) -> bool:
        """Whether ``column`` is set to the right, as numbers are."""
        return self.align[column : column + 1] != "l" if self.align else column > 0


class Facts(NamedTuple):
    """Names and values, side by side."""

    title: str
    rows: Sequence[tuple[str, str]]
    note: str = ""
    kind: str = "facts"


class Notes(NamedTuple):
    """Sentences: findings, or warnings."""

    lines: Sequence[str]
    warning: bool = False
    kind: str = "notes"


Block = Figure | Table | Facts | Notes


class Section(NamedTuple):
    """A titled part of the page; ``anchor`` is its place in the address."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""


def figure(question: str, answer: str, draw: Callable[[float], Markup]) -> Figure:
    """Draw once for each of the two widths."""
    return Figure(question, answer, draw(WIDE), draw(NARROW))
