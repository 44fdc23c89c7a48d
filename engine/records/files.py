"""Data that users bring: JSONL, CSV, Parquet or a `datasets` folder in, rows of ``id, text, triplets, label`` out.

SynthIE's records (``id, text, triplets, entities, relations``) are read as they are; entity names there carry
``_`` for spaces, which become spaces here and underscores again in `write_synthie`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from obverse.engine.errors import InputError
from obverse.engine.records.schemas import TRIPLETS

__all__ = ["ROWS", "as_table", "json_object", "open_text", "read_rows", "read_table", "rows_table", "write_synthie"]

ROWS = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        ("triplets", TRIPLETS),
        ("label", pa.string()),
    ]
)
_KINDS = ".jsonl, .jsonl.gz, .json, .csv, .tsv, .parquet, or a folder of Parquet or of a saved `datasets` set"


def as_table(data: Any) -> pa.Table:
    """An Arrow table from a table, record batch, anything with ``__arrow_c_stream__`` (polars, DuckDB), or pandas.

    Raises `InputError` for anything else.
    """
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if hasattr(data, "__arrow_c_stream__"):
        return pa.table(data)
    if type(data).__module__.split(".")[0] == "pandas":
        return pa.Table.from_pandas(data, preserve_index=False)
    if isinstance(data, Mapping):
        return pa.table(dict(data))
    if isinstance(data, list):
        return rows_table(data)
    raise InputError("an Arrow table or a data frame", seen=type(data).__name__)


def rows_table(rows: list[dict[str, Any]]) -> pa.Table:
    """A table of all fields that any of ``rows`` has (pyarrow takes those of the first row alone)."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def read_table(path: Path) -> pa.Table:
    """Read any of the supported files as they are, columns untouched.

    Raises `InputError` when the file is missing, of another kind or malformed.
    """
    if not path.exists():
        raise InputError("an existing file", file=path)
    try:
        return _read_by_kind(path)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"a readable file ({error})", file=path) from error


def _read_by_kind(path: Path) -> pa.Table:
    name = path.name.removesuffix(".gz")
    if path.is_dir():
        return _read_folder(path)
    if name.endswith((".jsonl", ".json", ".ndjson")):
        return rows_table(list(_json_lines(path)))
    if name.endswith((".csv", ".tsv")):
        options = pa.csv.ParseOptions(delimiter="\t" if name.endswith(".tsv") else ",", newlines_in_values=True)
        return pa.csv.read_csv(path, parse_options=options)
    if name.endswith(".parquet"):
        return pq.read_table(path)
    raise InputError(f"one of {_KINDS}", file=path, seen=path.suffix)


def _read_folder(folder: Path) -> pa.Table:
    parts = sorted(folder.glob("*.parquet"))
    if parts:
        return pa.concat_tables([pq.read_table(part) for part in parts], promote_options="default")
    arrows = sorted(folder.glob("*.arrow"))  # what `datasets.Dataset.save_to_disk` writes, or `obverse embed`
    if arrows:
        return pa.concat_tables([_read_arrow(part) for part in arrows])
    raise InputError("Parquet or Arrow files in this folder", file=folder)


def _read_arrow(path: Path) -> pa.Table:
    mapped = pa.memory_map(str(path))
    is_file = mapped.read(6) == b"ARROW1"
    mapped.seek(0)
    return (pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)).read_all()


def open_text(path: Path) -> IO[str]:
    """Open a text file, gzipped or not, to read."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def json_object(line: str, path: Path, row: int) -> dict[str, Any]:
    """The JSON object in one line of a file; `InputError` naming file and row where it is none."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"one JSON object a line ({error.msg})", file=path, row=row, seen=line) from None
    if not isinstance(value, dict):
        raise InputError("one JSON object a line", file=path, row=row, seen=value)
    return value


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with open_text(path) as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield json_object(line, path, number)


