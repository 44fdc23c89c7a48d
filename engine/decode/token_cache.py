"""Names' token ids kept on disk, so that a catalogue is built again, or for another model, without tokenising again.

A file a list of names, named by the digest of the tokenizer (vocabulary, merges, normaliser, context) and of the names:
two models with one tokenizer share it. A file that is damaged, or of another version, is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from obverse.engine.decode.catalog_file import from_arrow, to_arrow
from obverse.engine.records.context import NameContext
from obverse.engine.records.tokenise import NameTokens, tokenise_names
from obverse.engine.records.utf8 import utf8_bytes

__all__ = ["cached_tokens", "default_cache"]

_VERSION = 1


def default_cache() -> Path:
    """The user's own cache folder: ``$XDG_CACHE_HOME/obverse/tokens``, else ``~/.cache/obverse/tokens``."""
    from os.path import expandvars

    named = expandvars("$XDG_CACHE_HOME")
    base = Path(named) if named.startswith("/") else Path.home() / ".cache"
    return base / "obverse" / "tokens"


def cached_tokens(
    context: NameContext,
    names: pa.ChunkedArray,
    folder: Path | None,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> NameTokens:
    """`tokenise_names`, from ``folder`` if its result lies there, else left there; no folder: no cache."""
    if folder is None:
        return tokenise_names(context, names, on_progress)
    path = folder / f"{_key(context, names)}.tokens"
    found = _load(path, context.fingerprint, len(names))
    if found is None:
        found = tokenise_names(context, names, on_progress)
        _save(path, context.fingerprint, found)
    elif on_progress is not None:
        on_progress(len(names))
    return found


def _key(context: NameContext, names: pa.ChunkedArray) -> str:
    """A digest of the tokenizer, the context and the names, whatever way the names lie in memory."""
    hasher = hashlib.blake2b(f"{_VERSION}:{context.fingerprint}:{len(names)}".encode(), digest_size=16)
    lengths = hashlib.blake2b()
    for chunk in names.chunks:
        content, ends = utf8_bytes(chunk)
        lengths.update(np.diff(ends).data)
        hasher.update(content.data)
    hasher.update(lengths.digest())
    return hasher.hexdigest()


def _save(path: Path, fingerprint: str, tokens: NameTokens) -> None:
    from obverse._core import SectionFile

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    ids, lengths = _narrow(tokens.ids), _narrow(np.diff(tokens.offsets))
    sections = {
        "widths": np.array([ids.itemsize, lengths.itemsize], np.uint8),
        "ids": ids,
        "lengths": lengths,
        "flags": tokens.flags,
        "misread": to_arrow(tokens.misread),
    }
    SectionFile.write(path, fingerprint, {name: part.data for name, part in sections.items()})


def _narrow(values: np.ndarray) -> np.ndarray:
    """``values`` (not negative) in the smallest of 1, 2 or 4 bytes each."""
    top = int(values.max(initial=0))
    return values.astype(np.uint8 if top < 1 << 8 else np.uint16 if top < 1 << 16 else np.uint32)


def _load(path: Path, fingerprint: str, count: int) -> NameTokens | None:
    from obverse._core import SectionFile

    if not path.exists():
        return None
    try:
        file = SectionFile.open(path)
        file.verify()
        id_width, length_width = file.section("widths").tolist()
        ids = file.section("ids").view(f"<u{id_width}").astype(np.int32)
        lengths = file.section("lengths").view(f"<u{length_width}").astype(np.int64)
        flags: Any = file.section("flags")
        misread = from_arrow(file.section("misread"))
    except (OSError, ValueError, KeyError, IndexError, pa.ArrowException):
        return None
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    whole = file.fingerprint == fingerprint and len(lengths) == len(flags) == count and offsets[-1] == len(ids)
    return NameTokens(ids, offsets, flags, misread) if whole else None
