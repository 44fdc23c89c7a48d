"""The section on diversity: distances, densities, duplicates, and how well they are known."""

from __future__ import annotations

from collections.abc import Sequence

from obverse.engine.report.blocks import Block, Facts, Figure, Section, Table, figure
from obverse.engine.report.charts import histogram
from obverse.engine.report.values import (
    count,
    decimal,
    described,
    duration,
    get,
    histogram_parts,
    items,
    mapping,
    number,
    percent,
    plain,
    quantile,
    text,
)

__all__ = ["diversity_section"]

_METRICS = {
    "n": ("Texts", "those that passed the checks"),
    "vendi": ("Vendi score", "effective number of different texts"),
    "vendi_score": ("Vendi score", "effective number of different texts"),
    "mean_cosine": ("Mean pairwise cosine", "0 unrelated, 1 all alike"),
    "mean_pairwise_cosine": ("Mean pairwise cosine", "0 unrelated, 1 all alike"),
    "distinct_1": ("Distinct-1", "share of words that are different words"),
    "distinct_2": ("Distinct-2", "share of word pairs that are different pairs"),
    "distinct_3": ("Distinct-3", "share of word triples that are different triples"),
    "distinct_4": ("Distinct-4", "share of word quadruples that are different ones"),
    "self_bleu": ("Self-BLEU", "0 no text repeats another, 1 all do"),
    "mean_knn_distance": ("Mean neighbour distance", "1 − cosine to the nearest texts"),
}


# Factors of density beyond which a text counts as standing alone, or in a crowd: e.
_FAR = 1.0


def diversity_section(metrics: object) -> Section | None:
    """How different the texts are from each other."""
    score = mapping(get(metrics, "score"))
    index = mapping(score.get("index"))
    figures = (
        _distances(score.get("mean_knn_distance")),
        _densities(score.get("local_density")),
        _novelty(score.get("novelty")),
    )
    blocks: list[Block] = [block for block in figures if block]
    duplicates = _duplicates(mapping(index.get("duplicates")))
    if duplicates:
        blocks.append(Facts("Are there near-duplicates?", duplicates))
    rows = []
    for name, value in items(score.get("metrics")):
        title, meaning = _METRICS.get(name, (name.replace("_", " "), ""))
        rows.append((title, plain(value) if abs(value) >= 1e3 else decimal(value), meaning))
    if rows:
        blocks.append(Table("How diverse is the whole set?", ("Measure", "Value", "Reads"), rows, align="lrl"))
    if index and blocks:
        blocks.append(Facts("How were the neighbours found?", _engine(index)))
    return Section("diversity", "Diversity", blocks) if blocks else None


def _distances(value: object) -> Figure | None:
    found = histogram_parts(value)
    if not found:
        return None
    edges, counts = found
    median = quantile(edges, counts, 0.5)
    near = sum(c for c, right in zip(counts, edges[1:], strict=True) if right <= 0.1) / sum(counts)
    close = f"; {percent(near)} have near twins (below 0.1)" if near > 0 else ""
    return _histogram(
        "How far is each text from its neighbours?",
        f"Half the texts are farther than {median:.2f} from theirs{close}.",
        found,
        "mean distance to the nearest texts (1 − cosine)",
        (median, f"median {median:.2f}"),
    )


def _densities(value: object) -> Figure | None:
    found = histogram_parts(value)
    if not found:
        return None
    edges, counts = found
    alone = sum(c for c, right in zip(counts, edges[1:], strict=True) if right <= -_FAR) / sum(counts)
    answer = "No text lies much sparser than its neighbours."
    if alone > 0:
        answer = f"{percent(alone)} lie less than a third as densely as their neighbours."
    title = "ln of the density over that of the neighbours (0: as dense)"
    return _histogram("Which texts stand alone?", answer, found, title, (0.0, "as dense"))


def _novelty(value: object) -> Figure | None:
    found = histogram_parts(value)
    if not found:
        return None
    median = quantile(*found, 0.5)
    answer = f"Half the texts are farther than {median:.2f} from the nearest real one."
    title = "distance to the nearest real text (1 − cosine)"
    return _histogram("How far is each text from real ones?", answer, found, title, (median, f"median {median:.2f}"))


def _histogram(
    question: str,
    answer: str,
    found: tuple[Sequence[float], Sequence[float]],
    x_title: str,
    mark: tuple[float, str],
) -> Figure:
    edges, counts = found
    inside = mark if edges[0] <= mark[0] <= edges[-1] else None
    return figure(
        question,
        answer,
        lambda width: histogram(edges, counts, width, x_title=x_title, y_title="texts", mark=inside),
    )


def _duplicates(found: dict[str, object]) -> list[tuple[str, str]]:
    rows, kept = number(found.get("rows")), number(found.get("kept"))
    if rows is None or kept is None or rows <= 0:
        return []
    facts = [("rows that repeat another", f"{count(rows - kept)} ({percent((rows - kept) / rows)})")]
    for name, title in (("threshold", "from a cosine of"), ("groups", "groups"), ("largest_group", "largest group")):
        value = number(found.get(name))
        if value is not None:
            facts.append((title, decimal(value) if name == "threshold" else count(value)))
    return facts


def _engine(index: dict[str, object]) -> list[tuple[str, str]]:
    """The engine, why that one, and what was proved or measured of it; what else there is as it is."""
    facts = []
    for name, value in index.items():
        if name in ("duplicates", "clusters", "rows", "dim") or value is None or value == {}:
            continue
        if name in ("recall", "score_error"):
            title = "recall, measured" if name == "recall" else "p99 error of the distance, measured"
            facts.append((title, _estimate(value)))
        elif name == "certificate":
            facts.append(("proved exact", _certificate(mapping(value)) or described(value)))
        elif name == "seconds":
            took = [f"{part} {duration(spent)}" for part, spent in items(value)]
            facts.append(("time", ", ".join(took) or described(value)))
        else:
            facts.append((name.replace("_", " "), described(value)))
    return facts


def _estimate(value: object) -> str:
    found, low, high, sample = (number(get(value, name)) for name in ("value", "low", "high", "sample"))
    if found is None:
        return text(value) or described(value)
    shown = f"{found:.4f}"
    if low is not None and high is not None:
        shown += f" [{low:.4f}, {high:.4f}]"
    return shown + (f" on {count(sample)} rows" if sample is not None else "")


def _certificate(found: dict[str, object]) -> str:
    pairs, evaluated = number(found.get("pairs")), number(found.get("evaluated"))
    if pairs is None or evaluated is None:
        return ""
    return f"{count(pairs)} pairs: {count(evaluated)} computed in float64, all others ruled out by a bound"
