"""BERT-like encoders in 8-bit integers on the C++ core: no padding, and a text's bytes depend on the text alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from obverse import _core
from obverse.engine.embed.calibration import CHECK, FIT
from obverse.engine.embed.folder import ModelFolder, find_model, read_folder, read_json_file
from obverse.engine.embed.settings import EmbedSettings

__all__ = ["LEAST_COSINE", "NativeEncoder", "why_not_native"]

Floats = npt.NDArray[np.float32]

LEAST_COSINE = 0.999
"""To the float32 vector, for every sentence of `calibration.CHECK`: else ``auto`` takes another encoder."""
_KERNEL = 1  # goes up when the core's arithmetic changes: vectors of a cache made before are then not used
_WINDOW = 1024


def why_not_native(settings: EmbedSettings) -> str | None:
    """Why the native encoder can't take these settings, or None where it can."""
    if settings.dtype not in ("auto", "int8"):
        return f"it computes in int8, not {settings.dtype}"
    if settings.device not in ("auto", "cpu") or (settings.device == "auto" and _has_cuda()):
        return "it runs on the processor only"
    if not _core.int8_encoder_available():
        return "this processor lacks AVX-512 VNNI"
    folder = read_folder(find_model(settings.model))
    pooling = folder.pooling if settings.pooling == "auto" else settings.pooling
    if pooling not in ("mean", "cls"):
        return f"it pools by mean or cls, not {pooling}"
    return _why_not_model(_config(folder))


def _why_not_model(config: dict[str, Any]) -> str | None:
    kind = config.get("model_type")
    if kind != "bert" or config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        return f"it runs BERT encoders, not {kind}"
    if config.get("hidden_act") != "gelu":
        return f"it knows the activation gelu, not {config.get('hidden_act')}"
    hidden, heads, inner = (int(config[name]) for name in _SIZES)
    if hidden % 64 or inner % 64 or hidden % heads or hidden // heads % 16:
        return f"its widths are multiples of 64 and its heads' of 16, not {hidden}, {inner} and {hidden / heads:g}"
    return None


_SIZES = ("hidden_size", "num_attention_heads", "intermediate_size")


def _config(folder: ModelFolder) -> dict[str, Any]:
    prefix = f"{folder.subfolder}/" if folder.subfolder else ""
    return read_json_file(folder.source, f"{prefix}config.json") or {}


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


class NativeEncoder:
    """A BERT encoder with int8 weights and 8-bit activations, each with a scale for every 64 inputs.

    At loading, the model runs once in float32 over `calibration.FIT`, to find by which powers of 2^(1/4) the inputs of
    the products after a layer norm are best divided, and their weights multiplied, before rounding (SmoothQuant,
    arXiv 2211.10438, equation 4 with alpha 1/2); and over `calibration.CHECK`: ``cosine`` is the least cosine between
    the two encoders' vectors there.

    The same text gives the same bytes, whatever it is encoded with and on any number of threads. Raises `InputError`
    as `Encoder` does.
    """

    def __init__(self, settings: EmbedSettings) -> None:
        from obverse.engine.embed.encoder import Encoder

        self.settings = settings
        exact = Encoder(settings.model_copy(update={"backend": "torch", "dtype": "float32", "device": "cpu"}))
        self.pooling, self.max_length, self.dim = exact.pooling, exact.max_length, exact.dim
        self._tokenizer = exact.tokenizer
        self._mark = exact.describe()["model"]
        self._core = _fitted(exact)
        texts = list(CHECK)
        self.cosine = float((exact.encode(texts) * self.encode(texts)).sum(axis=1).min())

    def describe(self) -> dict[str, Any]:
        """What the vectors depend on."""
        return {
            "model": self._mark,
            "backend": "native",
            "dtype": f"int8 ({_KERNEL})",
            "pooling": self.pooling,
            "max_length": self.max_length,
            "prefix": self.settings.prefix,
        }

    def encode(self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None) -> Floats:
        """Unit vectors ``[N, dim]`` of ``texts``, in their order."""
        import torch

        result = np.empty((len(texts), self.dim), np.float32)
        done = 0
        for ids, starts in self._tokens(texts):
            count = len(starts) - 1
            result[done : done + count] = self._core.encode(
                ids, starts, pooling=self.pooling, threads=torch.get_num_threads()
            )
            done += count
            if on_progress:
                on_progress(count)
        return result

    def _tokens(self, texts: Sequence[str]) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
        """Token ids of successive windows, and where each text's begin: a window ahead of the one that is encoded."""
        with ThreadPoolExecutor(1) as ahead:
            windows = [texts[start : start + _WINDOW] for start in range(0, len(texts), _WINDOW)]
            coming = ahead.submit(self._window, windows[0]) if windows else None
            for number in range(len(windows)):
                assert coming is not None
                now = coming.result()
                if number + 1 < len(windows):
                    coming = ahead.submit(self._window, windows[number + 1])
                yield now

    def _window(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        ids = self._tokenizer(
            [self.settings.prefix + text for text in texts],
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        starts = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(one) for one in ids], out=starts[1:])
        return np.fromiter((token for one in ids for token in one), np.int32, int(starts[-1])), starts


