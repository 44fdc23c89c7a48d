"""Structured output, stop strings and sampling through real engines, on a model of random weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from obverse.engine.errors import BackendError, RecipeError
from obverse.engine.generate import Completion, GenerateSettings, generate, make_backend
from obverse.engine.generate.clean import clean_text
from obverse.engine.generate.outputs import retry_rule
from obverse.engine.generate.structured import structure_check

Targets = Callable[..., pa.Table]
SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 10}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["text", "n"],
    "additionalProperties": False,
}


def engine_settings(model: Path, backend: str = "vllm", **more: Any) -> GenerateSettings:
    sampling = {"max_tokens": 60, "temperature": 1.0} | more.pop("sampling", {})
    return GenerateSettings(model=str(model), backend=backend, prompt="instruct", sampling=sampling, **more)


@pytest.fixture(scope="module")
def vllm_rows(tiny_model: Path, make_targets: Targets) -> Iterator[Callable[[GenerateSettings], list[dict[str, Any]]]]:
    """Rows of one real vLLM engine, opened for structured output, under the settings of a test."""
    pytest.importorskip("vllm")
    from obverse.engine.generate.vllm import VllmBackend

    backend: Any = VllmBackend(engine_settings(tiny_model, output={"structured": {"choice": ["a"]}}), seed=5)

    def rows(settings: GenerateSettings) -> list[dict[str, Any]]:
        backend._settings = settings
        backend._prepare_sampling()
        return generate(make_targets(range(40)), settings, seed=5, backend=backend).to_pylist()  # type: ignore[no-any-return]

    yield rows
    backend.close()


@pytest.mark.parametrize(
    "structured",
    [
        {"json": SCHEMA},
        {"regex": r"[a-c]{3}-[0-9]{2}"},
        {"choice": ["yes", "no", "perhaps"]},
        {"grammar": 'root ::= ("ab" | "cd") [0-9]'},
    ],
)
def test_vllm_holds_to_what_is_asked_for(structured: dict[str, Any], vllm_rows: Any, tiny_model: Path) -> None:
    rows = vllm_rows(engine_settings(tiny_model, output={"structured": structured}))
    # A model of random weights keeps to none of these by itself: here each row does.
    assert [row["finish_reason"] for row in rows] == ["stop"] * 40
    check = structure_check(structured)
    assert all(check(row["text"]) is None for row in rows)
    assert len({row["text"] for row in rows}) > 1
    assert max(len(row["text"]) for row in rows) < 60  # JSON without blanks between its parts


def test_rows_that_an_engine_did_not_hold_to_it_are_errors(vllm_rows: Any, tiny_model: Path) -> None:
    # As with a server that ignores the field: the engine is asked for nothing, the judge for a schema.
    settings = engine_settings(tiny_model, output={"structured": {"json": SCHEMA}, "attempts": 2})
    free = engine_settings(tiny_model)
    texts = {row["id"]: row["text"] for row in vllm_rows(free)}
    assert any(texts.values())
    judge = retry_rule(settings).judge  # type: ignore[union-attr]
    kept = [judge(Completion(i, text, "stop", 1, 1)) for i, text in texts.items()]
    assert all(row.text is None and why is not None and why.startswith("structured: ") for row, why in kept)


def test_a_field_is_taken_out_of_what_vllm_wrote(vllm_rows: Any, tiny_model: Path) -> None:
    output: dict[str, Any] = {"structured": {"json": SCHEMA}}
    whole = vllm_rows(engine_settings(tiny_model, output=output))
    taken = vllm_rows(engine_settings(tiny_model, output=output | {"extract": {"field": "text"}}))
    for before, after in zip(whole, taken, strict=True):
        text = clean_text(json.loads(before["text"])["text"].strip()).strip()
        assert after["text"] == (text or None)
        assert after["finish_reason"] == ("stop" if text else "error: extract: field 'text' is empty")


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"extra": {"topk": 3}}, "no sampling parameter 'topk' here; did you mean 'top_k'"),
        ({"extra": {"seed": 3}}, "no sampling parameter 'seed' here"),
        ({"extra": {"top_k": -7}}, "vLLM refuses it: top_k must be"),
    ],
)
def test_vllm_says_before_the_first_row_what_it_does_not_take(
    sampling: dict[str, Any], said: str, vllm_rows: Any, tiny_model: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        vllm_rows(engine_settings(tiny_model, sampling=sampling))


def test_a_schema_that_vllm_can_not_hold_to_is_refused_whole(vllm_rows: Any, tiny_model: Path) -> None:
    structured = {"json": {"type": "object", "patternProperties": {"^a": {"not": {"type": "string"}}}}}
    with pytest.raises(RecipeError, match=r"output\.structured: vLLM refuses it"):
        vllm_rows(engine_settings(tiny_model, output={"structured": structured}))


def test_extra_sampling_reaches_vllm(vllm_rows: Any, tiny_model: Path) -> None:
    greedy = vllm_rows(engine_settings(tiny_model, sampling={"temperature": 0.0}))
    narrow = vllm_rows(engine_settings(tiny_model, sampling={"temperature": 2.0, "extra": {"top_k": 1}}))
    assert [row["text"] for row in narrow] == [row["text"] for row in greedy]


def test_stop_strings_end_a_text_alike_everywhere(vllm_rows: Any, tiny_model: Path, make_targets: Targets) -> None:
    free = vllm_rows(engine_settings(tiny_model, sampling={"temperature": 0.0, "max_tokens": 40}))
    letters = Counter(c for row in free for c in set(row["text"]) if c.isascii() and c.isalpha())
    stop = [*[letter for letter, count in letters.items() if 8 <= count <= 32][:2], "no such text"]
    assert len(stop) == 3, letters
    settings = engine_settings(tiny_model, sampling={"temperature": 0.0, "max_tokens": 40, "stop": stop})
    stopped = vllm_rows(settings)
    cut = [row for row in stopped if row["finish_reason"] == "stop" and row["num_output_tokens"] < 40]
    assert 8 <= len(cut) < 40  # both ends occur
    assert not any(letter in row["text"] for row in stopped for letter in stop)
    local = generate(make_targets(range(40)), settings.model_copy(update={"backend": "transformers"}), seed=5)
    assert local.drop_columns("model").equals(pa.Table.from_pylist(stopped, schema=local.schema).drop_columns("model"))


@pytest.mark.parametrize("more", [{"output": {"structured": {"choice": ["a"]}}}, {"sampling": {"extra": {"top_k": 3}}}])
def test_transformers_says_what_it_can_not_do(more: dict[str, Any], tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match=r"generate\.(output\.structured|sampling\.extra): .*vllm"):
        make_backend(engine_settings(tiny_model, "transformers", **more), seed=5)


def test_a_prompt_that_can_not_be_encoded_fails_alone(vllm_rows: Any, tiny_model: Path, monkeypatch: Any) -> None:
    from jinja2.exceptions import TemplateError

    from obverse.engine.generate import vllm

    encode = vllm.encode_prompt

    def picky(tokenizer: Any, prompt: str, **more: Any) -> list[int]:
        if "Town 7 " in prompt:
            raise TemplateError("no such role")
        return encode(tokenizer, prompt, **more)

    monkeypatch.setattr(vllm, "encode_prompt", picky)
    rows = vllm_rows(engine_settings(tiny_model))
    assert [row["id"] for row in rows if row["text"] is None] == [7]
    assert rows[7]["finish_reason"] == "error: the prompt can't be encoded: TemplateError: no such role"


def test_a_request_that_vllm_refuses_fails_alone_and_a_dead_engine_does_not_pass_for_that(
    vllm_rows: Any, tiny_model: Path, monkeypatch: Any
) -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.llm_engine import LLMEngine

    add = LLMEngine.add_request
    refusals = {7: VLLMValidationError("no such thing"), 9: ValueError("neither")}

    def refuse(self: Any, request_id: str, *more: Any) -> Any:
        if int(request_id) in refusals:
            raise refusals[int(request_id)]
        return add(self, request_id, *more)

    monkeypatch.setattr(LLMEngine, "add_request", refuse)
    rows = vllm_rows(engine_settings(tiny_model))
    assert {row["id"]: row["finish_reason"] for row in rows if row["text"] is None} == {
        7: "error: refused: no such thing",
        9: "error: refused: neither",
    }
    refusals[9] = RuntimeError("the engine's core is gone")
    with pytest.raises(BackendError, match="RuntimeError: the engine's core is gone"):
        vllm_rows(engine_settings(tiny_model))
