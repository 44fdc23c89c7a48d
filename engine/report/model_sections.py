"""Sections on the model: training, scores with intervals, comparisons, labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from obverse.engine.report.blocks import Block, Figure, Notes, Section, Table, figure
from obverse.engine.report.charts import Dot, Line, dots, lines
from obverse.engine.report.values import (
    Score,
    count,
    decimal,
    duration,
    get,
    listing,
    mapping,
    number,
    percent,
    points,
    rows_of_numbers,
    score,
    text,
)

__all__ = ["Entry", "entries", "main_score", "model_name", "scores_section", "shown_entry", "training_section"]

_METHODS = {
    "ce": "CE",
    "imp": "IMP",
    "dimp": "DIMP",
    "plain": "plain CE",
    "sample_weight": "weighted CE",
}
_DECODING = {"constrained": "constrained", "free": "unconstrained"}
# Fewer records than this make an interval that says nothing.
_MIN_RECORDS = 10

_METRIC = {
    "micro_f1": "micro-F1",
    "micro_precision": "micro-precision",
    "micro_recall": "micro-recall",
    "macro_f1": "macro-F1",
    "macro_precision": "macro-precision",
    "macro_recall": "macro-recall",
    "macro_gold_f1": "macro-F1 over gold relations",
    "accuracy": "accuracy",
    "exact_match": "exact match",
}


class Entry(NamedTuple):
    """One model on one test set."""

    method: str
    decoding: str
    name: str
    result: dict[str, Any]

    @property
    def hollow(self) -> bool:
        """Unconstrained decoding is drawn as the baseline."""
        return self.decoding == "free"


def model_name(key: str) -> str:
    """``dimp/constrained`` as ``DIMP, constrained``."""
    method, _, decoding = key.partition("/")
    method = _METHODS.get(method, method.replace("_", " "))
    return f"{method}, {_DECODING.get(decoding, decoding)}" if decoding else method


def _spoken(key: str) -> str:
    """``dimp/constrained`` as ``constrained DIMP``: within a sentence."""
    method, _, decoding = model_name(key).partition(", ")
    return f"{decoding} {method}".strip()


def entries(results: object) -> list[Entry]:
    """The models of one test set, in the order given."""
    found = []
    for key, result in mapping(results).items():
        method, _, decoding = key.partition("/")
        if isinstance(result, dict):
            found.append(Entry(method, decoding, model_name(key), mapping(result)))
    return found


def main_score(result: dict[str, Any]) -> Score | None:
    """Micro-F1 of an extraction, accuracy of a classification."""
    return score(get(result, "micro", "f1")) or score(result.get("accuracy"))


def shown_entry(metrics: object, found: Sequence[Entry]) -> Entry | None:
    """The model to speak of: the one chosen on the selection split, else the best here; constrained where it can be.

    Choosing by the test set's own scores would flatter them.
    """
    scored = [entry for entry in found if main_score(entry.result)]
    chosen = [entry for entry in scored if entry.method == text(get(metrics, "chosen"))]
    pool = [entry for entry in chosen or scored if not entry.hollow] or chosen or scored
    return max(pool, key=lambda entry: getattr(main_score(entry.result), "value", -1.0), default=None)


def training_section(metrics: object) -> Section | None:
    """Loss curves, and how the checkpoint was chosen."""
    train = {name: entry for name, entry in mapping(get(metrics, "train")).items() if isinstance(entry, dict)}
    blocks: list[Block] = []
    losses = _curves({name: rows_of_numbers(entry.get("loss"), 2) for name, entry in train.items()}, 120)
    if losses:
        ends = ", ".join(f"{c.name} {c.points[0][1]:.2f} → {c.points[-1][1]:.2f}" for c in losses)
        blocks.append(_line_figure("Does training settle?", f"Loss: {ends}.", losses, "training loss"))
    chosen = {name: _selection(entry.get("selection")) for name, entry in train.items()}
    title = next((name for _, name in chosen.values() if name), "selection score")
    selection = _curves({name: rows for name, (rows, _) in chosen.items()}, 120, dots=True)
    if selection:
        blocks.append(_line_figure("Is more training still better?", "On the selection split.", selection, title))
    rows = [_speed_row(name, entry) for name, entry in train.items()]
    if any(cell != "–" for row in rows for cell in row[1:]):
        head = ("Method", "Steps", "Time", "Tokens/s")
        blocks.append(Table("How long did it take?", head, rows, full=len(blocks) == 2))
    return Section("training", "Training", blocks) if blocks else None


def _curves(rows: dict[str, list[tuple[float, ...]]], limit: int, *, dots: bool = False) -> list[Line]:
    curves = []
    for place, (name, found) in enumerate(rows.items()):
        if found:
            step = max(1, -(-len(found) // limit))
            kept = [*found[::step], *([found[-1]] if (len(found) - 1) % step else [])]
            pairs = [(row[0], row[1]) for row in kept]
            curves.append(Line(model_name(name), pairs, f"c{place % 6 + 1}", dots))
    return curves


def _line_figure(question: str, answer: str, curves: Sequence[Line], y_title: str) -> Figure:
    values = [y for curve in curves for _, y in curve.points]
    log = min(values) > 0 and max(values) / min(values) > 4
    y_title = f"{y_title} (log scale)" if log else y_title
    x_title = "training steps"
    return figure(question, answer, lambda width: lines(curves, width, x_title=x_title, y_title=y_title, log_y=log))


def _selection(value: object) -> tuple[list[tuple[float, ...]], str]:
    """(step, score) rows from pairs or from mappings with a ``step``, and the score's name where it has one."""
    rows, title = rows_of_numbers(value, 2), ""
    for entry in listing(value):
        step = number(get(entry, "step"))
        rest = [(name, number(v)) for name, v in mapping(entry).items() if name not in ("step", "seconds", "epoch")]
        named = [(name, v) for name, v in rest if v is not None]
        if step is not None and named:
            rows.append((step, named[0][1]))
            title = named[0][0].replace("_", " ")
    return rows, title


