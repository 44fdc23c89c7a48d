"""The native core. Arrays must have the dtype given and be C-contiguous; nothing is converted silently.

Bad values raise ValueError (expected and got), bad indices IndexError, refused files OSError.
"""

from os import PathLike
from typing import Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

_Int32: TypeAlias = NDArray[np.int32]
_Int64: TypeAlias = NDArray[np.int64]
_UInt32: TypeAlias = NDArray[np.uint32]
_Form: TypeAlias = Literal["fully_expanded", "subject_collapsed"]
_Path: TypeAlias = str | bytes | PathLike[str]

@final
class Graph:
    """An immutable labelled multigraph; self loops and repeated triples are left out."""

    def __init__(self, num_entities: int, num_relations: int, heads: _Int32, predicates: _Int32, tails: _Int32) -> None:
        """Edge i is heads[i] -predicates[i]-> tails[i], each int32 [n]; the order of edges never matters."""
    @property
    def num_entities(self) -> int: ...
    @property
    def num_relations(self) -> int: ...
    @property
    def num_edges(self) -> int:
        """Distinct triples that are not self loops."""
    @property
    def nbytes(self) -> int: ...

@final
class Sampler:
    """A stream of connected edge sets with even coverage; not thread-safe. See csrc/include/obverse/sampler.hpp."""

    def __init__(
        self,
        graph: Graph,
        seed: int,
        size_weights: NDArray[np.float64],
        reweight_every: int,
        relation_power: float,
        entity_power: float,
        relation_allowed: NDArray[np.uint8] | None = None,
        entity_allowed: NDArray[np.uint8] | None = None,
    ) -> None:
        """size_weights[k - 1]: weight of sets of k edges; seed in [0, 2**64); masks by index, non-zero = allowed."""
    def draw(self, count: int) -> tuple[_Int64, _Int32, _Int32, _Int32]:
        """The next sets: offsets int64 [count + 1], then heads, predicates, tails, int32 [offsets[-1]]."""
    def skip(self, count: int) -> None:
        """Goes on by `count` sets without returning them (they are drawn: later weights depend on them)."""
    @property
    def position(self) -> int:
        """Sets drawn or skipped so far."""

@final
class Trie:
    """An immutable token trie; thread-safe, the root is node 0."""

    @staticmethod
    def build(tokens: _Int32, offsets: _Int64) -> Trie:
        """From sequences end to end: sequence i is tokens[offsets[i]:offsets[i + 1]], never empty."""
    @staticmethod
    def open(path: _Path) -> Trie:
        """Maps a file that `save` wrote; ValueError names the file where it is damaged."""
    def save(self, path: _Path) -> None:
        """Writes one little-endian file, whole or not at all."""
    def children(self, node: int) -> _Int32:
        """Tokens of the node's children, ascending."""
    def step(self, node: int, token: int) -> int:
        """The child by `token`, or -1."""
    def is_terminal(self, node: int) -> bool: ...
    def sequence_ids(self, node: int) -> _Int64:
        """Numbers of the sequences that end at this node, ascending."""
    @property
    def num_nodes(self) -> int: ...
    @property
    def num_sequences(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

@final
class Constraint:
    """Which token may follow in a linearised triplet set; immutable and thread-safe."""

    def __init__(
        self,
        entities: Trie,
        relations: Trie,
        subject_marker: list[int],
        relation_marker: list[int],
        object_marker: list[int],
        end_marker: list[int],
        eos: int,
        form: _Form,
        vocab_size: int,
    ) -> None:
        """Markers of one or more tokens; neither they nor the names hold eos."""
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def form(self) -> _Form: ...

@final
class Matcher:
    """One sequence's place in a constraint; not thread-safe."""

    def __init__(self, constraint: Constraint) -> None: ...
    def accept(self, token: int) -> bool:
        """Goes on by one token; False, and nothing changes, where it is not allowed."""
    def allowed(self) -> _Int32:
        """Tokens that may follow, ascending; none once complete."""
    def fill_bitmask(self, bitmask: _Int32) -> None:
        """Overwrites int32 [bitmask_words(vocab_size)]: bit t % 32 of word t // 32 is token t."""
    def rollback(self, num_tokens: int) -> None:
        """Takes back the last tokens."""
    def fork(self) -> Matcher:
        """An independent copy."""
    def reset(self) -> None: ...
    def replay(self, tokens: _Int32) -> bool:
        """Starts again with these; False, and nothing changes, where they are not allowed."""
    @property
    def is_complete(self) -> bool:
        """True once eos was accepted."""
    @property
    def num_accepted(self) -> int: ...

def bitmask_words(vocab_size: int) -> int:
    """int32 words of a mask over `vocab_size` tokens."""

def allowed_batch(constraint: Constraint, token_rows: _Int32, offsets: _Int64) -> tuple[_Int32, _Int64]:
    """Tokens that may follow each row, replayed from the start: (tokens, offsets [b + 1]).

    A row that is complete, or that the constraint does not allow, gets an empty list.
    """

def mask_logits(constraint: Constraint, matchers: list[Matcher], logits: NDArray[np.float32]) -> None:
    """Sets all but the allowed entries of logits [b, v >= vocab_size] to -inf in place; a complete row keeps eos.

    The interpreter lock is off meanwhile: leave these matchers alone until it returns.
    """

@final
class MinHasher:
    """MinHash signatures of character n-grams (code points, nothing normalised); immutable and thread-safe."""

    def __init__(self, num_perm: int = 128, bands: int = 32, ngram: int = 5, seed: int = 0) -> None: ...
    def signatures(self, texts: list[str]) -> _UInt32:
        """One row a text: uint32 [n, num_perm]."""
    def index(self, threshold: float) -> DuplicateIndex:
        """An empty DuplicateIndex of this shape."""
    @property
    def num_perm(self) -> int: ...
    @property
    def bands(self) -> int: ...
    @property
    def ngram(self) -> int: ...

@final
class DuplicateIndex:
    """Signatures by band; not thread-safe. See csrc/include/obverse/minhash.hpp for what it may miss."""

    def __init__(self, num_perm: int, bands: int, threshold: float) -> None: ...
    def insert_or_find(self, ids: _Int64, signatures: _UInt32) -> _Int64:
        """For each row the id of the first earlier row at or above the threshold, else -1 and it is inserted."""
    def find(self, signatures: _UInt32) -> _Int64:
        """As insert_or_find, inserting nothing."""
    def __len__(self) -> int: ...
    @property
    def num_perm(self) -> int: ...
    @property
    def bands(self) -> int: ...
    @property
    def threshold(self) -> float: ...
    @property
    def nbytes(self) -> int: ...
