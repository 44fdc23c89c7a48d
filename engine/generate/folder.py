"""A folder of texts for a file of targets: what `obverse generate` keeps, resumes and extends.

``_texts.json`` says what the texts are of: the model (with all that decides its texts), the seed, the rows a shard and
a mark of the targets. Same again: go on. Other targets or other shards: what is there moves to ``_earlier/`` and is
found by id and prompt, so nothing is written twice and nothing lost. Another model or seed: an error.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from obverse.engine.errors import InputError, RunError
from obverse.engine.generate.backends import model_key
from obverse.engine.generate.earlier import EarlierTexts
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.generate.stage import GenerateReport, generate_into
from obverse.engine.generate.throughput import Throughput
from obverse.engine.generate.writer import journal_of
from obverse.engine.records.schemas import TEXTS
from obverse.engine.records.shards import Shards, read_json, write_json
from obverse.engine.records.streams import TableStream, marked_like

__all__ = ["MARKER", "TextFolder", "earlier_texts"]

MARKER = "_texts.json"


class TextFolder:
    """The texts of one file (or folder) of targets. Hold `records.lock.locked` on it from before it is opened."""

    def __init__(
        self,
        folder: Path,
        targets: Path,
        settings: GenerateSettings,
        *,
        seed: int,
        shard_rows: int,
        retry_failed: bool = False,
    ) -> None:
        """With ``retry_failed``, rows that failed are taken as not done.

        Raises `RunError` where the folder holds texts of another model, prompt or seed, `InputError` where the
        targets can't be read.
        """
        self.folder, self.settings, self.seed, self.shard_rows = folder, settings, seed, shard_rows
        self.shards, self.source = Shards(folder, TEXTS), TableStream(targets)
        path = folder / MARKER
        before: dict[str, Any] | None = read_json(path) if path.exists() else None
        if before is None and self.shards.done():
            raise RunError(f"{folder} holds shards but no {MARKER}: not a folder of texts; choose another")
        same = {"model": model_key(settings), "seed": seed}
        mark = marked_like(targets, (before or {}).get("targets"))
        if before is not None:
            self._refuse_others(same, before)
            moved = before["shard_rows"] != shard_rows or before["targets"]["hash"] != mark["hash"]
            if moved or (retry_failed and any(True for _ in self.failed())):
                self._put_aside()
        write_json(path, {**same, "shard_rows": shard_rows, "targets": mark})
        self.earlier = earlier_texts([self.folder / "_earlier"], same, failed=not retry_failed)

    def num_rows(self) -> tuple[int | None, int]:
        """Rows of the targets (None where only reading them tells), and rows in whole shards."""
        return self.source.num_rows(), self.shards.num_rows()

    def write(
        self, *, on_progress: Callable[[int], None] | None = None, throughput: Throughput | None = None, **options: Any
    ) -> GenerateReport:
        """Write what is missing; ``options`` go to `generate_into`, which see for what is raised."""
        done = set(self.shards.done())
        report = generate_into(
            self.shards,
            self._todo(done),
            self.settings,
            seed=self.seed,
            earlier=self.earlier if len(self.earlier) else None,
            on_progress=on_progress,
            throughput=throughput,
            rows=self.source.num_rows(),
            **options,
        )
        self._drop_earlier()
        return report

    def _drop_earlier(self) -> None:
        """Delete what was put aside, unless it has rows that nobody asked for again: their targets are gone."""
        if not len(self.earlier):
            return
        left = self.earlier.ids()
        for index in self.shards.done():
            left = np.setdiff1d(left, self.shards.read(index, ["id"])["id"].to_numpy(), assume_unique=True)
        if not len(left):
            shutil.rmtree(self.folder / "_earlier")

    def failed(self) -> Iterator[dict[str, Any]]:
        """Rows that could not be done: id and reason."""
        for index in self.shards.done():
            table = self.shards.read(index, ["id", "text", "finish_reason"])
            if table["text"].null_count:
                rows = table.filter(table["text"].is_null()).select(["id", "finish_reason"])
                for row in rows.to_pylist():
                    yield {"id": row["id"], "reason": row["finish_reason"]}

    def _todo(self, done: set[int]) -> Iterator[tuple[int, pa.Table]]:
        first = next(index for index in range(len(done) + 1) if index not in done)
        tables = self.source.tables(self.shard_rows, first=first * self.shard_rows)
        for index, table in enumerate(tables, start=first):
            if "id" not in table.column_names:
                raise InputError("a column 'id'", file=self.source.path, field="id", seen=table.column_names)
            if index not in done:
                yield index, table

    def _refuse_others(self, same: dict[str, Any], before: dict[str, Any]) -> None:
        for name, value in same.items():
            if before[name] != value:
                what = "another seed" if name == "seed" else "another model, prompt or settings"
                raise RunError(f"{self.folder} holds texts of {what}; choose another --out")

    def _put_aside(self) -> None:
        """Move the shards and the journal into ``_earlier/``; they are looked up from there."""
        number = 1
        while (self.folder / "_earlier" / f"{number:04d}").exists():
            number += 1
        shelf = self.folder / "_earlier" / f"{number:04d}"
        shelf.mkdir(parents=True)
        shutil.copy(self.folder / MARKER, shelf / MARKER)
        for index in self.shards.done():
            path = self.shards.path(index)
            path.rename(shelf / path.name)
        journal = journal_of(self.folder).folder
        if journal.is_dir():
            journal.rename(shelf / journal.name)


def earlier_texts(folders: list[Path], same: dict[str, Any], *, failed: bool = True) -> EarlierTexts:
    """Texts of the same model and seed in folders' sub-folders that hold a marker; the last sub-folder counts most."""
    found = EarlierTexts(failed=failed)
    for shelf in sorted(path.parent for folder in folders for path in folder.glob(f"*/{MARKER}")):
        marker = json.loads((shelf / MARKER).read_text(encoding="utf-8"))
        if any(marker.get(name) != value for name, value in same.items()):
            continue
        found.add_folder(Shards(shelf, TEXTS))
        journal = journal_of(shelf)
        for part in [journal.folder, *(path for path in journal.folder.glob("*/"))]:
            for entry in type(journal)(part).replay(TEXTS):
                found.add(pa.Table.from_batches([entry.batch], TEXTS))
    return found
