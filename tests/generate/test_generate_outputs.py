"""What becomes of written texts: judged, tried again, taken apart. (Real engines: test_generate_outputs_engines.)"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from obverse.engine.errors import RecipeError
from obverse.engine.generate import Completion, GenerateSettings, Request, generate
from obverse.engine.generate.clean import clean_text
from obverse.engine.generate.outputs import is_refusal, retry_rule
from obverse.engine.generate.structured import check_structured, openai_fields, structure_check
from obverse.engine.records.keys import derive_seed

Targets = Callable[..., pa.Table]
SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 10}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["text", "n"],
    "additionalProperties": False,
}


class Script:
    """A backend that says for each row what its attempts say, in an order of its own; counts what it is asked."""

    def __init__(self, says: Callable[[int, int], tuple[str | None, str]]) -> None:
        self.says, self.seeds = says, dict[int, list[int]]()
        self.random = random.Random(3)

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        held: list[Request] = []
        more = True
        while held or more:
            while more and len(held) < 5:
                request = next(requests, None)
                more = request is not None
                if request is not None:
                    held.append(request)
            if held:
                request = held.pop(self.random.randrange(len(held)))
                seeds = self.seeds.setdefault(request.id, [])
                text, reason = self.says(request.id, len(seeds))
                seeds.append(request.seed)
                yield Completion(request.id, text, reason, 3, 7)

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def settings_for(**output: Any) -> GenerateSettings:
    return GenerateSettings(model="x/y", prompt="instruct", output=output)


def judged(text: str | None, reason: str = "stop", **output: Any) -> tuple[str | None, str, str | None]:
    rule = retry_rule(settings_for(**output))
    assert rule is not None
    kept, why = rule.judge(Completion(1, text, reason, 3, 7))
    assert (kept.id, kept.num_prompt_tokens, kept.num_output_tokens) == (1, 3, 7)
    return kept.text, kept.finish_reason, why


def test_no_rule_where_nothing_can_be_rejected() -> None:
    assert retry_rule(settings_for(retry_on=[])) is None
    facts = GenerateSettings(output={"retry_on": ["refusal"]})  # the demo model continues facts, it refuses nothing
    assert retry_rule(facts) is None
    rule = retry_rule(GenerateSettings())
    assert rule is not None
    assert rule.judge(Completion(1, "I can't help with that.", "stop", 3, 7))[1] is None
    assert rule.judge(Completion(1, "", "stop", 3, 7)) == (
        Completion(1, None, "error: empty: the model wrote nothing", 3, 7),
        "empty: the model wrote nothing",
    )


def test_rows_are_tried_again_with_other_seeds_and_then_are_errors(make_targets: Targets) -> None:
    # Row i is sound from its i-th attempt on; row 9 never ends, row 8 always fails in the engine.
    def says(row: int, attempt: int) -> tuple[str | None, str]:
        if row == 8:
            return None, "error: refused: x"
        if row == 9:
            return "cut", "length"
        return (f"row {row}", "stop") if attempt >= row else ("", "stop")

    backend = Script(says)
    settings = settings_for(attempts=4, retry_on=["empty", "length"])
    rows = generate(make_targets(range(10)), settings, seed=5, backend=backend).to_pylist()
    assert [len(backend.seeds[i]) for i in range(10)] == [1, 2, 3, 4, 4, 4, 4, 4, 1, 4]
    for row in rows:
        i, seeds = row["id"], backend.seeds[row["id"]]
        assert seeds == [derive_seed(5, f"generate-{k}" if k else "generate", i) for k in range(len(seeds))]
        assert row["seed"] == seeds[-1]  # the seed of the text that is kept
    assert [row["text"] for row in rows] == ["row 0", "row 1", "row 2", "row 3", *[None] * 5, "cut"]
    assert {row["finish_reason"] for row in rows[4:8]} == {"error: empty: the model wrote nothing"}
    assert [row["finish_reason"] for row in rows[8:]] == ["error: refused: x", "length"]


def test_the_budget_of_retries_holds(make_targets: Targets) -> None:
    backend = Script(lambda row, attempt: ("", "stop"))
    rows = generate(make_targets(range(600)), settings_for(attempts=9, retry_share=0.25), seed=5, backend=backend)
    # 100 in any case, and a quarter of the rows done by then: never the 4,800 that nine attempts at each would be.
    assert 600 + 100 <= sum(map(len, backend.seeds.values())) <= 600 + 150
    assert rows["text"].null_count == 600


def test_only_the_reasons_asked_for_are_tried_again() -> None:
    structured = {"json": SCHEMA}
    assert judged("no", structured=structured, retry_on=["empty"])[1:] == (
        "error: structured: not JSON: Expecting value: line 1 column 1 (char 0)",
        None,
    )
    text, reason, why = judged('{"text": "a", "n": 100}', structured=structured)
    assert text is None
    assert reason == f"error: {why}"
    assert why == "structured: not of the schema, at $.n: 100 is greater than the maximum of 99"
    # Cut in the middle of an object: the tokens ran out, and what is left is no JSON.
    assert judged('{"text": "a', "length", structured=structured)[1].startswith(
        "error: structured: cut at max_tokens, "
    )
    assert judged('{"text": "a", "n": 1}', "length", structured=structured)[1] == "length"


@pytest.mark.parametrize(
    ("structured", "good", "bad"),
    [
        (
            {"json": SCHEMA},
            ['{"text": "abc", "n": 3}', '{"n":0,"text":""}'],
            [
                '{"text": "abc", "n": 3} x',
                '{"text": "a\tb", "n": 1}',
                '{"text": "abc", "n": 1, "n": 2}',
                '{"text": "abc", "n": NaN}',
                '{"text": "abc"}',
                '{"text": "abcdefghijk", "n": 3}',
                "[" * 100_000,
                '{"text": "abc", "n": 1' + "0" * 5000 + "}",
            ],
        ),
        (
            {"json": {"$defs": {"list": {"items": {"$ref": "#/$defs/list"}, "type": "array"}}, "$ref": "#/$defs/list"}},
            ["[[], [[]]]"],
            ["[" * 900 + "]" * 900, "[[1]]"],
        ),
        ({"json": {"type": "number", "multipleOf": 0.25}}, ["0.5"], ["1e999", "0.3"]),
        ({"json": {"properties": {"pattern": {}, "$ref": {"type": "null"}}}}, ['{"$ref": null}'], ['{"$ref": 1}']),
        ({"json": {"type": "string", "format": "date"}}, ['"2026-11-21"'], ['"21 November"']),
        ({"json": {"$defs": {"a/b": {"type": "null"}}, "$ref": "#/$defs/a~1b"}}, ["null"], ["1"]),
        ({"regex": r"\d{3}-\d{4}"}, ["555-1234"], ["555-12345", "x555-1234", ""]),
        ({"choice": ["yes", "no"]}, ["yes"], ["Yes", "yes no", ""]),
        ({"grammar": 'root ::= "yes" | "no " [0-9]+'}, ["yes", "no 12"], ["no", "yesno 1", "", "é"]),
        ({"grammar": 'start: "a" /[0-9]+/'}, ["a1"], ["a", "b1"]),
    ],
)
def test_what_is_asked_for_is_checked(structured: dict[str, Any], good: list[str], bad: list[str]) -> None:
    pytest.importorskip("jsonschema")
    pytest.importorskip("llguidance")
    check_structured(structured)
    check = structure_check(structured)
    for text in good:
        assert check(text) is None, text
    for text in bad:
        assert check(text), text
    for text in good:  # the check keeps nothing of the rows before
        assert check(text) is None, text


@pytest.mark.parametrize(
    ("structured", "said"),
    [
        ({}, "one of json, regex, choice, grammar, saw none"),
        ({"jsn": {}}, "saw 'jsn'"),
        ({"regex": "a", "choice": ["a"]}, "saw 'regex', 'choice'"),
        ({"json": {"type": "strin"}}, "at type: 'strin'"),
        ({"json": '{"type": "string"}'}, "expected a JSON schema"),
        ({"json": {"items": [{"$ref": "http://example.org/x"}]}}, "within the schema"),
        ({"json": {"$ref": "#/$defs/x"}}, "names nothing"),
        ({"json": {"properties": {"a": {"pattern": "("}}}}, "unterminated"),
        ({"json": {"patternProperties": {"(": {}}}}, "unterminated"),
        ({"regex": "("}, "unterminated"),
        ({"choice": []}, "a list of texts"),
        ({"choice": ["a "]}, "without blanks"),
        ({"grammar": " "}, "expected a grammar"),
    ],
)
def test_a_wrong_structure_is_known_before_any_work(structured: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("$", r"\$")):
        settings_for(structured=structured)


def test_a_wrong_grammar_is_known_before_the_first_row() -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(RecipeError, match="not a grammar"):
        retry_rule(settings_for(structured={"grammar": "root ::= ("}))


@pytest.mark.parametrize(
    ("extract", "text", "want"),
    [
        ({"field": "text"}, '{"text": " A b. "}', "A b."),
        ({"field": "a.b"}, '```json\n{"a": {"b": "c"}}\n```', "c"),
        ({"field": "n"}, '{"n": [1, "é"]}', '[1, "é"]'),
        ({"field": "n"}, '{"n": 0}', "0"),
        ({"field": "text"}, '{"text": "\\ud83d\\ude00\\ud800\\u0007"}', "\U0001f600\ufffd"),
        ({"regex": r"<text>(.*?)</text>"}, "so <text> it </text>", "it"),
        ({"regex": r"\d+"}, "a 12 b", "12"),
        ({"field": "text"}, '{"txt": "a"}', "extract: no field 'text'"),
        ({"field": "a.b"}, '{"a": 3}', "extract: no field 'b'"),
        ({"field": "text"}, '{"text": null}', "extract: field 'text' is empty"),
        ({"field": "text"}, '{"text": " "}', "extract: field 'text' is empty"),
        ({"field": "text"}, 'Here: {"text": "a"}', "extract: Expecting value: line 1 column 1 (char 0)"),
        ({"regex": r"<text>(.*?)</text>"}, "so", "extract: the pattern finds nothing"),
        ({"regex": r"x(y)?"}, "x", "extract: the pattern finds an empty text"),
    ],
)
def test_what_is_kept_of_a_text(extract: dict[str, str], text: str, want: str) -> None:
    kept, reason, why = judged(text, extract=extract)
    if want.startswith("extract: "):
        assert (kept, reason, why) == (None, f"error: {want}", want)
    else:
        assert (kept, reason, why) == (want, "stop", None)
        assert want.encode()


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry, I can\u2019t assist with this request", True),
        ("Sorry, but I cannot write that kind of text.", True),
        ("I cannot fulfill your request.", True),
        ("I apologize, but I am unable to generate content of that kind", True),
        ("As an AI language model, I have no feelings", True),
        ("Unfortunately, I'm not able to comply with this", True),
        ("I won't engage with that.", True),
        ("I can't help but smile when I see her.", False),
        ("I'm sorry I missed your call; I can't make it on Friday.", False),
        ("I cannot write any longer, the war has begun.", False),
        ("As an airline we promise low fares.", False),
        ("Paris is the capital. I'm sorry, but I can't help with that.", False),
        ("", False),
    ],
)
def test_refusals_are_known_by_how_they_open(text: str, refusal: bool) -> None:
    assert is_refusal(text) is refusal
    if refusal:
        assert judged(text) == (None, f"error: refusal: {text[:80]}", f"refusal: {text[:80]}")
        assert judged(json.dumps({"text": text}), extract={"field": "text"})[0] is None
    elif text:
        assert judged(text) == (text, "stop", None)


def test_control_characters_and_lone_surrogates_do_not_reach_parquet(make_targets: Targets) -> None:
    assert clean_text("a\tb\r\nc é \U0001f600 \u202e") == "a\tb\r\nc é \U0001f600 \u202e"
    assert clean_text("\x1b[31mred\x00\x07\x9b\x7f") == "[31mred"
    assert clean_text("a\x0bb\x0cc\x85d\x1ce") == "a b c d e"
    assert clean_text("\ud83d\ude00 \ud800 \udc00x") == "\U0001f600 \ufffd \ufffdx"
    draw = random.Random(7)
    hostile = [
        "".join(chr(draw.choice((draw.randrange(0x300), draw.randrange(0xD700, 0xE100)))) for _ in range(40))
        for _ in range(64)
    ]
    backend = Script(lambda row, attempt: (hostile[row], "stop"))
    rows = generate(make_targets(range(64)), settings_for(), seed=1, backend=backend)
    for row in rows.to_pylist():
        assert row["text"] == clean_text(hostile[row["id"]])
        assert not any(0xD800 <= ord(c) < 0xE000 or (ord(c) < 32 and c not in "\t\n\r") for c in row["text"])
    broken = Script(lambda row, attempt: (f"\ud800\x1b{row} no", "stop"))
    rows = generate(make_targets(range(3)), settings_for(structured={"choice": ["yes"]}), seed=1, backend=broken)
    assert rows["text"].null_count == 3
    assert all(reason.isprintable() for reason in rows["finish_reason"].to_pylist())


def test_what_a_server_is_asked() -> None:
    assert openai_fields({"json": SCHEMA}) == {
        "response_format": {"type": "json_schema", "json_schema": {"name": "row", "schema": SCHEMA}}
    }
    assert openai_fields({"regex": "a+"}) == {"structured_outputs": {"regex": "a+"}}


def test_a_server_is_sent_all_of_it() -> None:
    from obverse.engine.generate.openai_http import Secrets
    from obverse.engine.generate.openai_wire import Wire

    settings = GenerateSettings(
        backend="openai",
        base_url="http://127.0.0.1:1/v1",
        model="m",
        sampling={"stop": ["a", "b"], "extra": {"top_k": 3}},
        output={"structured": {"json": SCHEMA}},
    )
    _, data = Wire(settings, {}, Secrets(())).body(Request(1, "Hi", 5, True, 0))
    body = json.loads(data)
    assert body["stop"] == ["a", "b"]
    assert body["top_k"] == 3
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
