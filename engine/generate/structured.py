"""Structured output: what a text must be, held by the engine while it writes and checked when it has written.

The check comes after because an engine's promise is not enough: of 256 rows that vLLM 0.32 ended with "stop" under one
small JSON schema, 205 (xgrammar), 256 (guidance) and 81 (outlines) were of that schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

from obverse.engine.errors import MissingPackageError, RecipeError

__all__ = ["KINDS", "Check", "check_structured", "openai_fields", "strict_json", "structure_check"]

KINDS = ("json", "regex", "choice", "grammar")

Check = Callable[[str], str | None]
"""Why a text is not what was asked for; None where it is."""


def check_structured(value: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of `KINDS` with a sound schema, pattern, list or grammar.

    What only an absent package could tell (jsonschema, llguidance) is left to `structure_check`.
    """
    if len(value) != 1 or next(iter(value)) not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, saw {', '.join(map(repr, value)) or 'none'}")
    [(kind, content)] = value.items()
    if kind == "json":
        _check_schema(content)
    elif kind == "regex":
        compile_pattern(content)
    elif kind == "choice":
        if not isinstance(content, list) or not content:
            raise ValueError(f"choice: expected a list of texts, saw {content!r}")
        for text in content:
            # Texts are kept without blanks at their ends, so such a choice could never be met.
            if not isinstance(text, str) or not text or text != text.strip():
                raise ValueError(f"choice: expected texts without blanks at their ends, saw {text!r}")
    elif not isinstance(content, str) or not content.strip():
        raise ValueError(f"grammar: expected a grammar (EBNF or Lark), saw {content!r}")


def compile_pattern(pattern: object) -> re.Pattern[str]:
    """``pattern``, compiled; ``ValueError`` says what is wrong with it."""
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"regex: expected a pattern, saw {pattern!r}")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"regex: Python's re can't read {pattern!r}: {error}") from None


def structure_check(structured: Mapping[str, Any]) -> Check:
    """The check of one text (as kept: without blanks at its ends) against a ``structured`` setting.

    Raises `MissingPackageError` where the package that checks is not installed, `RecipeError` for a bad grammar.
    """
    [(kind, content)] = structured.items()
    if kind == "json":
        return _json_check(content)
    if kind == "grammar":
        return _grammar_check(content)
    if kind == "choice":
        known = frozenset(content)
        return lambda text: None if text in known else f"none of the {len(known)} choices: {_short(text)}"
    whole = compile_pattern(content).fullmatch
    return lambda text: None if whole(text) else f"not of the pattern: {_short(text)}"


def openai_fields(structured: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an OpenAI-style request that ask a server to hold to ``structured``.

    JSON schemas go the way that every such server knows; the rest is vLLM's own field.
    """
    if "json" in structured:
        named = {"name": "row", "schema": structured["json"]}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    return {"structured_outputs": dict(structured)}


def strict_json(text: str) -> Any:
    """The value of a JSON text; ``ValueError`` for anything else (NaN, a name twice, nesting beyond Python's)."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_schema(schema: object) -> None:
    if not isinstance(schema, dict):
        raise ValueError(f"json: expected a JSON schema (an object), saw {schema!r}")
    for name, value in _keywords(schema):
        if name in ("$ref", "$dynamicRef", "$recursiveRef"):
            _check_reference(schema, value)
        elif name == "pattern":
            compile_pattern(value)
    try:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for
    except ImportError:
        return
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        place = "/".join(map(str, error.absolute_path))
        raise ValueError(f"json: not a JSON schema{f', at {place}' if place else ''}: {error.message}") from None


def _keywords(schema: object) -> Iterator[tuple[str, object]]:
    """Every keyword and its value, but schemas below (a property may be called as a keyword is)."""
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name == "patternProperties" and isinstance(value, dict):
                yield from (("pattern", pattern) for pattern in value)
            if isinstance(value, dict | list):
                yield from _keywords(value)
            else:
                yield name, value
    elif isinstance(schema, list):
        for value in schema:
            yield from _keywords(value)


def _check_reference(schema: dict[str, Any], reference: object) -> None:
    """Only what is in the schema itself can be meant: nothing is fetched, and no row meets a missing part."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise ValueError(f"json: a $ref must be '#' or '#/...', within the schema, saw {reference!r}")
    place: Any = schema
    for part in unquote(reference).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict) and part in place:
            place = place[part]
        else:
            raise ValueError(f"json: $ref {reference!r} names nothing in the schema")


def _json_check(schema: dict[str, Any]) -> Check:
    try:
        import jsonschema
        import referencing
    except ImportError as error:
        needed_for = "generate.output.structured = {json = ...}"
        raise MissingPackageError("jsonschema", needed_for=needed_for, extra="openai") from error
    kind = jsonschema.validators.validator_for(schema)
    # An empty registry: no schema is ever fetched from elsewhere.
    validator = kind(schema, registry=referencing.Registry(), format_checker=kind.FORMAT_CHECKER)

    def why(text: str) -> str | None:
        try:
            value = strict_json(text)
        except ValueError as error:
            return f"not JSON: {error}"
        try:
            wrong = next(validator.iter_errors(value), None)
        except Exception as error:  # a text that the check can't take is refused, and the run goes on
            return f"can't be checked against the schema: {type(error).__name__}: {error}"
        return None if wrong is None else f"not of the schema, at {wrong.json_path}: {wrong.message}"

    return why


def _grammar_check(grammar: str) -> Check:
    try:
        import llguidance
    except ImportError as error:
        needed_for = "generate.output.structured = {grammar = ...}"
        raise MissingPackageError("llguidance", needed_for=needed_for, extra="cpu") from error
    tokenizer = llguidance.LLTokenizer("byte")
    try:
        compiled = llguidance.grammar_from("grammar", grammar)
        wrong = llguidance.LLMatcher.validate_grammar(compiled, tokenizer)
    except Exception as error:  # of its parser, whatever that raises
        wrong = str(error)
    if wrong:
        raise RecipeError(f"generate.output.structured: not a grammar: {' '.join(wrong.split())[:300]}")
    fresh = llguidance.LLMatcher(tokenizer, compiled, log_level=0)

    def why(text: str) -> str | None:
        matcher, data = fresh.deep_copy(), list(text.encode())
        if matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting():
            return None
        return f"not of the grammar: {_short(text)}"

    return why


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
