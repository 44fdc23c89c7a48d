"""The catalogue: every name that an extraction may contain, its URIs, and its tokens as a trie.

One folder on disk: ``entities.parquet``, ``relations.parquet`` (name, uris), ``entities.trie``, ``relations.trie``
(opened by mmap, shared by all processes that read them), ``dropped.parquet`` (names that can't be written, and why),
``catalog.json`` (last: its presence means the folder is whole).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from obverse.engine.errors import InputError
from obverse.engine.records.linearise import MARKERS
from obverse.engine.records.models import load_tokenizer
from obverse.engine.records.schemas import require_columns
from obverse.engine.records.sequence import SequenceFormat
from obverse.engine.records.shards import read_json, write_json, write_parquet

if TYPE_CHECKING:
    from obverse._core import Constraint, Trie

__all__ = ["Catalog", "NameIndex"]

_FORMAT = 1
_CHUNK = 65536


@dataclass(frozen=True)
class NameIndex:
    """The names of one kind.

    Attributes:
        table: name (unique), uris (list<string>, in the order of the source table).
        trie: the names' token sequences; sequence i is row i of ``table``.
    """

    table: pa.Table
    trie: Trie

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def link(self, names: Sequence[str]) -> list[str | None]:
        """The URI of each name, None where the catalogue lacks it; of a name with several URIs the first."""
        places = pc.index_in(pa.array(names, pa.string()), value_set=self.table["name"].combine_chunks())
        uris = pc.list_element(self.table["uris"].combine_chunks(), 0)
        found: list[str | None] = uris.take(places).to_pylist()
        return found

    def name_of(self, ids: Sequence[int]) -> str | None:
        """The name with exactly these token ids (the first, where a tokenizer makes two names one); else None."""
        node = 0
        for token in ids:
            node = self.trie.step(node, token)
            if node < 0:
                return None
        if not self.trie.is_terminal(node):
            return None
        name: str = self.table["name"][int(self.trie.sequence_ids(node)[0])].as_py()
        return name


@dataclass(frozen=True)
class Catalog:
    """Entity and relation names for one tokenizer.

    Attributes:
        entities, relations: the names that can be written.
        fingerprint: `SequenceFormat.fingerprint` of the tokenizer that the tries are made for.
        dropped: kind, name, uri, reason of the names left out.
    """

    entities: NameIndex
    relations: NameIndex
    fingerprint: str
    dropped: pa.Table

    @classmethod
    def build(cls, entities: pa.Table, relations: pa.Table, form: SequenceFormat) -> Catalog:
        """Tokenise all names of ``entities`` and ``relations`` (uri, name) and build their tries.

        Left out, with a reason in ``dropped``: empty names, names with a marker in them, names that the tokenizer
        can't write (an unknown or end-of-sequence token).

        Raises:
            InputError: a column is missing, or no name of a kind is left.
        """
        parts = []
        dropped = []
        for kind, source in (("entity", entities), ("relation", relations)):
            table, bad = _unique_names(source, kind)
            index, unwritable = _index(table, kind, form)
            parts.append(index)
            dropped += [bad, unwritable]
        return cls(parts[0], parts[1], form.fingerprint, pa.concat_tables(dropped))

    @classmethod
    def cached(cls, entities: pa.Table, relations: pa.Table, model: Path | str, folder: Path) -> Catalog:
        """The catalogue of these tables for ``model``'s tokenizer, from ``folder`` if it lies there already.

        ``folder`` holds one sub-folder per pair of names and tokenizer, so it can serve many models.
        """
        form = SequenceFormat(load_tokenizer(model))
        key = _digest(form.fingerprint, entities, relations)
        place = folder / key
        if not (place / "catalog.json").exists():
            cls.build(entities, relations, form).save(place)
        return cls.open(place)

    def save(self, folder: Path) -> None:
        """Write the catalogue to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, index in (("entities", self.entities), ("relations", self.relations)):
            write_parquet(folder / f"{name}.parquet", index.table)
            index.trie.save(folder / f"{name}.trie")
        write_parquet(folder / "dropped.parquet", self.dropped)
        write_json(folder / "catalog.json", {"format": _FORMAT, "fingerprint": self.fingerprint, **self.stats()})

    @classmethod
    def open(cls, folder: Path) -> Catalog:
        """Open what `save` wrote; the tries are mapped, not read.

        Raises `InputError` when the folder is not a whole catalogue of this version.
        """
        from obverse._core import Trie

        if not (folder / "catalog.json").exists():
            raise InputError("a catalogue folder (with catalog.json)", file=folder)
        card = read_json(folder / "catalog.json")
        if card.get("format") != _FORMAT:
            raise InputError(f"catalogue format {_FORMAT}", file=folder, seen=card.get("format"))
        entities, relations = (
            NameIndex(pq.read_table(folder / f"{name}.parquet"), Trie.open(folder / f"{name}.trie"))
            for name in ("entities", "relations")
        )
        return cls(entities, relations, card["fingerprint"], pq.read_table(folder / "dropped.parquet"))

    def constraint(self, form: SequenceFormat, vocab_size: int) -> Constraint:
        """The automaton of the linearisation over these names, for logits of ``vocab_size``.

        Raises `InputError` when the tries were made for another tokenizer.
        """
        from obverse._core import Constraint

        if form.fingerprint != self.fingerprint:
            raise InputError("a catalogue built for the model's tokenizer", field="catalog", seen=self.fingerprint)
        return Constraint(self.entities.trie, self.relations.trie, *form.markers, form.eos_id, form.form, vocab_size)

    def stats(self) -> dict[str, Any]:
        """Counts and sizes."""
        return {
            "entities": len(self.entities),
            "relations": len(self.relations),
            "entity_nodes": self.entities.trie.num_nodes,
            "bytes": self.entities.trie.nbytes + self.relations.trie.nbytes,
            "ambiguous_names": int(pc.sum(pc.greater(pc.list_value_length(self.entities.table["uris"]), 1)).as_py()),
            "dropped": dict(sorted(_counts(self.dropped).items())),
        }