def read_rows(
    path: Path,
    *,
    task: str,
    first_id: int = 0,
    text: str = "text",
    label: str = "label",
    require_target: bool = True,
) -> pa.Table:
    """Read texts with their triplets or labels as a table of schema `ROWS`.

    Without ``require_target`` both may be missing: texts to predict.

    ``task`` is ``extraction`` (column ``triplets``) or ``classification`` (column ``label``, any scalar type).
    Rows are numbered from ``first_id`` in file order; an ``id`` column is used only where ``first_id`` is 0.

    Raises `InputError` naming file, row and field of the first bad row.
    """
    table = read_table(path)
    target_column = "triplets" if task == "extraction" else label
    is_bare = not require_target and target_column not in table.column_names
    wanted = (text,) if is_bare else (text, target_column)
    for column in wanted:
        if column not in table.column_names:
            raise InputError(f"a column '{column}'", file=path, field=column, seen=table.column_names)
    use_ids = first_id == 0 and "id" in table.column_names
    columns = [table[name].to_pylist() for name in wanted] + ([[None] * table.num_rows] if is_bare else [])
    rows = []
    for number, (body, target) in enumerate(zip(*columns, strict=True)):
        if not isinstance(body, str) or not body.strip():
            raise InputError("a text that isn't empty", file=path, row=number + 1, field=text, seen=body)
        row: dict[str, Any] = {"id": first_id + number, "text": body.strip(), "triplets": None, "label": None}
        if is_bare or (target is None and not require_target):
            pass
        elif task == "extraction":
            row["triplets"] = _triplets(target, path, number + 1)
        elif target is None:
            raise InputError("a label", file=path, row=number + 1, field=label)
        else:
            row["label"] = str(target)
        rows.append(row)
    result = pa.Table.from_pylist(rows, schema=ROWS)
    return _with_ids(result, table["id"], path) if use_ids else result


def _with_ids(rows: pa.Table, ids: pa.ChunkedArray, path: Path) -> pa.Table:
    try:
        ids = ids.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError("integers", file=path, field="id", seen=ids[0].as_py()) from error
    seen: set[int] = set()
    for number, value in enumerate(ids.to_pylist()):
        if value is None or value in seen:
            raise InputError("ids that are unique and not null", file=path, row=number + 1, field="id", seen=value)
        seen.add(value)
    return rows.set_column(0, ROWS.field("id"), ids)


def _triplets(value: Any, path: Path, row: int) -> list[dict[str, dict[str, str | None]]]:
    if not isinstance(value, list):
        raise InputError("a list of triplets", file=path, row=row, field="triplets", seen=value)
    result = []
    for position, triplet in enumerate(value):
        place = f"triplets[{position}]"
        if not isinstance(triplet, Mapping):
            raise InputError("an object with subject, predicate, object", file=path, row=row, field=place, seen=triplet)
        result.append({role: _name(triplet.get(role), role, path, row, place) for role in _ROLES})
    return result


_ROLES = ("subject", "predicate", "object")


def _name(value: Any, role: str, path: Path, row: int, place: str) -> dict[str, str | None]:
    surface = value.get("surfaceform") if isinstance(value, Mapping) else value
    if not isinstance(surface, str) or not surface.strip():
        raise InputError("a surface form", file=path, row=row, field=f"{place}.{role}", seen=value)
    uri = value.get("uri") if isinstance(value, Mapping) else None
    return {"uri": uri, "surfaceform": surface.replace("_", " ").strip()}


def write_synthie(path: Path, rows: pa.Table) -> None:
    """Write rows (``id, text, triplets``) as SynthIE's JSONL records, gzipped where ``path`` ends in ``.gz``.

    The inverse of `read_rows` for extraction: entities get underscores, and ``entities`` and ``relations`` are added.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as handle:
        for row in rows.select(["id", "text", "triplets"]).to_pylist():
            triplets = [_underscored(triplet) for triplet in row["triplets"]]
            entities = {t[role]["surfaceform"]: t[role] for t in triplets for role in ("subject", "object")}
            relations = {t["predicate"]["surfaceform"]: t["predicate"] for t in triplets}
            record = {
                "id": row["id"],
                "text": row["text"],
                "triplets": triplets,
                "entities": list(entities.values()),
                "relations": list(relations.values()),
            }
            handle.write(json.dumps(record, ensure_ascii=False) + "\n")


def _underscored(triplet: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        role: {
            **name,
            "surfaceform": name["surfaceform"].replace(" ", "_") if role != "predicate" else name["surfaceform"],
        }
        for role, name in triplet.items()
    }
