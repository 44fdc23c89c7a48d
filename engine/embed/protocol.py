"""What an encoder is to the rest of the engine, and the choice of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from obverse.engine.embed.folder import find_model
from obverse.engine.embed.settings import EmbedSettings
from obverse.engine.errors import InputError
from obverse.engine.records.fingerprint import file_hash, folder_mark

__all__ = ["TextEncoder", "model_mark", "open_encoder"]

# Larger models are known by names, sizes and edges of their files: reading them whole would take longer than loading.
_HASHED_BYTES = 1 << 30


class TextEncoder(Protocol):
    """Texts in, unit vectors out, in the order of the texts."""

    settings: EmbedSettings
    dim: int

    def encode(
        self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Unit vectors ``[N, dim]`` of ``texts``; ``on_progress`` is told how many more are done."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the vectors depend on (model files, backend, precision, pooling, length, prefix), as JSON values."""
        ...


def open_encoder(settings: EmbedSettings) -> TextEncoder:
    """The encoder that ``settings`` asks for.

    Raises `InputError` for a model that can't be read or a backend that can't run it, and `MissingPackageError`
    where the backend's package is missing.
    """
    if settings.dtype == "int8" and settings.backend not in ("auto", "native"):
        raise InputError("'float32' or 'bfloat16' (int8 is of the backend 'native')", field="dtype", seen="int8")
    onnx = settings.backend == "onnx" or (settings.backend == "auto" and _only_onnx(settings.model))
    if settings.backend in ("auto", "native") and not onnx:
        found = _native(settings)
        if found is not None:
            return found
    if onnx:
        from obverse.engine.embed.onnx import OnnxEncoder

        return OnnxEncoder(settings)
    if settings.backend == "vllm":
        from obverse.engine.embed.vllm import VllmEncoder

        return VllmEncoder(settings)
    from obverse.engine.embed.encoder import Encoder

    return Encoder(settings)


def _native(settings: EmbedSettings) -> TextEncoder | None:
    """The native encoder; None where ``auto`` must take another: it can't, or would not be close enough."""
    from obverse.engine.embed.native import LEAST_COSINE, NativeEncoder, why_not_native

    reason = why_not_native(settings)
    if reason is None:
        found = NativeEncoder(settings)
        if found.cosine >= LEAST_COSINE or settings.backend == "native" or settings.dtype == "int8":
            return found
        return None
    if settings.backend == "native" or settings.dtype == "int8":
        raise InputError(f"settings that the native encoder takes ({reason})", field="backend", seen="native")
    return None


def _only_onnx(model: str) -> bool:
    folder = Path(model).expanduser()
    if model == "minilm" or not folder.is_dir():
        return False
    return any(folder.rglob("model.onnx")) and not [*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]


def model_mark(model: str, revision: str | None = None) -> dict[str, Any]:
    """What tells one model from another: a hash of its folder's files, or a Hugging Face id and its revision."""
    source = Path(find_model(model))
    if not source.is_dir():
        return {"id": str(model), "revision": revision}
    size = sum(part.stat().st_size for part in source.rglob("*") if part.is_file())
    return {"files": file_hash(source)} if size <= _HASHED_BYTES else {"marks": folder_mark(source)}
