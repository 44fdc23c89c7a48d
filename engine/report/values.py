"""Reading numbers out of ``metrics.json`` (anything may be absent or odd) and writing them for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

__all__ = [
    "Score",
    "count",
    "decimal",
    "described",
    "duration",
    "get",
    "gini",
    "histogram_parts",
    "increasing",
    "items",
    "listing",
    "mapping",
    "number",
    "percent",
    "plain",
    "points",
    "quantile",
    "rows_of_numbers",
    "score",
    "text",
]


class Score(NamedTuple):
    """A value in [0, 1] with its interval, where known."""

    value: float
    low: float | None = None
    high: float | None = None


def get(data: object, *path: str) -> Any:
    """The value at ``path`` in nested mappings, or None."""
    for key in path:
        if not isinstance(data, dict):
            return None
        data = data.get(key)
    return data


def mapping(value: object) -> dict[str, Any]:
    """``value`` if it is a mapping, else an empty one."""
    return {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else {}


def listing(value: object) -> list[Any]:
    """``value`` if it is a list, else an empty one."""
    return list(value) if isinstance(value, list | tuple) else []


def number(value: object) -> float | None:
    """A number that something could measure (below 1e100), or None; booleans are no numbers here."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if abs(found) < 1e100 else None


def items(value: object) -> list[tuple[str, float]]:
    """The (name, number) pairs of a mapping, others left out."""
    found = ((name, number(entry)) for name, entry in mapping(value).items())
    return [(name, entry) for name, entry in found if entry is not None]


def rows_of_numbers(value: object, width: int) -> list[tuple[float, ...]]:
    """The rows of a list of lists whose first ``width`` entries are all numbers."""
    rows = []
    for row in listing(value):
        entries = [number(entry) for entry in listing(row)[:width]]
        found = tuple(entry for entry in entries if entry is not None)
        if len(found) == width:
            rows.append(found)
    return rows


def score(value: object) -> Score | None:
    """A score written as a number or as ``{"value", "low", "high"}``."""
    if isinstance(value, dict):
        main = number(value.get("value"))
        return None if main is None else Score(main, number(value.get("low")), number(value.get("high")))
    main = number(value)
    return None if main is None else Score(main)


def text(value: object) -> str | None:
    """A non-empty string (numbers are written out), or None."""
    if isinstance(value, str):
        return value.strip() or None
    found = number(value)
    return plain(found) if found is not None else None


def described(value: object) -> str:
    """Any JSON value in a line: a dash for nothing, lists and mappings joined with commas."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {described(entry)}" for name, entry in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(described(entry) for entry in value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return text(value) or "–"


def count(value: float) -> str:
    """12,345 (whole) or 1.2 million from ten million on."""
    if abs(value) >= 1e10:
        return f"{value / 1e9:.1f} billion"
    if abs(value) >= 1e7:
        return f"{value / 1e6:.1f} million"
    return f"{round(value):,}"


def decimal(value: float, digits: int = 3) -> str:
    """``digits`` significant digits, without an exponent for everyday sizes."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** (digits - 1):
        return count(value)
    if size < 1e-4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"


def plain(value: float) -> str:
    """A whole number as one, others to three digits."""
    return count(value) if value == round(value) else decimal(value)


def percent(share: float, digits: int = 0) -> str:
    """0.123 as 12%; a share that rounds to nothing or to all is said to be near it."""
    if 0 < share < 0.5 * 10 ** -(digits + 2):
        return f"<{10**-digits:.{digits}f}%"
    if 1 > share > 1 - 0.5 * 10 ** -(digits + 2):
        return f">{100 - 10**-digits:.{digits}f}%"
    return f"{100 * share:.{digits}f}%"


def points(share: float) -> str:
    """A score in [0, 1] as points of 100, with one decimal."""
    return f"{100 * share:.1f}"


def duration(seconds: float) -> str:
    """3 h 12 min, 8 min 05 s, 4.2 s or 310 ms."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def gini(values: Iterable[float]) -> float | None:
    """The Gini coefficient of non-negative values: 0 all equal, towards 1 all in one."""
    found = sorted(v for v in values if v >= 0)
    total = sum(found)
    if not found or total <= 0:
        return None
    ranked = sum((i + 1) * v for i, v in enumerate(found))
    return (2 * ranked) / (len(found) * total) - (len(found) + 1) / len(found)


def increasing(edges: Sequence[float]) -> bool:
    """Whether ``edges`` grow strictly."""
    return all(b > a for a, b in pairwise(edges))


def histogram_parts(value: object) -> tuple[list[float], list[float]] | None:
    """Edges and counts that fit each other, or None."""
    edges = [v for v in map(number, listing(get(value, "edges"))) if v is not None]
    counts = [v for v in map(number, listing(get(value, "counts"))) if v is not None and v >= 0]
    if not counts or len(edges) != len(counts) + 1 or not increasing(edges) or sum(counts) <= 0:
        return None
    return edges, counts


def quantile(edges: Sequence[float], counts: Sequence[float], share: float) -> float:
    """The quantile ``share`` of a histogram, even within each bin."""
    want = share * sum(counts)
    for left, right, value in zip(edges[:-1], edges[1:], counts, strict=True):
        if value > 0 and want <= value:
            return left + (right - left) * want / value
        want -= value
    return edges[-1]
