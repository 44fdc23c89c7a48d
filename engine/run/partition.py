"""Many machines without a cluster: shard i of n by a hash of the id, and the merge of what the shards wrote.

Shard i of n writes below ``OUT/_shards/i-of-n`` and shares nothing with the others, not even a file system. A row's
shard depends on its id alone, so targets in another order or cut into other files stay where they were; rows keep the
ids, seeds and texts that one process would give them. `merge` puts the texts in the targets' order: the same files,
byte for byte, as one process writes (where the backend is batch-invariant).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from obverse.engine.errors import InputError, RunError
from obverse.engine.generate.backends import model_key
from obverse.engine.generate.folder import MARKER
from obverse.engine.generate.prompts import build_prompts
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.records.keys import content_hash
from obverse.engine.records.lock import locked
from obverse.engine.records.schemas import TARGETS, TEXTS, require_columns
from obverse.engine.records.shards import Shards, read_json
from obverse.engine.records.streams import TableStream, in_stretches
from obverse.engine.run.context import Context, Stage

__all__ = ["MergeSite", "Part", "PartSite", "PartStream", "find_parts", "in_shard", "merge"]

_FOLDER = re.compile(r"(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Part:
    """Shard ``i`` of ``n``, counted from 1 as in ``--shard 3/8``."""

    i: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """``"3/8"``. Raises `InputError` for anything but i/n with 1 <= i <= n."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError("i/n with 1 <= i <= n, such as 3/8", field="shard", seen=text)
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.i}/{self.n}"

    def folder(self, out: Path) -> Path:
        """Where this shard of ``out`` is written."""
        return out / "_shards" / f"{self.i}-of-{self.n}"


