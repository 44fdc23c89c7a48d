"""Checkpoints of a training: written whole or not at all, read back only for the same training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from obverse.engine.records.shards import atomic_write

__all__ = ["Checkpoints"]


class Checkpoints:
    """The folder ``checkpoint`` of a training, with its latest state.

    Args:
        folder: where they lie; removed when the training ends.
        key: a digest of settings, data, method and seed. A state under another key is another training's.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.path = folder / "state.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Put ``state`` (tensors, numbers, strings, lists and dictionaries of these) in place of the last."""
        import torch

        atomic_write(self.path, lambda temporary: torch.save({"key": self.key, **state}, temporary))

    def load(self) -> dict[str, Any] | None:
        """The latest state; None if there is none of this training."""
        import torch

        if not self.path.exists():
            return None
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        return state if state.get("key") == self.key else None

    def remove(self) -> None:
        """The training is over and its model written."""
        shutil.rmtree(self.folder, ignore_errors=True)