def _speed_row(name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    loss = rows_of_numbers(entry.get("loss"), 2)
    seconds, rate = number(entry.get("seconds")), number(entry.get("tokens_per_s"))
    return (
        model_name(name),
        count(loss[-1][0]) if loss else "–",
        duration(seconds) if seconds is not None else "–",
        decimal(rate) if rate is not None else "–",
    )


def scores_section(metrics: object) -> Section | None:
    """Scores with intervals, one group of figures per test set, then comparisons."""
    blocks: list[Block] = []
    sets = {name: entries(results) for name, results in mapping(get(metrics, "evaluate")).items()}
    for name, found in sets.items():
        blocks += _set_blocks(name, found)
    detail = next((found for found in sets.values() if found), [])
    best = shown_entry(metrics, detail)
    if best is not None:
        blocks += _detail_blocks(best, next(name for name, found in sets.items() if found))
    lead = _comparisons(get(metrics, "comparisons"))
    if lead:
        blocks.insert(0, Notes(lead))
    return Section("scores", "Scores", blocks) if blocks else None


def _set_blocks(name: str, found: Sequence[Entry]) -> list[Block]:
    legend = _legend(found)
    blocks: list[Block] = []
    kinds = (
        (("micro", "f1"), "Which model finds the most facts", "micro-F1"),
        (("accuracy",), "Which model labels best", "accuracy, %"),
        (("macro", "f1"), "And when every class counts the same", "macro-F1"),
    )
    for path, question, title in kinds:
        scored = [(e, score(get(e.result, *path))) for e in found]
        rows = [Dot(e.name, s, "c2" if e.hollow else "c1", e.hollow) for e, s in scored if s]
        if path[0] == "macro" and any("micro" in e.result for e in found):
            question = "And when every relation counts the same"
        if len(rows) > 1 or (rows and rows[0].score.low is not None):
            blocks.append(_dots(f"{question}? ({name})", legend, rows, title))
    if any(main_score(e.result) for e in found):
        blocks.append(_score_table(name, found))
    return blocks


def _legend(found: Sequence[Entry]) -> str:
    """How many records, and what the marks of a score figure mean."""
    records = max((number(e.result.get("records")) or 0 for e in found), default=0)
    level = next((level for e in found if (level := number(e.result.get("confidence")))), None)
    parts = [f"{count(records)} records"] if records else []
    if level is not None:
        parts.append(f"whiskers are {percent(level)} bootstrap intervals")
    if any(e.decoding for e in found):
        parts.append("filled is constrained")
    legend = "; ".join(parts)
    return legend[:1].upper() + legend[1:] + "." if legend else ""


def _dots(question: str, answer: str, rows: Sequence[Dot], title: str) -> Figure:
    return figure(question, answer, lambda width: dots(rows, width, x_title=title))


def _score_table(name: str, found: Sequence[Entry]) -> Table:
    parts = (("P", "precision"), ("R", "recall"), ("F1", "f1"))
    columns: dict[str, tuple[str, ...]] = {"Accuracy": ("accuracy",)}
    columns |= {f"{mean.capitalize()}-{short}": (mean, part) for mean in ("micro", "macro") for short, part in parts}
    columns |= {"Macro-F1, gold relations": ("macro_gold", "f1"), "Whole set right": ("exact_match",)}
    columns |= {"Names from catalogue": ("catalogue_share",)}
    used = {head: path for head, path in columns.items() if any(score(get(e.result, *path)) for e in found)}
    scores = {head: [score(get(e.result, *path)) for e in found] for head, path in used.items()}
    best = {head: max(s.value for s in column if s) for head, column in scores.items()}
    rows = [
        (e.name, *(_cell(column[i], best=best[head] if len(found) > 1 else None) for head, column in scores.items()))
        for i, e in enumerate(found)
    ]
    return Table(f"All scores on “{name}”, of 100", ("Model", *used), rows, full=True)


def _cell(found: Score | None, *, best: float | None = None) -> Markup:
    """A score, bold where it is the ``best`` of its column, over its interval."""
    if found is None:
        return Markup("–")
    main = Markup("<b>{}</b>" if best is not None and found.value >= best else "{}").format(points(found.value))
    if found.low is None or found.high is None:
        return main
    return main + Markup(" <small>{}–{}</small>").format(points(found.low), points(found.high))


def _detail_blocks(best: Entry, where: str) -> list[Block]:
    blocks: list[Block] = []
    sizes = listing(best.result.get("by_triplets"))
    frequent = [row for row in sizes if (number(get(row, "records")) or 0) >= _MIN_RECORDS]
    rows = [dot for dot in map(_size_dot, frequent or sizes) if dot]
    if len(rows) > 1:
        answer = f"{best.name}, by number of gold triplets"
        answer += f"; sizes with fewer than {_MIN_RECORDS} records are left out." if len(rows) < len(sizes) else "."
        blocks.append(_dots(f"Do longer sets get harder? ({where})", answer, rows[:12], "micro-F1"))
    relations = [row for row in listing(best.result.get("per_relation")) if isinstance(row, dict)]
    if relations:
        shown = [_relation_row(row) for row in relations[:60]]
        rest = len(relations) - len(shown) + (number(best.result.get("relations_left_out")) or 0)
        note = f"{count(rest)} rarer relations are not listed here." if rest else ""
        head = ("Relation", "Gold", "Predicted", "Right", "F1")
        blocks += _hardest(best, where)
        blocks.append(Table(f"Every relation ({where}, {best.name})", head, shown, note, full=True, folded=True))
    return blocks + _label_blocks(best, where)


def _hardest(best: Entry, where: str) -> list[Block]:
    """The frequent relations with the lowest F1."""
    rows = [
        (found, text(get(row, "relation")) or "–", count(number(get(row, "gold")) or 0))
        for row in listing(best.result.get("per_relation"))
        if (found := score(get(row, "f1"))) and (number(get(row, "gold")) or 0) >= _MIN_RECORDS
    ]
    if len(rows) < 2:
        return []
    rows.sort(key=lambda row: (row[0].value, row[1]))
    dots_ = [Dot(f"{name} ({gold})", found, "c1") for found, name, gold in rows[:10]]
    answer = f"{best.name}; lowest of the {len(rows)} relations with {_MIN_RECORDS} or more gold triplets."
    return [_dots(f"Which relations are hard? ({where})", answer, dots_, "F1")]


def _size_dot(row: object) -> Dot | None:
    size, found = number(get(row, "triplets")), score(get(row, "f1"))
    if size is None or size < 1 or found is None:
        return None
    return Dot(f"{count(size)} ({count(number(get(row, 'records')) or 0)} records)", found, "c1")


def _relation_row(row: dict[str, Any]) -> tuple[object, ...]:
    counts = [number(row.get(name)) for name in ("gold", "predicted", "correct")]
    written = (count(v) if v is not None else "–" for v in counts)
    return (text(row.get("relation")) or "–", *written, _cell(score(row.get("f1"))))


def _label_blocks(best: Entry, where: str) -> list[Block]:
    blocks: list[Block] = []
    classes = [row for row in listing(best.result.get("per_class")) if isinstance(row, dict)]
    if classes:
        head = ("Label", "Gold", "P", "R", "F1")
        title = f"Which labels are hard? ({where}, {best.name})"
        blocks.append(Table(title, head, [_class_row(row) for row in classes]))
    labels = [str(name) for name in listing(get(best.result, "confusion", "labels"))]
    matrix = rows_of_numbers(get(best.result, "confusion", "counts"), len(labels)) if labels else []
    if labels and len(matrix) == len(labels) <= 30:
        blocks.append(_confusion(labels, matrix, where))
    return blocks


def _class_row(row: dict[str, Any]) -> tuple[object, ...]:
    scores = (_cell(score(row.get(part))) for part in ("precision", "recall", "f1"))
    return (text(row.get("label")) or "–", count(number(row.get("gold")) or 0), *scores)


def _confusion(labels: Sequence[str], matrix: Sequence[Sequence[float]], where: str) -> Table:
    shade = Markup('<span class="heat" style="--share:{}%">{}</span>')
    rows = []
    for label, row in zip(labels, matrix, strict=True):
        total = sum(row) or 1.0
        rows.append((label, *(shade.format(round(100 * v / total), count(v)) for v in row)))
    note = "Rows are gold, columns predicted; the shade is the share of the row."
    return Table(f"What is taken for what? ({where})", ("", *labels), rows, note)


def _comparisons(value: object) -> list[str]:
    """Each comparison as a sentence that says whether the difference is real."""
    lines_: list[str] = []
    for row in listing(value):
        gap, p = number(get(row, "difference")), number(get(row, "p_value"))
        low, high = number(get(row, "low")), number(get(row, "high"))
        one, other = text(get(row, "a")), text(get(row, "b"))
        if gap is None or one is None or other is None:
            continue
        metric = text(get(row, "metric")) or "score"
        metric = _METRIC.get(metric, metric.replace("_", " "))
        where = text(get(row, "set"))
        place = f"On “{where}”, " if where else ""
        a, b = _spoken(one), _spoken(other)
        tail = f" ({_sure(low, high, p)})" if _sure(low, high, p) else ""
        clear = low is not None and high is not None and (low > 0 or high < 0)
        if clear:
            verb = "better" if gap > 0 else "worse"
            lines_.append(f"{place}{a} is {points(abs(gap))} points of {metric} {verb} than {b}{tail}.")
        else:
            found = f"{a} against {b} is {_signed(gap)} points{tail}"
            lines_.append(f"{place}no clear difference in {metric}: {found}.")
    return [line[0].upper() + line[1:] for line in lines_]


def _sure(low: float | None, high: float | None, p: float | None) -> str:
    parts = []
    if low is not None and high is not None:
        parts.append(f"interval {_signed(low)} to {_signed(high)}")
    if p is not None:
        parts.append("p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}")
    return ", ".join(parts)


def _signed(share: float) -> str:
    return f"{'−' if share < 0 else '+'}{points(abs(share))}"
