"""What the field constrains decoding with, each over the same names, behind one small interface.

The two tries are written after the idea of GENRE's (a dict a node; a marisa trie over tokens as characters), not after
its code. llguidance runs with every limit lifted, since at its default limits it refuses 100,000 names.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks.catalog_vocabularies import Names, Vocabulary, say

__all__ = [
    "BitmaskWalker",
    "DictTrie",
    "GuidanceEngine",
    "Peer",
    "Walker",
    "llguidance_walker",
    "peers",
    "quoted",
    "unpack",
]

DICT, MARISA = "dict trie (as GENRE)", "marisa trie (as GENRE)"
_XGRAMMAR_MOST = 10_000
"""At 100,000 names xgrammar needs a minute, at 1,000,000 more than ten."""


class Walker(Protocol):
    """Some rows, each somewhere in a name."""

    def fill(self) -> object:
        """Work out what each row may go on with, in whatever form the engine gives it; this is timed."""

    def advance(self, tokens: list[int], array: np.ndarray) -> None:
        """Go on by one token a row, given as a list and as int32 [b], whichever suits; timed."""

    def restart(self, row: int) -> None:
        """Row ``row`` begins a new name."""

    def allowed(self) -> list[np.ndarray]:
        """What the last `fill` allowed, ascending token ids of each row."""


class DictTrie:
    """A dict a node: what the constrained-decoding papers ship. The sequences end with the end token."""

    def __init__(self, sequences: Sequence[list[int]]) -> None:
        self.root: dict[int, Any] = {}
        for sequence in sequences:
            node = self.root
            for token in sequence:
                node = node.setdefault(token, {})

    def get(self, prefix: Sequence[int]) -> list[int]:
        """Tokens that may follow ``prefix``, found from the root as it stands in GENRE; none where it left the trie."""
        node: dict[int, Any] | None = self.root
        for token in prefix:
            node = node.get(token) if node is not None else None
        return list(node) if node is not None else []


class MarisaTrie:
    """A compressed trie of strings, one character a token; the next tokens are read off all strings with the prefix."""

    def __init__(self, sequences: Sequence[list[int]]) -> None:
        import marisa_trie

        self.trie = marisa_trie.Trie(["".join(map(_letter, sequence)) for sequence in sequences])
        # GENRE keeps the root's answer, since working it out means reading the whole trie.
        self.root = sorted({sequence[0] for sequence in sequences})

    def get(self, prefix: Sequence[int]) -> list[int]:
        """Tokens that may follow ``prefix``."""
        if not prefix:
            return self.root
        text = "".join(map(_letter, prefix))
        at = len(text)
        return list({_token(key[at]) for key in self.trie.iterkeys(text) if len(key) > at})


def _letter(token: int) -> str:
    # The code points of surrogates are no characters.
    return chr(token if token < 0xD000 else token + 0x1000)


def _token(letter: str) -> int:
    code = ord(letter)
    return code if code < 0xD000 else code - 0x1000


class TrieWalker:
    """Rows over a Python trie: prefixes in, lists of tokens out."""

    def __init__(self, get: Callable[[Sequence[int]], list[int]], rows: int) -> None:
        self.get = get
        self.prefixes: list[list[int]] = [[] for _ in range(rows)]
        self.answers: list[list[int]] = []

    def fill(self) -> None:
        get = self.get
        self.answers = [get(prefix) for prefix in self.prefixes]

    def advance(self, tokens: list[int], array: np.ndarray) -> None:
        del array
        for prefix, token in zip(self.prefixes, tokens, strict=True):
            prefix.append(token)

    def restart(self, row: int) -> None:
        self.prefixes[row] = []

    def allowed(self) -> list[np.ndarray]:
        return [np.sort(np.array(answer, np.int32)) for answer in self.answers]


class _GuidanceTokenizer:
    """What llguidance asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id, self.bos_token_id = vocabulary.eos, None
        pieces = vocabulary.pieces()
        self.tokens = [piece or f"<|{i}|>".encode() for i, piece in enumerate(pieces)]
        self.special_token_ids = [i for i, piece in enumerate(pieces) if not piece]
        self.plain = vocabulary.plain

    def __call__(self, text: bytes | str) -> list[int]:
        return self.plain(text.decode() if isinstance(text, bytes) else text)


