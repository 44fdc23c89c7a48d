"""The verbs that learn and judge: ``weigh``, ``train``, ``decode``, ``evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from obverse.engine.cli.options import from_options, input_file, output_file, quiet, seed, settings_options, task
from obverse.engine.decode.settings import DecodeSettings
from obverse.engine.errors import InputError
from obverse.engine.evaluate.settings import EvaluateSettings
from obverse.engine.records.models import Task
from obverse.engine.records.progress import Progress
from obverse.engine.train.settings import TrainSettings
from obverse.engine.weigh.settings import WeighSettings

__all__ = ["decode", "evaluate", "train", "weigh"]


@click.command()
@click.argument("scored", type=input_file)
@click.option("-o", "--out", type=output_file, required=True, help="Parquet file to write.")
@settings_options(WeighSettings, skip=("quality_epochs", "diversity_epochs"))
def weigh(scored: Path, out: Path, **options: Any) -> None:
    """Turn log-probabilities into weights.

    SCORED has the columns `id`, `log_quality` (log q(target | text) under a model of real data) and
    `log_diversity` (the same under a model of the synthetic data). `obverse run` trains both checkers itself.
    """
    from obverse.engine.records.files import read_table
    from obverse.engine.records.schemas import require_columns
    from obverse.engine.records.shards import write_parquet
    from obverse.engine.weigh.diagnostics import diagnostics
    from obverse.engine.weigh.weights import weigh_rows

    table = read_table(scored)
    require_columns(table, "id", "log_quality", "log_diversity", what="scored")
    log_quality, log_diversity = (table[name].to_numpy() for name in ("log_quality", "log_diversity"))
    settings = from_options(WeighSettings, options)
    weights = weigh_rows(table["id"].to_pylist(), log_quality, log_diversity, settings)
    write_parquet(out, weights)
    click.echo(f"{out}: {weights.num_rows:,} rows")
    click.echo(json.dumps(diagnostics(weights, None), indent=1, default=str))


@click.command()
@click.argument("rows", type=input_file)
@click.option("-o", "--out", type=output_file, required=True, help="Model folder to write.")
@click.option("--method", default="ce", show_default=True, help="ce, imp (needs --weights) or dimp (needs --weights).")
@click.option("--weights", type=input_file, help="Table of id, weight and log_quality, as `weigh` writes.")
@click.option("--selection", type=input_file, help="Rows that choose the best epoch.")
@task()
@settings_options(TrainSettings, skip=("methods",))
@seed()
@quiet()
def train(
    rows: Path,
    out: Path,
    method: str,
    weights: Path | None,
    selection: Path | None,
    task: Task,
    seed: int,
    quiet: bool,
    **options: Any,
) -> None:
    """Train on ROWS (text with triplets or label: JSONL, CSV, Parquet) and write a Hugging Face model folder.

    A training that was stopped goes on from its last checkpoint when the same command is given again.
    """
    import pyarrow.compute as pc

    from obverse.engine.records.files import read_rows, read_table
    from obverse.engine.records.schemas import require_columns
    from obverse.engine.train.trainer import train_model

    settings = from_options(TrainSettings, options)
    table = read_rows(rows, task=task)
    if method != "ce" and weights is None:
        raise click.UsageError(f"--method {method} needs --weights")
    if weights is not None:
        weighed = read_table(weights)
        require_columns(weighed, "id", "weight", what="weights")
        index = pc.index_in(table["id"].combine_chunks(), value_set=weighed["id"].combine_chunks())
        table = table.append_column("sample_weight", weighed["weight"].take(index))
        if "log_quality" in weighed.column_names:
            table = table.append_column("log_quality", weighed["log_quality"].take(index))
    labels = sorted(set(table["label"].to_pylist())) if task == "classification" else None
    with Progress(quiet=quiet).task("train", table.num_rows * settings.epochs, "rows") as advance:
        facts = train_model(
            table,
            settings,
            task=task,
            method=method,
            seed=seed,
            out=out,
            labels=labels,
            selection=read_rows(selection, task=task) if selection else None,
            on_progress=advance,
        )
    click.echo(f"{out}: trained on {table.num_rows:,} rows in {facts['seconds']:.0f} s")


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("rows", type=input_file)
@click.option("-o", "--out", type=output_file, required=True, help="Parquet file to write.")
@click.option("--graph", help="Knowledge graph whose names are the only ones allowed. Without names: free decoding.")
@click.option("--catalog", type=input_file, help="Catalogue of the only names allowed (see `obverse catalog build`).")
@click.option(
    "--types", type=input_file, help='JSON file {"RELATION": [[SUBJECT TYPE, ...], [OBJECT TYPE, ...]], ...}.'
)
@click.option("--only-in", help="Graph of the only triplets that may be written.")
@click.option("--not-in", help="Graph of triplets that may not be written.")
@task()
@settings_options(DecodeSettings, skip=("constrained",))
@quiet()
def decode(
    model: Path,
    rows: Path,
    out: Path,
    graph: str | None,
    catalog: Path | None,
    types: Path | None,
    only_in: str | None,
    not_in: str | None,
    task: Task,
    quiet: bool,
    **options: Any,
) -> None:
    """Predict triplets or labels for ROWS with MODEL (a folder that `train` wrote).

    With --graph or --catalog nothing but those names can be written; every further rule narrows that.

    \b
    obverse decode my-model texts.jsonl -o found.parquet --catalog names.catalog --unique --only-mentioned
    """
    from obverse.engine import api
    from obverse.engine.records.files import read_rows
    from obverse.engine.records.shards import write_parquet

    settings = from_options(DecodeSettings, options)
    table = read_rows(rows, task=task, require_target=False)
    with Progress(quiet=quiet).task("decode", table.num_rows, "rows") as advance:
        predictions = api.decode(
            model,
            table,
            graph=graph,
            catalog=catalog,
            types=None if types is None else _type_rules(types),
            only_in=only_in,
            not_in=not_in,
            on_progress=advance,
            **settings.model_dump(exclude_unset=True),
        )
    write_parquet(out, predictions)
    click.echo(f"{out}: {predictions.num_rows:,} rows")


def _type_rules(path: Path) -> dict[str, tuple[list[str], list[str]]]:
    import json

    expected = 'JSON {"RELATION": [[SUBJECT TYPE, ...], [OBJECT TYPE, ...]], ...}'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{expected} ({error})", file=path) from error
    if not isinstance(content, dict):
        raise InputError(expected, file=path, seen=type(content).__name__)
    for relation, sides in content.items():
        lists = isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, list) for side in sides)
        if not lists or any(not isinstance(kind, str) for side in sides for kind in side):
            raise InputError("[[SUBJECT TYPE, ...], [OBJECT TYPE, ...]]", file=path, field=relation, seen=sides)
    return {relation: (subject, object_) for relation, (subject, object_) in content.items()}


@click.command()
@click.argument("predictions", type=input_file)
@click.option("-o", "--out", type=output_file, help="JSON file to write; else it is printed.")
@click.option("--against", type=input_file, help="Other predictions of the same rows, for a paired comparison.")
@task()
@settings_options(EvaluateSettings)
@seed()
def evaluate(predictions: Path, out: Path | None, against: Path | None, task: Task, seed: int, **options: Any) -> None:
    """Score PREDICTIONS (Parquet, as `decode` writes: id, gold, predicted) with bootstrap intervals."""
    from obverse.engine.evaluate.compare import compare
    from obverse.engine.evaluate.evaluate import evaluate as score
    from obverse.engine.records.files import read_table
    from obverse.engine.records.shards import write_json

    settings = from_options(EvaluateSettings, options)
    table = read_table(predictions)
    result = score(table, settings, task=task, seed=seed)
    if against is not None:
        result["against"] = compare(table, read_table(against), settings, task=task, seed=seed)
    if out is None:
        click.echo(json.dumps(result, indent=1, default=str))
    else:
        write_json(out, result)
        click.echo(f"{out}: {table.num_rows:,} rows scored")
