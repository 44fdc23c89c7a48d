"""What a vLLM request asks for, and the catalogues of an engine. Nothing of vLLM is imported here.

A request opts in by ``SamplingParams(extra_args={"obverse_catalog": NAME, ...})``; the other keys are the fields of
`RequestOptions`. A name travels, never a catalogue.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from obverse.engine.decode.automaton import JSON, Template
from obverse.engine.decode.catalog import Catalog
from obverse.engine.decode.forms import OutputForm, TemplateFormat
from obverse.engine.errors import InputError
from obverse.engine.records.context import NameContext
from obverse.engine.records.linearise import Form
from obverse.engine.records.sequence import SequenceFormat
from obverse.engine.records.tokenizers import find_tokenizer

if TYPE_CHECKING:
    from obverse._core import Constraint, Matcher

__all__ = ["CatalogShelf", "Offer", "RequestOptions", "request_options"]

_log = logging.getLogger(__name__)
_PREFIX = "obverse_"
_MARKED: tuple[Form, ...] = get_args(Form)
# What vLLM itself may forbid: together with a constraint, nothing at all might be left to write.
_CONFLICTS = ("allowed_token_ids", "bad_words", "min_tokens", "structured_outputs")


@dataclass(frozen=True)
class Offer:
    """What an engine's requests may name; small, hashable, and sent between vLLM's processes.

    Attributes:
        files: the catalogues' names and absolute paths.
        templates: forms beside SynthIE's two linearisations, and their names; ``json`` is always there.
    """

    files: tuple[tuple[str, str], ...]
    templates: tuple[tuple[str, Template], ...] = ()

    @classmethod
    def of(cls, catalogs: Mapping[str, str | Path], templates: Mapping[str, Template] | None = None) -> Offer:
        """Raises `InputError` for a file that is not there, or a template with the name of another form."""
        for name, file in catalogs.items():
            if not Path(file).is_file():
                raise InputError("a catalogue file", file=file, field=name)
        for name in templates or {}:
            if name in (*_MARKED, "json"):
                raise InputError("a name that is no form's already", field="templates", seen=name)
        files = sorted((name, os.fspath(Path(file).resolve())) for name, file in catalogs.items())
        return cls(tuple(files), tuple(sorted({"json": JSON, **(templates or {})}.items(), key=lambda item: item[0])))

    @classmethod
    def from_config(cls, extra: Any) -> Offer:
        """What ``additional_config`` says under ``obverse``: ``catalogs`` {name: file}, ``templates`` {name: {...}}."""
        where = "additional_config['obverse']"
        settings = extra.get("obverse") if isinstance(extra, Mapping) else None
        if (
            not isinstance(settings, Mapping)
            or not settings.get("catalogs")
            or set(settings) - {"catalogs", "templates"}
        ):
            raise InputError("{'catalogs': {name: file}}, perhaps with templates", field=where, seen=settings)
        try:
            templates = {name: Template(**given) for name, given in settings.get("templates", {}).items()}
            return cls.of(dict(settings["catalogs"]), templates)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"catalogues and templates ({error})", field=where, seen=settings) from error

    @cached_property
    def contexts(self) -> dict[str, str]:
        """Where each catalogue's names stand, from the files' heads."""
        return {name: str(Catalog.open(file).card["context"]) for name, file in self.files}

    def context_of(self, form: str) -> str:
        """Where a form's names stand."""
        if form in _MARKED:
            return NameContext(None).name
        template = dict(self.templates)[form]
        return NameContext(None, template.context, template.escape).name

    @property
    def forms(self) -> list[str]:
        """The names of all forms."""
        return [*_MARKED, *(name for name, _ in self.templates)]

    def check(self, options: RequestOptions) -> None:
        """Raises `InputError` where a request names what is not here, or a form that its catalogue is not made for."""
        if options.catalog not in self.contexts:
            raise InputError(f"one of {', '.join(self.contexts)}", field=f"{_PREFIX}catalog", seen=options.catalog)
        if options.form not in self.forms:
            raise InputError(f"one of {', '.join(self.forms)}", field=f"{_PREFIX}form", seen=options.form)
        made_for = self.contexts[options.catalog]
        if self.context_of(options.form) != made_for:
            fitting = [form for form in self.forms if self.context_of(form) == made_for]
            expected = f"one of {', '.join(fitting)} (catalogue {options.catalog} is made for context {made_for!r})"
            raise InputError(expected, field=f"{_PREFIX}form", seen=options.form)


@dataclass(frozen=True)
class RequestOptions:
    """One request's constraint.

    Attributes:
        catalog: the catalogue's name.
        form: ``fully_expanded``, ``subject_collapsed``, ``json``, or the name of a template.
        max_triplets: at most so many triplets; None: any number.
        unique: no triplet twice.
        entities: only these entity names may be written (those of them that the catalogue has); None: all.
    """

    catalog: str
    form: str = "fully_expanded"
    max_triplets: int | None = None
    unique: bool = False
    entities: tuple[str, ...] | None = None


