"""From tables of names to tries and linking tables; what is left out or worth knowing goes to the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.decode import catalog_report as report
from obverse.engine.decode.name_index import HashIndex, NameIndex
from obverse.engine.decode.token_cache import cached_tokens
from obverse.engine.errors import InputError
from obverse.engine.records.context import NameContext
from obverse.engine.records.linearise import MARKERS
from obverse.engine.records.names import name_table
from obverse.engine.records.tokenise import MERGED, SPECIAL, UNWRITABLE, NameTokens
from obverse.engine.records.utf8 import rows_at, utf8_bytes

__all__ = ["Built", "build_index"]


class _Surfaces(NamedTuple):
    """Every distinct name with what it can mean.

    ``pairs`` has one row a (name, URI), sorted by name: ``uri``, and ``canonical`` and ``types`` where they say
    anything. Name i has the pairs ``offsets[i]`` to ``offsets[i + 1]``; ``uri_numbers`` are the pairs' URIs as numbers.
    """

    names: pa.ChunkedArray
    offsets: np.ndarray
    pairs: pa.Table
    uri_numbers: np.ndarray


class Built(NamedTuple):
    """One kind of names, ready to be used or saved."""

    names: NameIndex
    report: pa.Table
    num_entities: int
    """Distinct URIs among its names."""


def build_index(
    source: pa.Table,
    kind: str,
    context: NameContext,
    *,
    cache: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Built:
    """Tokenise the names of ``source`` (`name_table`'s columns), build their trie and link them.

    Raises `InputError` where no name is left that can be written.
    """
    from obverse._core import Trie

    advance = on_progress or (lambda _: None)
    table = name_table(source)
    surfaces, notes = _surfaces(table, kind, context)
    advance(max(0, table.num_rows - len(surfaces.names)))
    tokens = cached_tokens(context, surfaces.names, cache, on_progress=advance)
    lengths = np.diff(tokens.offsets)
    bad = (tokens.flags & (SPECIAL | UNWRITABLE) != 0) | (lengths == 0)
    blank = _mask(pc.equal(pc.utf8_trim_whitespace(tokens.misread["decoded"]), ""))
    bad[tokens.misread["row"].to_numpy()[blank]] = True  # nothing but the space before a name
    notes += [_unwritable(kind, surfaces, tokens, bad, context)]
    notes += _token_notes(kind, surfaces, tokens, bad, context)
    if bad.all():
        raise InputError(f"at least one {kind} name that can be written", seen=f"{table.num_rows} names")
    offsets = np.concatenate([[0], np.cumsum(lengths[~bad])])
    trie = Trie.build(tokens.ids[np.repeat(~bad, lengths)], offsets)
    linked = _linking_table(surfaces, ~bad)
    notes.append(_same_tokens(kind, trie, linked))
    hashes = HashIndex.of(linked["name"])
    kept_uris = surfaces.uri_numbers[np.repeat(~bad, np.diff(surfaces.offsets))]
    num_entities = int(np.count_nonzero(np.bincount(kept_uris)))
    return Built(NameIndex(trie, linked, lambda: hashes), pa.concat_tables(notes), num_entities)


def _one(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _mask(values: Any) -> np.ndarray:
    mask: np.ndarray = values.to_numpy(zero_copy_only=False)
    return mask


def _entries(table: pa.Table) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """All names and aliases as (text, its row, whether it is an alias), row by row."""
    names = _one(table["name"])
    rows = np.arange(len(names))
    if "aliases" not in table.column_names:
        return names, rows, np.zeros(len(names), bool)
    lists = _one(table["aliases"])
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    texts = pa.concat_arrays([names, lists.flatten()])
    rows = np.concatenate([rows, np.repeat(rows, counts)])
    order = np.argsort(rows, kind="stable")
    return texts.take(pa.array(order)), rows[order], order >= len(names)


def _clean(texts: pa.Array) -> pa.Array:
    """Trimmed, with one space for every run of white space: outputs are read back by their words."""
    trimmed = pc.utf8_trim_whitespace(pc.fill_null(texts, ""))
    content, ends = utf8_bytes(trimmed)
    twice = (content[:-1] == 32) & (content[1:] == 32)
    ragged = rows_at(np.flatnonzero(((content >= 9) & (content <= 13)) | np.append(twice, False)), ends)
    if not ragged.any():
        return trimmed
    squeezed = pc.replace_substring_regex(trimmed.filter(pa.array(ragged)), r"[\t-\r ]+", " ")
    return pc.replace_with_mask(trimmed, pa.array(ragged), squeezed)


def _has_control(texts: pa.Array) -> np.ndarray:
    """Whether each text holds a control character (U+0000 to U+001F, U+007F to U+009F)."""
    content, ends = utf8_bytes(texts)
    plain = (content < 32) | (content == 127)
    plain[:-1] |= (content[:-1] == 0xC2) & (content[1:] >= 0x80) & (content[1:] < 0xA0)
    return rows_at(np.flatnonzero(plain), ends)


def _has_marker(texts: pa.Array) -> np.ndarray:
    found = np.zeros(len(texts), bool)
    for marker in MARKERS:
        found |= _mask(pc.match_substring(texts, marker))
    return found


def _surfaces(table: pa.Table, kind: str, context: NameContext) -> tuple[_Surfaces, list[pa.Table]]:
    """Names as they will be written, each once, with their URIs; and what that changed or left out."""
    texts, rows, is_alias = _entries(table)
    clean = _clean(texts)
    uris = _one(table["uri"]).take(pa.array(rows))
    notes: list[pa.Table] = []

    def note(mask: np.ndarray, reason: str, details: pa.Array | None = None) -> None:
        where = pa.array(np.flatnonzero(mask))
        found = None if details is None else details.take(where)
        notes.append(report.report_rows(kind, clean.take(where), uris.take(where), reason, found))

    empty = _mask(pc.equal(clean, ""))
    marked = np.zeros(len(clean), bool)
    if context.before is None:
        marked = _has_marker(clean)
    good = ~(empty | marked)
    note(empty, report.EMPTY)
    note(marked, report.MARKER)
    note(good & _mask(pc.not_equal(clean, pc.fill_null(texts, ""))), report.WHITE_SPACE, texts)
    note(good & _has_control(clean), report.CONTROL)
    places = np.flatnonzero(good)
    names, codes, uri_numbers = _numbered(clean.filter(pa.array(good)), uris.filter(pa.array(good)))
    _, firsts = np.unique(codes * (int(uri_numbers.max(initial=0)) + 1) + uri_numbers, return_index=True)
    repeated = np.zeros(len(clean), bool)
    repeated[places] = True
    repeated[places[firsts]] = False
    note(repeated, report.DUPLICATE)
    firsts.sort()
    order = firsts[np.argsort(codes[firsts], kind="stable")]
    canonical = _by_uri(codes, uri_numbers, ~is_alias[places])
    pairs = {"uri": uris.take(pa.array(places[order]))}
    if (canonical[order] != codes[order]).any():
        pairs["canonical"] = names.take(pa.array(canonical[order]))
    if "types" in table.column_names:
        lists = _one(table["types"])
        typed = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False) > 0
        pairs["types"] = lists.take(pa.array(_by_uri(rows[places], uri_numbers, typed[rows[places]])[order]))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes[order], minlength=len(names)))])
    return _Surfaces(pa.chunked_array([names]), offsets, pa.table(pairs), uri_numbers[order]), notes


def _numbered(names: pa.Array, uris: pa.Array) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """The distinct names, and each entry's name and URI as numbers (int64) by first appearance."""
    coded = names.dictionary_encode()
    codes = _mask(coded.indices).astype(np.int64)
    if uris.equals(names):  # a list without URIs: hashing millions of strings once is enough
        return coded.dictionary, codes, codes
    return coded.dictionary, codes, _mask(uris.dictionary_encode().indices).astype(np.int64)


def _by_uri(values: np.ndarray, uris: np.ndarray, telling: np.ndarray) -> np.ndarray:
    """For each entry the value of the first ``telling`` entry with its URI; its own where there is none."""
    found = np.full(int(uris.max(initial=0)) + 1, -1, np.int64)
    places = np.flatnonzero(telling)[::-1]
    found[uris[places]] = values[places]
    result: np.ndarray = np.where(found[uris] >= 0, found[uris], values)
    return result


def _lists(offsets: np.ndarray, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _linking_table(surfaces: _Surfaces, keep: np.ndarray) -> pa.Table:
    """The kept names with the lists of their URIs, main names and types."""
    counts = np.diff(surfaces.offsets)
    pairs = surfaces.pairs.filter(pa.array(np.repeat(keep, counts)))
    offsets = np.concatenate([[0], np.cumsum(counts[keep])])
    columns = {"name": _one(surfaces.names.filter(pa.array(keep))), "uris": _lists(offsets, _one(pairs["uri"]))}
    if "canonical" in pairs.column_names:
        columns["canonical"] = _lists(offsets, _one(pairs["canonical"]))
    if "types" in pairs.column_names:
        lists = _one(pairs["types"])
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        # Few distinct types stand beside many names: kept once each.
        columns["types"] = _lists(offsets, _lists(ends, lists.flatten().dictionary_encode()))
    return pa.table(columns)


def _first_uris(surfaces: _Surfaces, rows: np.ndarray) -> pa.Array:
    return _one(surfaces.pairs["uri"].take(pa.array(surfaces.offsets[rows])))


def _unwritable(kind: str, surfaces: _Surfaces, tokens: NameTokens, bad: np.ndarray, context: NameContext) -> pa.Table:
    """Report the names that get no place in the trie, once for each of their URIs."""
    special = np.array(sorted(context.special_ids))
    details = []
    for row in np.flatnonzero(bad):
        ids = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
        hits = ids[np.isin(ids, special)]
        if len(hits):
            details.append(f"token {context.tokenizer.convert_ids_to_tokens(int(hits[0]))}")
        else:
            unfit = tokens.flags[row] & UNWRITABLE
            details.append("no tokens of its own after what stands before it" if unfit else "no tokens")
    places = np.repeat(np.flatnonzero(bad), np.diff(surfaces.offsets)[bad])
    which = np.searchsorted(np.flatnonzero(bad), places)
    uris = _one(surfaces.pairs["uri"].filter(pa.array(np.repeat(bad, np.diff(surfaces.offsets)))))
    names = _one(surfaces.names.take(pa.array(places)))
    return report.report_rows(
        kind, names, uris, report.NOT_WRITABLE, pa.array(details, pa.string()).take(pa.array(which))
    )


def _token_notes(
    kind: str, surfaces: _Surfaces, tokens: NameTokens, bad: np.ndarray, context: NameContext
) -> list[pa.Table]:
    """Names whose ids don't decode to them, or aren't those of running text."""

    def note(rows: np.ndarray, reason: str, details: pa.Array | None = None) -> pa.Table:
        names = _one(surfaces.names.take(pa.array(rows)))
        return report.report_rows(kind, names, _first_uris(surfaces, rows), reason, details)

    rows = tokens.misread["row"].to_numpy()
    decoded = _one(tokens.misread["decoded"])
    texts = context.written(_one(surfaces.names.take(pa.array(rows)))).to_pylist()
    differs = np.fromiter(
        (read != _normalised(context, text) for read, text in zip(decoded.to_pylist(), texts, strict=True)),
        bool,
        len(rows),
    )
    told = differs & ~bad[rows]
    merged = np.flatnonzero((tokens.flags & MERGED != 0) & ~bad)
    return [
        note(rows[told], report.MISREAD, decoded.filter(pa.array(told))),
        note(merged, report.MERGED),
    ]


def _normalised(context: NameContext, text: str) -> str:
    """``text`` as the tokenizer's own normaliser leaves it (lower case, say)."""
    normalizer = getattr(getattr(context.tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None or "\u2581" in text:
        return text
    normal: str = normalizer.normalize_str(text)
    return normal.replace("\u2581", " ").strip(" ")


def _same_tokens(kind: str, trie: Any, table: pa.Table) -> pa.Table:
    """Report the names that share another's tokens: the trie keeps one path for them all."""
    arrays = trie.arrays()
    extra = arrays["extra_id"].astype(np.int64)
    first = arrays["ids"][arrays["extra_rank"]].astype(np.int64)
    names, others = (_one(table["name"].take(pa.array(rows))) for rows in (extra, first))
    uris = pa.array([uris[0] for uris in table["uris"].take(pa.array(extra)).to_pylist()], pa.string())
    return report.report_rows(kind, names, uris, report.SAME_TOKENS, others)
