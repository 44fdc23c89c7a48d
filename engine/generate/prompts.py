"""Prompts: from a target row to the string a model continues or answers.

Four are built in::

    facts     [s] Paris [r] capital of [o] France [e] [text]      what the demo model was trained on
    instruct  an instruction with one line per triplet            any instruction-tuned model
    label     an instruction to write a text of the given label   classification targets
    a Jinja2 template over ``triplets``, ``facts``, ``label`` and ``attributes``

Everything that all rows share stands first in the built-in ones, so that prefix caches hit.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from obverse.engine.errors import InputError, RecipeError
from obverse.engine.records.linearise import linearise, triples_of

if TYPE_CHECKING:
    import jinja2

    from obverse.engine.generate.settings import GenerateSettings

__all__ = ["Prompt", "build_prompt", "check_prompt", "encode_prompt", "prompt_source"]

NAMES = ("auto", "facts", "instruct", "label")
FIELDS = ("triplets", "facts", "label", "attributes")

INSTRUCT = """\
Write one short, natural passage in English that states every fact listed below and nothing that is not listed.
Use each name exactly as it is written, at least once. Reply with the passage alone: no list, no heading, no remark.
{% if attributes %}Keep to this: {% for key, value in attributes.items() %}{{ key }}: {{ value }}{{ "; " if not loop.last }}{% endfor %}.
{% endif %}
Facts (subject | relation | object):
{% for t in triplets %}- {{ t.subject }} | {{ t.predicate }} | {{ t.object }}
{% endfor %}"""  # noqa: E501

LABEL = """\
Write one realistic, varied text of the kind people really write, such that a careful reader would label it as \
below and nothing else. Don't name the label. Reply with the text alone.
{% if attributes %}Keep to this: {% for key, value in attributes.items() %}{{ key }}: {{ value }}{{ "; " if not loop.last }}{% endfor %}.
{% endif %}
Label: {{ label }}"""  # noqa: E501


class Prompt(NamedTuple):
    """A prompt's text, and whether it is a user's message for a chat template."""

    text: str
    chat: bool


def check_prompt(value: str) -> None:
    """Raise ``ValueError`` unless ``value`` is a built-in name, a sound Jinja2 template or a file holding one."""
    if value not in NAMES:
        _compile(_read(value))


def prompt_source(settings: GenerateSettings) -> str:
    """The prompt's name or, for a template (also one kept in a file), its text: what a run's key must hash."""
    return settings.prompt if settings.prompt in NAMES else _read(settings.prompt)


def build_prompt(target: Mapping[str, Any], settings: GenerateSettings) -> Prompt:
    """The prompt of one TARGETS row (as ``to_pylist`` gives it).

    Raises `InputError` for a row that lacks what the prompt speaks of, `RecipeError` where the demo model is
    asked for anything but triplets.
    """
    name = _resolve(settings, target)
    _require(target, name)
    if name == "facts":
        return Prompt(f"{linearise(triples_of(target['triplets']))} [text]", chat=False)
    return Prompt(_render(_BUILT_IN.get(name) or prompt_source(settings), target), chat=True)


def encode_prompt(tokenizer: Any, prompt: str, *, chat: bool, system: str | None = None) -> list[int]:
    """Token ids of a prompt, through the tokenizer's own chat template where ``chat`` and it has one.

    Thinking is switched off where the template knows the switch: the thoughts are not the data.
    """
    if not (chat and getattr(tokenizer, "chat_template", None)):
        text = f"{system}\n\n{prompt}" if system and chat else prompt
        return list(tokenizer.encode(text))
    messages = [{"role": "user", "content": prompt}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text = _apply_template(tokenizer, messages)
    except Exception as error:
        # Some templates refuse the system role; the words then open the user's message.
        if not system or type(error).__name__ != "TemplateError":
            raise
        text = _apply_template(tokenizer, [{"role": "user", "content": f"{system}\n\n{prompt}"}])
    return list(tokenizer.encode(text, add_special_tokens=False))


def _apply_template(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return str(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    )


_BUILT_IN = {"instruct": INSTRUCT, "label": LABEL}


def _resolve(settings: GenerateSettings, target: Mapping[str, Any]) -> str:
    extraction = target.get("triplets") is not None
    if settings.prompt != "auto":
        return settings.prompt
    if settings.model != "demo":
        return "instruct" if extraction else "label"
    if not extraction:
        raise RecipeError(
            "the demo model writes text for triplets only; for labels set generate.model to an "
            "instruction-tuned model, such as Qwen/Qwen3-8B"
        )
    return "facts"


def _require(target: Mapping[str, Any], name: str) -> None:
    """Check that the row has the column that a built-in prompt is about."""
    field = {"facts": "triplets", "instruct": "triplets", "label": "label"}.get(name)
    if field is not None and not target.get(field):
        raise InputError(
            f"{field} for the '{name}' prompt", row=target["id"], field=field, seen=target.get(field, None)
        )


def _render(template: str, target: Mapping[str, Any]) -> str:
    triples = triples_of(target["triplets"]) if target.get("triplets") is not None else []
    attributes = target.get("attributes")
    values = {
        "triplets": [t._asdict() for t in triples],
        "facts": linearise(triples),
        "label": target.get("label"),
        "attributes": json.loads(attributes) if attributes else {},
    }
    return str(_compile(template)(values))


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
def _compile(template: str) -> Callable[[Mapping[str, object]], str]:
    """A sandboxed renderer. Raises ``ValueError`` for bad syntax or a field that rows don't have."""
    import jinja2
    from jinja2 import meta, sandbox

    environment = sandbox.SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    try:
        unknown = meta.find_undeclared_variables(environment.parse(template)) - set(FIELDS)
        compiled: jinja2.Template = environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the prompt template is wrong at its line {error.lineno}: {error.message}") from error
    if unknown:
        raise ValueError(f"the prompt template names {', '.join(sorted(unknown))}; a row has {', '.join(FIELDS)}")
    return compiled.render
