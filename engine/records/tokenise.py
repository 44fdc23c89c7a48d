"""Millions of names as token ids in flat arrays: each distinct word once where the tokenizer allows it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.records.context import NameContext, decode_texts, encode_texts, split_off

__all__ = ["MERGED", "SPECIAL", "UNWRITABLE", "NameTokens", "tokenise_names"]

MERGED = 1
"""Flag: in running text the first token would be one with what stands before the name; these ids stand beside it."""
UNWRITABLE = 2
"""Flag: no ids after the text before the name decode right."""
SPECIAL = 4
"""Flag: an unknown token, or a special one such as end of sequence."""
_UNPROVEN = 8

_BATCH = 16_384
_ROWS = 1 << 19
_SAMPLE = 2048

Advance = Callable[[int], None]


@dataclass(frozen=True)
class NameTokens:
    """Token ids of n names.

    Attributes:
        ids: int32, end to end.
        offsets: int64 [n + 1]; name i is ``ids[offsets[i]:offsets[i + 1]]``.
        flags: uint8 [n]; `MERGED`, `UNWRITABLE` and `SPECIAL`, or 0.
        misread: the names that don't decode to their text: ``row`` (int64) and ``decoded``.
    """

    ids: np.ndarray
    offsets: np.ndarray
    flags: np.ndarray
    misread: pa.Table


@dataclass(frozen=True)
class _Pieces:
    """Token ids of distinct pieces of text, laid out as in `NameTokens`."""

    ids: np.ndarray
    offsets: np.ndarray
    flags: np.ndarray

    def joined(self, other: _Pieces) -> _Pieces:
        offsets = np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]])
        return _Pieces(np.concatenate([self.ids, other.ids]), offsets, np.concatenate([self.flags, other.flags]))


def tokenise_names(context: NameContext, names: pa.ChunkedArray, on_progress: Advance | None = None) -> NameTokens:
    """Token ids of ``names`` (no nulls, trimmed, single spaces) as they stand in ``context``.

    The ids are `NameContext.encode`'s, name for name. Where the tokenizer works word by word (see `wordwise`) each
    distinct word is tokenised once; a sample is compared with the ids of whole names, and on any difference all names
    are tokenised whole.

    Args:
        on_progress: called with names newly done.
    """
    texts = pa.chunked_array([context.written(chunk) for chunk in names.chunks], pa.string())
    found = _by_words(context, texts, on_progress)
    if found is None or not _sample_agrees(context, texts, found):
        advance = on_progress or _ignore
        found = _encode(context, texts, whole=True, first=True, advance=lambda done, _: advance(done))
    return _read_back(context, texts, found)


def _ignore(_: int) -> None:
    return


def _encode(
    context: NameContext, texts: pa.ChunkedArray, *, whole: bool, first: bool, advance: Callable[[int, int], None]
) -> _Pieces:
    """Tokenise ``texts``: names (``whole``) or words, at the name's start (``first``) or behind a space."""
    proves = whole or context.word_rules.decodes_by_word
    parts = [(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.uint8))]
    for start in range(0, len(texts), _BATCH):
        batch = texts.slice(start, _BATCH).to_pylist()
        parts.append(_encode_batch(context, batch, first=first, proves=proves))
        advance(len(batch), len(texts))
    ids, lengths, flags = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Pieces(ids, np.concatenate([[0], np.cumsum(lengths)]), flags)


def _encode_batch(
    context: NameContext, batch: Sequence[str], *, first: bool, proves: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokenizer, before = context.tokenizer, context.before
    flags = np.zeros(len(batch), np.uint8)
    if before is None or not first:
        rows = encode_texts(tokenizer, [context.lead + text for text in batch])
    else:
        found, kept = split_off(tokenizer, before, batch)
        rows = [ids or [] for ids in found]
        flags |= np.where(kept, 0, MERGED).astype(np.uint8)
        flags[[ids is None for ids in found]] = UNWRITABLE
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum()))
    exact = _reads_as(context, rows, batch, first=first) if proves else np.zeros(len(batch), bool)
    flags |= np.where(exact, 0, _UNPROVEN).astype(np.uint8)
    special = np.isin(ids, list(context.special_ids))
    flags[np.repeat(np.arange(len(rows)), lengths)[special]] |= SPECIAL
    return ids, lengths, flags


def _reads_as(context: NameContext, rows: Sequence[list[int]], texts: Sequence[str], *, first: bool) -> np.ndarray:
    """Whether each row of ids decodes to its text, in its place."""
    if context.before is not None and first:
        decoded = decode_texts(context.tokenizer, [context.before_ids + ids for ids in rows])
        wanted = [context.before + text for text in texts]
        return np.fromiter(map(str.__eq__, decoded, wanted), bool, len(rows))
    decoded = [text.strip(" ") for text in decode_texts(context.tokenizer, rows)]
    return np.fromiter(map(str.__eq__, decoded, texts), bool, len(rows))


