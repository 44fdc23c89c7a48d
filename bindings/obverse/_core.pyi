"""The native core. Arrays must have the dtype given and be C-contiguous; nothing is converted silently.

Bad values raise ValueError (expected and got), bad indices IndexError, refused files OSError.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

_Int32: TypeAlias = NDArray[np.int32]
_Int64: TypeAlias = NDArray[np.int64]
_UInt8: TypeAlias = NDArray[np.uint8]
_UInt32: TypeAlias = NDArray[np.uint32]
_Float32: TypeAlias = NDArray[np.float32]
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
class SectionFile:
    """One little-endian file of named byte sections, mapped read-only and shared by every process that opens it.

    Immutable and thread-safe. Opening reads the header and the table alone, whatever the file's size.
    """

    @staticmethod
    def write(path: _Path, fingerprint: str, sections: Mapping[str, Buffer]) -> None:
        """Write {name: contiguous buffer}, each with a checksum, whole or not at all."""
    @staticmethod
    def open(path: _Path) -> SectionFile:
        """Map a file. ValueError (naming it) where header or table are not whole, OSError where it can't be read."""
    @property
    def path(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def names(self) -> list[str]:
        """The sections, in the file's order."""
    def section(self, name: str) -> _UInt8:
        """The section's bytes, read-only, in place."""
    def verify(self) -> None:
        """Read everything and compare all checksums; ValueError names the file and the section."""

@final
class Trie:
    """An immutable token trie; thread-safe; the root is node 0. See csrc/include/obverse/trie.hpp for its layout."""

    @staticmethod
    def build(tokens: _Int32, offsets: _Int64, *, threads: int = 0) -> Trie:
        """From sequences end to end, offsets [n + 1]. Sequences get the numbers 0 .. n - 1; equal ones share a node."""
    @staticmethod
    def from_sections(file: SectionFile, prefix: str) -> Trie:
        """The trie in the sections ``prefix.low`` and so on, in place; checks sizes only."""
    @staticmethod
    def open(path: _Path) -> Trie:
        """Map a file that `save` wrote."""
    def save(self, path: _Path) -> None:
        """Write a file with this trie alone, whole or not at all."""
    def arrays(self) -> dict[str, NDArray[Any]]:
        """low uint16 [n], high uint8 [n] or [0], offset uint8 [n + 1], blocks uint32 [n // 64 + 1, 4], overflow,
        ids, extra_rank, extra_id, used uint32: read-only, in place."""
    def sections(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The same arrays as ``prefix.low`` and so on, for `SectionFile.write`."""
    def is_sound(self) -> bool:
        """Whether every index stays inside and the order is a trie's. Reads everything."""
    def children(self, node: int) -> _Int32:
        """Tokens of the node's children, ascending."""
    def step(self, node: int, token: int) -> int:
        """The child by ``token``, or -1."""
    def walk(self, tokens: _Int32) -> int:
        """The node that ``tokens`` lead to from the root, or -1."""
    def find(self, tokens: _Int32) -> tuple[_Int64, _Int64, _Int64]:
        """Every name that stands in ``tokens``: (begins, ends, nodes)."""
    def is_terminal(self, node: int) -> bool: ...
    def sequence_ids(self, node: int) -> _Int64:
        """Numbers of the sequences that end here, ascending; empty unless terminal."""
    def nodes_of_sequences(self) -> _Int64:
        """The node of each sequence [num_sequences]."""
    def rank(self, node: int) -> int:
        """Terminals before this node."""
    def parent(self, node: int) -> int:
        """The node above; the root's is the root."""
    @property
    def token_bound(self) -> int:
        """One more than the largest token."""
    @property
    def num_nodes(self) -> int: ...
    @property
    def num_terminals(self) -> int: ...
    @property
    def num_sequences(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

@final
class Subset:
    """A few names of a trie: all that one request may write. Immutable; about a microsecond a name to build."""

    def __init__(self, trie: Trie, nodes: _Int64) -> None: ...
    def __len__(self) -> int: ...
    @property
    def nodes(self) -> _Int64: ...

@final
class Constraint:
    """Which token may follow; immutable, thread-safe, shares its tries.

    Args:
        entities, relations: the names. ``relations`` may be None where no slot is a relation.
        parts: (token ids of a literal, or "subject", "relation", "object"; the parts that may follow; whether eos may).
        start: the same without tokens: what an output begins with.
        eos, vocab_size: of the model.
        max_triplets: at most so many.
        unique: no triplet twice.
        types: (subject types by relation, object types by relation, entity types int32, their offsets int64 [n + 1]);
            an empty list of a relation means any entity.
        graph: (subjects, relations, objects int32 sequence numbers, only): only these triplets, or none of them.

    Raises ValueError where parts, names or rules do not fit one another.
    """

    def __init__(
        self,
        entities: Trie,
        relations: Trie | None,
        *,
        parts: Sequence[tuple[Sequence[int] | str, Sequence[int], bool]],
        start: tuple[Sequence[int], bool],
        eos: int,
        vocab_size: int,
        max_triplets: int | None = None,
        unique: bool = False,
        types: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]], _Int32, _Int64] | None = None,
        graph: tuple[_Int32, _Int32, _Int32, bool] | None = None,
    ) -> None: ...
    def read(self, tokens: _Int32) -> list[tuple[int, int, int]]:
        """The whole triplets of ``tokens`` as (subject, relation, object) terminal nodes (0: the form has no such
        slot), up to the first token that is not allowed."""
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def parts(self) -> list[tuple[list[int] | str, list[int], bool]]: ...
    @property
    def start(self) -> tuple[list[int], bool]: ...
    @property
    def max_triplets(self) -> int | None: ...
    @property
    def has_memory(self) -> bool:
        """Whether what may follow depends on the names written before (unique, types, graph)."""
    @property
    def entities(self) -> Trie: ...
    @property
    def relations(self) -> Trie | None: ...

