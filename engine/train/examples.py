"""Rows of a table as token ids with their weights, checked and counted before any training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from obverse.engine.errors import InputError
from obverse.engine.records.linearise import triples_of
from obverse.engine.records.models import Task
from obverse.engine.records.schemas import require_columns
from obverse.engine.records.sequence import Example, SequenceFormat

__all__ = ["Examples", "encode_rows"]

# The column that each method weighs rows by, and the name the loss knows it by.
WEIGHT_COLUMN = {"ce": None, "imp": "sample_weight", "dimp": "log_quality"}


@dataclass(frozen=True)
class Examples:
    """N encoded rows.

    Attributes:
        sequences: N token sequences (classification: all of a sequence is prompt).
        targets: [N] int64 class index; classification, else None.
        weight: [N] float32 values of the method's weight column, or None.
        rows: [N] int64 row of the table that each came from.
        num_too_long: rows left out because they do not fit.
    """

    sequences: list[Example]
    targets: np.ndarray | None
    weight: np.ndarray | None
    rows: np.ndarray
    num_too_long: int

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64 tokens per row."""
        return np.array([len(s.input_ids) for s in self.sequences], dtype=np.int64)

    def digest(self) -> str:
        """A digest of everything in here, so that a checkpoint can tell its own data from other data."""
        hasher = hashlib.blake2b(digest_size=16)
        for sequence in self.sequences:
            hasher.update(np.array([sequence.num_prompt_tokens, *sequence.input_ids], dtype=np.int64).tobytes())
            hasher.update(b"|")
        for array in (self.targets, self.weight):
            hasher.update(b"-" if array is None else array.tobytes())
        return hasher.hexdigest()


def encode_rows(
    rows: pa.Table,
    *,
    task: Task,
    tokenizer: Any,
    form: SequenceFormat | None,
    labels: Sequence[str] | None,
    max_length: int | None,
    method: str = "ce",
    cut_text: bool = False,
) -> Examples:
    """Encode ``rows`` (id, text, and triplets or label).

    Extraction rows longer than ``max_length`` tokens are left out and counted, or, with ``cut_text``, lose the
    end of their text (never of their answer). Classification texts are always cut.

    Raises:
        InputError: a column is missing; a text, target or weight is null; a label is not in ``labels``.
    """
    target_column = "triplets" if task == "extraction" else "label"
    require_columns(rows, "id", "text", target_column, what="training")
    texts, targets = rows["text"].to_pylist(), rows[target_column].to_pylist()
    for row, (text, target) in enumerate(zip(texts, targets, strict=True)):
        if text is None or target is None:
            raise InputError("a value", row=row, field="text" if text is None else target_column, seen="null")
    weight = _weights(rows, method)
    if task == "classification":
        assert labels is not None
        sequences = _encode_texts(tokenizer, texts, max_length)
        return Examples(sequences, _class_indices(targets, labels), weight, np.arange(len(sequences)), 0)
    assert form is not None
    sequences, kept = [], []
    for row, (text, target) in enumerate(zip(texts, targets, strict=True)):
        example = form.encode_example(text, triples_of(target), max_length if cut_text else None)
        if cut_text or max_length is None or len(example.input_ids) <= max_length:
            sequences.append(example)
            kept.append(row)
    places = np.array(kept, dtype=np.int64)
    return Examples(sequences, None, None if weight is None else weight[places], places, len(texts) - len(kept))


def _encode_texts(tokenizer: Any, texts: list[str], max_length: int | None) -> list[Example]:
    if not texts:
        return []
    encoded = tokenizer(texts, truncation=max_length is not None, max_length=max_length, padding=False)
    return [Example(ids, len(ids)) for ids in encoded["input_ids"]]


def _class_indices(targets: list[str], labels: Sequence[str]) -> np.ndarray:
    index = {label: i for i, label in enumerate(labels)}
    for row, target in enumerate(targets):
        if target not in index:
            raise InputError(f"one of the labels {list(labels)}", row=row, field="label", seen=target)
    return np.array([index[target] for target in targets], dtype=np.int64)


def _weights(rows: pa.Table, method: str) -> np.ndarray | None:
    if method not in WEIGHT_COLUMN:
        raise InputError(f"one of {', '.join(WEIGHT_COLUMN)}", field="method", seen=method)
    column = WEIGHT_COLUMN[method]
    if column is None:
        return None
    require_columns(rows, column, what=f"training (method {method})")
    values: np.ndarray = rows[column].to_numpy().astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError("a finite number", row=int(bad[0]), field=column, seen=float(values[bad[0]]))
    return values
