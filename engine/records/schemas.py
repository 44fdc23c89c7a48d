"""The Arrow schemas that stages agree on: one table per stage, joined on ``id``."""

from __future__ import annotations

import pyarrow as pa

from obverse.engine.errors import InputError

__all__ = [
    "CHECKS",
    "PREDICTIONS",
    "SCORES",
    "TARGETS",
    "TEXTS",
    "TRIPLET",
    "WEIGHTS",
    "require_columns",
    "vectors",
]

NAME = pa.struct([("uri", pa.string()), ("surfaceform", pa.string())])
TRIPLET = pa.struct([("subject", NAME), ("predicate", NAME), ("object", NAME)])
TRIPLETS = pa.list_(TRIPLET)

# A target is either a set of triplets (extraction) or a label (classification); the other column is null.
TARGETS = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("triplets", TRIPLETS),
        ("label", pa.string()),
        ("attributes", pa.string()),  # JSON object of generation attributes, or null
        pa.field("is_real", pa.bool_(), nullable=False),
    ]
)

TEXTS = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("text", pa.string()),
        ("prompt_hash", pa.string()),
        ("model", pa.string()),
        ("seed", pa.int64()),
        ("finish_reason", pa.string()),  # stop | length | error: MESSAGE | given (brought by the user)
        ("num_prompt_tokens", pa.int32()),
        ("num_output_tokens", pa.int32()),
    ]
)

CHECKS = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        (
            "mention_recall",
            pa.float32(),
        ),  # share of the target's entities named in the text; null without triplets
        ("num_chars", pa.int32()),
        ("prompt_echo", pa.bool_()),
        ("duplicate_of", pa.int64()),  # id of the first row with this text, or nearly; null if none
        ("leak_of", pa.int64()),  # id of the held-out row that this text or target repeats; null if none
        pa.field("kept", pa.bool_(), nullable=False),
        ("reason", pa.string()),  # the first check that failed; null when kept
    ]
)

SCORES = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("neighbour_ids", pa.list_(pa.int64())),
        ("neighbour_similarities", pa.list_(pa.float32())),
        ("mean_knn_distance", pa.float32()),  # mean of 1 - cosine over the k neighbours
        ("local_density", pa.float32()),  # ln of the density over the neighbours' mean density (-ln LOF)
        ("novelty", pa.float32()),  # 1 - largest cosine to a real row; null without real rows
        ("label_mean_knn_distance", pa.float32()),  # over the k neighbours of the same label; null without labels
        ("cluster", pa.int32()),
        ("duplicate_group", pa.int64()),  # id of the group's first row, its own if alone; null if not asked for
        ("duplicate_kept", pa.bool_()),  # false where a kept row is within the threshold; null if not asked for
    ]
)

WEIGHTS = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("log_quality", pa.float32()),
        ("log_diversity", pa.float32()),
        pa.field("weight", pa.float32(), nullable=False),
        ("clipped", pa.string()),  # low | high | null
    ]
)

# gold and predicted are triplets (extraction) or labels (classification); the other pair is null.
PREDICTIONS = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("text", pa.string()),
        ("gold", TRIPLETS),
        ("predicted", TRIPLETS),
        ("gold_label", pa.string()),
        ("predicted_label", pa.string()),
        ("output", pa.string()),  # the raw output string
        ("log_prob", pa.float32()),
    ]
)


def vectors(dim: int, dtype: pa.DataType | None = None) -> pa.Schema:
    """The schema of the ``vectors`` table: id and a fixed-size list of ``dim`` float16 (default) values."""
    return pa.schema([pa.field("id", pa.int64(), nullable=False), ("vector", pa.list_(dtype or pa.float16(), dim))])


def require_columns(table: pa.Table, *names: str, what: str) -> None:
    """Raise `InputError` unless ``table`` has every column in ``names``; ``what`` says which table it is."""
    for name in names:
        if name not in table.column_names:
            raise InputError(f"a column '{name}' in the {what} table", field=name, seen=table.column_names)
