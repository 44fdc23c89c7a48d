"""A catalogue as one file: tries, linking tables, report and card as sections, mapped and never copied.

===========================  ======================================================================================
``card``                     JSON: format, versions, tokenizer, context, counts
``KIND.low`` and so on       the trie of KIND (``entities``, and ``relations`` where there are any)
``KIND.names``               its linking table, Arrow IPC: name, uris and, where they say anything, canonical, types
``KIND.hashes``              uint32 [n], ascending: the names' hashes
``KIND.rows``                uint32 [n]: the row of each hash
``report``                   names dropped and noted, Arrow IPC
===========================  ======================================================================================

The file's fingerprint is the names' context: tokenizer and what stands before a name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from obverse.engine.decode.name_index import HashIndex, NameIndex
from obverse.engine.errors import InputError

if TYPE_CHECKING:
    from obverse._core import SectionFile

__all__ = ["FORMAT", "from_arrow", "index_sections", "open_index", "open_sections", "read_card", "to_arrow"]

FORMAT = 2
_AGAIN = "build it again with `obverse catalog build`"


def to_arrow(table: pa.Table) -> np.ndarray:
    """A table as the bytes of an Arrow IPC file, one record batch where it fits."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return np.frombuffer(sink.getvalue(), np.uint8)


def from_arrow(section: np.ndarray) -> pa.Table:
    """The table in the bytes of `to_arrow`, in place."""
    return pa.ipc.open_file(pa.py_buffer(section)).read_all()


def index_sections(index: NameIndex, kind: str) -> dict[str, Any]:
    """The sections of one kind."""
    hashes = index.hashes
    return {
        **index.trie.sections(kind),
        f"{kind}.names": to_arrow(index.table),
        f"{kind}.hashes": hashes.hashes,
        f"{kind}.rows": hashes.rows,
    }


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what the native core and Arrow raise for a damaged file into an `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, OSError, KeyError, IndexError, pa.ArrowException) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise InputError(f"a whole catalogue file ({reason})", file=path) from error


def open_sections(path: Path) -> SectionFile:
    """Open a catalogue file: its header and table of sections.

    Raises `InputError` naming file and reason.
    """
    from obverse._core import SectionFile

    if path.is_dir():
        old = (path / "catalog.json").exists()
        raise InputError(
            "a catalogue file" + (f"; this folder is of an earlier version: {_AGAIN}" if old else ""), file=path
        )
    if not path.exists():
        raise InputError("an existing catalogue file", file=path)
    with damage_named(path):
        return SectionFile.open(path)


def read_card(file: SectionFile, path: Path) -> dict[str, Any]:
    """The card of a catalogue file; `InputError` where the file is something else or of another format."""
    if "card" not in file.names():
        raise InputError("a catalogue file (with a card)", file=path, seen=file.names())
    with damage_named(path):
        card = json.loads(file.section("card").tobytes())
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        seen = card.get("format") if isinstance(card, dict) else card
        raise InputError(f"catalogue format {FORMAT}; {_AGAIN}", file=path, seen=seen)
    return card


def open_index(file: SectionFile, path: Path, kind: str) -> NameIndex:
    """The names of one kind, their table and hashes opened when first used."""
    from obverse._core import Trie

    with damage_named(path):
        trie = Trie.from_sections(file, kind)

    def table() -> pa.Table:
        return open_table(file, path, f"{kind}.names", rows=trie.num_sequences)

    def hashes() -> HashIndex:
        with damage_named(path):
            parts = (file.section(f"{kind}.{name}").view("<u4") for name in ("hashes", "rows"))
            index = HashIndex(*parts)
        if not len(index.hashes) == len(index.rows) == trie.num_sequences:
            raise InputError(f"a whole catalogue file ({kind}.hashes has another length)", file=path)
        return index

    return NameIndex(trie, table, hashes)


def open_table(file: SectionFile, path: Path, section: str, *, rows: int | None = None) -> pa.Table:
    """An Arrow table of the file, in place."""
    with damage_named(path):
        table = from_arrow(file.section(section))
        table.validate()
    if rows is not None and table.num_rows != rows:
        raise InputError(f"a whole catalogue file ({section} has {table.num_rows} rows, not {rows})", file=path)
    return table


def verify(file: SectionFile, path: Path, indexes: dict[str, NameIndex], report: Callable[[], pa.Table]) -> None:
    """Read the whole file: checksums, every index of the tries, every value of the tables.

    Raises `InputError` naming file and section.
    """
    with damage_named(path):
        file.verify()
        for table in (report(), *(index.table for index in indexes.values())):
            table.validate(full=True)
        for kind, index in indexes.items():
            if not index.trie.is_sound():
                raise ValueError(f"the trie {kind} does not hold together")
            rows = index.hashes.rows
            if len(rows) and int(rows.max()) >= len(index):
                raise ValueError(f"{kind}.rows leads outside the table")
