"""The bytes of a column of strings, for work on all of them at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

__all__ = ["rows_at", "utf8_bytes"]


def utf8_bytes(strings: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 bytes of all strings end to end (uint8), and the n + 1 places where they begin and end (int64).

    The bytes are a view into ``strings``, a string or large_string array without nulls.
    """
    _, offsets, data = strings.buffers()
    if not len(strings) or data is None:
        return np.zeros(0, np.uint8), np.zeros(len(strings) + 1, np.int64)
    kind = np.int64 if pa.types.is_large_string(strings.type) else np.int32
    ends = np.frombuffer(offsets, kind)[strings.offset : strings.offset + len(strings) + 1].astype(np.int64)
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]], ends - ends[0]


def rows_at(hits: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether each string holds one of the bytes at ``hits`` (places in `utf8_bytes`): bool [n]."""
    found = np.zeros(len(ends) - 1, bool)
    # "right" passes over empty strings, which begin where the next one does.
    found[np.searchsorted(ends, hits, side="right") - 1] = True
    return found
