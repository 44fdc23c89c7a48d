"""Encoders run by ONNX Runtime: a folder's own model.onnx, or one exported from the transformers model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse.engine.embed.encoder import ordered_batches, padded, pool, token_limit
from obverse.engine.embed.folder import find_model, read_folder
from obverse.engine.embed.protocol import model_mark
from obverse.engine.embed.settings import EmbedSettings
from obverse.engine.errors import InputError, MissingPackageError

__all__ = ["OnnxEncoder", "export_onnx"]

_WINDOW = 16_384


def export_onnx(settings: EmbedSettings, path: Path) -> None:
    """Write the model that ``settings`` name as ONNX: ``input_ids`` and ``attention_mask`` to ``last_hidden_state``.

    Needs the package ``onnx``. Raises as `Encoder` does.
    """
    import torch

    from obverse.engine.embed.encoder import Encoder

    try:
        import onnx  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise MissingPackageError("onnx", needed_for="exporting an embedding model", extra="onnx") from error
    encoder = Encoder(settings.model_copy(update={"backend": "torch", "dtype": "float32", "device": "cpu"}))

    class Hidden(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    example = torch.ones(2, 5, dtype=torch.int64)
    example[1, 0] = 2
    axes = {0: "texts", 1: "tokens"}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about what it takes for constants
        torch.onnx.export(
            Hidden(encoder.model),
            (example, torch.ones_like(example)),
            str(temporary),
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "last_hidden_state": axes},
            opset_version=17,
            dynamo=False,
        )
    temporary.replace(path)


class OnnxEncoder:
    """A sentence encoder on ONNX Runtime, on the processor: its model.onnx gives token vectors, or pooled ones.

    The folder holds ``model.onnx`` or ``onnx/model.onnx`` beside its tokenizer (see `export_onnx`). Batches are by
    length, as in `Encoder`, and each runs on one thread, so that the same call gives the same bytes on any number of
    them. Raises `MissingPackageError` without ``onnxruntime`` and `InputError` for a folder that isn't one.
    """

    def __init__(self, settings: EmbedSettings) -> None:
        from transformers import AutoConfig, AutoTokenizer

        if settings.device not in ("auto", "cpu") or settings.dtype not in ("auto", "float32"):
            seen = (settings.device, settings.dtype)
            raise InputError("device 'cpu' and dtype 'float32' with the backend 'onnx'", field="backend", seen=seen)
        self.settings = settings
        folder = read_folder(find_model(settings.model))
        self.path = _model_file(Path(folder.source), settings.model)
        self.pooling = folder.pooling if settings.pooling == "auto" else settings.pooling
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder.source, subfolder=folder.subfolder)
            config = AutoConfig.from_pretrained(folder.source, subfolder=folder.subfolder)
        except (OSError, ValueError) as error:
            raise InputError(f"a tokenizer and config.json ({error})", file=folder.source) from error
        self.max_length = token_limit(settings, folder, config, self.tokenizer)
        self._session = _session(self.path)
        self._inputs = [one.name for one in self._session.get_inputs()]
        known = {"input_ids", "attention_mask", "token_type_ids"}
        if not set(self._inputs) <= known:
            raise InputError(f"inputs of {sorted(known)}", file=self.path, seen=self._inputs)
        self.dim = self._run([[self.tokenizer.pad_token_id or 0]]).shape[1]

    def describe(self) -> dict[str, Any]:
        """What the vectors depend on, but for rounding."""
        return {
            "model": model_mark(self.settings.model),
            "file": self.path.name,
            "backend": "onnx",
            "dtype": "float32",
            "pooling": self.pooling,
            "max_length": self.max_length,
            "prefix": self.settings.prefix,
        }

    def encode(
        self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Unit vectors ``[N, dim]`` of ``texts``, in their order."""
        import torch

        result = np.empty((len(texts), self.dim), np.float32)
        with ThreadPoolExecutor(torch.get_num_threads()) as workers:
            for start in range(0, len(texts), _WINDOW):
                prefixed = [self.settings.prefix + text for text in texts[start : start + _WINDOW]]
                batches, ids = ordered_batches(prefixed, self.tokenizer, self.max_length, self.settings.batch_size)
                parts = workers.map(self._run, ([ids[row] for row in rows] for rows in batches))
                for rows, vectors in zip(batches, parts, strict=True):
                    result[start + rows] = vectors
                    if on_progress:
                        on_progress(len(rows))
        return result

    def _run(self, ids: list[list[int]]) -> npt.NDArray[np.float32]:
        import torch

        tokens, mask = padded(ids, self.tokenizer.pad_token_id or 0)
        given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        hidden = torch.from_numpy(self._session.run(None, {name: given[name] for name in self._inputs})[0]).float()
        pooled = pool(hidden, torch.from_numpy(mask), self.pooling) if hidden.ndim == 3 else hidden
        unit: npt.NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return unit


def _model_file(folder: Path, model: str) -> Path:
    for path in (folder / "model.onnx", folder / "onnx" / "model.onnx"):
        if path.is_file():
            return path
    raise InputError("a folder with model.onnx or onnx/model.onnx (export_onnx writes one)", field="model", seen=model)


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError("onnxruntime", needed_for="the embedding backend 'onnx'", extra="onnx") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # batches run side by side instead
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no class of their own
        raise InputError(f"an ONNX model that can be loaded ({error})", file=path) from error
