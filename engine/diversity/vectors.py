"""The ``vectors`` table as a matrix of unit rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from obverse.engine.errors import InputError
from obverse.engine.records.schemas import require_columns

__all__ = ["unit_matrix"]

_BLOCK = 65_536


def unit_matrix(vectors: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Ids ``[N]`` and float32 vectors ``[N, D]`` of a ``vectors`` table, each of length 1 again after float16.

    Raises `InputError` for a column that isn't fixed-size lists of floats, nulls, values that aren't finite,
    vectors of zeros and repeated ids.
    """
    require_columns(vectors, "id", "vector", what="vectors")
    kind = vectors.schema.field("vector").type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
        raise InputError("fixed-size lists of floats", field="vector", seen=str(kind))
    ids = vectors["id"].to_numpy().astype(np.int64)
    if len(np.unique(ids)) != len(ids):
        values, counts = np.unique(ids, return_counts=True)
        raise InputError("ids that are unique", field="id", seen=int(values[counts > 1][0]))
    matrix = np.empty((len(ids), kind.list_size), np.float32)
    start = 0
    for chunk in vectors["vector"].chunks:
        for offset in range(0, len(chunk), _BLOCK):
            part = chunk.slice(offset, _BLOCK)
            matrix[start : start + len(part)] = _unit(part, kind.list_size, ids[start : start + len(part)])
            start += len(part)
    return ids, matrix


def _unit(part: pa.FixedSizeListArray, dim: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    flat = part.flatten()
    if part.null_count or flat.null_count:
        raise InputError("vectors without nulls", field="vector", seen=f"a null among ids {ids[0]}..{ids[-1]}")
    values = flat.to_numpy(zero_copy_only=False).reshape(-1, dim).astype(np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", values, values))
    bad = ~np.isfinite(norms) | (norms == 0)
    if bad.any():
        raise InputError("finite vectors, not all zeros", field="vector", seen=f"id {ids[bad.argmax()]}")
    unit: npt.NDArray[np.float32] = (values / norms[:, None]).astype(np.float32)
    return unit
