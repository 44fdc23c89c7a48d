"""Prompts: from rows of targets to the strings a model continues or answers.

Built in, and the way to others::

    facts     [s] Paris [r] capital of [o] France [e] [text]      what the demo model was trained on
    instruct  an instruction with one line per triplet            any instruction-tuned model
    label     an instruction to write a text of the given label   classification targets
    a Jinja2 template over ``triplets``, ``facts``, ``label``, ``attributes``, ``examples`` and every other column

What all rows share stands first, then what the rows of one relation or label share (examples), so that prefix caches
hit. A table's prompts are made column by column; a row that this can't do goes by itself, and has its error said.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from obverse.engine.errors import InputError, RecipeError
from obverse.engine.generate.few_shot import FewShot
from obverse.engine.generate.fields import Columns, Triplet, attributes_of, is_missing, triples_in
from obverse.engine.generate.templates import (
    BUILT_IN,
    LISTED,
    Template,
    check_fields,
    check_prompt,
    compile_template,
    prompt_source,
)
from obverse.engine.records.linearise import linearise

if TYPE_CHECKING:
    from obverse.engine.generate.settings import GenerateSettings

__all__ = [
    "Prompt",
    "PromptBuilder",
    "Prompts",
    "build_prompt",
    "build_prompts",
    "check_prompt",
    "encode_prompt",
    "prompt_source",
]

PIECE = 1 << 16  # rows; bounds what is made at once
_HEADS = 4096  # rendered beginnings that are kept
_READ = 1024  # rows that go by themselves, read at once

Shown = tuple[int, ...]
"""Places of a row's examples."""


class Prompts(NamedTuple):
    """The prompts of one table, row by row."""

    texts: Sequence[str | None]
    """None where a row has none; ``errors`` says why."""
    chat: bool
    errors: dict[int, str]
    """By row of the table."""


class Prompt(NamedTuple):
    """A prompt's text, and whether it is a user's message for a chat template."""

    text: str
    chat: bool


def build_prompt(target: Mapping[str, Any], settings: GenerateSettings, seed: int = 0) -> Prompt:
    """The prompt of one row of targets (as ``to_pylist`` gives it); ``seed`` chooses among examples.

    Raises `InputError` for a row that lacks what the prompt speaks of, `RecipeError` where the demo model is
    asked for anything but triplets or a template names a field that the row has not.
    """
    return PromptBuilder(settings, seed).row(target)


def build_prompts(table: pa.Table, settings: GenerateSettings, seed: int = 0) -> Prompts:
    """The prompts of a table of targets; a row that can't have one fails alone.

    Raises `RecipeError` as `build_prompt` does.
    """
    return PromptBuilder(settings, seed)(table)