@final
class Matcher:
    """One sequence's place in a constraint; not thread-safe."""

    def __init__(self, constraint: Constraint, *, subset: Subset | None = None) -> None: ...
    def accept(self, token: int) -> bool:
        """Go on by one token; False, and nothing changes, where it is not allowed."""
    def allowed(self) -> _Int32:
        """Tokens that may follow, ascending; none once complete."""
    def fill_bitmask(self, bitmask: _Int32) -> None:
        """Overwrite int32 [bitmask_words(vocab_size)]: bit t % 32 of word t // 32 is token t."""
    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens."""
    def fork(self) -> Matcher:
        """An independent copy."""
    def reset(self) -> None: ...
    def replay(self, tokens: _Int32) -> bool:
        """Start again with these; False, and nothing changes, where they are not allowed."""
    @property
    def eos(self) -> int: ...
    @property
    def is_complete(self) -> bool:
        """True once eos was accepted."""
    @property
    def num_accepted(self) -> int: ...

@final
class MaskRows:
    """Packed masks [num_rows, bitmask_words(vocab_size)] that remember what was set; not thread-safe.

    Filling clears that and nothing else: a step costs what is allowed, whatever the vocabulary.
    """

    def __init__(self, num_rows: int, vocab_size: int) -> None: ...
    @property
    def words(self) -> _Int32:
        """The masks, read-only, in place: what `fill` writes next shows here."""
    def fill(self, matchers: Sequence[Matcher]) -> None:
        """Row i says what matcher i may accept."""

@final
class RowStates:
    """States of rows known only by their tokens so far (Hugging Face's search); not thread-safe."""

    def __init__(self, constraint: Constraint) -> None: ...
    def restrict_to(self, groups: Sequence[Subset | None]) -> None:
        """One subset (or None) for each group of rows that lie together; [] lifts the limit."""
    def step(self, tokens: _Int64, scores: _Float32, out: _Float32, slot: int, reuse: bool) -> None:
        """From generated ``tokens`` [b, t]: copy the allowed entries of ``scores`` [b, v] to ``out`` [b, v].

        ``reuse``: ``out`` is as the last step with this ``slot`` (0 or 1) left it, so only what that step set is
        cleared; else all other entries are set to -inf.
        """
    def allowed(self, tokens: _Int64) -> tuple[_Int32, _Int64]:
        """What may follow each row of ``tokens`` [b, t]: (tokens, offsets [b + 1]); eos at least."""

def bitmask_words(vocab_size: int) -> int:
    """int32 words of a mask over ``vocab_size`` tokens."""

def accept_batch(matchers: Sequence[Matcher], tokens: _Int32) -> None:
    """Go on by a token each [b]; ValueError names the row that may not (rows before it have gone on)."""

def fill_bitmask_batch(matchers: Sequence[Matcher], bitmask: _Int32) -> None:
    """Overwrite int32 [b, bitmask_words(vocab_size)]."""

def allowed_batch(matchers: Sequence[Matcher]) -> tuple[_Int32, _Int64]:
    """Tokens that may follow each: (tokens, offsets [b + 1])."""

def mask_logits(matchers: Sequence[Matcher], logits: _Float32) -> None:
    """Set all but the allowed entries of float32 [b, v] to -inf in place; a complete row keeps eos alone."""

def argmax_allowed(matchers: Sequence[Matcher], logits: _Float32) -> _Int32:
    """The likeliest allowed token of each row of float32 [b, v]; eos for a complete row."""

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

def int8_encoder_available() -> bool:
    """Whether this processor can run `Int8Encoder` (AVX-512 with VNNI)."""

@final
class Int8Encoder:
    """A BERT-like encoder in 8-bit integers. See csrc/include/obverse/int8_encoder.hpp."""

    def __init__(
        self,
        *,
        hidden: int,
        heads: int,
        epsilon: float,
        word: _Float32,
        position: _Float32,
        gamma: _Float32,
        beta: _Float32,
        layers: list[tuple[object, ...]],
    ) -> None:
        """Arrays are flat. A layer is (qkv, attention_out, gamma, beta, inner, outer, gamma, beta); a linear layer in
        it (weight, bias, what inputs are multiplied by or None)."""
    def encode(self, ids: _Int32, starts: _Int64, *, pooling: str = "mean", threads: int = 1) -> _Float32:
        """Unit vectors [n, hidden] of texts whose tokens are ids[starts[i]:starts[i + 1]]; pooling mean or cls."""
    @property
    def hidden(self) -> int: ...
    @property
    def positions(self) -> int: ...

@final
class WordTexts:
    """Texts as rows of word numbers; not thread-safe while it grows. See csrc/include/obverse/ngrams.hpp."""

    def __init__(self) -> None: ...
    def add(self, texts: list[str]) -> None:
        """Appends texts: ASCII ones as they are, others as words with spaces between (found by the caller)."""
    def lengths(self) -> _Int64:
        """Words of each text, int64 [n]."""
    def count_ngrams(
        self, max_order: int, with_matches: bool, threads: int, partition_rows: int = 1 << 24
    ) -> list[tuple[int, int, _UInt32 | None]]:
        """For each order from 1 up: n-grams, different n-grams, and clipped matches uint32 [n] or None."""
    def __len__(self) -> int: ...
    @property
    def num_words(self) -> int:
        """Different words."""
    @property
    def nbytes(self) -> int: ...

def symmetric_eigenvalues(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eigenvalues of a symmetric float64 matrix [n, n] (its lower triangle), largest first, on one thread."""

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

def best_isa() -> int:
    """The best instruction set here for the kernels below: 0 portable, 1 AVX2, 2 AVX-512, 3 AVX-512 with BF16."""

# The weighted cross-entropy (csrc/include/obverse/weighted_ce.hpp). Tensors come as addresses, 0 for none, and
# nothing is checked: kernels/native_ce.py does that. Dtypes: 0 float32, 1 bfloat16, 2 float16. `rule`: (scheme,
# focal_detached, gamma, log_low, log_high, smoothing, z_loss, ignore_index). `isa` may only lower `best_isa()`.

_Rule: TypeAlias = tuple[int | float, ...]

def ce_forward(
    logits: int,
    dtype: int,
    rows: int,
    columns: int,
    row_stride: int,
    target: int,
    sample_weight: int,
    log_quality: int,
    log_diversity: int,
    class_weight: int,
    soft: int,
    soft_dtype: int,
    soft_stride: int,
    rule: _Rule,
    fields: int,
    clipped: int,
    threads: int,
    isa: int,
    /,
) -> None:
    """Fill ``fields`` (float32 [9, rows]) and ``clipped`` (int8 [rows])."""

def ce_backward(
    logits: int,
    dtype: int,
    rows: int,
    columns: int,
    row_stride: int,
    target: int,
    sample_weight: int,
    log_quality: int,
    log_diversity: int,
    class_weight: int,
    soft: int,
    soft_dtype: int,
    soft_stride: int,
    rule: _Rule,
    fields: int,
    upstream: int,
    upstream_stride: int,
    gradient: int,
    gradient_stride: int,
    threads: int,
    isa: int,
    /,
) -> None:
    """Fill ``gradient`` (the logits' dtype) from what ce_forward left in ``fields``."""

def ce_fused(
    logits: int,
    dtype: int,
    rows: int,
    columns: int,
    row_stride: int,
    target: int,
    sample_weight: int,
    log_quality: int,
    log_diversity: int,
    class_weight: int,
    soft: int,
    soft_dtype: int,
    soft_stride: int,
    rule: _Rule,
    upstream: int,
    upstream_stride: int,
    fields: int,
    clipped: int,
    gradient: int,
    gradient_stride: int,
    threads: int,
    isa: int,
    /,
) -> None:
    """ce_forward and ce_backward in one sweep; ``gradient`` may be ``logits``."""

# The linear layer and the cross-entropy as one (csrc/include/obverse/linear_ce.hpp), as above. Hidden, head, bias
# and their gradients (rows contiguous) have one dtype, float32 or bfloat16.

def ce_count(target: int, rows: int, ignore_index: int) -> int:
    """How many of the int64 targets are not ``ignore_index``."""

def ce_sum(figures: int, count: int) -> float:
    """The sum of float32 figures, in double."""

def linear_ce_is_fast(dtype: int, isa: int) -> bool:
    """Whether `linear_ce` beats a library's products for this dtype on this processor."""

def linear_ce(
    hidden: int,
    dtype: int,
    rows: int,
    columns: int,
    hidden_stride: int,
    head: int,
    head_rows: int,
    head_stride: int,
    bias: int,
    target: int,
    sample_weight: int,
    log_quality: int,
    log_diversity: int,
    class_weight: int,
    rule: _Rule,
    upstream: int,
    upstream_stride: int,
    fields: int,
    clipped: int,
    hidden_gradient: int,
    head_gradient: int,
    bias_gradient: int,
    threads: int,
    isa: int,
    /,
) -> None:
    """Fill ``fields`` and ``clipped`` as ce_forward, and the gradients whose addresses are not 0."""

# Vectors (csrc/include/obverse/quantised.hpp): float16 or float32 [N, d]. `isa` may only lower `best_vector_isa()`.

_Rows: TypeAlias = NDArray[np.float16] | NDArray[np.float32]

def best_vector_isa() -> int:
    """The best instruction set here for the kernels below: 0 portable, 1 AVX2, 2 AVX-512 with VNNI."""

def vector_norms(x: _Rows, *, threads: int = 1, isa: int = 2) -> tuple[NDArray[np.float64], int]:
    """Norms [N], and the first row that is not finite or all zero (-1 where there is none)."""

def quantise_rows(
    x: _Rows,
    norms: NDArray[np.float64],
    matrix: _Float32,
    scale: float,
    defect: float,
    *,
    q: NDArray[np.int8] | None = None,
    threads: int = 1,
    isa: int = 2,
) -> tuple[NDArray[np.int8], _Float32]:
    """q int8 [N, P] = round(matrix^T x / (|x| scale)), into `q` where given, and the error float32 [N]."""

def rank_candidates(
    x: _Rows, indices: _Int32, k: int, *, y: _Rows | None = None, threads: int = 1, isa: int = 2
) -> tuple[_Int32, _Float32]:
    """For each row of x [N, d] the k best of its candidates [N, m] (rows of y, or of x itself) by exact cosine.

    Falling cosine, equal ones by row. Invalid and repeated candidates, and the row itself where y is None, are left
    out; empty places at the end get -1 and -inf.
    """

@final
class Descent:
    """An approximate nearest-neighbour graph of int8 rows; not thread-safe. See csrc/include/obverse/descent.hpp."""

    def __init__(
        self,
        q: NDArray[np.int8],
        *,
        degree: int,
        leaf: int,
        fanout: int,
        carvings: int,
        settled: float,
        reverse: int,
        rounds: int,
        delta: float,
        seed: int,
        threads: int = 1,
        isa: int = 2,
    ) -> None:
        """q: int8 [N, P], P a multiple of 64; it must not change while this lives."""
    def step(self) -> tuple[str, int, float, int, int]:
        """A piece of the work: ("carving", "round" or "done", its number, share done, evaluated, updates)."""
    def candidates(self, m: int) -> _Int32:
        """The best m found so far, int32 [N, m], best first, -1 where there are fewer; never the row itself."""
    @property
    def distinct(self) -> int:
        """Rows that differ from all before them."""
    @property
    def nbytes(self) -> int: ...

# Near-duplicates (csrc/include/obverse/groups.hpp, text_duplicates.hpp). `order`: rows by falling priority.

_Groups: TypeAlias = tuple[_Int64, _UInt8, _Int64, _Float32]

def first_equal_rows(x: NDArray[Any], *, order: _Int64 | None = None, threads: int = 1) -> _Int64:
    """For each row of x [N, d] the first row, by `order`, with the same bytes."""

def group_pairs(
    n: int,
    i: _Int64,
    j: _Int64,
    similarities: _Float32,
    *,
    order: _Int64 | None = None,
    first: _Int64 | None = None,
) -> _Groups:
    """Lowest row of each row's group, whether it stays, the row that it repeats or -1, and its similarity to that.

    From all pairs (i, j) of n rows within the threshold; `first` as `first_equal_rows` where pairs are of first rows.
    """

def expected_recall(jaccard: float, *, threshold: float, bands: int, width: int, num_perm: int = 128) -> float:
    """The chance, at least, that `TextDuplicates` finds a pair of texts of that Jaccard similarity."""

@final
class TextDuplicates:
    """Near-duplicates among all texts of a set; not thread-safe. Sign, gather, keep and link all, then ask."""

    def __init__(
        self,
        bytes: _UInt8,
        offsets: _Int64,
        *,
        order: _Int64 | None = None,
        threshold: float,
        bands: int,
        width: int,
        num_perm: int = 128,
        ngram: int = 5,
        seed: int = 0,
    ) -> None:
        """Text i is UTF-8 bytes[offsets[i] : offsets[i + 1]]; equal texts are one."""
    def sign(self, first: int, last: int, threads: int = 1) -> None:
        """Signs distinct texts [first, last)."""
    def gather(self, band: int) -> None:
        """Puts texts that agree in a band together; bands in order."""
    def keep(self, first: int, last: int) -> None:
        """Decides which of the distinct texts [first, last) stay; in order."""
    def link(self, band: int) -> None:
        """Joins what a band still has apart."""
    def groups(self) -> _Groups:
        """As `group_pairs`."""
    @property
    def num_distinct(self) -> int: ...
    @property
    def num_compared(self) -> int:
        """Pairs whose sets of shingles were compared so far."""
    @property
    def nbytes(self) -> int: ...

# Selection (csrc/include/obverse/graph_select.hpp, k_center.hpp). Each `choose` goes on where the last one stopped.

@final
class NeighbourGraph:
    """Rows joined where either lists the other; immutable."""

    def __init__(self, indices: _Int32 | _Int64, similarities: _Float32) -> None:
        """Neighbour lists [N, k], -1 where there are fewer."""
    def __len__(self) -> int: ...
    @property
    def num_edges(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

@final
class FacilityLocation:
    """Lazy greedy facility location; not thread-safe."""

    def __init__(
        self,
        graph: NeighbourGraph,
        *,
        weight: NDArray[np.float64] | None = None,
        quality: NDArray[np.float64] | None = None,
    ) -> None: ...
    def choose(self, count: int) -> tuple[_Int64, NDArray[np.float64]]:
        """Up to `count` more rows, and their gains."""
    @property
    def num_evaluated(self) -> int: ...
    @property
    def total(self) -> float:
        """The objective of all rows."""

@final
class GraphCenters:
    """Farthest-first traversal of a graph; not thread-safe."""

    def __init__(self, graph: NeighbourGraph, first: int = 0) -> None: ...
    def choose(self, count: int) -> tuple[_Int64, NDArray[np.float64]]:
        """Up to `count` more rows, and their distances to those before."""
    @property
    def radius(self) -> float: ...

@final
class VectorCenters:
    """Farthest-first traversal of vectors; not thread-safe."""

    def __init__(self, x: _Rows, *, first: int = 0, threads: int = 1, isa: int = 2) -> None: ...
    def choose(self, count: int) -> tuple[_Int64, _Float32]:
        """Up to `count` more rows, and the cosine of each to its nearest row before."""
    @property
    def least_similarity(self) -> float: ...

# Exact joins (csrc/include/obverse/exact_join.hpp). A side is (x, norms, q, error); y None means a self-join.

_Side: TypeAlias = tuple[Any, ...]

def expand_equal_rows(
    first_x: _Int64, first_y: _Int64 | None, indices: _Int32, similarities: _Float32, k: int, *, threads: int = 1
) -> tuple[_Int64, _Float32]:
    """Lists [N, listed] between first rows to lists [N, k] between all rows."""

@final
class TopKJoin:
    """The k nearest rows by exact cosine."""

    def __init__(
        self, x: _Side, y: _Side | None, scale: float, rows: _Int32, columns: _Int32, k: int, threads: int, isa: int
    ) -> None:
        """`rows` and `columns`: the rows of x and y that take part."""
    def seed(self, candidates: _Int32) -> None:
        """Candidates [N, m] to start from, -1 for none."""
    def seed_by_trees(self, trees: int, rounds: int, seed: int) -> None:
        """Candidates from random trees, then from neighbours of neighbours."""
    def start(self) -> None:
        """Fix the order of rows; then `step`."""
    def step(self, index: int) -> None:
        """One band of rows; each index in [0, steps) once, in any order."""
    def restore(self, order: _Int32, indices: _Int32, similarities: _Float32) -> None:
        """Go on from saved lists, in place of seeds and `start`."""
    @property
    def steps(self) -> int: ...
    @property
    def indices(self) -> _Int32:
        """[N, k], a view of the lists as they are."""
    @property
    def similarities(self) -> _Float32: ...
    @property
    def order(self) -> _Int32: ...
    @property
    def counts(self) -> dict[str, float]: ...

@final
class ThresholdJoin:
    """All pairs of a cosine of at least a threshold; those beyond `most` are counted, not kept."""

    def __init__(
        self,
        x: _Side,
        y: _Side | None,
        scale: float,
        rows: _Int32,
        columns: _Int32,
        threshold: float,
        most: int,
        threads: int,
        isa: int,
    ) -> None: ...
    def step(self, index: int) -> None:
        """One band of rows; each index in [0, steps) once, in any order."""
    @property
    def steps(self) -> int: ...
    @property
    def total(self) -> int: ...
    def pairs(self) -> tuple[_Int32, _Int32, _Float32]:
        """Rows, columns, similarities, in no order."""
    def fullest(self) -> tuple[int, int]:
        """The row that is in most pairs, and in how many."""
    @property
    def counts(self) -> dict[str, float]: ...

@final
class BallJoin:
    """Counts of rows in balls (radii are cosines) around rows of the other side."""

    def __init__(
        self,
        x: _Side,
        y: _Side,
        scale: float,
        rows: _Int32,
        columns: _Int32,
        radii: tuple[_Float32, _Float32],
        weights: tuple[_Int64, _Int64],
        threads: int,
        isa: int,
    ) -> None: ...
    def step(self, index: int) -> None:
        """One band of rows; each index in [0, steps) once, in any order."""
    @property
    def steps(self) -> int: ...
    def balls(self) -> tuple[_Int64, _Int64, _Int64]:
        """inside_y [M], inside_x [N], reached_x [N]; see csrc/include/obverse/exact_join.hpp."""
    @property
    def counts(self) -> dict[str, float]: ...
