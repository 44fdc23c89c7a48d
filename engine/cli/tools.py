"""The verbs ``catalog``, ``bench`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from obverse.engine.cli.options import input_file, output_file, seed

__all__ = ["bench", "catalog", "doctor"]


@click.group()
def catalog() -> None:
    """Compile names into a token trie that constrained decoding walks."""


@catalog.command()
@click.argument("names", type=input_file)
@click.option("--tokenizer", required=True, help="Tokenizer folder or Hugging Face id of the model that decodes.")
@click.option("-o", "--out", type=output_file, required=True, help="Catalogue folder to write.")
@click.option("--relations", type=input_file, required=True, help="Relation names, a file of the same kinds.")
def build(names: Path, tokenizer: str, out: Path, relations: Path) -> None:
    """Compile NAMES: .txt (a name a line), .tsv/.csv/.jsonl/.parquet (columns `name` and, if any, `uri`)."""
    import time

    from obverse.engine.decode.catalog import Catalog
    from obverse.engine.records.models import load_tokenizer
    from obverse.engine.records.names import read_names
    from obverse.engine.records.sequence import SequenceFormat

    begun = time.perf_counter()
    entities = read_names(names)
    result = Catalog.build(entities, read_names(relations), SequenceFormat(load_tokenizer(tokenizer)))
    result.save(out)
    click.echo(f"{out}: {entities.num_rows:,} names in {time.perf_counter() - begun:.1f} s")
    _show(out)


@catalog.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def info(folder: Path) -> None:
    """Print what the catalogue in FOLDER holds."""
    _show(folder)


def _show(folder: Path) -> None:
    import json

    from obverse.engine.decode.catalog import Catalog

    click.echo(json.dumps(Catalog.open(folder).stats(), indent=1))


@click.command()
@click.argument("stages", nargs=-1, metavar="[STAGE]...")
@click.option("--rows", type=click.IntRange(64), default=1000, show_default=True, help="Rows a stage is measured on.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@seed()
def bench(stages: tuple[str, ...], rows: int, as_json: bool, seed: int) -> None:
    """Measure this machine's rate at each STAGE (default: all that run here) on the geography graph.

    These are rates of this engine on this machine. `make bench` in a checkout measures against named peers.
    """
    import json

    from obverse.engine.run.rates import STAGES, measure_rates

    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise click.UsageError(f"unknown stage '{unknown[0]}'; the stages measured are {', '.join(STAGES)}")
    for row in measure_rates(stages or STAGES, rows=rows, seed=seed):
        if as_json:
            click.echo(json.dumps(row))
        else:
            click.echo(f"{row['op']:<10} {row['value']:>12,.0f} {row['unit']:<10} {row['shape']}")


@click.command()
def doctor() -> None:
    """Say what this machine can run, what is missing and the command that mends it.

    Exits with 1 when something that `make demo` needs is missing.
    """
    from obverse.engine.run.doctor import examine

    findings = examine()
    for finding in findings:
        mark = "ok" if finding.ok else ("MISSING" if finding.needed else "absent")
        click.echo(f"{mark:<8} {finding.name:<22} {finding.detail}")
        if not finding.ok and finding.remedy:
            click.echo(f"{'':<8} {'':<22} -> {finding.remedy}")
    if any(finding.needed and not finding.ok for finding in findings):
        raise click.exceptions.Exit(1)
