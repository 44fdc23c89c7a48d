"""The verb ``generate``."""

from __future__ import annotations

import collections
import itertools
import json
from pathlib import Path
from typing import Any

import click

from obverse.engine.cli.options import from_options, input_file, output_file, quiet, seed, settings_options
from obverse.engine.cli.throughput import measured, throughput_options
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.records.progress import Progress

__all__ = ["generate"]


@click.command()
@click.argument("targets", type=input_file)
@click.option("-o", "--out", type=output_file, required=True, help="Folder of Parquet shards to write.")
@click.option("--shard-rows", type=click.IntRange(1), default=8192, show_default=True, help="Rows a shard.")
@click.option("--retry-failed", is_flag=True, help="Write rows again that failed before.")
@click.option("--shard", metavar="I/N", help="Write only this shard of the rows, below OUT/_shards: one of N machines.")
@click.option("--merge", "merging", is_flag=True, help="Put the texts of all N shards together in OUT.")
@settings_options(GenerateSettings)
@throughput_options()
@seed()
@quiet()
def generate(
    targets: Path,
    out: Path,
    shard_rows: int,
    retry_failed: bool,
    shard: str | None,
    merging: bool,
    seed: int,
    quiet: bool,
    **options: Any,
) -> None:
    """Write a text for every row of TARGETS (id, with triplets or label).

    TARGETS: Parquet, Arrow, JSONL(.gz), CSV, or a folder of Parquet or Arrow files; streamed.

    However the command is stopped, the same command goes on and redoes at most the last second. Rows are known by id
    and prompt: TARGETS may have been put in another order or have rows added since.
    """
    from obverse.engine.generate.folder import TextFolder
    from obverse.engine.records.lock import locked
    from obverse.engine.run.partition import Part, PartStream, find_parts, merge

    if merging and (shard is not None or retry_failed):
        raise click.UsageError("--merge writes no texts: it goes with neither --shard nor --retry-failed")
    part = Part.parse(shard) if shard is not None else None
    home = part.folder(out) if part is not None else out
    progress = Progress(quiet=quiet)
    with measured(options, quiet=quiet) as recorder, locked(home):
        settings = from_options(GenerateSettings, options)
        folder = TextFolder(home, targets, settings, seed=seed, shard_rows=shard_rows, retry_failed=retry_failed)
        total, done = folder.num_rows()
        if merging:
            with progress.task("merge", total, "rows") as advance:
                tables = enumerate(folder.source.tables(shard_rows))
                merge(tables, find_parts(out), folder.shards, settings, seed=seed, on_progress=advance)
        else:
            if part is not None:
                folder.source, total = PartStream(folder.source, part), None
            with progress.task("generate", total, "rows", done, figures=recorder.line) as advance:
                report = folder.write(on_progress=advance, throughput=recorder, say=progress.say)
        click.echo(f"{home}: {folder.shards.num_rows():,} rows")
        if not merging:
            _tell(report, recorder)
        _list_failed(folder, home / "_failed.jsonl")


def _tell(report: Any, recorder: Any) -> None:
    said = [f"written {report.written:,}"]
    if report.kept:
        said.append(f"written before {report.kept:,}")
    if report.retried:
        reasons = ", ".join(f"{count:,} {why}" for why, count in sorted(report.rejected.items()))
        said.append(f"tried again {report.retried:,} ({reasons})")
    summary = recorder.summary()
    if report.written:
        said.append(f"{summary['output_tokens_per_second']:,.0f} tokens/s")
    click.echo(", ".join(said))


def _list_failed(folder: Any, path: Path) -> None:
    """``_failed.jsonl`` beside the shards, where any row failed."""
    from obverse.engine.records.shards import atomic_write

    reasons: collections.Counter[str] = collections.Counter()
    failed = folder.failed()
    first = next(failed, None)  # before the file is begun: listing shards clears what was left half written
    if first is None:
        path.unlink(missing_ok=True)
        return

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as handle:
            for row in itertools.chain([first], failed):
                reasons[str(row["reason"]).removeprefix("error: ").split(":")[0]] += 1
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")

    atomic_write(path, write)
    told = ", ".join(f"{count:,} for '{why}'" for why, count in reasons.most_common(5))
    click.echo(f"failed {reasons.total():,}: {told}; all in {path}")
