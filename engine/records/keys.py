"""Hashes and seeds: every random draw is keyed by (seed, stage, id), so order of work never changes results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

__all__ = ["content_hash", "derive_seed"]


def derive_seed(seed: int, stage: str, row_id: int = 0) -> int:
    """A seed in [0, 2**31) that depends on all three arguments and on nothing else."""
    digest = hashlib.blake2b(f"{seed}\x1f{stage}\x1f{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF


def content_hash(value: object, *, size: int = 16) -> str:
    """A hex digest of any JSON-serialisable value (mappings in key order) or of a string's UTF-8 bytes."""
    if isinstance(value, str):
        data = value.encode()
    else:
        data = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain).encode()
    return hashlib.blake2b(data, digest_size=size).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
