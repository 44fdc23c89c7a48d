"""What ``generate.engine`` may hold for the openai backend."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from obverse.engine.errors import RecipeError

__all__ = ["Options", "check_fields"]

# What the backend itself writes into each request, or can't read the answer to.
OURS = ("messages", "prompt", "stream", "n")


@dataclass(frozen=True)
class Options:
    """Seconds, counts and shares; none of them changes a text."""

    timeout: float = 600.0
    """Seconds for one whole answer, its time in the server's queue included."""
    outage_budget: float = 3600.0
    """Seconds for which a server may answer nobody before the run ends; 0: wait for ever."""
    max_attempts: int = 8
    """Failures after which a row is given up, counted only while the server answers others."""
    first_pause: float = 1.0
    """Seconds before the second attempt; doubles with each, up to a minute."""
    retry_budget: float = 0.5
    """The most attempts beyond each row's first, as a share of the rows answered (and 100 in any case)."""
    requests_per_minute: float = 0.0
    """0: no limit."""
    tokens_per_minute: float = 0.0
    """Tokens of prompts and answers together; 0: no limit."""
    replicas: tuple[str, ...] = ()
    """More base URLs of the same model; each request goes to the one that is least busy."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """A server's own fields, put into every request."""

    @classmethod
    def read(cls, engine: Mapping[str, Any]) -> Options:
        """From a recipe's table; raises `RecipeError` for what is not known, and for values out of range."""
        known = [f.name for f in fields(cls)]
        for name in engine:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else "; put a server's own fields in extra_body"
                raise RecipeError(f"generate.engine: the openai backend takes no argument '{name}'{hint}")
        values = dict(engine)
        for name, least in (("timeout", 0.001), ("first_pause", 0.0), ("outage_budget", 0.0), ("retry_budget", 0.0)):
            _number(values, name, least)
        for name in ("requests_per_minute", "tokens_per_minute"):
            _number(values, name, 0.0)
        if "max_attempts" in values:
            _number(values, "max_attempts", 1)
            if not isinstance(values["max_attempts"], int):
                _wrong("max_attempts", "a whole number of at least 1", values["max_attempts"])
        replicas = values.get("replicas", ())
        if not isinstance(replicas, (list, tuple)) or not all(
            isinstance(url, str) and url.startswith(("http://", "https://")) for url in replicas
        ):
            # Not shown: an address may carry a password.
            raise RecipeError("generate.engine.replicas: expected a list of addresses, each http:// or https://")
        values["replicas"] = tuple(replicas)
        extra = values.get("extra_body", {})
        if not isinstance(extra, Mapping):
            _wrong("extra_body", "a table of fields", extra)
        check_fields(extra, "generate.engine.extra_body")
        return cls(**values)


def check_fields(fields: Mapping[str, Any], place: str) -> None:
    """Raise `RecipeError` for fields of a request that are not the user's to set, or that JSON has no form for."""
    for name in OURS:
        if name in fields:
            raise RecipeError(f"{place}: '{name}' is set by Obverse for each row")
    try:
        json.dumps(dict(fields))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{place}: expected values that JSON has: {error}") from None


def _number(values: Mapping[str, Any], name: str, least: float) -> None:
    value = values.get(name, least)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
        _wrong(name, f"a number of at least {least:g}", value)


def _wrong(name: str, expected: str, seen: object) -> None:
    raise RecipeError(f"generate.engine.{name}: expected {expected}, saw {seen!r}")
