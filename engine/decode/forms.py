"""Forms of output beside SynthIE's markers: JSON for instruction-tuned decoders, and what users write down."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from obverse.engine.decode.automaton import JSON, Automaton, Template, from_template, marked
from obverse.engine.errors import InputError
from obverse.engine.records.context import NameContext, encode_in_context
from obverse.engine.records.linearise import Triple
from obverse.engine.records.sequence import SequenceFormat

if TYPE_CHECKING:
    from obverse._core import Constraint
    from obverse.engine.decode.catalog import Catalog

__all__ = ["OutputForm", "TemplateFormat", "automaton_of", "read_facts"]

# Running text that a literal follows: a letter, as the end of most names.
_BEFORE_LITERAL = "a"


class TemplateFormat:
    """A `Template` for one tokenizer; what `Catalog.constraint` takes beside a `SequenceFormat`.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token.
        template: by default `JSON`.

    Raises:
        InputError: the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any, template: Template = JSON) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError("a tokenizer with an end-of-sequence token", field="eos_token")
        self.tokenizer, self.template = tokenizer, template
        self.eos_id = int(tokenizer.eos_token_id)
        self.context = NameContext(tokenizer, template.context, template.escape)

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer and of where names stand: a catalogue must have the same."""
        return self.context.fingerprint

    @cached_property
    def automaton(self) -> Automaton:
        """The template in token ids. Raises `InputError` where the tokenizer can't write one of its texts."""
        return from_template(self.template, self._literal)

    def _literal(self, text: str, opens: bool) -> list[int]:
        ids = encode_in_context(self.tokenizer, "" if opens else _BEFORE_LITERAL, [text])[0] if text else []
        if ids is None:
            raise InputError("text that the tokenizer can write", field="template", seen=text)
        return ids


OutputForm = SequenceFormat | TemplateFormat


def automaton_of(form: OutputForm) -> Automaton:
    """The parts of either kind of form."""
    return form.automaton if isinstance(form, TemplateFormat) else marked(form.form, form.markers)


def read_facts(ids: Sequence[int], constraint: Constraint, catalog: Catalog) -> list[Triple]:
    """The whole triplets of constrained output ids, in order, without repeats, by the names' token ids.

    Exact for every form, even where decoding changes a name (a tokenizer that lowers case, say). A form without some
    slot leaves that part of a `Triple` empty. What follows the first token that is not allowed is not read.
    """

    def name(index: Any, node: int) -> str:
        return "" if node == 0 else index.name_at(index.rows_of_node(node)[0])

    found = [
        Triple(name(catalog.entities, s), name(catalog.relations, r), name(catalog.entities, o))
        for s, r, o in constraint.read(np.asarray(ids, dtype=np.int32))
    ]
    return list(dict.fromkeys(found))
