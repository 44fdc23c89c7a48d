"""Encoders run by vLLM's pooling runner, for large embedding models on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse.engine.embed.folder import find_model
from obverse.engine.embed.protocol import model_mark
from obverse.engine.embed.settings import EmbedSettings
from obverse.engine.errors import InputError, MissingPackageError

__all__ = ["VllmEncoder"]

_WINDOW = 16_384


class VllmEncoder:
    """Texts to unit vectors by ``vllm.LLM(..., runner="pooling")``, which batches and pools as the model says.

    A row's vector depends by rounding on what vLLM's scheduler batches it with. Raises `MissingPackageError` without
    ``vllm`` and `InputError` for a model that it doesn't run.
    """

    def __init__(self, settings: EmbedSettings) -> None:
        if settings.pooling != "auto":
            raise InputError("'auto' (vLLM pools as the model says)", field="pooling", seen=settings.pooling)
        if settings.device not in ("auto", "cuda", "cpu"):
            raise InputError("'auto': vLLM runs on the devices it was built for", field="device", seen=settings.device)
        try:
            from vllm import LLM
        except ImportError as error:
            raise MissingPackageError("vllm", needed_for="the embedding backend 'vllm'", extra="gpu") from error
        self.settings = settings
        options: dict[str, Any] = {"runner": "pooling", "seed": 0, "disable_log_stats": True}
        if settings.dtype != "auto":
            options["dtype"] = settings.dtype
        try:
            self._llm = LLM(model=find_model(settings.model), max_num_seqs=settings.batch_size, **options)
        except (OSError, ValueError) as error:
            raise InputError(
                f"a model that vLLM can embed with ({error})", field="model", seen=settings.model
            ) from error
        self._tokenizer = self._llm.get_tokenizer()
        self.max_length = min(settings.max_length, int(self._llm.model_config.max_model_len))
        self.dtype = str(self._llm.model_config.dtype).removeprefix("torch.")
        self.dim = len(self._embed(["a"])[0])

    def describe(self) -> dict[str, Any]:
        """What the vectors depend on, but for rounding."""
        return {
            "model": model_mark(self.settings.model),
            "backend": "vllm",
            "dtype": self.dtype,
            "max_length": self.max_length,
            "prefix": self.settings.prefix,
        }

    def encode(
        self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Unit vectors ``[N, dim]`` of ``texts``, in their order."""
        result = np.empty((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), _WINDOW):
            part = self._embed(texts[start : start + _WINDOW])
            norms = np.linalg.norm(part.astype(np.float64), axis=1, keepdims=True)
            result[start : start + len(part)] = part / np.maximum(norms, 1e-12)
            if on_progress:
                on_progress(len(part))
        return result

    def _embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        ids = self._tokenizer(
            [self.settings.prefix + text for text in texts], truncation=True, max_length=self.max_length
        )["input_ids"]
        outputs = self._llm.embed([{"prompt_token_ids": one} for one in ids], use_tqdm=False)
        return np.array([output.outputs.embedding for output in outputs], np.float32)
