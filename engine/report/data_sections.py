"""Sections on the data: what was drawn from the graph, written, dropped, how diverse it is and how it is weighted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from obverse.engine.report.blocks import Block, Facts, Figure, Notes, Section, figure
from obverse.engine.report.charts import Bar, Line, bars, columns, dumbbells, histogram, lines
from obverse.engine.report.diversity import diversity_section
from obverse.engine.report.values import (
    count,
    decimal,
    described,
    get,
    gini,
    histogram_parts,
    items,
    listing,
    mapping,
    number,
    percent,
    rows_of_numbers,
    text,
)

__all__ = ["DATA_SECTIONS"]

# More relations than this don't fit one row each; ranked curves show them instead.
_MAX_ROWS = 30

_REASONS = {
    "mention_recall": "entities not named",
    "leak": "leak of held-out data",
    "duplicate": "duplicate",
}

_ENDINGS = {"stop": "ended by itself", "length": "cut at the limit", "given": "brought by the user"}


def coverage_section(metrics: object) -> Section | None:
    """Which relations the graph has, and which were drawn."""
    sample = mapping(get(metrics, "sample"))
    graph, drawn = dict(items(sample.get("graph_relations"))), dict(items(sample.get("drawn_relations")))
    blocks: list[Block] = []
    if graph and drawn and sum(graph.values()) > 0 and sum(drawn.values()) > 0:
        blocks.append(_coverage(graph, drawn, sample))
    elif drawn:
        top = sorted(drawn.items(), key=lambda entry: -entry[1])[:_MAX_ROWS]
        blocks.append(_amounts("What was drawn, and how often?", "", top))
    sizes = [(n, v) for n, v in items(sample.get("set_sizes")) if v >= 0]
    if sizes:
        sizes.sort(key=lambda entry: (number(_as_int(entry[0])) or 0, entry[0]))
        total = sum(v for _, v in sizes)
        mean = sum((_as_int(n) or 0) * v for n, v in sizes) / total if total and sizes[0][0].isdecimal() else None
        blocks.append(
            figure(
                "How many facts does a set have?",
                f"{decimal(mean)} on average over {count(total)} sets." if mean else f"{count(total)} sets.",
                lambda width: columns(sizes, width, x_title="triplets in a set", y_title="sets"),
            )
        )
    return Section("coverage", "Coverage", blocks) if blocks else None


def _as_int(name: str) -> int | None:
    return int(name) if name.isdecimal() else None


def _coverage(graph: dict[str, float], drawn: dict[str, float], sample: dict[str, object]) -> Figure:
    edges, draws = sum(graph.values()), sum(drawn.values())
    names = sorted(graph.keys() | drawn.keys(), key=lambda name: (-graph.get(name, 0), name))
    rows = [(name, 100 * graph.get(name, 0) / edges, 100 * drawn.get(name, 0) / draws) for name in names]
    missing = [name for name in names if not drawn.get(name)]
    given = [number(sample.get(key)) for key in ("gini_graph", "gini_drawn")]
    computed = [gini(counts.get(n, 0) for n in names) for counts in (graph, drawn)]
    before, after = (a if a is not None else b for a, b in zip(given, computed, strict=True))
    parts = [f"{count(len(names) - len(missing))} of {count(len(names))} relations were drawn"]
    if before is not None and after is not None:
        word = "falls" if after < before else "rises" if after > before else "stays"
        parts.append(f"inequality (Gini) {word} from {before:.2f} in the graph to {after:.2f}")
    answer = "; ".join(parts) + "."
    question = "Do rare relations get their share?"
    labels = {"before": "share of the graph", "after": "share drawn"}
    if len(rows) <= _MAX_ROWS:
        title = "share of facts, % (log scale)"
        return figure(question, answer, lambda width: dumbbells(rows, width, x_title=title, **labels))
    shares = (("graph", [row[1] for row in rows], "c2"), ("drawn", [row[2] for row in rows], "c1"))
    ranked = [
        Line(name, list(enumerate(sorted((v for v in values if v > 0), reverse=True), 1)), colour)
        for name, values, colour in shares
    ]
    y_title = "share of facts, % (log scale)"
    x_title = "relations, most frequent first"
    return figure(question, answer, lambda width: lines(ranked, width, x_title=x_title, y_title=y_title, log_y=True))


def _amounts(question: str, answer: str, rows: Sequence[tuple[str, float]]) -> Figure:
    total = sum(v for _, v in rows) or 1.0
    drawn = [Bar(name, 0, v, f"{count(v)} · {percent(v / total)}", "c1") for name, v in rows]
    return figure(question, answer, lambda width: bars(drawn, width, description=question))


def generation_section(metrics: object) -> Section | None:
    """How fast texts came, and how they ended."""
    generate = mapping(get(metrics, "generate"))
    blocks: list[Block] = []
    rates = _rates(rows_of_numbers(generate.get("throughput"), 3))
    mean = number(generate.get("tokens_per_s"))
    if rates:
        blocks.append(_throughput(rates, mean))
    facts = [(name.replace("_", " "), described(value)) for name, value in mapping(generate.get("backend")).items()]
    tokens = number(generate.get("output_tokens"))
    if tokens is not None:
        facts.append(("tokens written", count(tokens)))
    if mean is not None:
        facts.append(("tokens/s over all", decimal(mean)))
    endings = items(generate.get("finish_reasons"))
    total = sum(v for _, v in endings)
    for name, value in endings:
        share = f" ({percent(value / total)})" if total > 0 else ""
        facts.append((_ENDINGS.get(name, name), f"{count(value)} texts{share}"))
    if facts:
        blocks.append(Facts("What wrote them?", facts))
    return Section("generation", "Generation", blocks) if blocks else None


def _rates(rows: Sequence[tuple[float, ...]], windows: int = 48) -> list[tuple[float, float]]:
    """(seconds, tokens/s) in at most ``windows`` steps from running totals (seconds, rows, tokens).

    A run that was stopped and continued may start its clock or its counts again: such a step backwards is skipped.
    """
    if len(rows) < 2:
        return []
    least = (rows[-1][0] - rows[0][0]) / windows
    found, last = [], rows[0]
    for row in rows[1:]:
        if row[0] < last[0] or row[2] < last[2]:
            last = row
        elif row[0] - last[0] > 0 and row[0] - last[0] >= least * 0.999:
            found.append(((row[0] + last[0]) / 2, (row[2] - last[2]) / (row[0] - last[0])))
            last = row
    return found


def _throughput(rates: list[tuple[float, float]], mean: float | None) -> Figure:
    ordered = sorted(rate for _, rate in rates)
    middle, least, most = ordered[len(ordered) // 2], ordered[0], ordered[-1]
    minutes = rates[-1][0] > 300
    drawn = [(s / 60 if minutes else s, rate) for s, rate in rates]
    answer = f"Half the time above {decimal(middle)} tokens/s; slowest {decimal(least)}, fastest {decimal(most)}."
    unit = "minutes" if minutes else "seconds"
    level = (mean, f"mean {decimal(mean)}") if mean is not None else None
    return figure(
        "Does generation keep its pace?",
        answer,
        lambda width: lines(
            [Line("", drawn, "c1")],
            width,
            x_title=f"{unit} since the stage began",
            y_title="output tokens/s",
            zero=True,
            level=level,
        ),
    )


def check_section(metrics: object) -> Section | None:
    """What the checks dropped and why."""
    check = mapping(get(metrics, "check"))
    blocks: list[Block] = []
    rows, kept = number(check.get("rows")), number(check.get("kept"))
    dropped = sorted(items(check.get("dropped")), key=lambda entry: -entry[1])
    if rows is not None and kept is not None and rows > 0:
        blocks.append(_funnel(rows, kept, dropped))
    recall = [v for v in (number(v) for v in listing(check.get("mention_recall"))) if v is not None]
    if len(recall) > 1 and sum(recall) > 0:
        blocks.append(_recall(recall))
    return Section("checks", "Checks", blocks) if blocks else None


def _recall(recall: Sequence[float]) -> Figure:
    """The histogram without its last bin, which is most of the texts and would hide the rest."""
    whole, rest = recall[-1] / sum(recall), sum(recall[:-1])
    edges = [100 * i / (len(recall) - 1) for i in range(len(recall))]
    answer = f"{percent(whole)} of the texts name every entity of their set"
    answer += f"; the other {count(rest)} name this share of them:" if rest else "."
    x_title = "entities of the set named in the text, %"
    return figure(
        "Does the text name what it must?",
        answer,
        lambda width: histogram(edges, recall[:-1], width, x_title=x_title, y_title="texts", class_="c2"),
    )


def _funnel(rows: float, kept: float, dropped: Sequence[tuple[str, float]]) -> Figure:
    steps, left = [Bar("checked", 0, rows, count(rows), "c6")], rows
    for name, value in dropped:
        note = f"−{count(value)} · {percent(value / rows)}"
        steps.append(Bar(_REASONS.get(name, name.replace("_", " ")), max(left - value, 0), left, note, "c2"))
        left -= value
    steps.append(Bar("kept", 0, kept, f"{count(kept)} · {percent(kept / rows)}", "c1"))
    most = f"; most often: {steps[1].label}" if dropped else ""
    answer = f"{count(rows - kept)} of {count(rows)} texts were dropped{most}."
    return figure(
        "What was dropped, and why?", answer, lambda width: bars(steps, width, description="rows left after each check")
    )


def weights_section(metrics: object) -> Section | None:
    """Which rows count for how much."""
    weigh = mapping(get(metrics, "weigh"))
    blocks: list[Block] = []
    warnings = [line for line in (text(w) for w in listing(weigh.get("warnings"))) if line]
    if warnings:
        blocks.append(Notes(warnings, warning=True))
    share, ess = number(weigh.get("ess_share")), number(weigh.get("ess"))
    found = histogram_parts(weigh.get("histogram"))
    if found:
        blocks.append(_weights(*found, share))
    facts = _weight_facts(weigh, ess, share)
    if facts:
        note = "The effective sample size is the number of equally weighted rows that would tell as much."
        blocks.append(Facts("What do the weights do?", facts, note if ess is not None else ""))
    mass = sorted(items(weigh.get("mass_by_group")), key=lambda entry: -entry[1])
    if mass:
        blocks.append(_amounts_of_mass(mass))
    return Section("weights", "Weights", blocks) if blocks else None


def _weight_facts(weigh: dict[str, object], ess: float | None, share: float | None) -> list[tuple[str, str]]:
    facts = [("scheme", found) for found in [text(weigh.get("scheme"))] if found]
    if ess is not None:
        of_rows = f" ({percent(share)} of rows)" if share is not None else ""
        facts.append(("effective sample size", f"{count(ess)}{of_rows}"))
    for side, where in (("clipped_low", "raised to the floor"), ("clipped_high", "cut to the ceiling")):
        value = number(weigh.get(side))
        if value is not None:
            facts.append((where, percent(value, 1) if 0 < value < 1 else f"{count(value)} rows"))
    quantiles = items(weigh.get("quantiles"))
    if quantiles:
        facts.append(("quantiles", " · ".join(f"{_quantile_name(n)}: {decimal(value)}" for n, value in quantiles)))
    return facts


def _quantile_name(name: str) -> str:
    """``0.25`` (or ``q25``, ``p25``) as ``25%``; other names as they are."""
    digits = name.lstrip("qp")
    try:
        value = float(digits)
    except ValueError:
        return name
    return f"{value if digits != name or value > 1 else 100 * value:g}%"


def _weights(edges: list[float], counts: list[float], share: float | None) -> Figure:
    log = edges[0] > 0 and edges[-1] / edges[0] > 5
    answer = f"As good as {percent(share)} of the rows with equal weight." if share is not None else ""
    draw: Callable[[float], Markup] = lambda width: histogram(  # noqa: E731 - typed, passed on at once
        edges,
        counts,
        width,
        x_title="weight of a row (log scale)" if log else "weight of a row",
        y_title="rows",
        log=log,
        mark=(1.0, "weight 1"),
    )
    return figure("How is the weight spread?", answer, draw)


def _amounts_of_mass(mass: Sequence[tuple[str, float]]) -> Figure:
    shown, total = mass[:16], sum(v for _, v in mass) or 1.0
    rest = len(mass) - len(shown)
    answer = f"The {len(shown)} heaviest of {len(mass)} groups." if rest else ""
    drawn = [Bar(name, 0, v, percent(v / total, 1), "c1") for name, v in shown]
    question = "Which group carries how much weight?"
    return figure(question, answer, lambda width: bars(drawn, width, description=question))


DATA_SECTIONS = (coverage_section, generation_section, check_section, diversity_section, weights_section)
