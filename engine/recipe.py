"""Recipes: what a run does, as TOML, checked whole before any work.

Every problem is reported at once, each with file, line, the value seen and the nearest valid name.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from obverse.engine.check.settings import CheckSettings
from obverse.engine.decode.settings import DecodeSettings
from obverse.engine.diversity.settings import ScoreSettings
from obverse.engine.embed.settings import EmbedSettings
from obverse.engine.errors import RecipeError
from obverse.engine.evaluate.settings import EvaluateSettings
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.generate.templates import check_fields
from obverse.engine.graph.sampling import SampleSettings
from obverse.engine.records.schemas import TARGETS
from obverse.engine.records.settings import StageSettings
from obverse.engine.train.settings import TrainSettings
from obverse.engine.weigh.settings import WeighSettings

__all__ = ["DataSettings", "Recipe", "load_recipe", "parse_recipe", "recipe_values"]

Task = Literal["extraction", "classification"]
_SET = "# set on the command line: "
GIVEN_STAGES = ("sample", "generate", "check", "embed", "score", "weigh")


class DataSettings(StageSettings):
    """The real rows: a few to judge quality by, a few to select a model by, the rest to test on."""

    real: Path | None = None
    """Real rows (text with triplets or label): JSONL(.gz), CSV, TSV, Parquet or a saved `datasets` folder."""
    selection: Path | None = None
    """Rows that choose among epochs; without it a part of `real` is kept for this."""
    test: Path | None = None
    """Held-out real rows; without it a part of `real` is kept for this."""
    checker_rows: int = Field(default=200, ge=1)
    """Real rows that train the quality checker (the first ones in the order of a seeded shuffle)."""
    selection_rows: int = Field(default=50, ge=0)
    """Real rows for model selection."""
    test_rows: int = Field(default=2000, ge=1)
    """At most this many real test rows."""
    synthetic_test_rows: int = Field(default=0, ge=0)
    """Synthetic rows kept out of training as a second, in-distribution test set."""
    text: str = "text"
    """The column that holds the text."""
    label: str = "label"
    """The column that holds the label (classification)."""


class GivenTables(StageSettings):
    """Tables made elsewhere, by the stage that they stand in for; a run starts after them."""

    sample: Path | None = None
    """Targets: id with triplets or label."""
    generate: Path | None = None
    """Texts. With triplets or labels beside them (JSONL, CSV, ...) they stand in for `sample` too."""
    check: Path | None = None
    """Checks: id, kept."""
    embed: Path | None = None
    """Vectors: id, vector."""
    score: Path | None = None
    """Diversity scores, by id."""
    weigh: Path | None = None
    """Weights: id, weight."""


class ReportSettings(StageSettings):
    """What the report shows."""

    title: str | None = None
    """Title of the page; by default the recipe's name."""
    examples: int = Field(default=8, ge=0, le=200)
    """Rows shown in each gallery."""


class Recipe(BaseModel):
    """One run, whole. Each section is one stage's settings."""

    model_config = {"extra": "forbid", "frozen": True}

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    task: Task
    seed: int = Field(default=0, ge=0, lt=2**31)
    shard_rows: int = Field(default=512, ge=1)
    data: DataSettings = DataSettings()
    given: GivenTables = GivenTables()
    sample: SampleSettings = SampleSettings()
    generate: GenerateSettings = GenerateSettings()
    check: CheckSettings = CheckSettings()
    embed: EmbedSettings = EmbedSettings()
    score: ScoreSettings = ScoreSettings()
    weigh: WeighSettings = WeighSettings()
    train: TrainSettings = TrainSettings()
    decode: DecodeSettings = DecodeSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, str]:
    """Read and check the recipe at ``path``; gives it with its text as used (overrides written in).

    ``overrides`` are ``section.key=value`` strings, the value in TOML (a bare word is taken as a string). Paths in a
    recipe are relative to the recipe's folder; paths in an override are relative to the working directory.

    Raises `RecipeError` listing every problem.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: there is no such recipe file")
    text = path.read_text(encoding="utf-8")
    return parse_recipe(text, path, overrides)


def parse_recipe(text: str, path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, str]:
    """Check a recipe given as ``text``; ``path`` is what errors call it and where relative paths start."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    _absolute_paths(values, path.resolve().parent)
    for override in overrides:
        _apply_override(values, override)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        lines = _Lines(text)
        problems = [_describe(problem, path, lines) for problem in error.errors()]
        raise RecipeError("\n".join(problems)) from None
    problems = [f"{path}{_Lines(text).at(*place)}: {message}" for place, message in _impossible(recipe)]
    if problems:
        raise RecipeError("\n".join(problems))
    return recipe, text + "".join(f"\n{_SET}{override}" for override in overrides)