class PromptBuilder:
    """What makes prompts under one setting; the examples are read and the template compiled once."""

    def __init__(self, settings: GenerateSettings, seed: int = 0) -> None:
        """Raises `InputError` where the file of examples can't be used."""
        self._settings = settings
        self._source = prompt_source(settings)
        self._shots = FewShot(settings.few_shot, seed) if settings.few_shot.examples is not None else None
        self._heads: dict[tuple[str, Shown], str] = {}
        self._chat = self._source != "facts" and not (self._source == "auto" and settings.model == "demo")

    def __call__(self, table: pa.Table) -> Prompts:
        """See `build_prompts`."""
        check_fields(self._settings, table.column_names)
        texts: list[str | None] = []
        errors: dict[int, str] = {}
        for start in range(0, table.num_rows, PIECE):
            piece = table.slice(start, PIECE)
            try:
                made = self._columnwise(piece)
            except UnicodeDecodeError:  # a file's strings are not checked when it is read
                made = [None] * piece.num_rows
            for place, read in _rows(piece, [i for i, text in enumerate(made) if text is None]):
                try:
                    made[place] = self.row(read()).text
                except RecipeError:
                    raise  # no row can do better
                except Exception as error:  # a template may raise anything
                    errors[start + place] = f"no prompt: {error}"
            texts += made
        return Prompts(texts, self._chat, errors)

    def row(self, target: Mapping[str, Any]) -> Prompt:
        """The prompt of one row; what a table's are held to. See `build_prompt`."""
        name = self._name(target.get("triplets") is not None)
        needed = _needed(name)
        if needed is not None and is_missing(target.get(needed)):
            seen = target.get(needed)
            raise InputError(f"{needed} for the '{name}' prompt", row=target.get("id"), field=needed, seen=seen)
        check_fields(self._settings, target.keys())
        tail = _tail(name) if name != "facts" else None
        names = tail.names if tail is not None else {"facts"}
        triples = triples_in(target) if self._shots is not None or {"triplets", "facts"} & names else []
        triplets = [Triplet(triple._asdict()) for triple in triples]
        shown: Shown = ()
        if self._shots is not None:
            shown = self._shots.choose(triplets, target.get("label"), target.get("text"), needs=needed)
        values = {"row": target, **target, "triplets": triplets, "facts": linearise(triples)}
        values["examples"] = self._values(shown)
        if "attributes" in names:
            values["attributes"] = attributes_of(target.get("attributes"))
        text = self._head(name, shown)
        text += f"{values['facts']} [text]" if tail is None else tail.render(values)
        text.encode()  # half a surrogate pair is this row's error, not the run's
        return Prompt(text, self._chat)

    def _name(self, has_triplets: bool) -> str:
        """The built-in prompt that a row gets, or the template's source."""
        if self._source != "auto":
            return self._source
        if self._settings.model != "demo":
            return "instruct" if has_triplets else "label"
        if not has_triplets:
            raise RecipeError(
                "the demo model writes text for triplets only; for labels set generate.model to an "
                "instruction-tuned model, such as Qwen/Qwen3-8B"
            )
        return "facts"

    def _columnwise(self, table: pa.Table) -> list[str | None]:
        """The prompts of a table; None for a row that goes by itself."""
        columns = Columns(table)
        has = columns.has_triplets
        if self._source == "auto" and self._chat and 0 < has.sum() < len(has):
            made: list[str | None] = [None] * len(has)
            for some in (has, ~has):
                places = some.nonzero()[0]
                for place, text in zip(places.tolist(), self._columnwise(table.take(places)), strict=True):
                    made[place] = text
            return made
        name = self._name(bool(has.all()))
        if name == "facts":
            return self._facts(columns)
        made = self._listed(columns) if name == "instruct" else [None] * table.num_rows
        return self._templated(columns, name, made) if None in made else made

    def _facts(self, columns: Columns) -> list[str | None]:
        made = columns.triplets.facts(" [text]")
        whole = columns.whole((), "triplets")
        if not all(whole):
            made = [text if sound else None for text, sound in zip(made, whole, strict=True)]
        return made if self._shots is None else self._headed("facts", made, columns, whole)

    def _listed(self, columns: Columns) -> list[str | None]:
        """The "instruct" prompts of rows without attributes."""
        whole = columns.whole(("attributes",), "triplets")
        bare = [sound and not given for sound, given in zip(whole, columns.cells("attributes"), strict=True)]
        made = [text if sound else None for text, sound in zip(columns.triplets.written(*LISTED), bare, strict=True)]
        return self._headed("instruct", made, columns, bare)

    def _headed(self, name: str, tails: list[str | None], columns: Columns, whole: list[bool]) -> list[str | None]:
        if self._shots is None:
            head = self._head(name, ())
            return [None if tail is None else head + tail for tail in tails]
        shown = self._shown(columns, "triplets", whole)
        return [
            None if tail is None else self._head(name, chosen) + tail for tail, chosen in zip(tails, shown, strict=True)
        ]

    def _templated(self, columns: Columns, name: str, made: list[str | None]) -> list[str | None]:
        """``made`` with the rows that have none yet."""
        tail, needed = _tail(name), _needed(name)
        names = sorted(tail.names - {"examples"})
        whole = columns.whole({*names, *(("triplets",) if self._shots is not None else ())}, needed)
        shown: Iterable[Shown] = itertools.repeat(()) if self._shots is None else self._shown(columns, needed, whole)
        cells = zip(*(columns.cells(column) for column in names), strict=True) if names else itertools.repeat(())
        found: list[str | None] = []
        for text, sound, chosen, values in zip(made, whole, shown, cells):  # noqa: B905  two of them may be endless
            if text is None and sound:
                try:
                    fields = dict(zip(names, values, strict=True), examples=self._values(chosen))
                    text = self._head(name, chosen) + tail.render(fields)
                    if not text.isascii():
                        text.encode()
                except Exception:  # the row goes by itself, and says what is wrong
                    text = None
            found.append(text)
        return found

    def _shown(self, columns: Columns, needed: str | None, whole: Sequence[bool] | None = None) -> list[Shown]:
        """The examples of each row."""
        if self._shots is None:
            raise RuntimeError("there are no examples")
        choose, none = self._shots.choose, itertools.repeat(None)
        labels = columns.cells("label") if "label" in columns.names else none
        texts = columns.cells("text") if "text" in columns.names else none
        sound = columns.whole({"triplets"}, None) if whole is None else whole
        return [
            choose(triplets, label, text, needs=needed) if good else ()
            for triplets, label, text, good in zip(columns.cells("triplets"), labels, texts, sound)  # noqa: B905
        ]

    def _values(self, shown: Shown) -> list[dict[str, Any]]:
        return [self._shots.examples[place].values for place in shown] if self._shots is not None else []

    def _head(self, name: str, shown: Shown) -> str:
        """What stands before a row's own part, the same for all rows with the same examples."""
        if (name, shown) not in self._heads:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            if name == "facts":
                head = "".join(f"{example['facts']} [text] {example['text']}\n\n" for example in self._values(shown))
            elif name in BUILT_IN:
                head = compile_template(BUILT_IN[name].head).render({"examples": self._values(shown)})
            else:
                head = ""  # a template of the user's own puts them where it likes
            self._heads[name, shown] = head
        return self._heads[name, shown]


def _rows(table: pa.Table, places: list[int]) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """Rows of a table by place; reading one raises where its bytes are no text."""
    for start in range(0, len(places), _READ):
        some = table.take(places[start : start + _READ])
        try:
            rows = some.to_pylist()
        except UnicodeDecodeError:
            rows = None
        for i, place in enumerate(places[start : start + _READ]):
            yield place, partial(_row, some, i) if rows is None else partial(rows.__getitem__, i)


def _row(table: pa.Table, place: int) -> dict[str, Any]:
    return dict(table.slice(place, 1).to_pylist()[0])


def _needed(name: str) -> str | None:
    """The column that a built-in prompt is about."""
    return "triplets" if name == "facts" else BUILT_IN[name].field if name in BUILT_IN else None


def _tail(name: str) -> Template:
    return compile_template(BUILT_IN[name].tail if name in BUILT_IN else name)


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
