"""Tokenizers by folder, file or Hugging Face id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from obverse.engine.errors import InputError
from obverse.engine.records.models import load_tokenizer
from obverse.engine.records.sentencepiece import read_sentencepiece

__all__ = ["find_tokenizer"]


def find_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a model folder, a ``tokenizer.json``, a SentencePiece ``.model``, or a Hugging Face id.

    Raises `InputError` where there is none, or none that can be read.
    """
    path = Path(source).expanduser()
    expected = "a model folder, a tokenizer.json, a SentencePiece .model, or a Hugging Face id that can be reached"
    if path.is_dir() and not (path / "tokenizer.json").exists() and (path / "tokenizer.model").exists():
        path /= "tokenizer.model"
    if path.is_file():
        if path.suffix == ".model":
            return read_sentencepiece(path)
        if path.suffix != ".json":
            raise InputError(expected, field="tokenizer", seen=str(source))
        return _read_json(path)
    try:
        return load_tokenizer(path if path.is_dir() else str(source))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{expected} ({reason})", field="tokenizer", seen=str(source)) from error


def _read_json(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # `tokenizers` raises plain Exception for a file it can't read
        raise InputError(f"a readable tokenizer.json ({error})", file=path) from error