def recipe_values(path: Path) -> dict[str, Any]:
    """The keys of a run's own ``recipe.toml`` as used, with what was set on the command line; not checked again.

    Raises `RecipeError` where the file is missing or neither TOML nor JSON.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: there is no such recipe file")
    text = path.read_text(encoding="utf-8")
    try:
        values: dict[str, Any] = json.loads(text) if text.startswith("{") else tomllib.loads(text)
    except ValueError as error:
        raise RecipeError(f"{path}: neither TOML nor JSON: {error}") from None
    for override in re.findall(rf"^{_SET}(.*)$", text, re.MULTILINE):
        _apply_override(values, override)
    return values


_PATH_FIELDS: list[tuple[str, ...]] = [
    *(("data", name) for name in ("real", "selection", "test")),
    *(("given", name) for name in GIVEN_STAGES),
    ("generate", "few_shot", "examples"),
]


def _absolute_paths(values: dict[str, Any], folder: Path) -> None:
    for *sections, key in _PATH_FIELDS:
        table: Any = values
        for section in sections:
            table = table.get(section) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = str(folder / table[key])


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    keys = [part.strip() for part in key.split(".")]
    if not equals or not all(keys):
        raise RecipeError(f"--set {override}: expected section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    if tuple(keys) in _PATH_FIELDS and isinstance(parsed, str):
        parsed = str(Path(parsed).resolve())
    for part in keys[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {override}: '{part}' is not a section")
    values[keys[-1]] = parsed


class _Lines:
    """Where keys stand in a TOML text (tomllib gives no positions)."""

    def __init__(self, text: str) -> None:
        self.places: dict[tuple[str, ...], int] = {}
        section: tuple[str, ...] = ()
        for number, line in enumerate(text.splitlines(), start=1):
            if header := re.match(r"\s*\[+\s*([\w.\s\"'-]+?)\s*\]+", line):
                section = tuple(part.strip(" \"'") for part in header[1].split("."))
                self.places.setdefault(section, number)
            elif key := re.match(r"\s*([\w.\"'-]+)\s*=", line):
                self.places.setdefault((*section, *(part.strip("\"'") for part in key[1].split("."))), number)

    def at(self, *keys: str) -> str:
        """``:LINE`` of the longest known beginning of ``keys``, or nothing."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.places:
                return f":{self.places[keys[:end]]}"
        return ""


def _describe(problem: Any, path: Path, lines: _Lines) -> str:
    place = tuple(str(part) for part in problem["loc"])
    keys = tuple(part for part in place if not part.isdigit() and "[" not in part)
    dotted = ".".join(place)
    seen = problem.get("input")
    if problem["type"] == "extra_forbidden":
        known = _fields_at(keys[:-1])
        # A key of a section within this one was most likely written a level too high.
        deeper = [
            f"{'.'.join(keys[:-1])}.{name}.{keys[-1]}" for name in known if keys[-1] in _fields_at([*keys[:-1], name])
        ]
        near = deeper or difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else f"; valid here: {', '.join(sorted(known))}"
        kind = "section" if isinstance(seen, dict) and len(keys) == 1 else "key"
        return f"{path}{lines.at(*keys)}: unknown {kind} '{dotted}'{hint}"
    if problem["type"] == "missing":
        return f"{path}: '{dotted}' is missing"
    message = _nearest_literal(problem, seen) or str(problem["msg"]).removeprefix("Value error, ")
    return f"{path}{lines.at(*keys)}: '{dotted}' = {seen!r}: {message[0].lower()}{message[1:]}"


def _nearest_literal(problem: Any, seen: object) -> str | None:
    if problem["type"] != "literal_error" or not isinstance(seen, str):
        return None
    choices = re.findall(r"'([^']+)'", problem["ctx"]["expected"])
    near = difflib.get_close_matches(seen, choices, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"expected {problem['ctx']['expected']}{hint}"


def _fields_at(keys: Sequence[str]) -> list[str]:
    model: Any = Recipe
    for key in keys:
        field = model.model_fields.get(key)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _impossible(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """Combinations that can't run, each with the place of the key to change."""
    for place in _PATH_FIELDS:
        value: Any = recipe
        for name in place:
            value = getattr(value, name)
        if value is not None and not value.exists():
            yield place, f"'{'.'.join(place)}' = '{value}': there is no such file"
    try:
        check_fields(recipe.generate, TARGETS.names)
    except RecipeError as error:
        yield ("generate", "prompt"), f"'generate.prompt': {str(error).removeprefix('generate.prompt: ')}"
    if recipe.data.real is None:
        yield ("data", "real"), "'data.real' is missing: weights, selection and test need a few real rows"
    if recipe.task == "classification":
        if recipe.given.generate is None and recipe.generate.model == "demo":
            message = "the embedded model writes geography only: name a model, or bring texts ('given.generate')"
            yield ("generate", "model"), f"'generate.model' = 'demo': {message}"
        if True in recipe.decode.constrained and "constrained" in recipe.decode.model_fields_set:
            yield ("decode", "constrained"), "'decode.constrained' has no meaning for classification; take it out"
