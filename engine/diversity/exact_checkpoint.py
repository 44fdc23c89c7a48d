"""Checkpoints of the exact join: lists and bands done in one file, written whole, so that a kill loses seconds."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse.engine.errors import InputError
from obverse.engine.records.shards import atomic_write

__all__ = ["JoinCheckpoint", "JoinState", "content_key"]

_NAME = "exact_join.npz"
_BLOCK_BYTES = 1 << 24


def content_key(*arrays: npt.NDArray[Any], **settings: object) -> str:
    """A hash of shapes, dtypes, every byte of the arrays (C-contiguous), and the settings."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        rows = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
        for start in range(0, len(array), rows):
            digest.update(np.ascontiguousarray(array[start : start + rows]).tobytes())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


@dataclass
class JoinState:
    """What a join has so far: its order of rows, its lists, which bands are done, and its counts."""

    order: npt.NDArray[np.int32]
    indices: npt.NDArray[np.int32]
    similarities: npt.NDArray[np.float32]
    done: npt.NDArray[np.bool_]
    counts: dict[str, float]


@dataclass
class JoinCheckpoint:
    """One join's state in ``folder``; ``key`` says of which join (see `content_key`)."""

    folder: Path
    key: str
    every_s: float = 10.0
    _saved: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> Path:
        """The one file, there only when whole."""
        return self.folder / _NAME

    def load(self) -> JoinState | None:
        """The state that was saved, or None. Raises `InputError` where it is damaged or of another join."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path) as saved:
                arrays = {name: saved[name] for name in saved.files}
            key, counts = str(arrays["key"]), json.loads(str(arrays["counts"]))
            state = JoinState(arrays["order"], arrays["indices"], arrays["similarities"], arrays["done"], counts)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError("a whole checkpoint of an exact join; delete it to begin anew", file=self.path) from error
        if key != self.key:
            raise InputError(
                "a checkpoint of these vectors and settings; give another folder, or delete it to begin anew",
                file=self.path,
                field="key",
                seen=key,
            )
        return state

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self.every_s

    def save(self, take: Callable[[], JoinState]) -> None:
        """Write the state whole, or leave the one before."""
        began, state = time.monotonic(), take()

        def write(temporary: Path) -> None:
            with temporary.open("wb") as handle:
                np.savez(
                    handle,
                    key=np.array(self.key),
                    counts=np.array(json.dumps(state.counts)),
                    order=state.order,
                    indices=state.indices,
                    similarities=state.similarities,
                    done=state.done,
                )

        atomic_write(self.path, write)
        self._saved = time.monotonic()
        # Large lists take a while: at most a twentieth of the time goes into saving them.
        self.every_s = max(self.every_s, 20 * (self._saved - began))