def request_options(params: Any, offer: Offer | None = None) -> RequestOptions | None:
    """The options of a request's `SamplingParams`; None for a request without any.

    Args:
        params: vLLM's sampling parameters.
        offer: what may be named, where that is known.

    Raises:
        InputError: an unknown key or catalogue, a value of the wrong type, a form that the catalogue is not made for,
            or a parameter of vLLM's that could leave nothing to write.
    """
    given = {key: value for key, value in (params.extra_args or {}).items() if str(key).startswith(_PREFIX)}
    if not given:
        return None
    fields = {key.removeprefix(_PREFIX): value for key, value in given.items()}
    for name in fields:
        if name not in _CHECKS:
            raise InputError(f"one of {', '.join(_PREFIX + field for field in _CHECKS)}", field=_PREFIX + name)
    if "catalog" not in fields:
        raise InputError("a catalogue beside the other options", field=f"{_PREFIX}catalog", seen=sorted(given))
    options = RequestOptions(**{name: _checked(name, value) for name, value in fields.items()})
    if offer is not None:
        offer.check(options)
    for name in _CONFLICTS:
        if getattr(params, name, None):
            raise InputError(f"no {name} in a request with {_PREFIX}catalog", field=name, seen=getattr(params, name))
    return options


def _checked(name: str, value: Any) -> Any:
    """``value`` as the field's type: JSON has no tuples, and HTTP clients write 0 and 1 for truth."""
    expected, fits = _CHECKS[name]
    if not fits(value):
        raise InputError(expected, field=_PREFIX + name, seen=value)
    if name == "unique":
        return bool(value)
    return tuple(value) if name == "entities" and value is not None else value


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value))


_CHECKS: Mapping[str, tuple[str, Any]] = {
    "catalog": ("a catalogue's name", lambda value: isinstance(value, str)),
    "form": ("a form's name", lambda value: isinstance(value, str)),
    "max_triplets": ("a whole number from 1 on", _is_count),
    "unique": ("true or false", lambda value: value in (True, False)),
    "entities": ("a list of names", _is_names),
}


class CatalogShelf:
    """The catalogues of one engine, opened, and the constraints over them that requests asked for.

    Args:
        offer: catalogues and templates.
        tokenizer: of the model: a folder, file or id.
        vocab_size: of the model's logits.

    Raises:
        InputError: a file is no catalogue, or one for another tokenizer, or the model has no tokenizer.
    """

    def __init__(self, offer: Offer, tokenizer: str, vocab_size: int) -> None:
        self.offer, self.vocab_size = offer, vocab_size
        self.catalogs = {name: Catalog.open(file) for name, file in offer.files}
        source = find_tokenizer(tokenizer)
        self._forms: dict[str, OutputForm] = {form: SequenceFormat(source, form) for form in _MARKED}
        self._forms |= {name: TemplateFormat(source, template) for name, template in offer.templates}
        self.eos = self._forms[_MARKED[0]].eos_id
        self._constraints: dict[RequestOptions, Constraint] = {}
        for name in self.catalogs:
            self.constraint(self.plain(name))  # refuses another tokenizer's now, not at the first request

    @classmethod
    def of(cls, vllm_config: Any, offer: Offer | None) -> CatalogShelf:
        """The shelf of a vLLM engine: of ``offer``, or of ``additional_config["obverse"]``."""
        extra = vllm_config.additional_config
        if offer is None:
            offer = Offer.from_config(extra)
        elif isinstance(extra, Mapping) and "obverse" in extra:
            where = "additional_config['obverse']"
            raise InputError("catalogues named in one place only", field=where, seen=extra["obverse"])
        model = vllm_config.model_config
        return cls(offer, model.tokenizer or model.model, model.get_vocab_size())

    def plain(self, catalog: str) -> RequestOptions:
        """A catalogue in the first form that it is made for."""
        made_for = self.offer.contexts[catalog]
        form = next((form for form in self.offer.forms if self.offer.context_of(form) == made_for), _MARKED[0])
        return RequestOptions(catalog, form)

    def admits(self, options: RequestOptions) -> bool:
        """Whether a request can be followed. `request_options` refuses others, but where it knew no names."""
        try:
            self.offer.check(options)
        except InputError as error:
            _log.error("a request may only end: %s", error)
            return False
        return True

    def constraint(self, options: RequestOptions) -> Constraint:
        """The constraint of ``options`` but for its entities; made once."""
        key = replace(options, entities=None)
        if key not in self._constraints:
            self._constraints[key] = self.catalogs[key.catalog].constraint(
                self._forms[key.form], self.vocab_size, max_triplets=key.max_triplets, unique=key.unique
            )
        return self._constraints[key]

    def matcher(self, options: RequestOptions) -> Matcher:
        """A sequence's state on the host."""
        from obverse._core import Matcher, Subset

        constraint = self.constraint(options)
        if options.entities is None:
            return Matcher(constraint)
        index = self.catalogs[options.catalog].entities
        rows = [row for row in index.rows_of(list(options.entities)) if row is not None]
        nodes = np.ascontiguousarray(index.nodes_of(rows), dtype=np.int64)
        return Matcher(constraint, subset=Subset(constraint.entities, nodes))
