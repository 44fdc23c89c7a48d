"""Prompt templates: the built-in ones, and Jinja2 from a recipe or a file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from obverse.engine.errors import RecipeError
from obverse.engine.generate.fields import ROLES, Triplet

if TYPE_CHECKING:
    from obverse.engine.generate.settings import GenerateSettings

__all__ = [
    "BUILT_IN",
    "LISTED",
    "NAMES",
    "BuiltIn",
    "Template",
    "check_fields",
    "check_prompt",
    "compile_template",
    "prompt_source",
]

NAMES = ("auto", "facts", "instruct", "label")
DERIVED = ("attributes", "examples", "facts", "row")
"""Fields of a template that are there whatever the table's columns; ``facts`` where it has triplets."""


class BuiltIn(NamedTuple):
    """A built-in prompt: what all rows with the same examples share, and what is the row's own."""

    head: str
    tail: str
    field: str
    """The column that it is about."""


_ATTRIBUTES = """\
{% if attributes %}Keep to this: {% for key, value in attributes.items() %}{{ key }}: {{ value }}{{ "; " if not loop.last }}{% endfor %}.
{% endif %}
"""  # noqa: E501

BUILT_IN: Mapping[str, BuiltIn] = {
    "instruct": BuiltIn(
        """\
Write one short, natural passage in English that states every fact listed below and nothing that is not listed.
Use each name exactly as it is written, at least once. Reply with the passage alone: no list, no heading, no remark.
{% for example in examples %}

Facts (subject | relation | object):
{% for t in example.triplets %}- {{ t.subject }} | {{ t.predicate }} | {{ t.object }}
{% endfor %}
Passage: {{ example.text }}
{{ "\n" if loop.last }}{% endfor %}""",
        _ATTRIBUTES
        + """\
Facts (subject | relation | object):
{% for t in triplets %}- {{ t.subject }} | {{ t.predicate }} | {{ t.object }}
{% endfor %}""",
        "triplets",
    ),
    "label": BuiltIn(
        """\
Write one realistic, varied text of the kind people really write, such that a careful reader would label it as \
below and nothing else. Don't name the label. Reply with the text alone.
{% for example in examples %}

Label: {{ example.label }}
Text: {{ example.text }}
{{ "\n" if loop.last }}{% endfor %}""",
        _ATTRIBUTES
        + """\
Label: {{ label }}""",
        "label",
    ),
}


LISTED = (("- ", " | ", " | ", "\n"), "", ("Facts (subject | relation | object):\n", ""))
"""What `TripletColumn.written` takes to make the tail of "instruct" for rows without attributes."""


class Template(NamedTuple):
    """A compiled template."""

    render: Callable[[Mapping[str, object]], str]
    names: frozenset[str]
    """The fields that it speaks of."""


def check_prompt(value: str) -> None:
    """Raise ``ValueError`` unless ``value`` is a built-in name, a sound Jinja2 template or a file holding one."""
    if value not in NAMES:
        compile_template(_read(value))


def prompt_source(settings: GenerateSettings) -> str:
    """The prompt's name or, for a template (also one kept in a file), its text: what a run's key must hash."""
    return settings.prompt if settings.prompt in NAMES else _read(settings.prompt)


def check_fields(settings: GenerateSettings, columns: Collection[str]) -> None:
    """Raise `RecipeError` where the template speaks of a field that rows with these ``columns`` don't have."""
    source = prompt_source(settings)
    if source in NAMES:
        return
    known = {*columns, *(name for name in DERIVED if name != "facts" or "triplets" in columns)}
    unknown = sorted(compile_template(source).names - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], sorted(known), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise RecipeError(
            f"generate.prompt: the template names {', '.join(unknown)}; a row has {', '.join(sorted(known))}{hint}"
        )


def _read(value: str) -> str:
    """The template's text: ``value`` itself where it has template marks or lines, else the file of that name."""
    if any(mark in value for mark in ("{{", "{%", "\n")):
        return value
    path = Path(value).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8")
    near = difflib.get_close_matches(value, NAMES, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(
        f"{value!r} is none of {', '.join(NAMES)}, no file of that name is there, "
        f"and it has no {{{{ field }}}} to be a template itself{hint}"
    )


@lru_cache(maxsize=16)
def compile_template(source: str) -> Template:
    """A sandboxed template. Raises ``ValueError`` for bad syntax."""
    import jinja2
    from jinja2 import meta, sandbox

    class Environment(sandbox.ImmutableSandboxedEnvironment):
        def getattr(self, obj: Any, attribute: str) -> Any:
            # A name of a triplet is a string: nothing that the sandbox, three times slower, need look at.
            if type(obj) is Triplet and attribute in ROLES:
                return obj[attribute]
            return super().getattr(obj, attribute)

    environment = Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False, finalize=_no_null
    )
    try:
        names = meta.find_undeclared_variables(environment.parse(source))
        compiled: jinja2.Template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the prompt template is wrong at its line {error.lineno}: {error.message}") from error
    return Template(compiled.render, frozenset(names))


def _no_null(value: object) -> object:
    """What a template writes: never the word None where a row has nothing."""
    if value is None:
        raise ValueError("the template writes a field that is null in this row")
    return value
