from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from obverse.engine.errors import InputError, RecipeError
from obverse.engine.generate import GenerateSettings, build_prompt, model_key
from obverse.engine.generate.prompts import encode_prompt, prompt_source

Targets = Callable[..., pa.Table]


def row(make_targets: Targets, **more: Any) -> dict[str, Any]:
    return make_targets([3], **more).to_pylist()[0]  # type: ignore[no-any-return]


def test_auto_is_facts_for_the_demo_model(make_targets: Targets) -> None:
    prompt = build_prompt(row(make_targets), GenerateSettings())
    assert prompt.text == ("[s] Town 3 [r] lies in [o] Land 30 [e] [s] Town 3 [r] lies in [o] Land 31 [e] [text]")
    assert not prompt.chat


def test_auto_is_instruct_for_other_models_and_label_for_labels(make_targets: Targets) -> None:
    settings = GenerateSettings(model="Qwen/Qwen3-8B")
    prompt = build_prompt(row(make_targets, attributes='{"tone": "dry", "length": "short"}'), settings)
    assert prompt.chat
    assert prompt.text.endswith(
        "Keep to this: tone: dry; length: short.\nFacts (subject | relation | object):\n"
        "- Town 3 | lies in | Land 30\n- Town 3 | lies in | Land 31\n"
    )
    label = build_prompt(row(make_targets, label="positive"), settings)
    assert label.chat
    assert label.text.endswith("Reply with the text alone.\nLabel: positive")


def test_the_demo_model_refuses_labels(make_targets: Targets) -> None:
    with pytest.raises(RecipeError, match="triplets only"):
        build_prompt(row(make_targets, label="positive"), GenerateSettings())


def test_templates_from_text_and_from_a_file(make_targets: Targets, tmp_path: Path) -> None:
    template = "{{ label or triplets | length }}|{{ facts }}|{{ attributes.tone }}"
    target = row(make_targets, attributes='{"tone": "{{ 7 * 7 }}"}')
    settings = GenerateSettings(model="x/y", prompt=template)
    # Values are data: a template in a value is not run.
    assert build_prompt(target, settings).text == (
        "2|[s] Town 3 [r] lies in [o] Land 30 [e] [s] Town 3 [r] lies in [o] Land 31 [e]|{{ 7 * 7 }}"
    )
    file = tmp_path / "prompt.jinja"
    file.write_text(template)
    kept = GenerateSettings(model="x/y", prompt=str(file))
    assert build_prompt(target, kept) == build_prompt(target, settings)
    key = model_key(kept)
    file.write_text(template + "!")
    assert prompt_source(kept).endswith("!")
    assert model_key(kept) != key


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": "instrct"}, "did you mean 'instruct'"),
        ({"prompt": "{{ triples }}"}, "names triples; a row has triplets, facts, label, attributes"),
        ({"prompt": "one\n{% for t in triplets %}"}, "wrong at its line 2"),
        ({"backend": "openai", "model": "m"}, "needs base_url"),
        ({"backend": "openai", "base_url": "http://h/v1"}, "needs model"),
        ({"base_url": "http://h/v1"}, "base_url is for backend 'openai' alone"),
        ({"model": "./no/such/folder"}, "none of that name"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"tempreature": 1.0}, "Extra inputs are not permitted"),
    ],
)
def test_settings_say_what_is_wrong(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace(".", r"\.")):
        GenerateSettings(**values)


def test_settings_stay_within_ten_fields() -> None:
    assert len(GenerateSettings.model_fields) <= 10
    assert all(field.description for field in GenerateSettings.model_fields.values())


def test_a_row_without_what_the_prompt_needs_is_named(make_targets: Targets) -> None:
    with pytest.raises(InputError, match="row 3, field 'label': expected label"):
        build_prompt(row(make_targets), GenerateSettings(model="x/y", prompt="label"))


def test_model_key_follows_the_model_files_and_not_the_window(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    settings = GenerateSettings(model=str(folder))
    key = model_key(settings)
    assert model_key(settings.model_copy(update={"concurrency": 7})) == key
    assert model_key(settings.model_copy(update={"temperature": 0.1})) != key
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_key(settings) != key


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT


@pytest.mark.parametrize(
    ("template", "chat", "system", "want"),
    [
        (CHAT, True, None, "<user>Hi<assistant><think></think>"),
        (CHAT, True, "Be dry", "<system>Be dry<user>Hi<assistant><think></think>"),
        (NO_SYSTEM, True, "Be dry", "<user>Be dry\n\nHi<assistant><think></think>"),
        (CHAT, False, "Be dry", "<bos>Hi"),
        (None, True, "Be dry", "<bos>Be dry\n\nHi"),
    ],
)
def test_chat_templates(tiny_model: Path, template: str | None, chat: bool, system: str | None, want: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    ids = encode_prompt(tokenizer, "Hi", chat=chat, system=system)
    assert tokenizer.decode(ids) == want
