"""Whether a tokenizer's ids of a text are those of its words, one after the other.

Millions of names have far fewer distinct words: where this holds, each word is tokenised once and names are put
together by indexing, which is several times faster than tokenising names and gives the same ids. It is decided from
what the tokenizer is made of, never guessed: where a part is not known here, names are tokenised whole.

The argument, for words separated by single spaces. A pre-tokenizer whose pieces have a space at most in their first
place starts a piece at every space, and goes on from there as if the text began there. A merge across a border needs a
token with a space after another character, so without such a token a BPE model never makes one, whatever the
pre-tokenizer does. WordPiece never sees a space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["WordRules", "word_rules"]

_SYMBOLS = {"ByteLevel": "\u0120", "other": "\u2581"}
_LOCAL_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Precompiled"}
_WORD_PRE_TOKENIZERS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits"}


class WordRules(NamedTuple):
    """What a tokenizer's parts say about words."""

    by_word: bool
    """``ids("a b") == ids("a") + ids(" b")`` for all words that are not odd."""
    is_odd: Callable[[str], bool]
    """Whether a word is one whose names must be tokenised whole."""
    decodes_by_word: bool
    """The text of ids is the text of its words' ids, end to end (but for a leading space that is cut)."""


def word_rules(tokenizer: Any, state: dict[str, Any] | None) -> WordRules:
    """The rules for a tokenizer whose native part is ``state`` (its JSON form; None: it has none)."""
    if state is None or not _tokenises_word_by_word(state):
        return WordRules(False, lambda _: True, False)
    return WordRules(True, _odd_word_test(tokenizer, state), _decodes_piece_by_piece(state))


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """A component as the list of its steps: a ``Sequence`` is flattened."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for child in part[inner] for step in _steps(child, inner)]


def _tokenises_word_by_word(state: dict[str, Any]) -> bool:
    if not _added_tokens_are_words(state):
        return False
    model = state["model"]
    if not all(_is_local(step, model["type"]) for step in _steps(state["normalizer"], "normalizers")):
        return False
    steps = _steps(state["pre_tokenizer"], "pretokenizers")
    kinds = {step["type"] for step in steps}
    if model["type"] == "WordPiece":
        return kinds <= _WORD_PRE_TOKENIZERS and not kinds <= {"Punctuation", "Digits"}
    if model["type"] == "Unigram":
        every = all(step.get("split", True) for step in steps)
        spaced = all(step.get("prepend_scheme", "always") == "always" for step in steps)
        return every and (kinds == {"Metaspace"} or (spaced and kinds == {"WhitespaceSplit", "Metaspace"}))
    if model["type"] != "BPE" or ("Metaspace" in kinds and len(steps) > 1):
        return False
    return all(_starts_at_spaces(step) for step in steps) and _merges_no_words(model, kinds)


def _added_tokens_are_words(state: dict[str, Any]) -> bool:
    """Added tokens of two or more spaces never occur; others must not hold a space between characters."""
    texts = [token["content"] for token in state["added_tokens"]]
    return all(not re.search(r"\s", text) or re.fullmatch(r"\s{2,}|[\t\r\n]", text) for text in texts)


def _is_local(step: dict[str, Any], model: str) -> bool:
    """Whether a step of the normaliser changes a word in the same way alone and between others."""
    if step["type"] == "Replace":
        # " " becomes the space symbol; runs of spaces become one (there are none).
        return step["pattern"] in ({"String": " "}, {"Regex": " {2,}"}, {"Regex": r"\s+"})
    if step["type"] == "Prepend":
        return model == "BPE" and step["prepend"] == _SYMBOLS["other"]
    return step["type"] in _LOCAL_NORMALIZERS or (step["type"] == "Strip" and not step["strip_left"])


def _merges_no_words(model: dict[str, Any], kinds: set[str]) -> bool:
    space = _SYMBOLS["ByteLevel" if "ByteLevel" in kinds else "other"]
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    across = re.compile(f"[^{space} ][{space} ]")
    return space in model["vocab"] and not any(across.search(token) for token in model["vocab"])


def _starts_at_spaces(step: dict[str, Any]) -> bool:
    if step["type"] == "Split":
        pattern = step["pattern"].get("Regex")
        return (
            step["behavior"] == "Isolated"
            and not step["invert"]
            and pattern is not None
            and keeps_spaces_first(pattern)
        )
    return step["type"] in ("ByteLevel", "Metaspace", "Digits")


def _odd_word_test(tokenizer: Any, state: dict[str, Any]) -> Callable[[str], bool]:
    """A test for words that may not get the ids that they have among others.

    These hold an added token's text, white space of another kind, the space symbol itself, start with a mark that would
    join the space before it, or are changed by a character map (which may make any of these of them).
    """
    contents = [re.escape(token["content"]) for token in state["added_tokens"] if token["content"].strip()]
    # Case is ignored: some added tokens are looked for in normalised text.
    odd = re.compile("|".join([r"[\s\u2581\u180e\u200b\ufeff]", *contents]), re.IGNORECASE).search
    mapped = any(step["type"] == "Precompiled" for step in _steps(state["normalizer"], "normalizers"))
    normalise = tokenizer.backend_tokenizer.normalizer.normalize_str if mapped else str
    category = unicodedata.category

    def test(word: str) -> bool:
        return odd(word) is not None or category(word[0])[0] in "MC" or normalise(word) != word

    return test


def _decodes_piece_by_piece(state: dict[str, Any]) -> bool:
    steps = _steps(state["decoder"], "decoders")
    if [step["type"] for step in steps] in (["ByteLevel"], ["Metaspace"]):
        return True
    known = {"Replace", "ByteFallback", "Fuse", "Strip"}
    return bool(steps) and all(
        step["type"] in known
        and (step["type"] != "Replace" or step["pattern"] == {"String": _SYMBOLS["other"]})
        and (step["type"] != "Strip" or (step["start"], step["stop"]) == (1, 0))
        for step in steps
    )


_ATOM = re.compile(
    r"(?P<ahead>\(\?!\\S\))"
    r"|(?P<group>\((?:\?i?:)?(?P<inside>[^()\\\[\]?*+.^$]*)\))"
    r"|(?P<set>\[\^?(?:\\[pP]\{\w+\}|\\[sSdDwWrnt]|\\[^\w\s\\]|[^\]\[\\&])+\])"
    r"|(?P<class>\\[pP]\{\^?\w+\}|\\[sSdDwWrnt])"
    r"|(?P<escaped>\\[^\w\s])"
    r"|(?P<literal>[^\\\[\](){}|.^$*+?])"
)
_REPEAT = re.compile(r"(?P<times>[*+?]|\{\d*,?\d*\})[+?]?")


def keeps_spaces_first(pattern: str) -> bool:
    """True where no match of ``pattern`` has a space behind its first character, spaces being single.

    Reads the part of the regular-expression language that tokenizers use; anything else is False. Of each alternative
    only the first element may match a space, and may be repeated only where it matches nothing but white space.
    """
    place, first = 0, True
    while place < len(pattern):
        if pattern[place] == "|":
            place, first = place + 1, True
            continue
        atom = _ATOM.match(pattern, place)
        if atom is None:
            return False
        repeat = _REPEAT.match(pattern, atom.end())
        place = (repeat or atom).end()
        if atom["ahead"] or not _may_be_space(atom):
            first = False
            continue
        repeated = repeat is not None and repeat["times"] != "?"
        if not first or (repeated and atom[0] not in (r"\s", " ")):
            return False
        first = False
    return True


def _may_be_space(atom: re.Match[str]) -> bool:
    if atom["group"] is not None:
        return " " in atom["inside"]
    if atom["set"] is not None:
        inside = atom["set"][1:-1]
        negated = inside.startswith("^")
        named = bool(re.search(r"\\s|\\p\{Z\w*\}|\\[SPDW]| ", inside) or _range_holds_space(inside))
        # A negated set keeps spaces out only by naming white space plainly.
        return not re.search(r"\\s| ", inside) if negated else named
    text = atom[0]
    if atom["class"] is not None:
        return not re.fullmatch(r"\\p\{[LMNPS]\w?\}|\\[SdwrntP].*", text) or text.startswith(r"\P")
    return text in (" ", "\\ ")


def _range_holds_space(inside: str) -> bool:
    return any(low <= " " <= high for low, high in re.findall(r"([^\\])-([^\\\]])", inside))
