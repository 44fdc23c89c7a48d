"""The verbs that make and look at data: ``sample``, ``check``, ``embed``, ``score``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from obverse.engine.check.settings import CheckSettings
from obverse.engine.cli.options import from_options, input_file, output_file, quiet, seed, settings_options, task
from obverse.engine.diversity.settings import ScoreSettings
from obverse.engine.embed.settings import EmbedSettings
from obverse.engine.graph.sampling import SampleSettings
from obverse.engine.records.progress import Progress

__all__ = ["check", "embed", "sample", "score"]


def _written(path: Path, rows: int) -> None:
    click.echo(f"{path}: {rows:,} rows")


@click.command()
@click.option("-o", "--out", type=output_file, required=True, help="Parquet file to write.")
@settings_options(SampleSettings)
@seed()
@quiet()
def sample(out: Path, seed: int, quiet: bool, **options: Any) -> None:
    """Draw connected triplet sets from a knowledge graph, relations and entities evenly covered.

    The graph is `geography` (embedded), a folder that `KnowledgeGraph.save` wrote, TSV or Parquet triples,
    N-Triples, or a Wikidata JSON dump.
    """
    from obverse.engine.graph.load import load_graph
    from obverse.engine.graph.sampling import TargetSampler
    from obverse.engine.records.schemas import TARGETS
    from obverse.engine.records.shards import write_parquet

    settings = from_options(SampleSettings, options)
    progress = Progress(quiet=quiet)
    with progress.task("graph", None, "edges") as advance:
        graph = load_graph(settings.graph, on_progress=advance)
    sampler = TargetSampler(graph, settings, seed)
    tables = []
    with progress.task("sample", settings.samples, "sets") as advance:
        for start in range(0, settings.samples, 65_536):
            tables.append(sampler.draw(min(65_536, settings.samples - start)))
            advance(tables[-1].num_rows)
    import pyarrow as pa

    table = pa.concat_tables(tables) if tables else TARGETS.empty_table()
    write_parquet(out, table)
    _written(out, table.num_rows)


@click.command()
@click.argument("targets", type=input_file)
@click.argument("texts", type=input_file)
@click.option("-o", "--out", type=output_file, required=True, help="Parquet file to write.")
@click.option("--held-out", type=input_file, help="Rows (text with triplets or label) that must not leak.")
@click.option("--graph", default=None, help="Knowledge graph whose aliases count as mentions.")
@task()
@settings_options(CheckSettings)
@quiet()
def check(
    targets: Path,
    texts: Path,
    out: Path,
    held_out: Path | None,
    graph: str | None,
    task: str,
    quiet: bool,
    **options: Any,
) -> None:
    """Check TEXTS against TARGETS; every row gets `kept` and, if dropped, the reason."""
    import collections

    from obverse.engine.check.checker import Checker
    from obverse.engine.graph.load import load_graph
    from obverse.engine.records.files import read_rows, read_table
    from obverse.engine.records.shards import write_parquet

    settings = from_options(CheckSettings, options)
    aliases = None
    if graph is not None:
        entities = load_graph(graph).entities
        aliases = dict(zip(entities["uri"].to_pylist(), entities["aliases"].to_pylist(), strict=True))
    held = read_rows(held_out, task=task) if held_out else None
    checker = Checker(settings, held_out=held, aliases=aliases)
    text_table = read_table(texts)
    with Progress(quiet=quiet).task("check", text_table.num_rows, "rows") as advance:
        table = checker.check(read_table(targets), text_table)
        advance(table.num_rows)
    write_parquet(out, table)
    kinds = collections.Counter(str(r).split(":")[0] for r in table["reason"].to_pylist() if r is not None)
    _written(out, table.num_rows)
    click.echo(f"kept {table.num_rows - sum(kinds.values()):,}; dropped " + (_counts(kinds) or "none"))


def _counts(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count:,} for {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))


@click.command()
@click.argument("texts", type=input_file)
@click.option("-o", "--out", type=output_file, required=True, help="Folder of shards, or .parquet file.")
@click.option("--column", default="text", show_default=True, help="Column to embed.")
@click.option("--shard-rows", type=click.IntRange(1), default=16_384, show_default=True, help="Rows a shard.")
@settings_options(EmbedSettings)
@quiet()
def embed(texts: Path, out: Path, column: str, shard_rows: int, quiet: bool, **options: Any) -> None:
    """Embed a column of TEXTS (with `id`) as unit vectors, streamed.

    TEXTS: Parquet, JSONL(.gz), CSV, Arrow, or a folder of them. Whole shards are kept when the command is stopped;
    the same command goes on with the first missing one.
    """
    from obverse.engine.embed.stream import embed_files

    settings = from_options(EmbedSettings, options)
    progress = Progress(quiet=quiet)
    report = embed_files(texts, out, settings, column=column, shard_rows=shard_rows, progress=progress)
    _written(out, report.rows)
    told = f"computed {report.computed:,}, cached {report.cached:,}, repeated {report.repeated:,}"
    click.echo(told + (f", done before {report.resumed:,}" if report.resumed else ""))


@click.command()
@click.argument("vectors", type=input_file)
@click.option("-o", "--out", type=output_file, required=True, help="Parquet file to write.")
@click.option("--real", type=input_file, help="Vectors of real rows; gives the column novelty.")
@click.option("--labels", type=input_file, help="Rows (id, label); gives the column label_mean_knn_distance.")
@click.option("--checkpoint", type=output_file, help="Folder in which a join that is stopped is gone on with.")
@click.option("-k", "--k", "--neighbours", "neighbours", type=click.IntRange(1, 1024), help="Neighbours [default: 10]")
@settings_options(ScoreSettings, skip=("neighbours",))
@seed()
@quiet()
def score(
    vectors: Path,
    out: Path,
    real: Path | None,
    labels: Path | None,
    checkpoint: Path | None,
    seed: int,
    quiet: bool,
    **options: Any,
) -> None:
    """Score each row of VECTORS by its nearest neighbours, and the set as a whole.

    VECTORS, and those of --real, are Parquet or Arrow files with id and vector, folders of such, or .npy. They are
    mapped, or streamed once into a scratch file beside the output, and never read into memory whole.
    """
    import json

    from obverse.engine.diversity.score import score_rows
    from obverse.engine.diversity.set_metrics import set_metrics
    from obverse.engine.diversity.vectors import open_vectors
    from obverse.engine.records.files import read_table

    settings, progress, scratch = from_options(ScoreSettings, options), Progress(quiet=quiet), out.absolute().parent
    rows = open_vectors(vectors, scratch=scratch)
    scores, report = score_rows(
        rows,
        settings,
        seed=seed,
        real=open_vectors(real, scratch=scratch).matrix if real else None,
        labels=read_table(labels) if labels else None,
        checkpoint=checkpoint,
        scratch=scratch,
        task=progress.task,
        say=progress.say,
    )
    scores.write(out)
    _written(out, len(scores))
    metrics = set_metrics(rows, scores=scores.means())
    click.echo(json.dumps({"index": report.as_json(), "metrics": metrics}, indent=1))
