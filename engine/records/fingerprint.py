"""Marks of files and models, so that a stage's key changes when what it reads does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from obverse.engine.records.keys import content_hash

__all__ = ["file_hash", "folder_mark"]


def file_hash(path: Path) -> str:
    """A digest of a file's bytes, or of all files under a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            with part.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def folder_mark(source: Path | str) -> dict[str, Any]:
    """What tells one model folder from another, quickly: names, sizes, and first and last 64 KiB of its files.

    For a Hugging Face id (no folder) the id itself.
    """
    folder = Path(source)
    if not folder.is_dir():
        return {"id": str(source)}
    return {path.name: _mark(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _mark(path: Path, edge: int = 1 << 16) -> list[Any]:
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(edge)
        handle.seek(max(0, size - edge))
        return [size, content_hash(head.hex()), content_hash(handle.read().hex())]
