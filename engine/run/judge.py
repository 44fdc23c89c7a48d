"""The stages that judge the result: decode, evaluate, report."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from obverse.engine.records.schemas import PREDICTIONS
from obverse.engine.records.shards import write_json
from obverse.engine.run.context import REAL, SYNTHETIC, Context
from obverse.engine.run.metrics import collect_metrics

__all__ = ["run_decode", "run_evaluate", "run_report"]


# One question, one number: the other metrics' intervals stand in the tables.
_ASKED = {"extraction": ("micro_f1",), "classification": ("macro_f1",)}


def test_sets(context: Context) -> dict[str, pa.Table]:
    sets = {REAL: context.rows("test")}
    if context.recipe.data.synthetic_test_rows:
        sets[SYNTHETIC] = context.synthetic_rows(test=True)
    return {name: rows for name, rows in sets.items() if rows.num_rows}


def variants(context: Context) -> list[tuple[str, str, bool]]:
    """Every (variant name, method, constrained) that is decoded."""
    recipe = context.recipe
    if recipe.task == "classification":
        return [(method, method, False) for method in recipe.train.methods]
    return [
        (f"{method}-{'constrained' if constrained else 'free'}", method, constrained)
        for method in recipe.train.methods
        for constrained in recipe.decode.constrained
    ]


def run_decode(context: Context) -> dict[str, Any]:
    """Predict every test set with every trained model, with and without constraints."""
    from obverse.engine.decode.catalog import Catalog
    from obverse.engine.decode.decoder import decode_rows

    recipe, sets = context.recipe, test_sets(context)
    catalog = None
    if recipe.task == "extraction" and True in recipe.decode.constrained:
        model = context.folder / "train" / recipe.train.methods[0]
        entities = context.graph.entities.select(["uri", "name", "type"])
        catalog = Catalog.cached(entities, context.graph.relations, model, context.folder / "catalog")
    total = sum(rows.num_rows for rows in sets.values()) * len(variants(context))
    decoded = 0
    with context.progress.task("decode", total, "rows") as advance:
        for set_name, rows in sets.items():
            for variant, method, constrained in variants(context):
                shards = context.shards("decode", PREDICTIONS, f"{set_name}/{variant}")
                for index, start in enumerate(range(0, rows.num_rows, recipe.shard_rows)):
                    part = rows.slice(start, recipe.shard_rows)
                    decoded += part.num_rows
                    if index in shards.done():
                        advance(part.num_rows)
                        continue
                    table = decode_rows(
                        context.folder / "train" / method,
                        part,
                        recipe.decode,
                        catalog=catalog,
                        constrained=constrained,
                        on_progress=advance,
                    )
                    shards.write(index, table)
                    context.spent()
    return {"rows": decoded, "catalog": catalog.stats() if catalog else None}


def run_evaluate(context: Context) -> dict[str, Any]:
    """Score every prediction, and each pair that answers a question, with bootstrap intervals."""
    from obverse.engine.evaluate.compare import compare
    from obverse.engine.evaluate.evaluate import evaluate

    recipe = context.recipe
    results: dict[str, dict[str, Any]] = {}
    comparisons: list[dict[str, Any]] = []
    names = [variant for variant, _, _ in variants(context)]
    rows = 0
    for set_name in test_sets(context):
        tables = {v: context.shards("decode", part=f"{set_name}/{v}").table() for v in names}
        results[set_name] = {}
        for variant, table in tables.items():
            results[set_name][variant.replace("-", "/")] = evaluate(
                table, recipe.evaluate, task=recipe.task, seed=context.seed("bootstrap")
            )
            rows += table.num_rows
        for a, b in _questions(names):
            seed = context.seed("bootstrap")
            differences = compare(
                tables[a], tables[b], recipe.evaluate, task=recipe.task, seed=seed, metrics=_ASKED[recipe.task]
            )
            comparisons += [
                {"set": set_name, "a": a.replace("-", "/"), "b": b.replace("-", "/"), **row} for row in differences
            ]
    return {"rows": rows, "evaluate": results, "comparisons": comparisons}


def _questions(variants: list[str]) -> list[tuple[str, str]]:
    """Constrained against free for each method; each weighted method against cross-entropy, both constrained."""
    pairs = [(name, name.replace("-constrained", "-free")) for name in variants if name.endswith("-constrained")]
    pairs = [pair for pair in pairs if pair[1] in variants]
    modes = {name.partition("-")[2] for name in variants}
    mode = "constrained" if "constrained" in modes else next(iter(modes))
    plain = f"ce-{mode}" if mode else "ce"
    weighted = [name for name in variants if name.partition("-")[2] == mode and name != plain]
    return pairs + [(name, plain) for name in weighted if plain in variants]


def run_report(context: Context) -> dict[str, Any]:
    """Write metrics.json and report.html at the top of the run folder."""
    from obverse.engine.report.render import render_report

    write_json(context.folder / "metrics.json", collect_metrics(context, variants(context)))
    path = render_report(context.folder)
    with context.progress.task("report", None, "figures") as advance:
        advance(1)
    return {"rows": 1, "bytes": path.stat().st_size}