def _fitted(exact: Any) -> _core.Int8Encoder:
    """The core's encoder of a BERT model in float32."""
    model, config = exact.model, exact.model.config
    seen = _largest_inputs(exact)
    weights = {name: value.float() for name, value in model.state_dict().items()}
    embedding = "embeddings."
    position = (
        weights[f"{embedding}position_embeddings.weight"] + weights[f"{embedding}token_type_embeddings.weight"][0]
    )
    return _core.Int8Encoder(
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        epsilon=config.layer_norm_eps,
        word=_flat(weights[f"{embedding}word_embeddings.weight"]),
        position=_flat(position),
        gamma=_flat(weights[f"{embedding}LayerNorm.weight"]),
        beta=_flat(weights[f"{embedding}LayerNorm.bias"]),
        layers=[_layer(weights, f"encoder.layer.{n}.", seen) for n in range(config.num_hidden_layers)],
    )


def _layer(weights: dict[str, Any], layer: str, seen: dict[str, Any]) -> tuple[Any, ...]:
    import torch

    def pair(name: str) -> tuple[Any, Any]:
        return weights[f"{layer}{name}.weight"], weights[f"{layer}{name}.bias"]

    parts = [pair(f"attention.self.{name}") for name in ("query", "key", "value")]
    qkv = torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])
    return (
        _linear(*qkv, seen[f"{layer}attention.self.query"]),
        _linear(*pair("attention.output.dense")),
        *map(_flat, pair("attention.output.LayerNorm")),
        _linear(*pair("intermediate.dense"), seen[f"{layer}intermediate.dense"]),
        _linear(*pair("output.dense")),
        *map(_flat, pair("output.LayerNorm")),
    )


def _linear(weight: Any, bias: Any, largest: Any = None) -> tuple[Floats, Floats, Floats | None]:
    """Weights and bias for the core; where the ``largest`` input of each channel is given, smoothed."""
    import torch

    if largest is None:
        return _flat(weight), _flat(bias), None
    # To a quarter of a power of two: the same on machines whose float32 sums differ in the last place.
    ratio = largest.clamp(min=1e-3) / weight.abs().amax(dim=0).clamp(min=1e-4)
    steps = np.rint(2 * np.log2(ratio.numpy().astype(np.float64)))
    factor = torch.from_numpy(np.exp2(steps / 4).astype(np.float32))
    return _flat(weight * factor), _flat(bias), _flat(1 / factor)


def _largest_inputs(exact: Any) -> dict[str, Any]:
    """The largest magnitude of each channel that comes into each product after a norm, over `FIT`."""
    import torch

    largest: dict[str, Any] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(_: Any, inputs: tuple[Any, ...]) -> None:
            most = inputs[0].detach().abs().reshape(-1, inputs[0].shape[-1]).amax(dim=0)
            largest[name] = torch.maximum(largest[name], most) if name in largest else most

        return note

    hooks = [
        part.register_forward_pre_hook(hook(name))
        for name, part in exact.model.named_modules()
        if name.endswith((".attention.self.query", ".intermediate.dense"))
    ]
    # One text at a time: padding, too, has activations.
    for text in FIT:
        exact.encode([text])
    for one in hooks:
        one.remove()
    return largest


def _flat(values: Any) -> Floats:
    flat: Floats = np.ascontiguousarray(values.detach().cpu().numpy(), np.float32).reshape(-1)
    return flat
