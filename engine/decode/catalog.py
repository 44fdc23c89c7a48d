"""The catalogue: every name that an output may contain, what it means, and its tokens as a trie. One file.

A catalogue is made for one tokenizer and one context (what stands before a name, see `NameContext`): both decide which
tokens a name has. The file is mapped, so opening takes milliseconds whatever its size, and processes share it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.decode import catalog_file, catalog_report
from obverse.engine.decode.catalog_build import Built, build_index
from obverse.engine.decode.forms import OutputForm, automaton_of
from obverse.engine.decode.name_index import NameIndex
from obverse.engine.decode.rules import graph_rules, type_rules
from obverse.engine.errors import InputError
from obverse.engine.records.context import NameContext
from obverse.engine.records.names import name_table

if TYPE_CHECKING:
    from obverse._core import Constraint, SectionFile

__all__ = ["Catalog", "NameIndex"]


class Catalog:
    """Names for one tokenizer and context; made by `build` or `open`.

    Attributes:
        entities: the names that subjects and objects may be.
        relations: the names of relations; None in a catalogue for entity linking alone.
        fingerprint: of tokenizer and context; in the marked context `SequenceFormat.fingerprint`.
        card: counts, versions, tokenizer, context, when it was built.
    """

    def __init__(
        self,
        entities: NameIndex,
        relations: NameIndex | None,
        fingerprint: str,
        card: dict[str, Any],
        *,
        report: pa.Table | None = None,
        file: SectionFile | None = None,
        path: Path | None = None,
    ) -> None:
        self.entities, self.relations, self.fingerprint, self.card = entities, relations, fingerprint, card
        self._report, self._file, self._path = report, file, path

    @classmethod
    def build(
        cls,
        entities: pa.Table,
        relations: pa.Table | None,
        context: OutputForm | NameContext,
        *,
        cache: Path | None = None,
        tokenizer_name: str | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Catalog:
        """Tokenise all names in their context and build their tries.

        Nothing is lost silently: `report` lists every name left out (empty, with a marker, not writable) and every
        name worth knowing of (a duplicate, one that decodes to other text, one with another's tokens, ...).

        Args:
            entities: ``name``, and if known ``uri``, ``aliases`` (list<string>), ``types`` or ``type``.
            relations: the same; None for a catalogue of entities alone.
            context: where names stand: a form (its names' place in it), or the place alone.
            cache: a folder that keeps token ids, see `token_cache`.
            tokenizer_name: for the card.
            on_progress: called with names newly done, out of the rows of both tables.

        Raises:
            InputError: a column is missing, or no name of a kind is left.
        """
        context = NameContext.of(context)
        kinds = {
            _PLURAL[kind]: build_index(source, kind, context, cache=cache, on_progress=on_progress)
            for kind, source in (("entity", entities), ("relation", relations))
            if source is not None
        }
        report = pa.concat_tables([built.report for built in kinds.values()]).combine_chunks()
        card = _card(kinds, report, context, tokenizer_name)
        related = kinds["relations"].names if "relations" in kinds else None
        return cls(kinds["entities"].names, related, context.fingerprint, card, report=report)

    @classmethod
    def cached(cls, entities: pa.Table, relations: pa.Table | None, model: Path | str, folder: Path) -> Catalog:
        """The catalogue of these tables for ``model``'s tokenizer, from ``folder`` if it lies there already.

        ``folder`` holds one file per tables of names and tokenizer, so it can serve many models.
        """
        from obverse.engine.records.tokenizers import find_tokenizer

        context = NameContext(find_tokenizer(model))
        path = folder / f"{_digest(context, entities, relations)}.catalog"
        if not path.exists():
            cls.build(entities, relations, context, tokenizer_name=str(model)).save(path)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> Catalog:
        """Open what `save` wrote: its header and card are read, all else is mapped and read when used.

        Raises `InputError` naming file and reason when it is not a whole catalogue of this version.
        """
        path = Path(path)
        file = catalog_file.open_sections(path)
        card = catalog_file.read_card(file, path)
        entities = catalog_file.open_index(file, path, "entities")
        relations = catalog_file.open_index(file, path, "relations") if "relations" in card["kinds"] else None
        return cls(entities, relations, file.fingerprint, card, file=file, path=path)

    def save(self, path: Path | str) -> None:
        """Write the catalogue to one file, whole or not at all."""
        from obverse._core import SectionFile

        path = Path(path)
        if path.is_dir():
            raise InputError("a file to write, not a folder", file=path)
        path.parent.mkdir(parents=True, exist_ok=True)
        card = np.frombuffer(json.dumps(self.card, ensure_ascii=False).encode(), np.uint8)
        sections = {"card": card, "report": catalog_file.to_arrow(self.report)}
        for kind, index in self._indexes().items():
            sections |= catalog_file.index_sections(index, kind)
        SectionFile.write(path, self.fingerprint, {name: part.data for name, part in sections.items()})

    def verify(self) -> None:
        """Read the whole file and check it; `InputError` naming file and section where it is damaged."""
        if self._file is None or self._path is None:
            return
        catalog_file.verify(self._file, self._path, self._indexes(), lambda: self.report)

    @cached_property
    def report(self) -> pa.Table:
        """Names dropped and noted: kind, name, uri, reason, detail, kept."""
        if self._report is not None:
            return self._report
        if self._file is None or self._path is None:
            return catalog_report.REPORT.empty_table()
        return catalog_file.open_table(self._file, self._path, "report")

    @property
    def dropped(self) -> pa.Table:
        """The rows of `report` whose names are not in the catalogue."""
        return catalog_report.dropped(self.report)

    def constraint(
        self,
        form: OutputForm,
        vocab_size: int | None = None,
        *,
        max_triplets: int | None = None,
        unique: bool = False,
        types: Mapping[str, tuple[Sequence[str], Sequence[str]]] | None = None,
        graph: pa.Table | None = None,
        only_graph: bool = True,
    ) -> Constraint:
        """Which token may follow in outputs of this form over these names.

        None of the rules leads into a dead end: a name is offered only while some triplet with it is still open.

        Args:
            form: a `SequenceFormat` (SynthIE's markers) or a `TemplateFormat` (JSON, or written by the user).
            vocab_size: columns of the model's logits, by default the tokenizer's size; further columns are never
                allowed.
            max_triplets: at most so many triplets.
            unique: no triplet twice.
            types: by relation (name or URI) the types that its subject and its object may have; nothing: any.
            graph: ``subject``, ``predicate``, ``object``, URIs or names: only these triplets may be written.
            only_graph: False turns ``graph`` round: none of these may be.

        Raises:
            InputError: the catalogue was made for another tokenizer or context, has no relations though the form has,
                or a rule names what it does not hold.
        """
        from obverse._core import Constraint

        if form.fingerprint != self.fingerprint:
            seen = f"{self.card['tokenizer'] or self.fingerprint}, context {self.card['context']!r}"
            raise InputError("a catalogue built for the model's tokenizer", field="catalog", seen=seen)
        parts, start = automaton_of(form)
        if self.relations is None and (any(part[0] == "relation" for part in parts) or types or graph is not None):
            raise InputError("a catalogue with relations (build it with --relations)", field="catalog")
        return Constraint(
            self.entities.trie,
            None if self.relations is None else self.relations.trie,
            parts=parts,
            start=start,
            eos=form.eos_id,
            vocab_size=len(form.tokenizer) if vocab_size is None else vocab_size,
            max_triplets=max_triplets,
            unique=unique,
            types=None if types is None else type_rules(self, types),
            graph=None if graph is None else graph_rules(self, graph, only=only_graph),
        )

    def stats(self) -> dict[str, Any]:
        """Counts and sizes, from the card alone."""
        kinds = self.card["kinds"]
        entities, relations = kinds["entities"], kinds.get("relations", {})
        report = self.card["report"]
        return {
            "entities": entities["names"],
            "relations": relations.get("names", 0),
            "entity_nodes": entities["nodes"],
            "bytes": sum(kind["bytes"] for kind in kinds.values()),
            "ambiguous_names": entities["ambiguous"],
            "prefixes": entities["prefixes"],
            "dropped": _summed(report, "dropped"),
            "noted": _summed(report, "noted"),
        }

    def _indexes(self) -> dict[str, NameIndex]:
        found = {"entities": self.entities, "relations": self.relations}
        return {kind: index for kind, index in found.items() if index is not None}


def _summed(report: dict[str, Any], part: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for kind in report.values():
        for reason, count in kind[part].items():
            total[reason] = total.get(reason, 0) + count
    return dict(sorted(total.items()))


_PLURAL = {"entity": "entities", "relation": "relations"}


def _card(
    kinds: dict[str, Built], report: pa.Table, context: NameContext, tokenizer_name: str | None
) -> dict[str, Any]:
    from obverse import __version__

    return {
        "format": catalog_file.FORMAT,
        "obverse": __version__,
        "built": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tokenizer": tokenizer_name or getattr(context.tokenizer, "name_or_path", None) or None,
        "context": context.name,
        "kinds": {kind: _counts(built) for kind, built in kinds.items()},
        "report": catalog_report.counts(report),
    }


def _counts(built: Built) -> dict[str, int]:
    table, trie = built.names.table, built.names.trie
    meanings = pc.list_value_length(table["uris"])
    return {
        "names": table.num_rows,
        "entities": built.num_entities,
        "ambiguous": int(pc.sum(pc.greater(meanings, 1)).as_py() or 0),
        "prefixes": _num_prefixes(trie.arrays()),
        "nodes": trie.num_nodes,
        "terminals": trie.num_terminals,
        "bytes": trie.nbytes,
    }


def _num_prefixes(arrays: dict[str, np.ndarray], blocks_at_once: int = 1 << 14) -> int:
    """Names that others go on from: terminal nodes with children."""
    blocks, offset, overflow = arrays["blocks"], arrays["offset"], arrays["overflow"]
    count = 0
    for start in range(0, len(blocks), blocks_at_once):
        # One node more than the part holds: a node's children end where the next one's begin.
        nodes = np.arange(start * 64, min((start + blocks_at_once) * 64 + 1, len(offset)))
        base = blocks[nodes >> 6, 3].astype(np.int64)
        far = base >= 1 << 31
        first = base + offset[nodes]
        first[far] = overflow[(base[far] & 0x7FFFFFFF) + (nodes[far] & 63)]
        inside = nodes[:-1]
        bits = blocks[inside >> 6, (inside & 63) >> 5] >> (inside & 31).astype(np.uint32) & 1
        count += int(((bits == 1) & (np.diff(first) > 0)).sum())
    return count


def _digest(context: NameContext, *tables: pa.Table | None) -> str:
    hasher = hashlib.blake2b(f"{catalog_file.FORMAT}:{context.fingerprint}".encode(), digest_size=16)
    for table in tables:
        batches = [] if table is None else name_table(table).combine_chunks().to_batches()
        hasher.update(f"{len(batches)}".encode())
        for batch in batches:
            hasher.update(batch.schema.serialize())
            hasher.update(batch.serialize())
    return hasher.hexdigest()
