"""The top of the page (what came out, at a glance) and its end (how it was made)."""

from __future__ import annotations

from typing import Any, NamedTuple

from obverse.engine.report.blocks import Block, Facts, Section, Table
from obverse.engine.report.model_sections import Entry, entries, main_score, shown_entry
from obverse.engine.report.values import (
    count,
    decimal,
    described,
    duration,
    get,
    mapping,
    number,
    percent,
    points,
    text,
)

__all__ = ["Card", "cards", "made_section", "subtitle"]


class Card(NamedTuple):
    """One number of the headline strip."""

    name: str
    value: str
    note: str = ""


def subtitle(metrics: object) -> str:
    """Task, graph, seed and date of the run in a line."""
    run = mapping(get(metrics, "run"))
    seed = number(run.get("seed"))
    parts = [text(run.get("task")), f"seed {seed:.0f}" if seed is not None else None, text(run.get("started"))]
    version = text(run.get("obverse"))
    parts.append(f"Obverse {version}" if version else None)
    return " · ".join(part for part in parts if part)


def cards(metrics: object) -> list[Card]:
    """The headline strip: rows, kept, speed, scores, time; what is unknown is left out."""
    found = []
    rows = number(get(metrics, "stages", "sample", "rows"))
    checked, kept = number(get(metrics, "check", "rows")), number(get(metrics, "check", "kept"))
    if rows is not None:
        found.append(Card("targets", count(rows), "sampled"))
    elif checked is not None and kept is None:
        found.append(Card("texts", count(checked), "checked"))
    if kept is not None:
        share = f"{percent(kept / checked)} of {count(checked)}" if checked else ""
        found.append(Card("texts kept", count(kept), share))
    rate = number(get(metrics, "generate", "tokens_per_s"))
    if rate is not None:
        found.append(Card("generation", decimal(rate), "output tokens/s"))
    found += _score_cards(metrics)
    seconds = number(get(metrics, "run", "seconds"))
    if seconds is not None:
        found.append(Card("wall time", duration(seconds), "from start to report"))
    return found


def _score_cards(metrics: object) -> list[Card]:
    """The model chosen on the selection split, on the first test set with scores, and the same one unconstrained."""
    for name, results in mapping(get(metrics, "evaluate")).items():
        found = [entry for entry in entries(results) if main_score(entry.result)]
        shown = shown_entry(metrics, found)
        if shown is not None:
            free = next((e for e in found if e.hollow and e.method == shown.method and e is not shown), None)
            return [_score_card(entry, name) for entry in (shown, free) if entry is not None]
    return []


def _score_card(entry: Entry, where: str) -> Card:
    found = main_score(entry.result)
    metric = "micro-F1" if get(entry.result, "micro", "f1") is not None else "accuracy"
    if found is None:
        return Card(metric, "–")
    span = f" ({points(found.low)}–{points(found.high)})" if found.low is not None and found.high is not None else ""
    short = metric.removeprefix("micro-")
    decoding = {"constrained": f"{short}, constrained", "free": f"{short}, unconstrained"}
    name = decoding.get(entry.decoding, metric)
    kind = "micro, " if name != metric and short != metric else ""
    return Card(name, points(found.value), f"{kind}{entry.name.split(',')[0]} on “{where}”{span}")


def made_section(metrics: object, recipe: str | None) -> Section | None:
    """Stages with their times and rates, the machine, the versions and the recipe."""
    blocks: list[Block] = []
    stages = {name: mapping(entry) for name, entry in mapping(get(metrics, "stages")).items()}
    if stages:
        blocks.append(_stage_table(stages))
    run = mapping(get(metrics, "run"))
    hardware = [(name.replace("_", " "), described(value)) for name, value in mapping(run.get("hardware")).items()]
    if hardware:
        blocks.append(Facts("On what machine?", hardware))
    packages = [(name, described(value)) for name, value in mapping(run.get("packages")).items()]
    if packages:
        blocks.append(Facts("With which versions?", packages))
    return Section("made", "How it was made", blocks) if blocks or recipe else None


def _stage_table(stages: dict[str, dict[str, Any]]) -> Table:
    total = sum(number(entry.get("seconds")) or 0 for entry in stages.values())
    rows = []
    for name, entry in stages.items():
        seconds, amount, rate = (number(entry.get(key)) for key in ("seconds", "rows", "rate"))
        unit = text(entry.get("unit")) or ""
        rows.append(
            (
                name,
                count(amount) if amount is not None else "–",
                duration(seconds) if seconds is not None else "–",
                percent(seconds / total) if seconds is not None and total > 0 else "–",
                f"{decimal(rate)} {unit}".strip() if rate is not None else "–",
            )
        )
    return Table("Where did the time go?", ("Stage", "Rows", "Time", "Share", "Rate"), rows, full=True)
