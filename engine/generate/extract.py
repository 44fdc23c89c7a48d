"""What of a written text is kept: one field of its JSON object, or what a pattern finds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from obverse.engine.generate.structured import compile_pattern, strict_json

__all__ = ["Extract", "check_extract", "extraction"]

KINDS = ("field", "regex")
# Models that follow instructions put JSON between such fences, asked or not.
_FENCED = re.compile(r"\A```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\Z", re.DOTALL | re.IGNORECASE)

Extract = Callable[[str], str]
"""The part of a text that is kept; ``ValueError`` says why there is none."""


def check_extract(value: Mapping[str, str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of `KINDS` with a field's name or a sound pattern."""
    if len(value) != 1 or next(iter(value)) not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, saw {', '.join(map(repr, value)) or 'none'}")
    if "regex" in value:
        compile_pattern(value["regex"])
    elif not all(value["field"].split(".")):
        raise ValueError(f"field: expected a name, or names with dots between, saw {value['field']!r}")


def extraction(extract: Mapping[str, str]) -> Extract:
    """What takes the part out of one text, blanks at its ends removed."""
    if "field" in extract:
        names = extract["field"].split(".")
        return lambda text: _field(text, names)
    search = compile_pattern(extract["regex"]).search

    def found(text: str) -> str:
        match = search(text)
        if match is None:
            raise ValueError("the pattern finds nothing")
        part = (match[1] if match.re.groups else match[0]) or ""
        if not part.strip():
            raise ValueError("the pattern finds an empty text")
        return part.strip()

    return found


def _field(text: str, names: list[str]) -> str:
    fenced = _FENCED.match(text)
    value: Any = strict_json(fenced[1] if fenced else text)
    for name in names:
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"no field '{name}'")
        value = value[name]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"field '{'.'.join(names)}' is empty")
    # A number, list or object is kept as its JSON text.
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
