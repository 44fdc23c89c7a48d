"""Command-line options made from settings classes, so that a verb has every option its stage has."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

__all__ = ["from_options", "input_file", "output_file", "quiet", "seed", "settings_options", "task"]

Model = TypeVar("Model", bound=BaseModel)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

input_file = click.Path(exists=True, path_type=Path)
output_file = click.Path(path_type=Path)


def seed() -> Decorator:
    """The option ``--seed``."""
    return click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Random seed.")


def quiet() -> Decorator:
    """The option ``--quiet``."""
    return click.option("-q", "--quiet", is_flag=True, help="No progress.")


def task() -> Decorator:
    """The option ``--task``."""
    choice = click.Choice(["extraction", "classification"])
    return click.option("--task", type=choice, default="extraction", show_default=True, help="Triplets or labels.")


def settings_options(settings: type[BaseModel], *, skip: tuple[str, ...] = ()) -> Decorator:
    """Options for every field of ``settings`` (but ``skip``): type, default and help are the field's own."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(settings.model_fields.items()):
            if name not in skip:
                function = _option(name, field)(function)
        return function

    return decorate


def _option(name: str, field: FieldInfo) -> Decorator:
    flag = "--" + name.replace("_", "-")
    default = field.get_default(call_default_factory=True)
    shown = json.dumps(default, default=str) if not isinstance(default, str) else default
    text = f"{field.description or ''} [default: {'none' if default is None else shown}]"
    kind, extra = _click_type(field.annotation)
    if kind is bool:
        return click.option(f"{flag}/--no-{name.replace('_', '-')}", name, default=None, help=text)
    return click.option(flag, name, type=kind, default=None, help=text, **extra)


def _click_type(annotation: Any) -> tuple[Any, dict[str, Any]]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return _click_type(inner[0]) if len(inner) == 1 else (str, {})
    if origin is Literal:
        return click.Choice([str(argument) for argument in arguments]), {}
    if origin is tuple and len(arguments) == 2:
        return float, {"nargs": 2}
    if origin in (list, tuple):
        return _click_type(arguments[0])[0], {"multiple": True}
    if origin is dict:
        return _Json(), {}
    return {int: int, float: float, bool: bool, Path: click.Path(path_type=Path)}.get(annotation, str), {}


class _Json(click.ParamType[Any]):
    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, dict):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(f"not JSON: {error}", param, ctx)


def from_options(settings: type[Model], values: dict[str, Any]) -> Model:
    """Build ``settings`` from the options that were given; the rest keep their defaults."""
    given = {name: values[name] for name in settings.model_fields if name in values and values[name] not in (None, ())}
    try:
        return settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("_", "-")
        raise click.UsageError(f"{name}: {first['msg']}, saw {first.get('input')!r}") from None
