"""Text in one form for comparison, and where its words begin and end, for every script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

__all__ = ["is_boundary", "is_spaceless", "normalise", "normalise_lines", "occurrences", "script_of"]

# Marks that readers may leave out: Latin/Greek/Cyrillic diacritics, Hebrew points, Arabic vowel signs. Vowel signs
# of Indic and South-East Asian scripts and the Japanese voicing marks are letters of their own, and stay.
_OPTIONAL_MARKS = (*range(0x0300, 0x0370), *range(0x0591, 0x05C8), *range(0x064B, 0x0660), 0x0670)
# Letters with a stroke, and joined letters, which have no decomposition in Unicode.
_PLAIN = {"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ŧ": "t", "ı": "i", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th"}
_FOLDS: dict[int, str | None] = {
    **dict.fromkeys(_OPTIONAL_MARKS),
    **dict.fromkeys((0x00AD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF)),  # invisible characters
    **dict.fromkeys(map(ord, "‘’‚‛ʹʻʼʽʾʿ`′"), "'"),
    **dict.fromkeys(map(ord, "“”„‟«»″"), '"'),
    **dict.fromkeys(map(ord, "‐‑‒–—―−"), "-"),
    **{ord(letter): plain for letter, plain in _PLAIN.items()},
    ord("_"): " ",
}

# Scripts written without spaces between words, and Hangul, whose particles follow a name without a space.
_SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1100, 0x11FF),  # Hangul Jamo
    (0x1780, 0x17FF),  # Khmer
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x3005, 0x30FF),  # Han iteration marks, Hiragana, Katakana
    (0x3130, 0x318F),  # Hangul compatibility Jamo
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x9FFF),  # Han
    (0xA960, 0xA97F),  # Hangul Jamo extended A
    (0xAC00, 0xD7FF),  # Hangul syllables, Jamo extended B
    (0xF900, 0xFAFF),  # Han compatibility
    (0x20000, 0x3FFFF),  # Han extensions
)


def _fold(text: str) -> str:
    if text.isascii():
        return text.replace("_", " ").replace("`", "'").lower()  # the folds that are ASCII
    # NFKD first (full-width forms, ligatures, marks apart), fold, and compose again what is still apart.
    # The spacing acute, much used as an apostrophe, would decompose to a space.
    apart = unicodedata.normalize("NFKD", text.replace("´", "'"))
    apart = unicodedata.normalize("NFKD", apart.casefold())
    return unicodedata.normalize("NFC", apart.translate(_FOLDS))


_GAPS = re.compile(r"[^\S\n]{2,}|[^\S\n ]")


def normalise(text: str) -> str:
    """``text`` in NFKC, case-folded, without diacritics, each run of white space or ``_`` one plain space.

    Typographic quotes, apostrophes and dashes become their ASCII forms. Idempotent.
    """
    return " ".join(_fold(text).split())


def normalise_lines(texts: Sequence[str]) -> str:
    """`normalise` of many short strings in one pass, each a line of its own; a line break within one is a space."""
    lines = [text if text.isprintable() else " ".join(text.split()) for text in texts]
    return _GAPS.sub(" ", _fold("\n".join(lines)))


def is_spaceless(char: str) -> bool:
    """Whether ``char`` belongs to a script whose words are not set apart by spaces."""
    if char < "\u0e00":
        return False
    code = ord(char)
    return any(low <= code <= high for low, high in _SPACELESS)


def _is_word(char: str) -> bool:
    return char.isalnum() or (char > "\u02ff" and unicodedata.category(char)[0] == "M")


def is_boundary(text: str, position: int) -> bool:
    """Whether a word may begin or end just before ``text[position]``."""
    if position in (0, len(text)):
        return True
    before, after = text[position - 1], text[position]
    return not (_is_word(before) and _is_word(after)) or is_spaceless(before) or is_spaceless(after)


def occurrences(text: str, name: str) -> Iterator[tuple[int, int]]:
    """Spans ``(start, end)`` at which ``name`` stands in ``text`` as whole words; both normalised."""
    start = text.find(name) if name else -1
    while start != -1:
        end = start + len(name)
        if is_boundary(text, start) and is_boundary(text, end):
            yield start, end
        start = text.find(name, start + 1)


@lru_cache(maxsize=8192)
def script_of(char: str) -> str:
    """The script of a letter in lower case (``latin``, ``han``, ...) by its Unicode name; "" for other characters."""
    if not char.isalpha():
        return ""
    script = unicodedata.name(char, "").split(" ")[0].split("-")[0].lower()
    return "han" if script == "cjk" else script
