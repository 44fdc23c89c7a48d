"""A SentencePiece model file as a Hugging Face tokenizer, with no package but `tokenizers`.

Llama 1 and 2 and Mistral ship such a file (``tokenizer.model``); libraries want the package `sentencepiece` for it,
though all that is needed is the list of pieces: ids and, for byte-pair models, the merges, which follow from the pieces
(a piece's score is its rank; its merges are all its splits into two pieces).

The file is a protocol buffer (sentencepiece_model.proto of google/sentencepiece): field 1, once a piece, holds
1: text, 2: score (float), 3: type; field 2 the trainer's settings (3: 1 unigram, 2 BPE; 35: byte fallback),
field 3 the normaliser's (2: character map, 3: leading space, 4: squeeze white space).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from obverse.engine.errors import InputError

__all__ = ["read_sentencepiece"]

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_BPE = 2
_SPACE = "\u2581"


class _Piece(NamedTuple):
    text: str
    score: float
    kind: int


def read_sentencepiece(path: Path) -> Any:
    """The tokenizer of a byte-pair SentencePiece model, with its ``<s>``, ``</s>`` and ``<unk>``.

    The text ``</s>`` inside a string becomes the token, as with every Hugging Face tokenizer (the package
    `sentencepiece` would write its characters).

    Raises:
        InputError: the file is no SentencePiece model, or one of another kind (unigram, own normalisation).
    """
    if not path.is_file():
        raise InputError("an existing file", file=path)
    try:
        pieces, trainer, normaliser = _parse(path.read_bytes())
    except (IndexError, ValueError, struct.error) as error:
        raise InputError(f"a SentencePiece model ({error})", file=path) from None
    if not pieces:
        raise InputError("a SentencePiece model with pieces", file=path)
    if trainer.get(3, 1) != _BPE or normaliser.get(2) or normaliser.get(4, 1):
        raise InputError(
            "a byte-pair model that takes text as it is; for others, the folder with tokenizer.json", file=path
        )
    return _tokenizer(pieces, bool(trainer.get(35, 0)), bool(normaliser.get(3, 1)))


def _parse(data: bytes) -> tuple[list[_Piece], dict[int, Any], dict[int, Any]]:
    pieces: list[_Piece] = []
    settings: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    for number, value in _fields(data):
        if number == 1:
            fields = dict(_fields(value))
            score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
            pieces.append(_Piece(fields.get(1, b"").decode("utf-8"), score, fields.get(3, _NORMAL)))
        elif number in settings:
            settings[number] = dict(_fields(value))
    return pieces, settings[2], settings[3]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: an int for varints, bytes for everything else."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value: Any
            value, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, place = data[place : place + size], place + size
        elif wire == 2:
            size, place = _varint(data, place)
            value, place = data[place : place + size], place + size
        else:
            raise ValueError(f"wire type {wire} at byte {place}")
        if place > len(data):
            raise ValueError("it ends inside a field")
        yield number, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _tokenizer(pieces: list[_Piece], byte_fallback: bool, leading_space: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece.text: i for i, piece in enumerate(pieces)}
    unknown = next((piece.text for piece in pieces if piece.kind == _UNKNOWN), None)
    backend = Tokenizer(
        models.BPE(vocabulary, _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)
    )
    steps: list[Any] = [normalizers.Prepend(_SPACE)] if leading_space else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    last = [decoders.Strip(content=" ", left=1)] if leading_space else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )
    for kind, special in ((_CONTROL, True), (_USER, False)):
        found = [AddedToken(p.text, special=special, normalized=False) for p in pieces if p.kind == kind]
        (backend.add_special_tokens if special else backend.add_tokens)(found)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": unknown}
    known = {role: text for role, text in names.items() if text in vocabulary}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **known)


def _merges(pieces: list[_Piece]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, best piece first: SentencePiece merges the pair whose union scores highest."""
    known = {piece.text: i for i, piece in enumerate(pieces) if piece.kind not in (_CONTROL, _UNKNOWN, _BYTE)}
    merges = []
    for text, rank in known.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in known and right in known:
                merges.append((-pieces[rank].score, rank, known[left], known[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]
