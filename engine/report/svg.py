"""Small SVG drawings by hand: elements, scales, ticks and a plot frame. Colours are CSS classes of the page.

Drawing by hand instead of with matplotlib keeps each figure at a few KB, lets it follow the page's light and dark
colours and fonts, and needs no package.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from markupsafe import Markup, escape

__all__ = ["FONT", "Frame", "Scale", "clip_text", "compact", "element", "log_ticks", "text_width", "ticks"]

FONT = 12.0
"""Text height in px of every figure; figures are drawn near the size at which they are shown."""


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """One SVG element; text children and attribute values are escaped, ``class_`` is class, ``_`` becomes ``-``."""
    shown = []
    for name, value in attributes.items():
        if value is None:
            continue
        written = _round(value) if isinstance(value, float) else str(value)
        shown.append(f' {name.rstrip("_").replace("_", "-")}="{escape(written)}"')
    inner = Markup("").join(child if isinstance(child, Markup) else Markup(escape(str(child))) for child in children)
    return Markup(f"<{tag}{''.join(shown)}>{inner}</{tag}>")


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def text_width(text: str, size: float = FONT) -> float:
    """About how wide ``text`` is set, in px (no font is at hand; wide scripts count double)."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * (0.55 * (len(text) - wide) + 1.0 * wide)


def clip_text(text: str, width: float, size: float = FONT) -> str:
    """``text`` cut with an ellipsis to about ``width`` px."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def compact(value: float) -> str:
    """An axis label: 1.5k, 20M, 0.02, 1e-5."""
    size = abs(value)
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:g}{unit}"
    if size and size < 1e-3:
        exponent = math.floor(math.log10(size))
        return f"{value / 10**exponent:.2g}e{exponent}"
    return f"{value:.6g}"


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) inside [low, high], about ``number`` of them."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / max(number, 1)))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(span / s - number))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Powers of ten inside [low, high], thinned; with 2 and 5 between when the range is short."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = [10.0**e for e in range(first, last + 1) if low * 0.999 <= 10.0**e <= high * 1.001]
    if len(decades) > number:
        step = math.ceil(len(decades) / number)
        return decades[::step]
    if len(decades) >= 3:
        return decades
    fine = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    return [v for v in fine if low * 0.999 <= v <= high * 1.001] or decades or [low, high]


class Scale:
    """Maps [low, high] to [start, stop] px, linearly or by logarithm."""

    def __init__(self, low: float, high: float, start: float, stop: float, *, log: bool = False) -> None:
        if not high > low:
            high = low * 10 if log else low + (abs(low) or 1.0)
        self.low, self.high, self.start, self.stop, self.log = low, high, start, stop, log

    def __call__(self, value: float) -> float:
        """The px of ``value``; values outside are held at the edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, number: int) -> list[float]:
        """Round values on this scale."""
        return (log_ticks if self.log else ticks)(self.low, self.high, number)


class Frame:
    """A plot area inside a drawing; parts are added in order and `done` closes it."""

    def __init__(
        self, width: float, height: float, *, left: float = 52, right: float = 14, top: float = 12, bottom: float = 42
    ) -> None:
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = left, width - right, top, height - bottom
        self.parts: list[Markup] = []

    def add(self, tag: str, *children: object, **attributes: object) -> None:
        """Append one element."""
        self.parts.append(element(tag, *children, **attributes))

    def label(self, x: float, y: float, text: str, *, anchor: str = "start", class_: str = "t") -> None:
        """Text whose baseline is at ``y``."""
        self.add("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=class_)

    def x_axis(self, scale: Scale, title: str, *, number: int | None = None, grid: bool = False) -> None:
        """Ticks, their labels and the axis title below the plot."""
        wanted = number or max(3, int((self.right - self.left) / 80))
        for value in scale.ticks(wanted):
            x = scale(value)
            end = self.top if grid else self.bottom + 4
            self.add("line", x1=x, x2=x, y1=float(self.bottom), y2=float(end), class_="g" if grid else "a")
            self.label(x, self.bottom + 17, compact(value), anchor="middle", class_="t m")
        self.label((self.left + self.right) / 2, self.bottom + 35, title, anchor="middle", class_="t m")

    def y_axis(self, scale: Scale, title: str, *, number: int = 4) -> None:
        """Horizontal grid lines with labels; the title stands above the axis, so that it reads level."""
        for value in scale.ticks(number):
            y = scale(value)
            self.add("line", x1=float(self.left), x2=float(self.right), y1=y, y2=y, class_="g")
            self.label(self.left - 7, y + 4, compact(value), anchor="end", class_="t m")
        self.label(2, self.top - 12, title, class_="t m")

    def baseline(self) -> None:
        """The bottom line of the plot."""
        y = float(self.bottom)
        self.add("line", x1=float(self.left), x2=float(self.right), y1=y, y2=y, class_="a")

    def line(self, points: Sequence[tuple[float, float]], class_: str) -> None:
        """A polyline through px points."""
        path = " ".join(f"{_round(x)},{_round(y)}" for x, y in points)
        self.add("polyline", points=path, class_=f"l {class_}")

    def done(self, description: str) -> Markup:
        """The drawing, with ``description`` for who can't see it."""
        box = f"0 0 {_round(float(self.width))} {_round(float(self.height))}"
        attributes = {"viewBox": box, "role": "img", "aria-label": description, "width": _round(float(self.width))}
        return element("svg", *self.parts, **attributes)