def shard_numbers(ids: npt.ArrayLike, n: int) -> npt.NDArray[np.int64]:
    """The shard, from 1 to ``n``, of each of ``ids`` (int64 ``[rows]``): even, and the same on every machine.

    The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), its upper 32
    bits scaled to ``n``.
    """
    z = np.asarray(ids, np.int64).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (((z >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)).astype(np.int64) + 1


def in_shard(ids: npt.ArrayLike, i: int, n: int) -> npt.NDArray[np.bool_]:
    """Which of ``ids`` (int64 ``[rows]``) belong to shard ``i`` of ``n``, 1 <= i <= n."""
    mask: npt.NDArray[np.bool_] = shard_numbers(ids, n) == i
    return mask


class PartStream(TableStream):
    """The rows of one shard of a stream of targets, in their order."""

    def __init__(self, source: TableStream | Shards, part: Part) -> None:
        self.source, self.part = source, part
        self.path = source.path if isinstance(source, TableStream) else source.folder
        self.files = source.files if isinstance(source, TableStream) else []

    def num_rows(self) -> int | None:
        """Of the whole stream: what an engine chooses by it (to compile, say) must not differ between shards."""
        return self.source.num_rows()

    def tables(self, rows: int, *, first: int = 0) -> Iterator[pa.Table]:
        """Tables of ``rows`` rows from the shard's row ``first`` on, the last one shorter.

        Raises `InputError` where the targets have no ids.
        """
        return in_stretches(self._pieces(rows, first), rows)

    def _pieces(self, rows: int, first: int) -> Iterator[pa.Table]:
        """The shard's rows behind its first ``first``."""
        if isinstance(self.source, TableStream):
            start, first = self._seek(self.source, first)
            tables = self.source.tables(rows, first=start)
        else:
            tables = self.source.tables()
        for table in tables:
            mine = table.filter(pa.array(in_shard(_ids(table), self.part.i, self.part.n)))
            kept = mine.slice(first)
            first = max(0, first - mine.num_rows)
            if kept.num_rows:
                yield kept

    def _seek(self, source: TableStream, first: int) -> tuple[int, int]:
        """The row of the source to read from, and how many of the shard's rows to pass over from there.

        Of Parquet files the ids alone are read, so that a long run goes on in seconds.
        """
        if not first or any(file.suffix != ".parquet" for file in source.files):
            return 0, first
        row = count = 0
        for file in source.files:
            with pq.ParquetFile(file, pre_buffer=False) as parquet:  # else it keeps what it has read
                for batch in parquet.iter_batches(1 << 20, columns=["id"]):
                    own = np.flatnonzero(in_shard(_ids(batch), self.part.i, self.part.n))
                    if count + len(own) > first:
                        return row + int(own[first - count]), 0
                    row, count = row + batch.num_rows, count + len(own)
        return row, 0


def _ids(table: pa.Table | pa.RecordBatch) -> npt.NDArray[np.int64]:
    require_columns(table, "id", what="targets")
    column = table.column("id")
    if column.null_count:
        raise InputError("a unique id", row=column.is_null().to_pylist().index(True), field="id", seen=None)
    ids: npt.NDArray[np.int64] = np.asarray(column).astype(np.int64)
    return ids


def find_parts(out: Path, texts: str = "") -> list[Path]:
    """The folders of all n shards below ``out``, shard 1 first (of each the sub-folder ``texts``).

    Raises `RunError` where there are none, where shards of different n lie there, or where one is missing.
    """
    found: dict[int, dict[int, Path]] = {}
    for folder in (out / "_shards").glob("*-of-*/"):
        if named := _FOLDER.fullmatch(folder.name):
            found.setdefault(int(named[2]), {})[int(named[1])] = folder / texts
    if not found:
        raise RunError(f"{out / 'shards'} holds nothing to merge: run with --shard 1/n to n/n first")
    if len(found) > 1:
        told = " and ".join(f"{len(parts)} of n = {n}" for n, parts in sorted(found.items()))
        raise RunError(f"{out / 'shards'} holds shards of different n ({told}); delete those that you don't want")
    n, parts = next(iter(found.items()))
    missing = [i for i in range(1, n + 1) if i not in parts or not parts[i].is_dir()]
    if missing:
        names = ", ".join(f"{i}/{n}" for i in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise RunError(f"{out / 'shards'}: {len(missing)} of {n} shards are missing: run --shard {names}")
    return [parts[i] for i in range(1, n + 1)]


def merge(
    targets: Iterable[tuple[int, pa.Table]],
    parts: Sequence[Path],
    into: Shards,
    settings: GenerateSettings,
    *,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Write the texts of all shards (``parts``, of `find_parts`) into ``into``, in the order of ``targets``.

    ``targets`` (index, TARGETS) are the whole set, cut as ``into`` is to be. Every id must be there exactly once, in
    its shard, with the prompt that its target has now. Shards of ``into`` that exist are checked and left alone, so a
    merge that was stopped goes on. Returns the rows. Memory: a shard of each part, and 8 bytes a row.

    Raises `RunError`, naming the shard to run again, where a row is missing or left over, where a part is of another
    model or seed, or where a process still writes it; `InputError` for an id that comes twice.
    """
    same = {"model": model_key(settings), "seed": seed}
    done, seen = set(into.done()), [np.empty(0, np.int64)]
    with ExitStack() as stack:
        for folder in parts:
            stack.enter_context(locked(folder))
        readers = [_PartReader(folder, Part(i, len(parts)), same) for i, folder in enumerate(parts, start=1)]
        for index, table in targets:
            ids = _ids(table)
            seen.append(ids)
            texts = _gather(ids, readers)
            _check_prompts(table, texts, readers, settings)
            if index not in done:
                into.write(index, texts)
            if on_progress is not None:
                on_progress(len(ids))
        for reader in readers:
            reader.end()
    every = np.sort(np.concatenate(seen))
    twice = every[1:][every[1:] == every[:-1]]
    if len(twice):
        raise InputError("a unique id", field="id", seen=int(twice[0]))
    return len(every)


def _gather(ids: npt.NDArray[np.int64], readers: Sequence[_PartReader]) -> pa.Table:
    """The texts of ``ids``, each from its shard, in the order of ``ids``."""
    numbers = shard_numbers(ids, len(readers))
    places = [np.flatnonzero(numbers == reader.part.i) for reader in readers]
    rows = [reader.take(ids[mine]) for reader, mine in zip(readers, places, strict=True)]
    return pa.concat_tables(rows).take(pa.array(np.argsort(np.concatenate(places)))).combine_chunks()


def _check_prompts(
    targets: pa.Table, texts: pa.Table, readers: Sequence[_PartReader], settings: GenerateSettings
) -> None:
    hashes = [None if prompt is None else content_hash(prompt) for prompt in build_prompts(targets, settings).texts]
    found: list[str | None] = texts["prompt_hash"].to_pylist()
    for place, (wanted, seen) in enumerate(zip(hashes, found, strict=True)):
        if wanted != seen:
            row_id = texts["id"][place].as_py()
            reader = readers[int(shard_numbers([row_id], len(readers))[0]) - 1]
            raise RunError(f"{reader.name}: row {row_id} was written for another prompt than its target gives now")


class _PartReader:
    """The rows that one shard wrote, in order."""

    def __init__(self, folder: Path, part: Part, same: dict[str, Any]) -> None:
        self.part, self.name = part, f"{folder} (shard {part})"
        self._shards = Shards(folder, TEXTS)
        indices = self._shards.done()
        marker = folder / MARKER
        mark = read_json(marker) if marker.exists() else {}
        for name, value in same.items():
            if mark.get(name) != value:
                what = "seed" if name == "seed" else "model, prompt or settings"
                raise RunError(f"{self.name} has texts of another {what}, or none: run --shard {part} as now")
        if indices != list(range(len(indices))):
            raise RunError(f"{self.name} is not finished: run --shard {part} again")
        self._tables = (self._shards.read(index) for index in indices)
        self._held = TEXTS.empty_table()

    def take(self, ids: npt.NDArray[np.int64]) -> pa.Table:
        """The next rows, which must be those of ``ids``."""
        while self._held.num_rows < len(ids) and (table := next(self._tables, None)) is not None:
            self._held = pa.concat_tables([self._held, table.select(TEXTS.names).cast(TEXTS)])
        rows = self._held.slice(0, len(ids))
        self._held = self._held.slice(len(ids))
        found = rows["id"].to_numpy()
        wrong = np.flatnonzero(found != ids[: len(found)])
        if len(wrong):
            at = int(wrong[0])
            raise RunError(f"{self.name} holds row {found[at]} where the targets have row {ids[at]}: not of them")
        if len(found) < len(ids):
            raise RunError(f"{self.name} is not finished: row {ids[len(found)]} is missing; run --shard {self.part}")
        return rows

    def end(self) -> None:
        """Raise where rows are left over."""
        while not self._held.num_rows and (table := next(self._tables, None)) is not None:
            self._held = table
        if self._held.num_rows:
            raise RunError(f"{self.name} holds row {self._held['id'][0].as_py()}, which the targets don't have")


class _PartContext(Context):
    """A run whose targets are those of one shard."""

    def shards(self, stage: str, schema: pa.Schema | None = None, part: str = "") -> Shards:
        """As in `Context`, but the targets come from ``generate/targets``."""
        if stage == "sample":
            return Shards(self.folder / "generate" / "targets", schema)
        return super().shards(stage, schema, part)


@dataclass(frozen=True)
class PartSite:
    """A run of one shard, in a folder of its own: all targets are drawn, the shard's own are written."""

    part: Part

    def keys(self, keys: dict[str, str]) -> dict[str, str]:
        """A shard's texts are not the whole run's, and say so in their key."""
        return {name: f"{key}.{self.part}" if name == "generate" else key for name, key in keys.items()}

    def carry_out(self, stage: Stage, context: Context) -> dict[str, Any]:
        """Run a stage; of generate the rows of the shard."""
        if stage.name != "generate":
            return stage.run(context)
        targets = Shards(context.home / "targets", TARGETS)
        done = set(targets.done())
        mine = PartStream(context.shards("sample", TARGETS), self.part)
        for index, table in enumerate(mine.tables(context.recipe.shard_rows)):
            if index not in done:
                targets.write(index, table)
        here = _PartContext(context.recipe, context.folder, context.progress, context.stage, context.spent)
        return {"shard": str(self.part), **stage.run(here)}


@dataclass(frozen=True)
class MergeSite:
    """A run that takes its texts from shards; everything else as in one process."""

    def keys(self, keys: dict[str, str]) -> dict[str, str]:
        """Merged texts are the ones that one process writes."""
        return keys

    def carry_out(self, stage: Stage, context: Context) -> dict[str, Any]:
        """Run a stage; generate merges. Raises what `find_parts` and `merge` do."""
        if stage.name != "generate" or context.recipe.given.generate is not None:
            return stage.run(context)
        parts = find_parts(context.folder, "generate")
        sources = context.shards("sample", TARGETS)
        with context.progress.task("merge", sources.num_rows(), "rows") as advance:
            merge(
                ((index, sources.read(index)) for index in sources.done()),
                parts,
                context.shards("generate", TEXTS),
                context.recipe.generate,
                seed=context.seed("generate"),
                on_progress=advance,
            )
        # Every shard is whole now: what is left of the stage is its facts.
        return {**stage.run(context), **_speed(parts), "shards": len(parts)}


def _speed(parts: Sequence[Path]) -> dict[str, Any]:
    """The shards' own facts: one engine's, the longest start, the rates added up (as if all had run at once)."""
    facts = [read_json(part / "_stage.json")["facts"] for part in parts if (part / "_stage.json").exists()]
    return {
        "backend": next((fact["backend"] for fact in facts if fact.get("backend")), {}),
        "start_seconds": max((fact.get("start_seconds", 0.0) for fact in facts), default=0.0),
        "tokens_per_s": round(sum(fact.get("tokens_per_s", 0.0) for fact in facts), 3),
    }