def _counts(dropped: pa.Table) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(dropped["reason"]).to_pylist()}


_DROPPED = pa.schema([(name, pa.string()) for name in ("kind", "name", "uri", "reason")])


def _dropped(kind: str, names: pa.ChunkedArray, uris: pa.ChunkedArray, reason: str) -> pa.Table:
    count = len(names)
    columns = [pa.array([kind] * count, pa.string()), names, uris, pa.array([reason] * count, pa.string())]
    return pa.table(columns, schema=_DROPPED)


def _unique_names(source: pa.Table, kind: str) -> tuple[pa.Table, pa.Table]:
    """One row per distinct name, in order of first appearance, with its URIs; and the rows left out."""
    require_columns(source, "uri", "name", what=f"{kind} names")
    source = source.select(["uri", "name"]).cast(pa.schema([("uri", pa.string()), ("name", pa.string())]))
    name = pc.fill_null(pc.utf8_trim_whitespace(source["name"]), "")
    # Outputs are read back by their words: runs of white space can't be told from one space.
    name = pc.replace_substring_regex(name, r"\s+", " ")
    source = source.set_column(1, "name", name)
    empty = pc.equal(name, "")
    marked = pc.match_substring_regex(name, "|".join(rf"\[{marker[1:-1]}\]" for marker in MARKERS))
    bad = [
        _dropped(kind, part["name"], part["uri"], reason)
        for mask, reason in ((empty, "empty"), (marked, "contains a marker"))
        for part in [source.filter(mask)]
    ]
    good = source.filter(pc.invert(pc.or_(empty, marked)))
    grouped = good.group_by("name", use_threads=False).aggregate([("uri", "list")])
    return grouped.select(["name", "uri_list"]).rename_columns(["name", "uris"]), pa.concat_tables(bad)


def _index(table: pa.Table, kind: str, form: SequenceFormat) -> tuple[NameIndex, pa.Table]:
    """Tokenise the names of ``table``; those with a token that can't be written are left out."""
    from obverse._core import Trie

    tokens, lengths = _tokenise(table["name"], form)
    forbidden = [form.eos_id, form.tokenizer.unk_token_id]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    hits = np.isin(tokens, [token for token in forbidden if token is not None])
    bad = np.add.reduceat(np.append(hits, False).astype(np.int64), starts[:-1]) * (lengths > 0) > 0
    bad |= lengths == 0
    unwritable = table.filter(pa.array(bad))
    first = pc.list_element(unwritable["uris"], 0)
    dropped = _dropped(kind, unwritable["name"], first, "not writable by the tokenizer")
    keep = np.repeat(~bad, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths[~bad])]).astype(np.int64)
    if not len(offsets) > 1:
        raise InputError(f"at least one {kind} name that can be written", seen=f"{table.num_rows} names")
    trie = Trie.build(np.ascontiguousarray(tokens[keep], dtype=np.int32), offsets)
    return NameIndex(table.filter(pa.array(~bad)).combine_chunks(), trie), dropped


def _tokenise(names: pa.ChunkedArray, form: SequenceFormat) -> tuple[np.ndarray, np.ndarray]:
    """All names' tokens, flat int32, and each name's number of tokens, int64."""
    tokens: list[np.ndarray] = [np.zeros(0, np.int32)]
    lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
    for start in range(0, len(names), _CHUNK):
        ids = form.name_ids(names.slice(start, _CHUNK).to_pylist())
        lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
        tokens.append(np.fromiter((token for row in ids for token in row), np.int32))
    return np.concatenate(tokens), np.concatenate(lengths)


def _digest(fingerprint: str, *tables: pa.Table) -> str:
    hasher = hashlib.blake2b(f"{_FORMAT}:{fingerprint}".encode(), digest_size=16)
    for table in tables:
        require_columns(table, "uri", "name", what="names")
        for batch in table.select(["uri", "name"]).combine_chunks().to_batches(max_chunksize=_CHUNK):
            hasher.update(batch.serialize())
    return hasher.hexdigest()
