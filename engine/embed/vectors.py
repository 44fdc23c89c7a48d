"""The ``vectors`` table: from an encoder, or from vectors that the user brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.embed.cache import VectorCache, Vectors, text_keys
from obverse.engine.embed.protocol import TextEncoder
from obverse.engine.errors import InputError
from obverse.engine.records.schemas import require_columns, vectors

__all__ = ["Counts", "embed_texts", "first_rows", "open_cache", "read_vectors", "unique_vectors", "vector_table"]


class Counts(NamedTuple):
    """Where the vectors of some texts came from."""

    computed: int = 0
    cached: int = 0
    repeated: int = 0
    """Equal to a text before it in the same call."""


def embed_texts(
    texts: pa.Table,
    encoder: TextEncoder,
    *,
    cache: VectorCache | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Embed the column ``text``; gives a table of schema ``vectors(encoder.dim)``, rows in the same order.

    Equal texts are computed once, and texts of ``cache`` not at all. Raises `InputError` for a row without text
    (the check stage drops those).
    """
    require_columns(texts, "id", "text", what="texts")
    bodies = texts["text"]
    if bodies.null_count:
        row = bodies.combine_chunks().is_null().to_numpy(zero_copy_only=False).argmax()
        raise InputError("a text", row=int(row), field="text")
    values, _ = unique_vectors(bodies.to_pylist(), encoder, cache=cache, on_progress=on_progress)
    return vector_table(texts["id"], values)


def unique_vectors(
    texts: Sequence[str],
    encoder: TextEncoder,
    *,
    keys: npt.NDArray[np.uint64] | None = None,
    cache: VectorCache | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Vectors, Counts]:
    """Vectors ``[N, dim]`` of ``texts`` in the precision of the settings: each text once, and none of ``cache``.

    ``keys [N, 2]``: `text_keys` of the texts, where the caller has them. What was computed is in the cache, on disk,
    when this returns.
    """
    keys = text_keys(texts) if keys is None else keys
    first = first_rows(keys)
    own = np.flatnonzero(first == np.arange(len(first)))
    tell = on_progress or (lambda _: None)
    values = np.empty((len(texts), encoder.dim), encoder.settings.precision)
    todo, cached = own, 0
    if cache is not None:
        found, stored = cache.find(keys[own])
        values[own[found]] = stored[found]
        todo, cached = own[~found], int(found.sum())
    tell(len(texts) - len(todo))
    if len(todo):
        values[todo] = encoder.encode([texts[int(row)] for row in todo], on_progress=tell)
        if cache is not None:
            cache.add(keys[todo], values[todo])
    return values[first], Counts(len(todo), cached, len(texts) - len(own))


def first_rows(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """For each row of ``keys [N, 2]`` the lowest row of equal key."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: rows of one key stay in their order
    ranked = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    first = np.empty(len(keys), np.int64)
    first[order] = order[new][np.cumsum(new) - 1] if len(keys) else order
    return first


@contextmanager
def open_cache(encoder: TextEncoder) -> Iterator[VectorCache | None]:
    """The cache that the encoder's settings name, or None where they name none."""
    settings = encoder.settings
    if settings.cache is None:
        yield None
        return
    identity = {**encoder.describe(), "precision": settings.precision}
    with VectorCache(settings.cache, identity, encoder.dim, settings.precision) as cache:
        yield cache


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
    unit: Vectors = (values / norms[:, None]).astype(np.float32).astype(precision, copy=False)
    return vector_table(table["id"], unit)


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _refuse(
    bad: npt.NDArray[np.bool_], expected: str, column: str, seen: npt.NDArray[np.generic] | None = None
) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise InputError(expected, row=row, field=column, seen=None if seen is None else seen[row])


def vector_table(ids: pa.ChunkedArray | pa.Array, values: Vectors) -> pa.Table:
    """A ``vectors`` table of ``ids`` and ``values [N, dim]``, in the precision that the values have."""
    kind = pa.from_numpy_dtype(values.dtype)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), values.shape[1])
    return pa.table([ids.cast(pa.int64()), column], schema=vectors(values.shape[1], kind))
