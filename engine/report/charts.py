"""The kinds of figure a report has. Each takes plain numbers and a width in px and gives one SVG drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from obverse.engine.report.svg import FONT, Frame, Scale, clip_text, element, text_width
from obverse.engine.report.values import Score, count, points

__all__ = ["Bar", "Dot", "Line", "bars", "columns", "dots", "dumbbells", "histogram", "lines"]

ROW = 24.0


class Line(NamedTuple):
    """One curve: its name, its points and its CSS class (c1..c6)."""

    name: str
    points: Sequence[tuple[float, float]]
    class_: str
    dots: bool = False


class Bar(NamedTuple):
    """One horizontal bar from ``start`` to ``stop`` with a text at its end."""

    label: str
    start: float
    stop: float
    note: str
    class_: str


class Dot(NamedTuple):
    """One score with its interval; hollow dots are the baseline kind."""

    label: str
    score: Score
    class_: str
    hollow: bool = False


def _label_room(labels: Sequence[str], width: float, share: float = 0.42) -> float:
    return min(max((text_width(label) for label in labels), default=0) + 14, width * share)


def _row_labels(frame: Frame, labels: Sequence[str], centre: Sequence[float]) -> None:
    for label, y in zip(labels, centre, strict=True):
        shown = clip_text(label, frame.left - 11)
        whole = element("title", label) if shown != label else ""
        frame.add("text", shown, whole, x=frame.left - 9.0, y=y + 4, text_anchor="end", class_="t")


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    width: float,
    *,
    x_title: str,
    y_title: str,
    log: bool = False,
    mark: tuple[float, str] | None = None,
    class_: str = "c1",
) -> Markup:
    """Counts between ``edges`` (one more than counts), on a logarithmic x axis where ``log``; ``mark`` a value."""
    frame = Frame(width, 250, top=40 if mark else 26)
    x = Scale(edges[0], edges[-1], frame.left, frame.right, log=log)
    y = Scale(0, max([*counts, 1]), frame.bottom, frame.top)
    frame.y_axis(y, y_title)
    for left, right, value in zip(edges[:-1], edges[1:], counts, strict=True):
        start, stop, top = x(left), x(right), y(value)
        if value > 0:
            top = min(top, frame.bottom - 1.5)  # a bin with one row must not look empty
            frame.add(
                "rect",
                x=start + 0.5,
                y=top,
                width=max(stop - start - 1, 1.0),
                height=frame.bottom - top,
                class_=f"f {class_}",
            )
    frame.baseline()
    frame.x_axis(x, x_title)
    if mark and edges[0] <= mark[0] <= edges[-1]:
        at = x(mark[0])
        frame.add("line", x1=at, x2=at, y1=frame.top - 8.0, y2=float(frame.bottom), class_="k")
        end = at + text_width(mark[1]) + 6 > frame.right
        frame.label(at - 5 if end else at + 5, frame.top - 3, mark[1], anchor="end" if end else "start", class_="t b")
    return frame.done(f"Histogram of {x_title}")


def columns(rows: Sequence[tuple[str, float]], width: float, *, x_title: str, y_title: str) -> Markup:
    """One upright bar per (label, value), with the value above it where there is room."""
    frame = Frame(width, 250, top=30)
    y = Scale(0, max([*(v for _, v in rows), 1]) * 1.08, frame.bottom, frame.top)
    frame.y_axis(y, y_title)
    step = (frame.right - frame.left) / max(len(rows), 1)
    every = max(1, math.ceil(max(text_width(label) for label, _ in rows) / step))
    roomy = step > max(text_width(count(v)) for _, v in rows) + 2
    for i, (label, value) in enumerate(rows):
        centre, top = frame.left + (i + 0.5) * step, y(value)
        wide = min(step * 0.72, 64.0)
        frame.add("rect", x=centre - wide / 2, y=top, width=wide, height=frame.bottom - top, class_="f c1")
        if roomy:
            frame.label(centre, top - 5, count(value), anchor="middle")
        if i % every == 0:
            frame.label(centre, frame.bottom + 17, label, anchor="middle", class_="t m")
    frame.baseline()
    frame.label((frame.left + frame.right) / 2, frame.bottom + 35, x_title, anchor="middle", class_="t m")
    return frame.done(f"{y_title} by {x_title}")


def bars(rows: Sequence[Bar], width: float, *, description: str) -> Markup:
    """Horizontal bars, each with its own text: a funnel, or shares of a whole."""
    room = _label_room([row.label for row in rows], width)
    notes = max((text_width(row.note) for row in rows), default=0) + 12
    frame = Frame(width, len(rows) * 28 + 8, left=room, right=notes, top=4, bottom=4)
    x = Scale(0, max([*(row.stop for row in rows), 1e-12]), frame.left, frame.right)
    centre = [frame.top + 14 + i * 28 for i in range(len(rows))]
    _row_labels(frame, [row.label for row in rows], centre)
    for row, y in zip(rows, centre, strict=True):
        start, stop = x(row.start), x(row.stop)
        stop = max(stop, start + 1.5)
        frame.add("rect", x=start, y=y - 9, width=stop - start, height=18.0, class_=f"f {row.class_}")
        frame.label(stop + 6, y + 4, row.note)
    return frame.done(description)


def dumbbells(
    rows: Sequence[tuple[str, float, float]], width: float, *, x_title: str, before: str, after: str
) -> Markup:
    """Two dots per row on a logarithmic axis, joined: hollow ``before``, filled ``after``; 0 sits at the left edge."""
    positive = [v for _, a, b in rows for v in (a, b) if v > 0]
    low, high = min(positive, default=0.01), max(positive, default=1.0)
    frame = Frame(width, len(rows) * 21 + 76, left=_label_room([r[0] for r in rows], width, 0.47), top=30, right=18)
    x = Scale(low / 1.3, high * 1.15, frame.left + 6, frame.right, log=True)
    _legend(frame, [(before, "c2", True), (after, "c1", False)])
    frame.x_axis(x, x_title, number=4, grid=True)
    centre = [frame.top + 12 + i * 21 for i in range(len(rows))]
    _row_labels(frame, [row[0] for row in rows], centre)
    for (_, a, b), y in zip(rows, centre, strict=True):
        left, right = x(max(a, x.low)), x(max(b, x.low))
        frame.add("line", x1=left, x2=right, y1=y, y2=y, class_="j")
        frame.add("circle", cx=left, cy=y, r=4.5, class_="h c2")
        frame.add("circle", cx=right, cy=y, r=5.0, class_="f c1" if b > 0 else "h c1")
    return frame.done(f"{x_title}: {before} and {after} for each of {len(rows)} relations")


def _legend(frame: Frame, entries: Sequence[tuple[str, str, bool]]) -> None:
    x = float(frame.left) if frame.left < frame.width * 0.3 else 8.0
    for name, class_, hollow in entries:
        frame.add("circle", cx=x, cy=10.0, r=4.5, class_=f"{'h' if hollow else 'f'} {class_}")
        frame.label(x + 11, 14, name)
        x += text_width(name) + 34


def dots(rows: Sequence[Dot], width: float, *, x_title: str) -> Markup:
    """Dot and whisker: one row per score, the value written out at the right edge."""
    notes = [points(row.score.value) for row in rows]
    room = _label_room([row.label for row in rows], width, 0.5)
    frame = Frame(width, len(rows) * ROW + 56, left=room, right=46, top=8)
    ends = [v for row in rows for v in (row.score.value, row.score.low, row.score.high) if v is not None]
    low, high = 100 * min(ends), 100 * max(ends)
    margin = max((high - low) * 0.08, 0.5, (4 - high + low) / 2)  # never zoom in on less than 4 points
    x = Scale(max(low - margin, 0), min(high + margin, 100), frame.left + 4, frame.right - 4)
    frame.x_axis(x, x_title, number=4, grid=True)
    centre = [frame.top + ROW / 2 + i * ROW for i in range(len(rows))]
    _row_labels(frame, [row.label for row in rows], centre)
    for row, note, y in zip(rows, notes, centre, strict=True):
        if row.score.low is not None and row.score.high is not None:
            start, stop = x(100 * row.score.low), x(100 * row.score.high)
            frame.add("line", x1=start, x2=stop, y1=y, y2=y, class_=f"w {row.class_}")
        at = x(100 * row.score.value)
        frame.add("circle", cx=at, cy=y, r=5.0, class_=f"{'h' if row.hollow else 'f'} {row.class_}")
        frame.label(frame.right + 8, y + 4, note, class_="t b")
    return frame.done(f"{x_title} with intervals for {len(rows)} models")


def lines(
    curves: Sequence[Line],
    width: float,
    *,
    x_title: str,
    y_title: str,
    zero: bool = False,
    log_y: bool = False,
    level: tuple[float, str] | None = None,
) -> Markup:
    """Curves with their names at their ends; ``level`` draws a named horizontal line."""
    named = [curve.name for curve in curves if curve.name] + ([level[1]] if level else [])
    room = min(max((text_width(name) for name in named), default=0) + 16, width * 0.3)
    frame = Frame(width, 250, right=max(room, 14), top=30)
    xs = [px for curve in curves for px, _ in curve.points]
    ys = [py for curve in curves for _, py in curve.points] + ([level[0]] if level else [])
    x = Scale(min(xs), max(xs), frame.left, frame.right)
    low, high = min(ys), max(ys)
    pad = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    bottom = 0.0 if zero else (low / 1.2 if log_y else low - pad)
    y = Scale(bottom, high * 1.2 if log_y else high + pad, frame.bottom, frame.top, log=log_y)
    frame.y_axis(y, y_title)
    frame.baseline()
    frame.x_axis(x, x_title)
    for curve in curves:
        drawn = [(x(px), y(py)) for px, py in curve.points]
        frame.line(drawn, curve.class_)
        if curve.dots or len(drawn) == 1:
            for px, py in drawn:
                frame.add("circle", cx=px, cy=py, r=3.5, class_=f"f {curve.class_}")
    if level:
        at = y(level[0])
        frame.add("line", x1=float(frame.left), x2=float(frame.right), y1=at, y2=at, class_="k")
        frame.label(frame.right + 7, at + 4, level[1], class_="t b")
    _end_labels(frame, curves, y, room)
    return frame.done(f"{y_title} over {x_title}")


def _end_labels(frame: Frame, curves: Sequence[Line], y: Scale, room: float) -> None:
    """Names beside the last points, pushed apart until none overlap."""
    ends = sorted((y(curve.points[-1][1]), curve) for curve in curves if curve.name)
    placed: list[float] = []
    for want, _ in ends:
        placed.append(max(want, placed[-1] + FONT + 3) if placed else want)
    over = placed[-1] - frame.bottom if placed else 0.0
    for (_, curve), at in zip(ends, placed, strict=True):
        shift = at - max(over, 0.0)
        frame.label(frame.right + 7, shift + 4, clip_text(curve.name, room - 8), class_=f"t n {curve.class_}")
