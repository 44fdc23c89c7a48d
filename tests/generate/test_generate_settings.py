"""Settings of generation: what is wrong with them is said, and options and recipes reach every one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, ValidationError

from obverse.engine.cli.options import from_options, settings_options
from obverse.engine.errors import RecipeError
from obverse.engine.generate import GenerateSettings, model_key
from obverse.engine.generate.settings import FewShotSettings, OutputSettings, SamplingSettings
from obverse.engine.recipe import parse_recipe

Targets = Callable[..., pa.Table]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": "instrct"}, "did you mean 'instruct'"),
        ({"prompt": "one\n{% for t in triplets %}"}, "wrong at its line 2"),
        ({"backend": "openai", "model": "m"}, "needs base_url"),
        ({"backend": "openai", "base_url": "http://h/v1"}, "needs model"),
        ({"base_url": "http://h/v1"}, "base_url is for backend 'openai' alone"),
        ({"model": "./no/such/folder"}, "none of that name"),
        ({"max_tokens": 9}, "Extra inputs are not permitted"),
        ({"sampling": {"max_tokens": 0}}, "greater than or equal to 1"),
        ({"sampling": {"tempreature": 1.0}}, "Extra inputs are not permitted"),
        ({"sampling": {"stop": [""]}}, "at least 1 character"),
        ({"output": {"attempts": 0}}, "greater than or equal to 1"),
        ({"output": {"retry_on": ["refused"]}}, "'empty', 'length', 'refusal', 'structured' or 'extract'"),
        ({"output": {"structured": {"jsn": {}}}}, "one of json, regex, choice, grammar"),
        ({"output": {"extract": {"fild": "a"}}}, "one of field, regex, saw 'fild'"),
        ({"output": {"extract": {"field": "a..b"}}}, "names with dots between"),
        ({"output": {"extract": {"regex": "(a"}}}, "unterminated"),
        ({"few_shot": {"examples": "x.jsonl"}}, "the demo model was trained without examples"),
        (
            {"model": "x/y", "prompt": "{{ facts }}", "few_shot": {"examples": "x.jsonl"}},
            "the template does not show them",
        ),
    ],
)
def test_settings_say_what_is_wrong(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace(".", r"\.")):
        GenerateSettings(**values)


@pytest.mark.parametrize("kind", [GenerateSettings, SamplingSettings, FewShotSettings, OutputSettings])
def test_settings_stay_within_ten_fields_each_described(kind: type[BaseModel]) -> None:
    assert len(kind.model_fields) <= 10
    assert all(field.description for field in kind.model_fields.values())


def test_model_key_follows_what_decides_the_texts(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)

    def key(**more: Any) -> str:
        return model_key(GenerateSettings(model=str(folder), **more))

    same = key()
    assert key(concurrency=7) == key(output={"attempts": 3, "retry_share": 0.5}) == same
    others = [
        key(sampling={"temperature": 0.1}),
        key(sampling={"stop": ["a"]}),
        key(output={"retry_on": ["length"]}),
        key(output={"structured": {"choice": ["a"]}}),
        key(output={"extract": {"field": "a"}}),
        key(prompt="label"),
        key(system="Be dry"),
    ]
    assert len({same, *others}) == len(others) + 1
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert key() != same


def test_model_key_is_of_what_the_examples_say_not_of_where_they_lie(tmp_path: Path) -> None:
    def key(path: Path) -> str:
        return model_key(GenerateSettings(model="x/y", few_shot={"examples": path}))

    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text('{"text": "a", "label": "b"}\n')
    two.write_bytes(one.read_bytes())
    assert key(one) == key(two) != model_key(GenerateSettings(model="x/y"))
    two.write_text('{"text": "a", "label": "c"}\n')
    assert key(one) != key(two)


def run(*arguments: str) -> tuple[GenerateSettings | None, str]:
    """What the options of ``obverse generate`` make of ``arguments``."""
    made: list[GenerateSettings] = []

    @click.command()
    @settings_options(GenerateSettings)
    def verb(**options: Any) -> None:
        made.append(from_options(GenerateSettings, options))

    result = CliRunner().invoke(verb, list(arguments))
    return (made[0] if made else None), result.output


def test_every_nested_setting_is_an_option(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"json": {"type": "object"}}')
    settings, said = run(
        *("--model", "x/y", "--temperature", "1", "--max-tokens", "9", "--stop", "a", "--stop", "b"),
        *("--extra", '{"top_k": 3}', "--attempts", "3", "--retry-on", "empty", "--retry-on", "length"),
        *("--retry-share", "0.5", "--structured", f"@{schema}", "--extract", '{"field": "a"}'),
        *("--examples", "demo.jsonl", "--shots", "2", "--examples-by", "none"),
    )
    assert settings == GenerateSettings(
        model="x/y",
        sampling={"temperature": 1.0, "max_tokens": 9, "stop": ["a", "b"], "extra": {"top_k": 3}},
        output={
            "attempts": 3,
            "retry_on": ["empty", "length"],
            "retry_share": 0.5,
            "structured": {"json": {"type": "object"}},
            "extract": {"field": "a"},
        },
        few_shot={"examples": "demo.jsonl", "shots": 2, "examples_by": "none"},
    ), said
    assert run() == (GenerateSettings(), "")
    _, shown = run("--help")
    for name in ("--max-tokens", "--top-p", "--stop", "--structured", "--shots", "--system"):
        assert name in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-tokens", "0"), "--max-tokens: Input should be greater than or equal to 1, saw 0"),
        (("--structured", '{"choice": []}'), "--structured: choice: expected a list of texts"),
        (("--structured", "@no-such-file"), "can't read no-such-file: No such file"),
        (("--structured", "{"), "not JSON"),
        (("--retry-on", "refused"), "'refused' is not one of 'empty', 'length'"),
        (("--backend", "openai", "--model", "m"), "Error: backend 'openai' needs base_url"),
    ],
)
def test_a_wrong_option_is_named(arguments: tuple[str, ...], said: str) -> None:
    settings, output = run(*arguments)
    assert settings is None
    assert said in " ".join(output.replace("│", " ").split())


def test_two_settings_of_one_name_are_a_mistake_of_ours() -> None:
    class Inner(BaseModel):
        rate: int = 0

    class Outer(BaseModel):
        rate: int = 0
        inner: Inner = Inner()

    with pytest.raises(TypeError, match="two fields called 'rate'"):
        settings_options(Outer)


RECIPE = 'name = "r"\ntask = "extraction"\n[data]\nreal = "real.jsonl"\n[generate]\nmodel = "x/y"\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_tokens = 5", r":7: unknown key 'generate.max_tokens'; did you mean 'generate.sampling.max_tokens'?"),
        ("temperature = 1", "did you mean 'generate.sampling.temperature'?"),
        ("attempts = 2", "did you mean 'generate.output.attempts'?"),
        ("sampling.max_token = 5", "'generate.sampling.max_token'; did you mean 'max_tokens'?"),
        ("sampling.max_tokens = 0", ":7: 'generate.sampling.max_tokens' = 0: input should be greater"),
        ('prompt = "{{ triples }}"', "'generate.prompt': the template names triples; a row has attributes, examples, "),
        ('few_shot.examples = "no.jsonl"', "'generate.few_shot.examples' = "),
    ],
)
def test_a_recipe_says_where_a_key_belongs(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text("")
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE + line + "\n", tmp_path / "r.toml")
    assert said in str(caught.value)


def test_a_recipe_reaches_every_setting(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text("")
    (tmp_path / "demo.jsonl").write_text("")
    text = RECIPE + (
        'sampling.stop = ["a"]\nfew_shot = {examples = "demo.jsonl", shots = 2}\n'
        '[generate.output]\nretry_on = ["length"]\n[generate.output.structured.json]\ntype = "object"\n'
    )
    recipe, _ = parse_recipe(text, tmp_path / "r.toml", ["generate.sampling.max_tokens=5"])
    assert recipe.generate.sampling.stop == ["a"]
    assert recipe.generate.sampling.max_tokens == 5
    assert recipe.generate.few_shot.examples == tmp_path / "demo.jsonl"  # beside the recipe
    assert recipe.generate.output.structured == {"json": {"type": "object"}}
    assert recipe.generate.output.retry_on == ["length"]
