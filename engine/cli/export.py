"""The verb ``export``."""

from __future__ import annotations

from pathlib import Path

import click

from obverse.engine.cli.options import output_file, quiet

__all__ = ["export"]


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=output_file, required=True, help="The new folder.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["datasets", "parquet", "jsonl"]),
    default="datasets",
    show_default=True,
    help="Parquet in files of 256 MiB, one Parquet file a split, or one gzipped JSONL file a split.",
)
@click.option("--test-rows", type=click.IntRange(0), help="Most rows of the test split. [default: the run's own]")
@click.option("--license", "licence", metavar="ID", help="The licence that you give the set, as apache-2.0.")
@click.option("--language", "languages", multiple=True, metavar="CODE", help="A language of the texts, as en.")
@quiet()
def export(
    run: Path,
    out: Path,
    form: str,
    test_rows: int | None,
    licence: str | None,
    languages: tuple[str, ...],
    quiet: bool,
) -> None:
    """Write the kept rows of RUN as a data set: splits, and a card that says how they were made.

    The folder opens with `datasets.load_dataset`. Nothing is uploaded; the command that would is printed.
    """
    from obverse.engine.records.progress import Progress
    from obverse.engine.run.export import export_run

    with Progress(quiet=quiet).task("export", None) as advance:
        done = export_run(
            run,
            out,
            form=form,  # type: ignore[arg-type]
            test_rows=test_rows,
            license=licence,
            languages=languages,
            on_progress=advance,
        )
    click.echo(f"{out}: " + ", ".join(f"{split} {count:,} rows" for split, count in done.rows.items() if count))
    click.echo(f"read it, then: hf upload --repo-type dataset USER/NAME {out}")
