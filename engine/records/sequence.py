"""Texts and triplet sets as token ids, tokenised piece by piece so that training and decoding agree.

Every part of a linearisation (a marker, a name) is encoded separately, with no special tokens, and the ids are
concatenated (as SynthIE does, arXiv 2303.04132, appendix). A name then has one token sequence wherever it stands,
so a trie over the catalogue's names admits exactly what the model was trained to write.

Decoder-only models read ``<bos> text [facts]`` and write ``[s] S [r] R [o] O [e] ... <eos>``; encoder-decoder models
read ``text <eos>`` and write the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

from obverse.engine.errors import InputError
from obverse.engine.records.context import NameContext, encode_texts, text_lead
from obverse.engine.records.linearise import MARKERS, Form, Triple, parse

__all__ = ["FACTS", "Architecture", "Example", "MarkerIds", "SequenceFormat", "order_by_mention"]

Architecture = Literal["decoder", "encoder_decoder"]
FACTS = "[facts]"


class MarkerIds(NamedTuple):
    """The token ids of each marker, as it stands inside a linearisation."""

    subject: list[int]
    relation: list[int]
    object: list[int]
    end: list[int]


class Example(NamedTuple):
    """One training sequence. Decoder-only: ``input_ids`` is prompt + answer and its first ``num_prompt_tokens``
    carry no loss. Encoder-decoder: the encoder reads the first ``num_prompt_tokens``, the decoder writes the rest.
    """

    input_ids: list[int]
    num_prompt_tokens: int


class SequenceFormat:
    """Turns (text, triples) into token ids and back, for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token.
        form: the linearisation.
        architecture: which kind of model reads and writes these ids.

    Raises:
        InputError: the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any, form: Form = "fully_expanded", architecture: Architecture = "decoder") -> None:
        if tokenizer.eos_token_id is None:
            raise InputError("a tokenizer with an end-of-sequence token", field="eos_token")
        self.tokenizer, self.form, self.architecture = tokenizer, form, architecture
        self.eos_id: int = tokenizer.eos_token_id
        self.lead = text_lead(tokenizer)
        self._pieces: dict[str, list[int]] = {}

    @property
    def pad_id(self) -> int:
        """The id that fills up a batch; it never carries attention or loss, so end-of-sequence serves too."""
        pad = self.tokenizer.pad_token_id
        return int(self.eos_id if pad is None else pad)

    @cached_property
    def markers(self) -> MarkerIds:
        """Token ids of the four markers."""
        return MarkerIds(*(self._encode(self.lead + marker) for marker in MARKERS))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that decides a name's token ids: vocabulary, merges, normaliser, added tokens."""
        return NameContext(self.tokenizer).fingerprint

    def name_ids(self, names: Sequence[str]) -> list[list[int]]:
        """Token ids of each name as it stands inside a linearisation (after a marker and a space)."""
        return encode_texts(self.tokenizer, [self.lead + name for name in names])

    def prompt_ids(self, text: str, max_length: int | None = None) -> list[int]:
        """What the model reads: ``<bos> text [facts]`` (decoder-only) or ``text <eos>`` (encoder-decoder).

        A text that does not fit ``max_length`` tokens loses its end, never the tokens around it.
        """
        if self.architecture == "encoder_decoder":
            before, after = [], [self.eos_id]
        else:
            bos = self.tokenizer.bos_token_id
            before, after = [] if bos is None else [int(bos)], self._piece(self.lead + FACTS)
        body = self._encode(text)
        if max_length is not None:
            body = body[: max(0, max_length - len(before) - len(after))]
        return [*before, *body, *after]

    def answer_ids(self, triples: Sequence[Triple]) -> list[int]:
        """``triples`` in order as token ids, with the end-of-sequence token."""
        ids: list[int] = []
        previous: str | None = None
        for triple in triples:
            if not (self.form == "subject_collapsed" and triple.subject == previous):
                if previous is not None:
                    ids += self.markers.end
                ids += [*self.markers.subject, *self._piece(self.lead + triple.subject)]
            ids += [*self.markers.relation, *self._piece(self.lead + triple.predicate)]
            ids += [*self.markers.object, *self._piece(self.lead + triple.object)]
            previous = triple.subject
        if previous is not None:
            ids += self.markers.end
        return [*ids, self.eos_id]

    def encode_example(self, text: str, triples: Sequence[Triple], max_length: int | None = None) -> Example:
        """``text`` and its triples, ordered by their mention in it, as one sequence.

        With ``max_length`` the text (never the answer) is cut until all fits, if the answer alone does.
        """
        answer = self.answer_ids(order_by_mention(triples, text))
        prompt = self.prompt_ids(text, None if max_length is None else max_length - len(answer))
        return Example(prompt + answer, len(prompt))

    def decode(self, ids: Iterable[int]) -> str:
        """The output string of generated ids, up to the end-of-sequence token, special tokens left out."""
        kept = []
        for token in ids:
            if token == self.eos_id:
                break
            kept.append(int(token))
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()

    def triples(self, ids: Sequence[int]) -> list[Triple]:
        """Triples of generated ids. A sequence cut before its end loses the part after its last whole fact."""
        text = self.decode(ids)
        if self.eos_id not in ids:
            text = _whole_facts(text, self.form)
        return parse(text, self.form)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def _piece(self, piece: str) -> list[int]:
        """Like `_encode`, remembered: names repeat. The memory is emptied when it grows past 200,000 pieces."""
        found = self._pieces.get(piece)
        if found is None:
            if len(self._pieces) >= 200_000:
                self._pieces.clear()
            found = self._pieces[piece] = self._encode(piece)
        return found


def _whole_facts(text: str, form: Form) -> str:
    """``text`` up to its last fact whose object is known to be complete (a marker follows it)."""
    last = text.rfind(MARKERS.end)
    if form == "subject_collapsed":
        # In a group `[s] S [r] R [o] O [r] ...` a relation marker, too, closes the object before it.
        relation = text.rfind(MARKERS.relation)
        if relation > last and text.rfind(MARKERS.object, max(last, 0), relation) >= 0:
            return text[:relation]
    return text[: last + len(MARKERS.end)] if last >= 0 else ""


def order_by_mention(triples: Sequence[Triple], text: str) -> list[Triple]:
    """Triples in the order in which ``text`` names their subjects, then their objects (SynthIE's target order).

    A name counts as mentioned where its longest run of words found in the text first stands; names not found
    come last. Triples with one subject stay together. Ties keep the given order.
    """
    lowered = text.lower()
    places: dict[str, int] = {}
    for triple in triples:
        for name in (triple.subject, triple.object):
            if name not in places:
                places[name] = _mention(name.lower(), lowered)
    return sorted(triples, key=lambda t: (places[t.subject], t.subject, places[t.object]))


def _mention(name: str, text: str) -> int:
    at = text.find(name)
    if at >= 0:
        return at
    words = name.split()
    for length in range(len(words) - 1, 0, -1):
        for start in range(len(words) - length + 1):
            at = text.find(" ".join(words[start : start + length]))
            if at >= 0:
                return at
    return len(text)
