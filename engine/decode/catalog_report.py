"""What became of every name that is not simply in a catalogue: one row a name dropped or noted."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["REPORT", "counts", "report_rows"]

REPORT = pa.schema(
    [
        ("kind", pa.string()),  # entity | relation
        ("name", pa.string()),  # as it is, or would be, in the catalogue
        ("uri", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("kept", pa.bool_()),  # whether the name is in the catalogue all the same
    ]
)

EMPTY = "empty"
MARKER = "contains a marker"
NOT_WRITABLE = "not writable by the tokenizer"
DUPLICATE = "duplicate"
NO_URI = "no uri"
WHITE_SPACE = "white space normalised"
CONTROL = "control character"
MISREAD = "does not round-trip"
SAME_TOKENS = "same tokens as another name"
MERGED = "tokens differ from running text"

DROPPED = (EMPTY, MARKER, NOT_WRITABLE)


def report_rows(kind: str, names: Any, uris: Any, reason: str, details: Any = None) -> pa.Table:
    """Rows for one reason. ``names``, ``uris`` and ``details`` are Arrow arrays of strings; no details are nulls."""
    count = len(names)
    columns = [
        pa.repeat(pa.scalar(kind, pa.string()), count),
        names,
        uris,
        pa.repeat(pa.scalar(reason, pa.string()), count),
        pa.nulls(count, pa.string()) if details is None else details,
        pa.repeat(pa.scalar(reason not in DROPPED), count),
    ]
    return pa.table(columns, schema=REPORT)


def counts(report: pa.Table) -> dict[str, dict[str, dict[str, int]]]:
    """``{kind: {"dropped": {reason: rows}, "noted": {reason: rows}}}``."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    grouped = report.group_by(["kind", "kept", "reason"]).aggregate([([], "count_all")])
    for row in grouped.sort_by([("kind", "ascending"), ("reason", "ascending")]).to_pylist():
        kind = found.setdefault(row["kind"], {"dropped": {}, "noted": {}})
        kind["noted" if row["kept"] else "dropped"][row["reason"]] = row["count_all"]
    return found


def dropped(report: pa.Table) -> pa.Table:
    """The rows of names that are not in the catalogue."""
    return report.filter(pc.invert(report["kept"]))
