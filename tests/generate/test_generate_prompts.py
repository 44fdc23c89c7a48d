from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from obverse.engine.errors import InputError, RecipeError
from obverse.engine.generate import GenerateSettings, build_prompt, model_key
from obverse.engine.generate.prompts import PIECE, build_prompts, encode_prompt, prompt_source
from obverse.engine.records.linearise import linearise, triples_of
from obverse.engine.records.schemas import TARGETS

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


def test_a_row_without_what_the_prompt_needs_is_named(make_targets: Targets) -> None:
    with pytest.raises(InputError, match="row 3, field 'label': expected label"):
        build_prompt(row(make_targets), GenerateSettings(model="x/y", prompt="label"))


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


ODD = [
    "Paris",
    "",
    " x ",
    "[e]",
    "{{ 7 * 7 }}",
    "é\u0301",
    "\u202eabc",
    "𝔘\U0001f600",
    "a\nb\tc",
    "\x00",
    "'\"\\",
    "ß" * 40,
]


def random_targets(seed: int, rows: int, *, nulls: bool = True) -> pa.Table:
    """Targets with all that may be wrong with one: nulls at every level, empty lists, odd characters, bad JSON."""
    draw = random.Random(seed)

    def maybe(value: Any, share: float = 0.06) -> Any:
        return None if nulls and draw.random() < share else value

    def name() -> Any:
        return maybe({"uri": maybe("x:y"), "surfaceform": maybe(draw.choice(ODD))})

    def triplet() -> Any:
        return maybe({"subject": name(), "predicate": name(), "object": name()}, 0.03)

    attributes = [None, "{}", '{"tone": "dry"}', '{"a": "\\ud800"}', "[1]", "no JSON", '{"é": 3, "b": null}']
    return pa.Table.from_pylist(
        [
            {
                "id": i,
                "triplets": maybe([triplet() for _ in range(draw.randrange(4))], 0.1),
                "label": maybe(draw.choice(ODD)),
                "attributes": draw.choice(attributes if nulls else attributes[:3:2]),
                "is_real": False,
            }
            for i in range(rows)
        ],
        schema=TARGETS,
    )


def chunked(table: pa.Table, seed: int) -> pa.Table:
    """The same rows in chunks of random sizes, some empty, each a slice of a larger array."""
    draw, parts, start = random.Random(seed), [], 0
    while start < table.num_rows:
        size = draw.randrange(9)
        parts.append(table.slice(start, size))
        start += size
    return pa.concat_tables([*parts, table.slice(0, 0)])


def one_by_one(table: pa.Table, settings: GenerateSettings) -> tuple[list[str | None], dict[int, str]]:
    texts: list[str | None] = []
    errors = {}
    for place, target in enumerate(table.to_pylist()):
        try:
            texts.append(build_prompt(target, settings).text)
        except Exception as error:
            texts.append(None)
            errors[place] = f"no prompt: {error}"
    return texts, errors


