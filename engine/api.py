"""The stages as plain functions for notebooks and other programs: Arrow tables or data frames in, Arrow tables out.

Settings are keyword arguments, named as in a recipe's section. Everything here is importable from ``obverse`` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from obverse.engine.errors import InputError
from obverse.engine.records.files import as_table
from obverse.engine.records.schemas import require_columns

if TYPE_CHECKING:
    from obverse.engine.graph.graph import KnowledgeGraph

__all__ = ["check", "decode", "embed", "evaluate", "generate", "run", "sample", "score", "train", "weigh"]

Model = TypeVar("Model", bound=BaseModel)
Task = Literal["extraction", "classification"]


def _settings(kind: type[Model], values: Mapping[str, Any]) -> Model:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{first['msg']} (known: {', '.join(kind.model_fields)})", field=name, seen=first.get("input")
        ) from None


def sample(
    graph: KnowledgeGraph | str | Path = "geography", *, samples: int, seed: int = 0, **settings: Any
) -> pa.Table:
    """Draw ``samples`` connected triplet sets from ``graph``; gives the TARGETS table, ids 0 to samples - 1.

    Raises `InputError` for a graph that can't be read or a setting that `SampleSettings` doesn't have.
    """
    from obverse.engine.graph.graph import KnowledgeGraph
    from obverse.engine.graph.load import load_graph
    from obverse.engine.graph.sampling import SampleSettings, sample_targets

    loaded = graph if isinstance(graph, KnowledgeGraph) else load_graph(graph)
    return sample_targets(loaded, 0, samples, _settings(SampleSettings, {**settings, "samples": samples}), seed=seed)


def generate(targets: Any, *, seed: int = 0, **settings: Any) -> pa.Table:
    """Write a text for every target; gives the TEXTS table in the targets' order.

    A row that fails has a null text and ``finish_reason`` ``error: ...``. Raises `BackendError` when the backend as a
    whole fails, `MissingPackageError` when it is not installed.
    """
    from obverse.engine.generate.settings import GenerateSettings
    from obverse.engine.generate.stage import generate as run_stage

    table = as_table(targets)
    require_columns(table, "id", what="targets")
    return run_stage(table, _settings(GenerateSettings, settings), seed=seed)


def check(
    targets: Any,
    texts: Any,
    *,
    held_out: Any = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
    **settings: Any,
) -> pa.Table:
    """Check texts against targets, each other and held-out rows; gives the CHECKS table."""
    from obverse.engine.check.checker import Checker
    from obverse.engine.check.settings import CheckSettings

    held = None if held_out is None else as_table(held_out)
    checker = Checker(_settings(CheckSettings, settings), held_out=held, aliases=aliases)
    return checker.check(as_table(targets), as_table(texts))


def embed(texts: Any, **settings: Any) -> pa.Table:
    """Embed ``texts`` (id, text); gives id and a unit vector, float16, per row."""
    from obverse.engine.embed.protocol import open_encoder
    from obverse.engine.embed.settings import EmbedSettings
    from obverse.engine.embed.vectors import embed_texts, open_cache

    table = as_table(texts)
    require_columns(table, "id", "text", what="texts")
    encoder = open_encoder(_settings(EmbedSettings, settings))
    with open_cache(encoder) as cache:
        return embed_texts(table, encoder, cache=cache)


def score(vectors: Any, *, real: Any = None, labels: Any = None, seed: int = 0, **settings: Any) -> pa.Table:
    """Score each vector by its nearest neighbours among the others; gives the SCORES table.

    ``real`` (id, vector) gives the column ``novelty``, ``labels`` (id, label) ``label_mean_knn_distance``.
    """
    from obverse.engine.diversity.score import score_diversity
    from obverse.engine.diversity.settings import ScoreSettings

    table = as_table(vectors)
    require_columns(table, "id", "vector", what="vectors")
    others = [None if other is None else as_table(other) for other in (real, labels)]
    return score_diversity(table, _settings(ScoreSettings, settings), seed=seed, real=others[0], labels=others[1])


def weigh(scored: Any, **settings: Any) -> pa.Table:
    """Turn ``log_quality`` and ``log_diversity`` (with ``id``) into importance weights; gives the WEIGHTS table."""
    from obverse.engine.weigh.settings import WeighSettings
    from obverse.engine.weigh.weights import weigh_rows

    table = as_table(scored)
    require_columns(table, "id", "log_quality", "log_diversity", what="scored")
    log_quality, log_diversity = (table[name].to_numpy() for name in ("log_quality", "log_diversity"))
    return weigh_rows(table["id"].to_pylist(), log_quality, log_diversity, _settings(WeighSettings, settings))


def train(
    rows: Any,
    out: str | Path,
    *,
    task: Task = "extraction",
    method: str = "ce",
    selection: Any = None,
    seed: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """Train on ``rows`` (id, text, triplets or label; ``sample_weight`` for imp, ``log_quality`` for dimp).

    Writes a Hugging Face model folder ``out`` and gives the training's facts (loss curve, seconds, tokens/s).
    """
    from obverse.engine.train.settings import TrainSettings
    from obverse.engine.train.trainer import train_model

    table = as_table(rows)
    require_columns(table, "id", "text", "triplets" if task == "extraction" else "label", what="training")
    return train_model(
        table,
        _settings(TrainSettings, settings),
        task=task,
        method=method,
        seed=seed,
        out=Path(out),
        labels=sorted(set(table["label"].to_pylist())) if task == "classification" else None,
        selection=None if selection is None else as_table(selection),
    )


def decode(
    model: str | Path,
    rows: Any,
    *,
    graph: KnowledgeGraph | str | Path | None = None,
    catalog: str | Path | None = None,
    types: Mapping[str, tuple[Sequence[str], Sequence[str]]] | None = None,
    only_in: KnowledgeGraph | str | Path | None = None,
    not_in: KnowledgeGraph | str | Path | None = None,
    on_progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> pa.Table:
    """Predict ``rows`` (id, text) with the model folder ``model``; gives the PREDICTIONS table.

    With a ``graph`` (its entities and relations) or a ``catalog`` (a file that `obverse catalog build` wrote for the
    model's tokenizer), extraction is constrained to these names; ``types``, ``only_in`` and ``not_in`` limit its
    triplets further, see `Catalog.constraint`.

    Raises `InputError` where two of graph and catalog, or of only_in and not_in, are given, or a rule without names.
    """
    import tempfile

    from obverse.engine.decode.catalog import Catalog
    from obverse.engine.decode.decoder import decode_rows
    from obverse.engine.decode.rules import TripletRules
    from obverse.engine.decode.settings import DecodeSettings

    checked, table = _settings(DecodeSettings, settings), as_table(rows)
    for one, other in (({"graph": graph}, {"catalog": catalog}), ({"only_in": only_in}, {"not_in": not_in})):
        if None not in (*one.values(), *other.values()):
            raise InputError(f"one of {next(iter(one))} and {next(iter(other))}", field=next(iter(other)), seen="both")
    limits = only_in if only_in is not None else not_in
    rules = TripletRules(types, None if limits is None else _graph(limits).triples(), only_in is not None)
    if graph is None and catalog is None:
        if types is not None or limits is not None:
            raise InputError("a graph or a catalog of names, for types and graphs limit what is written with it")
        return decode_rows(Path(model), table, checked, on_progress=on_progress)
    with tempfile.TemporaryDirectory() as scratch:
        if catalog is not None:
            names = Catalog.open(catalog)
        else:
            loaded = _graph(graph)
            entities = loaded.entities.select(["uri", "name", "type"])
            names = Catalog.cached(entities, loaded.relations, Path(model), Path(scratch))
        return decode_rows(
            Path(model), table, checked, catalog=names, constrained=True, rules=rules, on_progress=on_progress
        )


def _graph(source: KnowledgeGraph | str | Path | None) -> KnowledgeGraph:
    from obverse.engine.graph.graph import KnowledgeGraph
    from obverse.engine.graph.load import load_graph

    assert source is not None
    return source if isinstance(source, KnowledgeGraph) else load_graph(source)


def evaluate(predictions: Any, *, task: Task = "extraction", seed: int = 0, **settings: Any) -> dict[str, Any]:
    """Score a PREDICTIONS table: micro and macro P, R, F1 (or accuracy and macro-F1) with bootstrap intervals."""
    from obverse.engine.evaluate.evaluate import evaluate as run_stage
    from obverse.engine.evaluate.settings import EvaluateSettings

    return run_stage(as_table(predictions), _settings(EvaluateSettings, settings), task=task, seed=seed)


def run(recipe: str | Path, out: str | Path, *, overrides: Sequence[str] = ()) -> Path:
    """Carry out a recipe file in the folder ``out``; goes on where an earlier run stopped."""
    from obverse.engine.recipe import load_recipe
    from obverse.engine.run.driver import run_recipe

    checked, text = load_recipe(Path(recipe), overrides)
    return run_recipe(checked, Path(out), text=text)
