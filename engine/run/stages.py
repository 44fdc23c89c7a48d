"""The stages of a run in order, with what each one's results depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from obverse.engine.embed.folder import find_model
from obverse.engine.generate.backends import model_key
from obverse.engine.recipe import Recipe
from obverse.engine.records.fingerprint import file_hash, folder_mark
from obverse.engine.records.models import resolve_model
from obverse.engine.run.context import Stage
from obverse.engine.run.judge import run_decode, run_evaluate, run_report
from obverse.engine.run.learn import run_embed, run_score, run_train, run_weigh
from obverse.engine.run.make import run_check, run_data, run_generate, run_graph, run_sample

__all__ = ["stages_for"]


def _section(name: str) -> Any:
    def settings(recipe: Recipe) -> dict[str, Any]:
        section: BaseModel = getattr(recipe, name)
        return section.model_dump(mode="json")

    return settings


def _sample(recipe: Recipe) -> dict[str, Any]:
    return recipe.sample.model_dump(mode="json", exclude={"graph"})


def _data(recipe: Recipe) -> dict[str, Any]:
    return recipe.data.model_dump(mode="json", exclude={"synthetic_test_rows", "real", "selection", "test"})


def _generate(recipe: Recipe) -> dict[str, Any]:
    return {"model": None if recipe.given.generate is not None else model_key(recipe.generate)}


def _embed(recipe: Recipe) -> dict[str, Any]:
    return {
        **recipe.embed.model_dump(mode="json", exclude={"cache"}),
        "files": None if recipe.given.embed else folder_mark(find_model(recipe.embed.model)),
    }


def _train(recipe: Recipe) -> dict[str, Any]:
    start = resolve_model(recipe.train.model, recipe.task)
    held_back = recipe.data.synthetic_test_rows
    return {**_section("train")(recipe), "files": folder_mark(start), "synthetic_test_rows": held_back}


def _weigh(recipe: Recipe) -> dict[str, Any]:
    learning = _train(recipe)
    return {"train": {**learning, "methods": None, "epochs": None}, "weigh": _section("weigh")(recipe)}


def _graph(recipe: Recipe) -> dict[str, Any]:
    path = Path(recipe.sample.graph)
    return {"graph": recipe.sample.graph, "file": file_hash(path) if path.is_file() else None}


GRAPH = Stage("graph", 1, (), _graph, run_graph, "entities")
DATA = Stage("data", 1, (), _data, run_data)
SAMPLE = Stage("sample", 1, ("graph", "data"), _sample, run_sample, "sets")
GENERATE = Stage("generate", 2, ("sample",), _generate, run_generate)
CHECK = Stage("check", 1, ("data", "graph", "sample", "generate"), _section("check"), run_check)
EMBED = Stage("embed", 2, ("generate", "check"), _embed, run_embed, "texts")
SCORE = Stage("score", 3, ("data", "embed"), _section("score"), run_score)
WEIGH = Stage("weigh", 2, ("data", "sample", "generate", "check"), _weigh, run_weigh)
TRAIN = Stage("train", 2, ("data", "sample", "generate", "check", "weigh"), _train, run_train)
DECODE = Stage("decode", 1, ("data", "graph", "train"), _section("decode"), run_decode)
EVALUATE = Stage("evaluate", 2, ("decode",), _section("evaluate"), run_evaluate, "predictions")
REPORT = Stage("report", 3, ("score", "evaluate"), _section("report"), run_report, "figures")


def stages_for(recipe: Recipe) -> list[Stage]:
    """The stages that ``recipe`` goes through: classification has no knowledge graph."""
    rest = [DATA, SAMPLE, GENERATE, CHECK, EMBED, SCORE, WEIGH, TRAIN, DECODE, EVALUATE, REPORT]
    return [GRAPH, *rest] if recipe.task == "extraction" else rest