PROMPTS = [
    "facts",
    "auto",
    "instruct",
    "label",
    "{{ facts }}",
    "{{ id }} {% for t in triplets %}{{ t.subject }}/{{ t['predicate'] }}/{{ t.object }};{% endfor %}{{ row.label }}",
    "{{ label | upper }}{{ attributes.tone }}",
    "{{ triplets | length }} {{ examples | length }}",
    "Nothing of the row.{# #}\n",
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("nulls", [True, False])
def test_a_table_and_its_rows_have_the_same_prompts(prompt: str, nulls: bool) -> None:
    settings = GenerateSettings(model="x/y", prompt=prompt)
    seed = random.randrange(10**9)
    table = random_targets(seed, 400, nulls=nulls)
    # Chunks that are slices of one array, in another order than its own.
    for shape in (table, chunked(table, seed), pa.concat_tables([table.slice(250, 90), chunked(table, seed).slice(3)])):
        wanted = one_by_one(shape, settings)
        made = build_prompts(shape, settings)
        assert any(text is not None for text in wanted[0]), seed
        assert (list(made.texts), made.errors) == wanted, seed
    assert made.chat == (prompt != "facts")


def test_facts_of_a_table_are_the_linearised_triples() -> None:
    table = random_targets(5, 300, nulls=False)
    made = build_prompts(table, GenerateSettings(model="x/y", prompt="facts"))
    for text, triplets in zip(made.texts, table["triplets"].to_pylist(), strict=True):
        assert text == (f"{linearise(triples_of(triplets))} [text]" if triplets else None)


def test_other_shapes_of_triplets_and_more_rows_than_a_piece() -> None:
    settings = GenerateSettings(model="x/y", prompt="facts")
    plain = pa.table({"id": [0, 1], "triplets": [[{"subject": "A", "predicate": "b", "object": "C"}], []]})
    want = "[s] A [r] b [o] C [e] [text]"
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        parts = pa.struct([(role, kind) for role in ("subject", "predicate", "object")])
        made = build_prompts(plain.set_column(1, "triplets", plain["triplets"].cast(pa.list_(parts))), settings)
        assert made.texts == [want, None]
        assert list(made.errors) == [1]
    many = pa.concat_tables([plain] * (PIECE // 2 + 3)).combine_chunks()
    made = build_prompts(many, settings)
    assert (len(made.texts), made.texts[-2], len(made.errors)) == (PIECE + 6, want, PIECE // 2 + 3)
    assert max(made.errors) == PIECE + 5
    strange = pa.table({"id": [0], "triplets": ["A, b, C"]})
    assert "triplets[0].subject" in build_prompts(strange, settings).errors[0]


def test_any_column_is_a_field_and_an_unknown_one_is_named() -> None:
    table = pa.table({"id": [4, 5], "topic": ["tea", None], "tags": [["a", "b"], []], "label": [0, 1]})
    made = build_prompts(table, GenerateSettings(model="x/y", prompt="On {{ topic }} ({{ tags | join('+') }})."))
    assert made.texts == ["On tea (a+b).", None]
    assert "null in this row" in made.errors[1]  # never the word None
    # A label of 0 is a label.
    assert str(build_prompts(table, GenerateSettings(model="x/y", prompt="label")).texts[0]).endswith("Label: 0")
    with pytest.raises(RecipeError, match=r"names topics; a row has attributes, examples, id.*did you mean 'topic'"):
        build_prompts(table, GenerateSettings(model="x/y", prompt="{{ topics }}"))
    with pytest.raises(RecipeError, match="names facts"):
        build_prompts(table, GenerateSettings(model="x/y", prompt="{{ facts }}"))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("{{ 1 // id }}", "by zero"),
        ("{{ ().__class__.__mro__ }}{{ id }}", "unsafe"),
        ("{{ attributes.update({'a': 1}) }}{{ id }}", "is unsafe"),
        ("{{ [].append(1) }}{{ id }}", "is unsafe"),
    ],
)
def test_what_a_template_raises_is_its_rows_error(prompt: str, said: str, make_targets: Targets) -> None:
    made = build_prompts(make_targets([0]), GenerateSettings(model="x/y", prompt=prompt))
    assert made.texts == [None]
    assert said in made.errors[0]


def test_bytes_that_are_no_text_fail_their_row_alone(make_targets: Targets) -> None:
    good = make_targets([0, 1, 2])
    bad = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0\5\0\0\0"), pa.py_buffer(b"ab\xffcd")]
    )
    made = build_prompts(good.append_column("note", bad), GenerateSettings(model="x/y", prompt="{{ note }}"))
    assert (made.texts, list(made.errors)) == (["ab", None, "cd"], [1])
    assert "utf-8" in made.errors[1]
    attributes = pa.array([None, json.dumps({"a": "\ud800"}), json.dumps({"a": "b"})])
    table = good.set_column(good.column_names.index("attributes"), "attributes", attributes)
    made = build_prompts(table, GenerateSettings(model="x/y", prompt="instruct"))
    assert list(made.errors) == [1]
    assert "surrogates" in made.errors[1]
    assert all(text is None or text.encode() for text in made.texts)


def test_one_row_without_triplets_is_a_fault_of_the_recipe_for_the_demo_model() -> None:
    with pytest.raises(RecipeError, match="triplets only"):
        build_prompts(random_targets(1, 60), GenerateSettings())
