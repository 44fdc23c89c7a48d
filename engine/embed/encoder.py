"""Texts to unit vectors with a transformers encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from obverse.engine.embed.folder import ModelFolder, find_model, read_folder
from obverse.engine.embed.protocol import model_mark
from obverse.engine.embed.settings import EmbedSettings
from obverse.engine.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["Encoder", "ordered_batches", "padded", "pool", "token_limit"]

# Texts tokenised and sorted by length together: bounds memory, and with it where batches may be cut.
_WINDOW = 16_384


class Encoder:
    """A sentence encoder: token vectors of the last layer, pooled, L2-normalised.

    Within one `encode` call texts are batched by length, so padding is small. A row's vector depends on its
    neighbours in the batch by rounding only (padding changes the shapes of matrix products); the same call gives
    the same bytes, on any number of threads. Raises `MissingPackageError` where the model's package is missing
    and `InputError` where the model can't be read.
    """

    def __init__(self, settings: EmbedSettings) -> None:

        self.settings = settings
        self.folder = read_folder(find_model(settings.model))
        self.pooling = self.folder.pooling if settings.pooling == "auto" else settings.pooling
        self.device = _device(settings.device)
        self.dtype: torch.dtype = _dtype(settings.dtype, self.device)
        self.tokenizer, self.model = self._load()
        self.dim = int(self.model.config.hidden_size)
        self.max_length = token_limit(settings, self.folder, self.model.config, self.tokenizer)

    def _load(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        options = {"subfolder": self.folder.subfolder}
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder.source, **options)
            model = AutoModel.from_pretrained(self.folder.source, dtype=self.dtype, **options)
        except (OSError, ValueError) as error:
            raise InputError(
                f"'minilm', a model folder or a Hugging Face id that can be loaded ({error})",
                field="model",
                seen=self.settings.model,
            ) from error
        finally:
            if bars:
                logging.enable_progress_bar()
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer, model.eval().to(self.device)

    def describe(self) -> dict[str, Any]:
        """What the vectors depend on, but for rounding."""
        return {
            "model": model_mark(self.settings.model, getattr(self.model.config, "_commit_hash", None)),
            "backend": "torch",
            "dtype": str(self.dtype).removeprefix("torch."),
            "pooling": self.pooling,
            "max_length": self.max_length,
            "prefix": self.settings.prefix,
        }

    def encode(
        self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Unit vectors ``[N, dim]`` of ``texts``, in their order."""
        result = np.empty((len(texts), self.dim), np.float32)
        with self._workers() as workers:
            for start in range(0, len(texts), _WINDOW):
                batches, ids = self._batches(texts[start : start + _WINDOW])
                parts = workers.map(self._forward, ([ids[row] for row in rows] for rows in batches))
                for rows, vectors in zip(batches, parts, strict=True):
                    result[start + rows] = vectors
                    if on_progress:
                        on_progress(len(rows))
        return result

    @contextmanager
    def _workers(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that each run whole batches on one core.

        Matrix products split over several cores round differently for another number of them; batches that run
        side by side don't, and are faster. An accelerator gets one thread.
        """
        import torch

        count = torch.get_num_threads()
        if self.device.type != "cpu":
            with ThreadPoolExecutor(1) as workers:
                yield workers
            return
        try:
            with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as workers:
                yield workers
        finally:
            torch.set_num_threads(count)  # new threads start with what was set last, in whatever thread

    def _batches(self, texts: Sequence[str]) -> tuple[list[npt.NDArray[np.intp]], list[list[int]]]:
        prefixed = [self.settings.prefix + text for text in texts]
        return ordered_batches(prefixed, self.tokenizer, self.max_length, self.settings.batch_size)

    def _forward(self, ids: list[list[int]]) -> npt.NDArray[np.float32]:
        import torch

        tokens, mask = padded(ids, self.tokenizer.pad_token_id or 0)
        with torch.inference_mode():
            attention = torch.from_numpy(mask).to(self.device)
            hidden = self.model(
                input_ids=torch.from_numpy(tokens).to(self.device), attention_mask=attention
            ).last_hidden_state
            pooled = pool(hidden.float(), attention, self.pooling)
            unit = torch.nn.functional.normalize(pooled, dim=-1)
        vectors: npt.NDArray[np.float32] = unit.cpu().numpy()
        return vectors


def token_limit(settings: EmbedSettings, folder: ModelFolder, config: Any, tokenizer: Any) -> int:
    """Most tokens of a text: the least of what the settings, the model's files and its tokenizer say."""
    limits = [settings.max_length, folder.max_length, getattr(config, "max_position_embeddings", None)]
    limits.append(getattr(tokenizer, "model_max_length", None))
    return min(int(limit) for limit in limits if limit)


def ordered_batches(
    texts: Sequence[str], tokenizer: Any, max_length: int, batch_size: int
) -> tuple[list[npt.NDArray[np.intp]], list[list[int]]]:
    """Rows of each batch, texts of like length together, and the token ids of every text."""
    ids: list[list[int]] = []
    if texts:
        ids = tokenizer(
            list(texts),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    order = np.argsort(-lengths, kind="stable")  # longest first: memory peaks at once, not at the end
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)], ids


def padded(ids: list[list[int]], pad: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Token ids ``[B, T]``, filled up on the right with ``pad``, and the mask of real ones."""
    longest = max(map(len, ids))
    tokens = np.full((len(ids), longest), pad, np.int64)
    mask = np.zeros((len(ids), longest), np.int64)
    for row, own in enumerate(ids):
        tokens[row, : len(own)] = own
        mask[row, : len(own)] = 1
    return tokens, mask


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Token vectors ``[B, T, D]`` under ``mask [B, T]`` (1 on the left) to ``[B, D]``."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        last = mask.sum(dim=1) - 1
        return hidden[range(len(hidden)), last]
    shown = mask.unsqueeze(-1).bool()
    if pooling == "max":
        return hidden.masked_fill(~shown, float("-inf")).amax(dim=1)
    return hidden.masked_fill(~shown, 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _device(wanted: str) -> torch.device:
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("a device of this machine (it has no CUDA device)", field="device", seen=wanted)
    return torch.device(wanted)


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    import torch

    if wanted == "int8":
        raise InputError("'float32' or 'bfloat16' (int8 is of the backend 'native')", field="dtype", seen=wanted)
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without these instructions bfloat16 is emulated, and slower than float32.
        fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if fast else torch.float32
