"""Lists of names that users bring, for catalogues."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from obverse.engine.errors import InputError
from obverse.engine.records.files import read_table

__all__ = ["read_names"]


def read_names(path: Path) -> pa.Table:
    """A table of ``uri`` and ``name`` from a text file (a name a line) or a table with a column ``name``.

    Where there is no ``uri`` column the name is its own URI. Raises `InputError` for an empty list or name.
    """
    if path.name.endswith(".txt"):
        if not path.is_file():
            raise InputError("an existing file", file=path)
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        table = pa.table({"name": pa.array([name for name in names if name], pa.string())})
    else:
        table = read_table(path)
    if "name" not in table.column_names:
        raise InputError("a column 'name'", file=path, field="name", seen=table.column_names)
    if table.num_rows == 0:
        raise InputError("at least one name", file=path)
    if "uri" not in table.column_names:
        table = table.append_column("uri", table["name"])
    return table.select(["uri", "name"]).cast(pa.schema([("uri", pa.string()), ("name", pa.string())]))
