"""Names as token ids *in their context*: what stands before a piece of text decides its first token.

After a space a byte-level tokenizer writes ``ĠParis``, after a quotation mark ``Paris``; SentencePiece writes
``▁Paris`` and ``Paris``; WordPiece the same both times. A trie holds a name's ids in one context, so a catalogue is
made for a context: `NameContext`. The default is the linearisation's (after a marker and a space); any other is given
by the text that stands directly before the name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from obverse.engine.records.keys import content_hash
from obverse.engine.records.wordwise import WordRules, word_rules

__all__ = ["NameContext", "decode_texts", "encode_in_context", "encode_texts", "text_lead"]

# Text that is put before a piece, and cut off again, to get the piece's own tokens: a tokenizer that gives the start
# of a text a space of its own must see another start.
_ANCHORS = ("", "\n", "|", "a")


def encode_in_context(tokenizer: Any, before: str, pieces: Sequence[str]) -> list[list[int] | None]:
    """Token ids of each piece as it stands directly after ``before``.

    With ``b`` the ids of ``before`` alone, ``decode(b + ids)`` is what the tokenizer reads back from
    ``before + piece``: that text itself, but for a tokenizer that changes text anyway (WordPiece lowers case). The ids
    are those of running text, ``encode(before + piece) == b + ids``, wherever the tokenizer keeps ``b`` apart. Where it
    merges across the border (``"(`` is one token of GPT-2) they are the piece's own ids, if those decode right.

    Args:
        tokenizer: a Hugging Face tokenizer.
        before: the text in front; ``""`` for pieces at the start of a text.
        pieces: texts, not empty.

    Returns:
        A list of ids a piece; None where the piece has an unknown token, or no ids after ``before`` decode right.
    """
    unknown = tokenizer.unk_token_id
    found, _ = split_off(tokenizer, before, pieces)
    return [None if ids is None or unknown in ids else ids for ids in found]


def split_off(tokenizer: Any, before: str, pieces: Sequence[str]) -> tuple[list[list[int] | None], list[bool]]:
    """`encode_in_context`, unknown tokens let through; and for each piece whether its ids are those of running text."""
    prefix = encode_texts(tokenizer, [before])[0] if before else []
    whole = encode_texts(tokenizer, [before + piece for piece in pieces])
    kept = [ids[: len(prefix)] == prefix for ids in whole]
    found: list[list[int] | None] = [ids[len(prefix) :] if ok else None for ids, ok in zip(whole, kept, strict=True)]
    merged = [i for i, ok in enumerate(kept) if not ok]
    if merged:
        wanted = decode_texts(tokenizer, [whole[i] for i in merged])
        for anchor in _ANCHORS:
            left = [(i, text) for i, text in zip(merged, wanted, strict=True) if found[i] is None]
            own = _behind(tokenizer, anchor, [pieces[i] for i, _ in left])
            read = decode_texts(tokenizer, [prefix + ids for ids in own])
            for (i, text), ids, seen in zip(left, own, read, strict=True):
                if ids and seen == text:
                    found[i] = ids
    return found, kept


def _behind(tokenizer: Any, anchor: str, pieces: Sequence[str]) -> list[list[int]]:
    """Ids of each piece after ``anchor``; empty where they can't be told from the anchor's."""
    if not anchor:
        return encode_texts(tokenizer, pieces)
    prefix, *whole = encode_texts(tokenizer, [anchor, *(anchor + piece for piece in pieces)])
    return [ids[len(prefix) :] if ids[: len(prefix)] == prefix else [] for ids in whole]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as it is: no special tokens, no padding, nothing cut off."""
    if not texts:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        quiet = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, **quiet)["input_ids"]
        return ids
    # Straight to the native tokenizer: the layer above it doubles the time. Its state is a call's, so it is put back.
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def decode_texts(tokenizer: Any, rows: Sequence[list[int]]) -> list[str]:
    """The text of each row of ids, special tokens shown, spaces as the tokenizer writes them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return [str(tokenizer.decode(ids, **options)) for ids in rows]
    texts: list[str] = backend.decode_batch(list(rows), skip_special_tokens=False)
    return texts


def text_lead(tokenizer: Any) -> str:
    """What to put before a piece so that it gets the tokens it has after a space in running text.

    Byte-level BPE wants the space itself; SentencePiece models that add their own (Llama 2) want none, or they
    would write two.
    """
    full, *alone = encode_texts(tokenizer, ["a Paris", " Paris", "Paris"])
    for lead, ids in zip((" ", ""), alone, strict=True):
        if ids and full[-len(ids) :] == ids:
            return lead
    return " "


@dataclass(frozen=True)
class NameContext:
    """Where a catalogue's names stand, for one tokenizer.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        before: the text directly before a name; None for the linearisation's, a marker and a space.
        escape: names are written as inside a JSON string (``\\"`` for a quotation mark).
    """

    tokenizer: Any
    before: str | None = None
    escape: bool = False

    @classmethod
    def of(cls, source: Any) -> NameContext:
        """``source`` itself, a form's own context, or the marked one of a `SequenceFormat` or of a tokenizer."""
        own = getattr(source, "context", source)
        return own if isinstance(own, cls) else cls(getattr(source, "tokenizer", source))

    @classmethod
    def named(cls, tokenizer: Any, name: str) -> NameContext:
        """``marked``, ``json`` (inside a JSON string), or the text that stands before a name."""
        if name == "marked":
            return cls(tokenizer)
        return cls(tokenizer, '"', escape=True) if name in ("json", '"') else cls(tokenizer, name)

    @property
    def name(self) -> str:
        """What `named` was given."""
        if self.before is None:
            return "marked, escaped" if self.escape else "marked"
        return ("json" if self.before == '"' else f"{self.before}, escaped") if self.escape else self.before

    @cached_property
    def lead(self) -> str:
        """See `text_lead`."""
        return text_lead(self.tokenizer)

    @cached_property
    def _facts(self) -> tuple[str, WordRules]:
        """What follows from the tokenizer's whole state, which is large: it is written out once and let go."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        state = None if backend is None else json.loads(backend.to_str())
        if state is None:
            parts: dict[str, Any] = {"vocab": self.tokenizer.get_vocab()}
        else:
            # Padding and truncation are a call's state, not part of what a name's tokens are.
            parts = {"tokenizer": {key: value for key, value in state.items() if key not in ("padding", "truncation")}}
        parts["lead"] = self.lead
        if self.before is not None or self.escape:
            parts |= {"before": self.before, "escape": self.escape}
        return content_hash(parts), word_rules(self.tokenizer, state)

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides a name's ids; the marked context's is `SequenceFormat.fingerprint`."""
        return self._facts[0]

    @property
    def word_rules(self) -> WordRules:
        """Whether names can be put together from words, see `wordwise`."""
        return self._facts[1]

    @cached_property
    def before_ids(self) -> list[int]:
        """Ids of the text before a name; none in the marked context, whose markers are pieces of their own."""
        return encode_texts(self.tokenizer, [self.before])[0] if self.before else []

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that no name may hold: end of sequence, unknown, padding and the like."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return frozenset([*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)])

    def written(self, names: pa.Array) -> pa.Array:
        """Each name as its characters stand in the text: itself, or escaped for JSON."""
        if not self.escape:
            return names
        return pa.array([json.dumps(name, ensure_ascii=False)[1:-1] for name in names.to_pylist()], pa.string())

    def encode(self, names: Sequence[str]) -> list[list[int] | None]:
        """Ids of each name in this context; None where it has none. For many names see `tokenise_names`."""
        texts = self.written(pa.array(names, pa.string())).to_pylist()
        if self.before is None:
            return [ids or None for ids in encode_texts(self.tokenizer, [self.lead + text for text in texts])]
        return encode_in_context(self.tokenizer, self.before, texts)
