"""One process at a time in a folder: the kernel lets go of the lock when the process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obverse.engine.errors import RunError

__all__ = ["locked"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if absent) for this process while the block runs, by ``folder/.run.lock``.

    Raises `RunError`, naming the other process, when another one holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".run.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 100).decode().strip() or "unknown"
            raise RunError(f"{folder} is in use by another obverse process (pid {owner}); wait or stop it") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
