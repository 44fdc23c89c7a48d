"""The stages that look at the data and learn from it: embed, score, weigh, train."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.errors import RunError
from obverse.engine.records.files import read_table
from obverse.engine.records.schemas import SCORES, WEIGHTS, require_columns
from obverse.engine.records.shards import read_json, write_parquet
from obverse.engine.run.context import Context, seeded_order

__all__ = ["run_embed", "run_score", "run_train", "run_weigh"]


def run_embed(context: Context) -> dict[str, Any]:
    """Embed every kept text, shard by shard."""
    from obverse.engine.embed.protocol import open_encoder
    from obverse.engine.embed.vectors import embed_texts, open_cache, read_vectors

    recipe = context.recipe
    if recipe.given.embed is not None:
        table = read_vectors(read_table(recipe.given.embed))
        context.shards("embed").write(0, table)
        return {"rows": table.num_rows, "model": str(recipe.given.embed)}
    texts, checks, shards = context.shards("generate"), context.shards("check"), context.shards("embed")
    kept = checks.table(["id", "kept"])
    kept_ids = kept.filter(kept["kept"])["id"].combine_chunks()
    todo = [index for index in texts.done() if index not in set(shards.done())]
    facts: dict[str, Any] = {}
    if todo:
        encoder = open_encoder(recipe.embed)
        facts = {"model": recipe.embed.model, "dim": encoder.dim, "encoder": encoder.describe()}
        task = context.progress.task("embed", len(kept_ids), "texts", shards.num_rows())
        with open_cache(encoder) as cache, task as advance:
            for index in todo:
                table = texts.read(index)
                table = table.filter(pc.is_in(table["id"], value_set=kept_ids))
                shards.write(index, embed_texts(table, encoder, cache=cache, on_progress=advance))
                context.spent()
    return facts | {"rows": shards.num_rows()}


def run_score(context: Context) -> dict[str, Any]:
    """Score each text's diversity by its nearest neighbours, and the set's by its vectors."""
    from obverse.engine.diversity.score import score_rows
    from obverse.engine.diversity.set_metrics import set_metrics
    from obverse.engine.diversity.vectors import open_vectors

    recipe, shards, given = context.recipe, context.shards("score", SCORES), context.recipe.given.score
    index: dict[str, Any] = {"engine": "given", "reason": str(given)}
    rows = open_vectors(context.folder / "embed", scratch=context.home)
    if given is not None:
        shards.write(0, read_table(given))
    else:
        join = context.home / "join"
        scores, report = score_rows(
            rows,
            recipe.score,
            seed=context.seed("score"),
            real=_real_vectors(context, rows.matrix.dtype),
            labels=context.kept(["label"]) if recipe.task == "classification" else None,
            checkpoint=join,
            scratch=context.home,
            task=context.progress.task,
            say=lambda line: context.progress.say(f"  {'score':<10} {line}"),
        )
        for number, table in enumerate(scores.batches(1 << 20)):
            shards.write(number, table)
        shutil.rmtree(join, ignore_errors=True)
        index = report.as_json()
    names = ("mean_knn_distance", "local_density", "novelty", "label_mean_knn_distance")
    table = shards.table(list(names))
    metrics = set_metrics(rows, context.kept(["text"]), scores=table)
    found = {name: _histogram(table[name].to_numpy()) for name in names if table[name].null_count < table.num_rows}
    return {"rows": table.num_rows, "metrics": metrics, "index": index, **found}


def _real_vectors(context: Context, dtype: Any) -> np.ndarray | None:
    """The checker rows' texts embedded as the synthetic ones are; None without such rows, or with given vectors."""
    from obverse.engine.embed.protocol import open_encoder

    real = context.rows("checker")
    if context.recipe.given.embed is not None or not real.num_rows:
        return None
    with context.progress.task("real", real.num_rows, "texts") as advance:
        encoder = open_encoder(context.recipe.embed)
        return encoder.encode(real["text"].to_pylist(), on_progress=advance).astype(dtype)


def _histogram(values: np.ndarray) -> dict[str, list[float]]:
    counts, edges = np.histogram(values[np.isfinite(values)], bins=30)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def run_weigh(context: Context) -> dict[str, Any]:
    """Train the two checkers, judge every training row by both, and turn the ratio into weights.

    Quality: log q(target | text) under a model trained on the real checker rows. Diversity: log d(target | text)
    under one trained on the synthetic rows themselves (arXiv 2410.21526, section 3).
    """
    from obverse.engine.weigh.diagnostics import diagnostics
    from obverse.engine.weigh.weights import weigh_rows

    recipe, shards = context.recipe, context.shards("weigh", WEIGHTS)
    rows = context.synthetic_rows(test=False)
    if recipe.given.weigh is not None:
        table = read_table(recipe.given.weigh)
        require_columns(table, "id", "weight", what="given weigh")
        for kind in WEIGHTS:
            if kind.name not in table.column_names:
                table = table.append_column(kind, pa.nulls(table.num_rows, kind.type))
    else:
        log_quality = _judged(context, "quality", context.rows("checker"), rows, recipe.weigh.quality_epochs)
        epochs, folds = recipe.weigh.diversity_epochs, recipe.weigh.folds
        log_diversity = _judged(context, "diversity", rows, rows, epochs, folds)
        table = weigh_rows(rows["id"].to_pylist(), log_quality, log_diversity, recipe.weigh)
    shards.write(0, table)
    groups = pa.array(_groups(rows), pa.string()) if rows.num_rows == table.num_rows else None
    facts = diagnostics(table, groups)
    for warning in facts.get("warnings", []):
        context.progress.say(f"  weigh      warning: {warning}")
    return {"rows": table.num_rows, "scheme": recipe.weigh.scheme, **facts}


