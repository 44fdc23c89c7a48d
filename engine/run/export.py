"""A finished run as a data set that others can open: splits, and a card that says how they came about.

The folder opens with ``datasets.load_dataset``, pandas, DuckDB or polars. Rows are those that passed every check; the
test split is what the run itself kept out of training. Tables are joined a shard at a time: beside the shard at hand,
memory holds the ids that were kept.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from obverse.engine.errors import RunError
from obverse.engine.recipe import recipe_values
from obverse.engine.records.keys import derive_seed
from obverse.engine.records.schemas import TARGETS, TEXTS
from obverse.engine.records.shards import Shards, read_json
from obverse.engine.run.card import CardFacts, public_name, write_card
from obverse.engine.run.context import seeded_order

__all__ = ["Exported", "Format", "export_run"]

Format = Literal["datasets", "parquet", "jsonl"]
FILE_BYTES = 256 << 20
SPLITS = ("train", "test")


class Exported(NamedTuple):
    """What `export_run` wrote."""

    folder: Path
    rows: dict[str, int]
    """By split; a split without rows has no files."""


def export_run(
    run: Path,
    out: Path,
    *,
    form: Format = "datasets",
    test_rows: int | None = None,
    license: str | None = None,
    languages: tuple[str, ...] = (),
    on_progress: Callable[[int], None] | None = None,
) -> Exported:
    """Write the kept rows of ``run`` to the new folder ``out``, with README.md as its card.

    ``datasets`` writes Parquet files of about 256 MiB, ``parquet`` one a split, ``jsonl`` one gzipped JSONL file a
    split; all three open with ``datasets.load_dataset(out)``. ``test_rows`` is the most that go to the test split
    (default: what the run kept out of training, and never over a fifth). The folder is there whole or not at all.

    Raises `RunError` where ``run`` is no finished run, or ``out`` exists.
    """
    source = _Source(run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not empty; choose another folder or delete it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    partial.mkdir()
    try:
        tested = source.test_ids(test_rows)
        writers = {split: _WRITERS[form](partial, split) for split in SPLITS}
        for table in source.tables():
            is_test, _ = _places(tested, table["id"].to_numpy())
            writers["test"].write(table.filter(pa.array(is_test)))
            writers["train"].write(table.filter(pa.array(~is_test)))
            if on_progress is not None:
                on_progress(table.num_rows)
        files = {split: writer.close() for split, writer in writers.items()}
        rows = {split: writer.rows for split, writer in writers.items()}
        if sum(rows.values()) != len(source.kept):
            raise RunError(f"{run}: {len(source.kept):,} rows were kept but {sum(rows.values()):,} found; run it again")
        write_card(partial / "README.md", source.card_facts(rows, files, license, languages))
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(out, rows)


class _Source:
    """A finished run, seen as rows to hand on."""

    def __init__(self, run: Path) -> None:
        if not (run / "run.json").is_file():
            raise RunError(f"{run} is not the folder of a run: there is no run.json")
        for stage in ("sample", "generate", "check"):
            if not (run / stage / "_stage.json").is_file():
                raise RunError(f"{run}: stage '{stage}' is not finished; give the same `obverse run` command again")
        self.run, self.manifest = run, read_json(run / "run.json")
        self.recipe = recipe_values(run / "recipe.toml")
        checks = self._shards("check").table(["id", "kept"])
        self.kept: npt.NDArray[np.int64] = np.sort(checks.filter(checks["kept"])["id"].to_numpy())
        self._weights = self._table_of_weights()
        self._samples: list[dict[str, Any]] = []

    def _shards(self, stage: str, schema: pa.Schema | None = None) -> Shards:
        return Shards(self.run / stage, schema, shared=True)  # another process may be at work here: only read

    def facts(self, stage: str) -> dict[str, Any]:
        """What a stage left beside its table; empty where it has not been run to its end."""
        path = self.run / stage / "_stage.json"
        found: dict[str, Any] = read_json(path)["facts"] if path.is_file() else {}
        return found

    def test_ids(self, most: int | None) -> npt.NDArray[np.int64]:
        """The ids of the test split: the run's own, in the same order (`Context.synthetic_rows`)."""
        asked = int(self.recipe.get("data", {}).get("synthetic_test_rows", 0)) if most is None else most
        count = min(asked, len(self.kept) // 5)
        if not count:
            return np.empty(0, np.int64)
        seed = derive_seed(int(self.manifest["seed"]), "synthetic-test")
        return np.sort(self.kept[seeded_order(self.kept.tolist(), seed)[:count]])

    def tables(self) -> Iterator[pa.Table]:
        """The kept rows, a shard of the run at a time."""
        texts, targets = self._shards("generate", TEXTS), self._shards("sample", TARGETS)
        for index in texts.done():
            written = texts.read(index)
            is_kept, _ = _places(self.kept, written["id"].to_numpy())
            rows = self._joined(written.filter(pa.array(is_kept)), targets.read(index), index)
            self._samples += rows.slice(0, max(0, 3 - len(self._samples))).to_pylist()
            yield rows

    def _joined(self, texts: pa.Table, targets: pa.Table, index: int) -> pa.Table:
        places = pc.index_in(texts["id"].combine_chunks(), value_set=targets["id"].combine_chunks())
        if places.null_count:
            raise RunError(f"{self.run}: texts of shard {index} have no targets; run it again")
        targets = targets.take(places)
        target = "triplets" if self.manifest["task"] == "extraction" else "label"
        table = pa.table({"id": texts["id"], "text": texts["text"], target: targets[target]})
        if self._weights is not None:
            ids, values = self._weights
            there, at = _places(ids, texts["id"].to_numpy())
            table = table.append_column("weight", values.take(pa.array(at, mask=~there)))
        table = table.append_column("attributes", targets["attributes"])
        for name in ("model", "seed", "prompt_hash", "num_prompt_tokens", "num_output_tokens"):
            column = texts[name]
            if name == "model":  # a folder's name, not where it was on this machine
                named = [None if value is None else public_name(value) for value in column.unique().to_pylist()]
                column = pa.array(named, pa.string()).take(pc.index_in(column, value_set=column.unique()))
            table = table.append_column(name, column)
        return table

    def _table_of_weights(self) -> tuple[npt.NDArray[np.int64], pa.Array] | None:
        if not (self.run / "weigh" / "_stage.json").is_file():
            return None
        table = self._shards("weigh").table(["id", "weight"]).sort_by("id")
        return table["id"].to_numpy(), table["weight"].combine_chunks()

    def card_facts(
        self, rows: dict[str, int], files: dict[str, str], license: str | None, languages: tuple[str, ...]
    ) -> CardFacts:
        stages = ("graph", "data", "sample", "generate", "check", "weigh")
        return CardFacts(
            manifest=self.manifest,
            recipe=self.recipe,
            facts={stage: self.facts(stage) for stage in stages},
            rows=rows,
            files={split: pattern for split, pattern in files.items() if rows[split]},
            license=license,
            languages=languages,
            samples=self._samples,
        )


def _places(
    known: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which of ``ids`` are among ``known`` (in rising order), and where."""
    if not len(known):
        return np.zeros(len(ids), bool), np.zeros(len(ids), np.int64)
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return known[at] == ids, at


class _Parquet:
    """One split as Parquet files of at most ``most_bytes`` in memory; `close` gives the pattern of their names."""

    def __init__(self, folder: Path, split: str, most_bytes: int = FILE_BYTES) -> None:
        self.rows = 0
        self._folder, self._split, self._most = folder, split, most_bytes
        self._paths: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._bytes = 0

    def write(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        if self._writer is None:
            self._paths.append(self._folder / "data" / f".{self._split}-{len(self._paths):05d}")
            self._paths[-1].parent.mkdir(exist_ok=True)
            self._writer = pq.ParquetWriter(self._paths[-1], table.schema, compression="zstd")
        self._writer.write_table(table)
        self.rows += table.num_rows
        self._bytes += table.nbytes
        if self._bytes >= self._most:
            self._end()

    def close(self) -> str:
        self._end()
        for number, path in enumerate(self._paths):
            path.rename(path.with_name(f"{self._split}-{number:05d}-of-{len(self._paths):05d}.parquet"))
        return f"data/{self._split}-*.parquet"

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._bytes = None, 0


class _OneParquet(_Parquet):
    """One split as one Parquet file."""

    def __init__(self, folder: Path, split: str) -> None:
        super().__init__(folder, split, most_bytes=1 << 62)

    def close(self) -> str:
        super().close()
        if self._paths:
            data = self._folder / "data"
            (data / f"{self._split}-00000-of-00001.parquet").rename(self._folder / f"{self._split}.parquet")
            if not any(data.iterdir()):
                data.rmdir()
        return f"{self._split}.parquet"


class _JsonLines:
    """One split as gzipped JSONL; control characters are escaped by JSON itself."""

    def __init__(self, folder: Path, split: str) -> None:
        self.rows = 0
        self._path = folder / f"{split}.jsonl.gz"
        self._handle: Any = None

    def write(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        if self._handle is None:
            self._handle = gzip.open(self._path, "wt", encoding="utf-8", compresslevel=6)  # noqa: SIM115
        for row in table.to_pylist():
            self._handle.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.rows += table.num_rows

    def close(self) -> str:
        if self._handle is not None:
            self._handle.close()
        return self._path.name


_WRITERS: dict[Format, Callable[[Path, str], Any]] = {
    "datasets": _Parquet,
    "parquet": _OneParquet,
    "jsonl": _JsonLines,
}