class GuidanceEngine:
    """llguidance over a Lark grammar, every limit lifted; compiled once, copied for each row."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import llguidance
        from llguidance import LLParserLimits, LLTokenizer, TokenizerWrapper

        self.llguidance, self.vocabulary = llguidance, vocabulary
        self.tokenizer = LLTokenizer(TokenizerWrapper(_GuidanceTokenizer(vocabulary)), n_vocab=vocabulary.size)
        big = 1 << 40
        self.limits = LLParserLimits(
            max_items_in_row=1 << 30,
            initial_lexer_fuel=big,
            step_lexer_fuel=big,
            step_max_items=1 << 30,
            max_lexer_states=1 << 30,
            max_grammar_size=1 << 30,
        )

    def compile(self, grammar: str) -> Any:
        """A matcher at the start; `RuntimeError` where the grammar is refused."""
        matcher = self.llguidance.LLMatcher(self.tokenizer, grammar, limits=self.limits)
        if matcher.is_error():
            raise RuntimeError(matcher.get_error()[:200])
        return matcher

    @property
    def label(self) -> str:
        return f"llguidance {importlib.metadata.version('llguidance')}, limits lifted"


def one_name_grammar(names: Sequence[str]) -> str:
    """Exactly one of the names, after a space, as one lexeme."""
    return "start: NAME\nNAME: " + " | ".join(quoted(f" {name}") for name in names)


def quoted(text: str) -> str:
    """A string literal of the Lark and EBNF dialects in use."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class BitmaskWalker:
    """Rows of matchers that fill packed masks."""

    def __init__(self, first: Any, rows: int, size: int, fill: Callable[[Any, np.ndarray, int], None]) -> None:
        self.first, self.size, self.fill_row = first, size, fill
        self.matchers = [self._copy() for _ in range(rows)]
        self.mask = np.zeros((rows, (size + 31) // 32), np.int32)

    def _copy(self) -> Any:
        return self.first.deep_copy()

    def fill(self) -> None:
        mask, fill = self.mask, self.fill_row
        for row, matcher in enumerate(self.matchers):
            fill(matcher, mask, row)

    def advance(self, tokens: list[int], array: np.ndarray) -> None:
        del array
        for matcher, token in zip(self.matchers, tokens, strict=True):
            if not matcher.consume_token(token):
                raise AssertionError(f"a peer refuses a token of a name: {matcher.get_error()[:200]}")

    def restart(self, row: int) -> None:
        self.matchers[row].reset()

    def allowed(self) -> list[np.ndarray]:
        return unpack(self.mask, self.size)


def unpack(mask: np.ndarray, size: int) -> list[np.ndarray]:
    """Token ids of each row of packed masks, int32 [b, words]."""
    bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), axis=1, bitorder="little")[:, :size]
    return [np.flatnonzero(row).astype(np.int32) for row in bits]


def llguidance_walker(engine: GuidanceEngine, compiled: Any, rows: int) -> BitmaskWalker:
    """Rows of llguidance matchers, one mask a call on this thread, as vLLM below 128 requests does."""

    def fill(matcher: Any, mask: np.ndarray, row: int) -> None:
        line = mask[row]
        matcher.unsafe_compute_mask_ptr(line.ctypes.data, line.nbytes)

    return BitmaskWalker(compiled, rows, engine.vocabulary.size, fill)


class XgrammarWalker(BitmaskWalker):
    """Rows of xgrammar matchers."""

    def __init__(self, compiled: Any, rows: int, size: int) -> None:
        import torch
        import xgrammar

        self.make = lambda: xgrammar.GrammarMatcher(compiled)
        super().__init__(None, rows, size, lambda matcher, _, row: matcher.fill_next_token_bitmask(self.tensor, row))
        self.tensor = torch.from_numpy(self.mask)

    def _copy(self) -> Any:
        return self.make()

    def advance(self, tokens: list[int], array: np.ndarray) -> None:
        del array
        for matcher, token in zip(self.matchers, tokens, strict=True):
            if not matcher.accept_token(token):
                raise AssertionError("xgrammar refuses a token of a name")


class XgrammarEngine:
    """xgrammar over an EBNF grammar, compiled on one thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import xgrammar

        self.size = vocabulary.size
        info = xgrammar.TokenizerInfo(
            [piece or f"<|{i}|>".encode() for i, piece in enumerate(vocabulary.pieces())],
            vocab_type=xgrammar.VocabType.RAW,
            vocab_size=vocabulary.size,
            stop_token_ids=[vocabulary.eos],
        )
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, grammar: str) -> Any:
        """The compiled grammar."""
        return self.compiler.compile_grammar(grammar)


class Peer(NamedTuple):
    """One engine: how it is compiled (timed), and how its rows walk.

    Attributes:
        wider: it works on bytes, so it also allows other ways to cut a name into tokens.
    """

    label: str
    compile: Callable[[], Any]
    walker: Callable[[Any], Walker]
    wider: bool


def peers(vocabulary: Vocabulary, names: Names, text: Sequence[str], rows: int) -> Iterator[Peer]:
    """The engines installed here, over these names (as ids, and as text); a missing one is left out with a line.

    What stands before the names is not timed: an engine's own reading of the tokenizer, and writing the grammar.
    """
    sequences = [[*ids, vocabulary.eos] for ids in names.lists()]
    yield Peer(DICT, lambda: DictTrie(sequences), lambda trie: TrieWalker(trie.get, rows), False)
    if _installed("marisa_trie"):
        yield Peer(MARISA, lambda: MarisaTrie(sequences), lambda trie: TrieWalker(trie.get, rows), False)
    if _installed("llguidance"):
        engine = GuidanceEngine(vocabulary)
        grammar = one_name_grammar(text)
        yield Peer(
            engine.label,
            lambda: engine.compile(grammar),
            lambda compiled: llguidance_walker(engine, compiled, rows),
            True,
        )
    if len(names) <= _XGRAMMAR_MOST and _installed("xgrammar"):
        compiler = XgrammarEngine(vocabulary)
        ebnf = "root ::= " + " | ".join(quoted(f" {name}") for name in text)
        yield Peer(
            f"xgrammar {importlib.metadata.version('xgrammar')}",
            lambda: compiler.compile(ebnf),
            lambda compiled: XgrammarWalker(compiled, rows, vocabulary.size),
            True,
        )


def _installed(module: str) -> bool:
    if importlib.util.find_spec(module) is not None:
        return True
    say(f"{module} is not installed, left out")
    return False