def _groups(rows: pa.Table) -> list[str]:
    """What weight mass is summed by: the label, or the first triplet's relation."""
    if rows["label"].null_count == 0:
        labels: list[str] = rows["label"].to_pylist()
        return labels
    return [t[0]["predicate"]["surfaceform"] if t else "(none)" for t in rows["triplets"].to_pylist()]


def _judged(context: Context, name: str, training: pa.Table, rows: pa.Table, epochs: int, folds: int = 1) -> np.ndarray:
    """Log-probabilities of the rows' targets under the checker ``name``; computed once and kept.

    With ``folds`` > 1 the checker is cross-fitted: each row is judged by a model trained on the other folds of the
    same rows, so that no row is judged by a model that saw it.
    """
    values = np.zeros(rows.num_rows, dtype=np.float32)
    fold_of = _folds(rows["id"].to_pylist(), folds, context.seed(f"folds-{name}"))
    for fold in range(folds):
        part = fold_of == fold
        others = training.filter(pa.array(~part)) if folds > 1 else training
        values[part] = _log_probs(
            context, f"{name}-{fold}" if folds > 1 else name, others, rows.filter(pa.array(part)), epochs
        )
    return values


def _folds(ids: list[int], folds: int, seed: int) -> np.ndarray:
    result = np.zeros(len(ids), dtype=np.int64)
    result[seeded_order(ids, seed)] = np.arange(len(ids)) % folds
    return result


def _log_probs(context: Context, name: str, training: pa.Table, rows: pa.Table, epochs: int) -> np.ndarray:
    from obverse.engine.train.likelihood import log_probs
    from obverse.engine.train.trainer import train_model

    cache = context.home / f"log_{name}.parquet"
    if not cache.exists():
        recipe, out = context.recipe, context.home / name
        with context.progress.task(f"  {name}", training.num_rows * epochs, "rows") as advance:
            train_model(
                training,
                recipe.train.model_copy(update={"epochs": epochs}),
                task=recipe.task,
                method="ce",
                seed=context.seed(f"checker-{name}"),
                out=out,
                labels=context.facts("data")["labels"] or None,
                selection=None,
                on_progress=advance,
            )
        context.spent()
        values = log_probs(out, rows)
        write_parquet(cache, pa.table({"id": rows["id"], "log_prob": pa.array(values, pa.float32())}))
        context.spent()
    table = read_table(cache)
    if table["id"].to_pylist() != rows["id"].to_pylist():
        raise RunError(f"{cache} is of other rows than this run's; delete {context.home} and run again")
    result: np.ndarray = table["log_prob"].to_numpy()
    return result


def _on_scale(weights: pa.Table, centre: bool) -> pa.ChunkedArray:
    """log q for DIMP, whose ratio is to the model in training: on that model's scale where weights are centred.

    A checker of a few real rows is less sure of everything than a model of thousands of synthetic ones; without the
    shift every ratio would sit at the clip's lower bound. The scale is log d's, which stands for the trained model.
    """
    quality, diversity = weights["log_quality"], weights["log_diversity"]
    if not centre or quality.null_count or diversity.null_count:
        return quality
    shift = pc.subtract(pc.quantile(diversity, q=0.5)[0], pc.quantile(quality, q=0.5)[0])
    return pc.cast(pc.add(quality, shift), pa.float32())


def run_train(context: Context) -> dict[str, Any]:
    """Train one model per method on the same rows, with the same seed."""
    from obverse.engine.train.trainer import train_model

    recipe = context.recipe
    rows = context.synthetic_rows(test=False)
    weights = context.shards("weigh").table()
    index = pc.index_in(rows["id"].combine_chunks(), value_set=weights["id"].combine_chunks())
    rows = rows.append_column("sample_weight", weights["weight"].take(index))
    rows = rows.append_column("log_quality", _on_scale(weights, recipe.weigh.centre).take(index))
    facts: dict[str, Any] = {}
    selection = context.rows("selection")
    for method in recipe.train.methods:
        out = context.home / method
        if not (out / "training.json").exists():
            with context.progress.task(f"  {method}", rows.num_rows * recipe.train.epochs, "rows") as advance:
                train_model(
                    rows,
                    recipe.train,
                    task=recipe.task,
                    method=method,
                    seed=context.seed("train"),
                    out=out,
                    labels=context.facts("data")["labels"] or None,
                    selection=selection if selection.num_rows else None,
                    on_progress=advance,
                )
            context.spent()
        facts[method] = read_json(out / "training.json")
    return {"rows": rows.num_rows, "methods": facts}
