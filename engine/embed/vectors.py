"""The ``vectors`` table: from an encoder, or from vectors that the user brings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.embed.encoder import Encoder
from obverse.engine.errors import InputError
from obverse.engine.records.schemas import require_columns, vectors

__all__ = ["embed_texts", "read_vectors"]


def embed_texts(texts: pa.Table, encoder: Encoder, *, on_progress: Callable[[int], None] | None = None) -> pa.Table:
    """Embed the column ``text``; gives a table of schema ``vectors(encoder.dim)``, rows in the same order.

    Raises `InputError` for a row without text (the check stage drops those).
    """
    require_columns(texts, "id", "text", what="texts")
    bodies = texts["text"]
    if bodies.null_count:
        row = bodies.combine_chunks().is_null().to_numpy(zero_copy_only=False).argmax()
        raise InputError("a text", row=int(row), field="text")
    values = encoder.encode(bodies.to_pylist(), on_progress=on_progress)
    return _table(texts["id"], values, encoder.settings.precision)


def read_vectors(table: pa.Table, *, column: str = "vector", precision: str = "float16") -> pa.Table:
    """A ``vectors`` table from ``id`` and lists of numbers that the user brings; rows are L2-normalised.

    Lists may be of fixed size or not, of any number type. Raises `InputError` for a null, a list of another
    length than the first, a value that isn't finite, or a vector of zeros, with its row.
    """
    require_columns(table, "id", column, what="vectors")
    lists = table[column].combine_chunks()
    if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type) or _is_fixed(lists.type)):
        raise InputError("lists of numbers", field=column, seen=str(lists.type))
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    if not len(lengths):
        raise InputError("at least one vector", field=column)
    _refuse(lists.is_null().to_numpy(zero_copy_only=False), "a vector", column)
    dim = int(lengths[0])
    _refuse(lengths != dim, f"{dim} values, as in row 0", column, lengths)
    flat = lists.flatten()
    if flat.null_count:
        row = int(flat.is_null().to_numpy(zero_copy_only=False).argmax()) // max(dim, 1)
        raise InputError("numbers without nulls", row=row, field=column)
    values = flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, dim)
    _refuse(~np.isfinite(values).all(axis=1), "finite values", column)
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    _refuse(norms == 0, "a vector that isn't all zeros", column)
    return _table(table["id"], (values / norms[:, None]).astype(np.float32), precision)


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _refuse(
    bad: npt.NDArray[np.bool_], expected: str, column: str, seen: npt.NDArray[np.generic] | None = None
) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise InputError(expected, row=row, field=column, seen=None if seen is None else seen[row])


def _table(ids: pa.ChunkedArray, values: npt.NDArray[np.float32], precision: str) -> pa.Table:
    kind = pa.float16() if precision == "float16" else pa.float32()
    flat = pa.array(values.astype(kind.to_pandas_dtype(), copy=False).reshape(-1), kind)
    column = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table([ids.cast(pa.int64()), column], schema=vectors(values.shape[1], kind))
