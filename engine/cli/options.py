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
    """Options for every field of ``settings`` (but ``skip``): type, default and help are the field's own.

    Fields of settings within settings are options beside the others, by their own names. Raises ``TypeError`` where
    two of them have one name.
    """
    fields = _leaves(settings)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(fields.items()):
            if name not in skip:
                function = _option(name, field)(function)
        return function

    return decorate


def _leaves(settings: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of ``settings`` and of the settings in it, by name."""
    found: dict[str, FieldInfo] = {}
    for name, field in settings.model_fields.items():
        inner = _inner(field)
        for leaf, kind in (_leaves(inner) if inner is not None else {name: field}).items():
            if leaf in found:
                raise TypeError(f"{settings.__name__} has two fields called '{leaf}'")
            found[leaf] = kind
    return found


def _inner(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


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
        """The value of a JSON text, or of the file after an ``@``."""
        if isinstance(value, dict):
            return value
        try:
            return json.loads(Path(value[1:]).read_text(encoding="utf-8") if value.startswith("@") else value)
        except OSError as error:
            self.fail(f"can't read {value[1:]}: {error.strerror}", param, ctx)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)


def from_options(settings: type[Model], values: dict[str, Any]) -> Model:
    """Build ``settings`` from the options that were given; the rest keep their defaults."""
    try:
        return settings.model_validate(_given(settings, values))
    except ValidationError as error:
        first = error.errors()[0]
        leaves = _leaves(settings)
        # The last part of the place that is an option's name; a rule about several fields has no place.
        named = [str(part) for part in first["loc"] if part in leaves]
        message = str(first["msg"]).removeprefix("Value error, ")
        if not named:
            raise click.UsageError(message) from None
        flag = "--" + named[-1].replace("_", "-")
        raise click.UsageError(f"{flag}: {message}, saw {first.get('input')!r}") from None


def _given(settings: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        inner = _inner(field)
        if inner is not None:
            if part := _given(inner, values):
                given[name] = part
        elif values.get(name) not in (None, ()):
            given[name] = values[name]
    return given