def _by_words(context: NameContext, texts: pa.ChunkedArray, on_progress: Advance | None) -> _Pieces | None:
    """All names of the pieces they are made of: words, or for odd words the whole name; None where that won't do."""
    if not context.word_rules.by_word:
        return None
    codes, counts, words = _words(texts)
    odd_codes = np.fromiter(map(context.word_rules.is_odd, _values(words)), bool, len(words))
    starts = np.concatenate([[0], np.cumsum(counts)])
    odd = np.logical_or.reduceat(odd_codes[codes], starts[:-1]) if len(counts) else np.zeros(0, bool)
    at_start = np.zeros(len(codes), bool)
    at_start[starts[:-1]] = True
    report = _Share(len(texts), len(words) + int(odd.sum()), on_progress or _ignore)
    pieces = _encode(context, words, whole=False, first=context.before is None, advance=report)
    if context.before is not None:
        heads = np.unique(codes[at_start])
        pieces = pieces.joined(_encode(context, words.take(pa.array(heads)), whole=False, first=True, advance=_silent))
        codes = np.where(at_start, len(words) + np.searchsorted(heads, codes), codes)
    own = _encode(context, texts.filter(pa.array(odd)), whole=True, first=True, advance=report)
    # An odd name is one piece: its first word's place takes the whole name's number, its other words go.
    keep = at_start | ~np.repeat(odd, counts)
    codes[starts[:-1][odd]] = len(pieces.flags) + np.arange(int(odd.sum()))
    report.finish()
    return _assemble(pieces.joined(own), codes[keep], np.where(odd, 1, counts))


def _silent(done: int, total: int) -> None:
    return


class _Share:
    """Progress in names, of work that is done in pieces."""

    def __init__(self, names: int, pieces: int, advance: Advance) -> None:
        self.names, self.pieces, self.advance = names, max(1, pieces), advance
        self.done = self.told = 0

    def __call__(self, done: int, _: int) -> None:
        self.done += done
        self._tell(self.names * self.done // self.pieces)

    def finish(self) -> None:
        self._tell(self.names)

    def _tell(self, now: int) -> None:
        if now > self.told:
            self.advance(now - self.told)
            self.told = now


def _words(texts: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, pa.ChunkedArray]:
    """The words of all texts as codes (int64, end to end), each text's number of words, and the distinct words."""
    counts, flat = [np.zeros(0, np.int64)], []
    for start in range(0, len(texts), _ROWS):
        for chunk in texts.slice(start, _ROWS).chunks:
            lists = pc.split_pattern(chunk, " ")
            counts.append(pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64))
            flat.append(lists.flatten())
    encoded = pa.chunked_array(flat, pa.string()).dictionary_encode().unify_dictionaries()
    codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    words = encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], pa.string())
    return np.concatenate([np.zeros(0, np.int64), *codes]), np.concatenate(counts), pa.chunked_array([words])


def _values(words: pa.ChunkedArray) -> Any:
    for start in range(0, len(words), _BATCH):
        yield from words.slice(start, _BATCH).to_pylist()


def _assemble(pieces: _Pieces, codes: np.ndarray, counts: np.ndarray) -> _Pieces:
    """Texts from pieces: text i is the next ``counts[i]`` of ``codes``."""
    piece_lengths = np.diff(pieces.offsets)
    flags, lengths, parts = [np.zeros(0, np.uint8)], [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    ends = np.concatenate([[0], np.cumsum(counts)])
    for start in range(0, len(counts), _ROWS):
        stop = min(start + _ROWS, len(counts))
        here = codes[ends[start] : ends[stop]]
        firsts = ends[start:stop] - ends[start]
        sizes = piece_lengths[here]
        flags.append(np.bitwise_or.reduceat(pieces.flags[here], firsts))
        lengths.append(np.add.reduceat(sizes, firsts))
        places = np.repeat(pieces.offsets[here] - (np.cumsum(sizes) - sizes), sizes)
        parts.append(pieces.ids[places + np.arange(len(places))])
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return _Pieces(np.concatenate(parts), offsets, np.concatenate(flags))


def _sample_agrees(context: NameContext, texts: pa.ChunkedArray, found: _Pieces) -> bool:
    """Whether names spread over the whole list get the ids that they get alone."""
    rows = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), _SAMPLE)).astype(np.int64))
    if not len(rows):
        return True
    alone = _encode(context, texts.take(pa.array(rows)), whole=True, first=True, advance=_silent)
    wanted = [alone.ids[alone.offsets[k] : alone.offsets[k + 1]] for k in range(len(rows))]
    return all(
        np.array_equal(found.ids[found.offsets[row] : found.offsets[row + 1]], ids)
        for row, ids in zip(rows, wanted, strict=True)
    )


def _read_back(context: NameContext, texts: pa.ChunkedArray, found: _Pieces) -> NameTokens:
    """Decode every name that its pieces don't prove right, and list those that come out as another text."""
    unproven = np.flatnonzero(found.flags & _UNPROVEN)
    rows, decoded = [np.zeros(0, np.int64)], []
    for start in range(0, len(unproven), _BATCH):
        part = unproven[start : start + _BATCH]
        prefix = context.before_ids
        ids = [[*prefix, *found.ids[found.offsets[row] : found.offsets[row + 1]].tolist()] for row in part]
        wanted = texts.take(pa.array(part)).to_pylist()
        read = decode_texts(context.tokenizer, ids)
        if context.before is None:
            read = [text.strip(" ") for text in read]
        else:
            read = [text.removeprefix(context.before) for text in read]
        wrong = np.fromiter(map(str.__ne__, read, wanted), bool, len(part))
        rows.append(part[wrong])
        decoded += [text for text, bad in zip(read, wrong, strict=True) if bad]
    misread = pa.table({"row": np.concatenate(rows), "decoded": pa.array(decoded, pa.string())})
    return NameTokens(found.ids, found.offsets, found.flags & np.uint8(~_UNPROVEN & 0xFF), misread)
