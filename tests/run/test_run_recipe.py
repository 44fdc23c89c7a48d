"""Recipes: every mistake named with line, value and the nearest valid name, before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from obverse.engine.errors import RecipeError
from obverse.engine.recipe import load_recipe

REPOSITORY = Path(__file__).resolve().parents[2]

GOOD = """\
name = "small"
task = "extraction"
seed = 3

[data]
real = "real.jsonl"

[sample]
samples = 100

[train]
methods = ["ce"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    name = {"surfaceform": "A", "uri": None}
    record = {"text": "A is B.", "triplets": [{"subject": name, "predicate": name, "object": name}]}
    (tmp_path / "real.jsonl").write_text(json.dumps(record) + "\n")
    return tmp_path


def _recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_a_good_recipe_reads_with_paths_from_its_own_folder(folder: Path) -> None:
    recipe, text = load_recipe(_recipe(folder, GOOD), ["sample.samples=7", "generate.backend=transformers"])
    assert recipe.data.real == folder / "real.jsonl"
    assert (recipe.sample.samples, recipe.generate.backend, recipe.seed) == (7, "transformers", 3)
    assert text.startswith(GOOD)
    assert "# set on the command line: sample.samples=7" in text


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("[sample]\nsamples = 100", "[sample]\nsample = 100"), [":9", "'sample.sample'", "did you mean 'samples'"]),
        (("[train]", "[trane]"), [":11", "unknown section 'trane'", "did you mean 'train'"]),
        (("samples = 100", 'samples = "many"'), [":9", "'sample.samples' = 'many'", "integer"]),
        (("samples = 100", "samples = 0"), [":9", "'sample.samples' = 0", "greater than or equal to 1"]),
        (('methods = ["ce"]', 'methods = ["cee"]'), [":12", "'cee'", "did you mean 'ce'"]),
        (('task = "extraction"', 'task = "extract"'), [":2", "'extract'", "did you mean 'extraction'"]),
        (('real = "real.jsonl"', 'real = "reel.jsonl"'), [":6", "reel.jsonl", "no such file"]),
        (("seed = 3", "seed = 3\nsead = 4"), [":4", "'sead'", "did you mean 'seed'"]),
        (('name = "small"\n', ""), ["'name' is missing"]),
        (("seed = 3", "seed = = 3"), ["not valid TOML", "line 3"]),
        (('task = "extraction"', 'task = "classification"'), ["generate.model", "given.generate"]),
        (("[data]", '[generate]\nbackend = "openai"\n\n[data]'), ["base_url"]),
    ],
)
def test_mistakes_are_named(folder: Path, change: tuple[str, str], parts: list[str]) -> None:
    assert change[0] in GOOD
    path = _recipe(folder, GOOD.replace(*change))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    text = GOOD.replace("samples = 100", "samples = -1").replace('methods = ["ce"]', 'methods = ["x"]\nepoch = 3')
    with pytest.raises(RecipeError) as caught:
        load_recipe(_recipe(folder, text))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("override", ["samples", "=3", "seed.x=3"])
def test_bad_overrides_are_named(folder: Path, override: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(_recipe(folder, GOOD), [override])


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "nothing.toml")


def test_the_shipped_examples_are_good(tmp_path: Path) -> None:
    recipe, _ = load_recipe(REPOSITORY / "examples" / "geography.toml")
    assert recipe.task == "extraction"
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\ngood,1\n")
    overrides = [f"given.generate={rows}", f"data.real={rows}"]
    assert load_recipe(REPOSITORY / "examples" / "sentiment.toml", overrides)[0].task == "classification"
