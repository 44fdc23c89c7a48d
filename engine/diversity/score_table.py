"""Scores of every row as columns, given out as Arrow tables in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from obverse.engine.records.schemas import SCORES
from obverse.engine.records.shards import atomic_write

__all__ = ["Scores"]

Floats = npt.NDArray[np.float32]

_BATCH = 65_536


@dataclass(frozen=True, slots=True)
class Scores:
    """The columns of SCORES for N rows; None for a column that is null throughout, NaN for a null in it."""

    ids: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    similarities: Floats
    mean_knn_distance: Floats
    local_density: Floats
    novelty: Floats | None
    label_mean_knn_distance: Floats | None
    clusters: npt.NDArray[np.int32]
    duplicate_group: npt.NDArray[np.int64] | None
    """Row numbers, given out as ids."""
    duplicate_kept: npt.NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, rows: int = _BATCH) -> Iterator[pa.Table]:
        """Tables of schema SCORES of ``rows`` rows each, in order."""
        for start in range(0, len(self), rows):
            yield self._slice(slice(start, min(start + rows, len(self))))

    def table(self) -> pa.Table:
        """All rows as one table."""
        return pa.concat_tables(self.batches()) if len(self) else SCORES.empty_table()

    def means(self) -> pa.Table:
        """The column ``mean_knn_distance`` alone, for `set_metrics`."""
        return pa.table({"mean_knn_distance": _nullable(self.mean_knn_distance, slice(None), len(self))})

    def write(self, path: Path) -> None:
        """Write a Parquet file batch by batch, whole or not at all."""

        def write(temporary: Path) -> None:
            with pq.ParquetWriter(temporary, SCORES, compression="zstd") as writer:
                for table in self.batches():
                    writer.write_table(table)

        atomic_write(path, write)

    def _slice(self, part: slice) -> pa.Table:
        indices, count = self.indices[part], part.stop - part.start
        group = None if self.duplicate_group is None else self.ids[self.duplicate_group[part]]
        kept = None if self.duplicate_kept is None else self.duplicate_kept[part]
        found = indices >= 0
        offsets = pa.array(np.concatenate([[0], np.cumsum(found.sum(axis=1))]).astype(np.int32))
        columns = {
            "id": self.ids[part],
            "neighbour_ids": pa.ListArray.from_arrays(offsets, pa.array(self.ids[indices[found]])),
            "neighbour_similarities": pa.ListArray.from_arrays(offsets, pa.array(self.similarities[part][found])),
            "mean_knn_distance": _nullable(self.mean_knn_distance, part, count),
            "local_density": _nullable(self.local_density, part, count),
            "novelty": _nullable(self.novelty, part, count),
            "label_mean_knn_distance": _nullable(self.label_mean_knn_distance, part, count),
            "cluster": self.clusters[part],
            "duplicate_group": _or_nulls(group, pa.int64(), count),
            "duplicate_kept": _or_nulls(kept, pa.bool_(), count),
        }
        return pa.table(columns, schema=SCORES)


def _or_nulls(values: npt.NDArray[Any] | None, kind: pa.DataType, count: int) -> pa.Array:
    return pa.nulls(count, kind) if values is None else pa.array(values, kind)


def _nullable(values: Floats | None, part: slice, count: int) -> pa.Array:
    if values is None:
        return pa.nulls(count, pa.float32())
    return pa.array(values[part], pa.float32(), mask=np.isnan(values[part]))
