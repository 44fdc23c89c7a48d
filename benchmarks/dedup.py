"""How fast are near-duplicates among texts found, and rows selected, beside the usual packages?

``python -m benchmarks.dedup [--quick] [--json] [--csv FILE]``, or ``pytest benchmarks/dedup.py``

Texts: from a list of strings to the rows that stay, all on one thread. Ours verifies every match by true Jaccard; the
peers make shingles in Python, keep the first of what their estimate calls near-copies, and verify nothing. Selection:
facility location on a neighbour graph, lists to rows; peers get the same graph as a sparse matrix. A plain lazy greedy
in Python is the reference for both our result and its time. Peers run where they are installed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import OURS, Row, interleave, peak_extra_memory, run_main, timing_rows
from obverse.engine.diversity.selection import facility_location, graph_k_center
from obverse.engine.diversity.text_duplicates import text_near_duplicates

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

_THRESHOLD = 0.8
_NGRAM = 5
_PLAIN = "plain lazy greedy (Python)"

Lists = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def make_texts(rows: int, seed: int = 0) -> list[str]:
    """Sentences of about 100 characters over 20,000 made-up words; one in ten is an edit of an earlier one."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("aabcdeeefghiijklmnooprsttuvwy"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, 20_000)]
    ranks = np.minimum(rng.zipf(1.3, (rows, 15)), len(words)) - 1
    texts: list[str] = []
    for row in range(rows):
        if row and rng.random() < 0.1:
            parts = texts[int(rng.integers(row))].split(" ")
            parts[int(rng.integers(len(parts)))] = words[int(rng.integers(len(words)))]
        else:
            parts = [words[(rank + row * (rank > 50)) % len(words)] for rank in ranks[row]]
        texts.append(" ".join(parts))
    return texts


def shingles(text: str) -> list[str]:
    """Character n-grams, as one would write it."""
    return [text[i : i + _NGRAM] for i in range(len(text) - _NGRAM + 1)] if len(text) > _NGRAM else [text]


def with_rensa(texts: Sequence[str]) -> list[int]:
    """Rows that stay, by rensa: 128 permutations, 16 bands of 8, its estimate of Jaccard."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=_THRESHOLD, num_perm=128, num_bands=16)
    held, kept = {}, []
    for row, text in enumerate(texts):
        signature = RMinHash(num_perm=128, seed=1)
        signature.update(shingles(text))
        if not any(signature.jaccard(held[other]) >= _THRESHOLD for other in index.query(signature)):
            index.insert(row, signature)
            held[row] = signature
            kept.append(row)
    return kept


def with_datasketch(texts: Sequence[str]) -> list[int]:
    """Rows that stay, by datasketch: 128 permutations, bands of its choice, its estimate of Jaccard."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=_THRESHOLD, num_perm=128)
    held, kept = {}, []
    for row, text in enumerate(texts):
        signature = MinHash(num_perm=128, seed=1)
        signature.update_batch([one.encode() for one in shingles(text)])
        if not any(signature.jaccard(held[other]) >= _THRESHOLD for other in index.query(signature)):
            index.insert(row, signature)
            held[row] = signature
            kept.append(row)
    return kept


def check_texts(texts: Sequence[str]) -> float:
    """Raises unless every row that goes has one that stays at the threshold; the recall among rows that stay."""
    found = text_near_duplicates(texts, _THRESHOLD)
    sets = [frozenset(shingles(text)) for text in texts]
    near = 0
    for row in range(len(texts)):
        for other in range(row):
            shared = len(sets[row] & sets[other])
            if shared >= _THRESHOLD * (len(sets[row]) + len(sets[other]) - shared):
                near += 1
                near -= int(found.kept[row] and found.kept[other])
        of = int(found.duplicate_of[row])
        if of >= 0 and len(sets[row] & sets[of]) < _THRESHOLD * len(sets[row] | sets[of]):
            raise RuntimeError(f"row {row} was dropped for row {of}, which is no near-duplicate")
    total = near + sum(1 for _ in _missed(sets, found.kept))
    return near / total if total else 1.0


def _missed(sets: Sequence[frozenset[str]], kept: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Pairs at the threshold of which both rows stayed."""
    rows = np.flatnonzero(kept).tolist()
    for place, row in enumerate(rows):
        for other in rows[:place]:
            shared = len(sets[row] & sets[other])
            if shared >= _THRESHOLD * (len(sets[row]) + len(sets[other]) - shared):
                yield row, other


def text_rows(quick: bool) -> Iterator[Row]:
    """Texts a second, and memory a text."""
    recall = check_texts(make_texts(1000, seed=1))
    if recall < 0.99:
        raise RuntimeError(f"recall {recall:.4f} of pairs at the threshold")
    texts = make_texts(2_000 if quick else 50_000)
    shape = f"[{len(texts)}] texts of {np.mean([len(text) for text in texts]):.0f} chars"
    yield Row("dedup", "text near-duplicates", OURS, "[1000]", "recall", recall, "share")
    cases: dict[str, Callable[[], object]] = {OURS: lambda: text_near_duplicates(texts, _THRESHOLD, threads=1)}
    if find_spec("rensa"):
        cases["rensa"] = lambda: with_rensa(texts)
    if find_spec("datasketch"):
        cases["datasketch"] = lambda: with_datasketch(texts)
    timings = interleave(cases, repeats=3, warmup=0)
    yield from timing_rows("dedup", "text near-duplicates", shape, timings, unit="ms")
    many = make_texts(20_000 if quick else 200_000, seed=2)
    extra = peak_extra_memory(lambda: text_near_duplicates(many, _THRESHOLD, threads=1))
    if extra is not None:
        yield Row("dedup", "text near-duplicates", OURS, f"[{len(many)}]", "peak memory", extra / len(many), "B/text")


def make_lists(rows: int, k: int = 10, seed: int = 0) -> Lists:
    """Neighbour lists as of points on a curve: near rows list each other, most similar first."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, 4 * k, (rows, k)) * rng.choice([-1, 1], (rows, k))
    names = rng.permutation(rows)
    indices = np.empty((rows, k), np.int64)
    indices[names] = names[(np.arange(rows)[:, None] + steps) % rows]
    indices[indices == np.arange(rows)[:, None]] = -1
    similarities = np.sort(rng.beta(6, 2, (rows, k)).astype(np.float32), axis=1)[:, ::-1]
    return indices, np.ascontiguousarray(similarities)


def edges_of(lists: Lists) -> list[dict[int, float]]:
    """The undirected graph, row by row."""
    edges: list[dict[int, float]] = [{} for _ in lists[0]]
    for row, (others, values) in enumerate(zip(lists[0].tolist(), lists[1].tolist(), strict=True)):
        for other, value in zip(others, values, strict=True):
            if other >= 0:
                edges[row][other] = max(value, edges[row].get(other, value))
                edges[other][row] = max(value, edges[other].get(row, value))
    return [{row: 1.0, **dict(sorted(near.items()))} for row, near in enumerate(edges)]


def plain_lazy_greedy(lists: Lists, n: int) -> list[int]:
    """Minoux's algorithm as one would write it."""
    edges = edges_of(lists)
    covered = [0.0] * len(edges)

    def gain(row: int) -> float:
        total = 0.0
        for other, value in edges[row].items():
            if value > covered[other]:
                total += value - covered[other]
        return total

    heap = [(-gain(row), row) for row in range(len(edges))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < n:
        bound, row = heapq.heappop(heap)
        now = gain(row)
        if -now != bound:
            heapq.heappush(heap, (-now, row))
            continue
        chosen.append(row)
        for other, value in edges[row].items():
            covered[other] = max(covered[other], value)
    return chosen


def as_sparse(lists: Lists) -> Any:
    """The graph as a SciPy matrix, rows themselves on the diagonal."""
    from scipy.sparse import csr_matrix

    edges = edges_of(lists)
    starts = np.cumsum([0, *map(len, edges)])
    columns = np.fromiter((other for near in edges for other in near), np.int32)
    values = np.fromiter((value for near in edges for value in near.values()), np.float64)
    matrix = csr_matrix((values, columns, starts), shape=(len(edges), len(edges)))
    matrix.sort_indices()
    return matrix


def with_submodlib(matrix: Any, n: int) -> list[int]:
    """By submodlib's lazy greedy, sparse mode."""
    from submodlib import FacilityLocationFunction

    function = FacilityLocationFunction(n=matrix.shape[0], mode="sparse", sijs=matrix, num_neighbors=1)
    found = function.maximize(budget=n, optimizer="LazyGreedy", show_progress=False)
    return [int(row) for row, _ in found]


def selection_rows(quick: bool) -> Iterator[Row]:
    """Selecting a tenth; the same rows as the plain greedy, or it stops."""
    rows = 2_000 if quick else 6_000
    lists = make_lists(rows)
    n = rows // 10
    if facility_location(*lists, n).rows.tolist() != plain_lazy_greedy(lists, n):
        raise RuntimeError("facility location differs from the plain lazy greedy")
    cases: dict[str, Callable[[], object]] = {
        OURS: lambda: facility_location(*lists, n),
        _PLAIN: lambda: plain_lazy_greedy(lists, n),
    }
    matrix = as_sparse(lists) if find_spec("scipy") else None
    if matrix is not None and find_spec("submodlib"):
        cases["submodlib"] = lambda: with_submodlib(matrix, n)
    timings = interleave(cases, repeats=3, warmup=0)
    shape = f"{n} of [{rows}], k=10"
    yield from timing_rows("dedup", "facility location", shape, timings, unit="ms")
    many = make_lists(100_000 if quick else 1_000_000)
    for op, choose in (("facility location", facility_location), ("graph k-center", graph_k_center)):
        timings = interleave({OURS: lambda choose=choose: choose(*many, len(many[0]) // 10)}, repeats=1, warmup=0)
        shape = f"{len(many[0]) // 10} of [{len(many[0])}], k=10"
        yield from timing_rows("dedup", op, shape, timings, unit="s")


def measure(quick: bool) -> Iterator[Row]:
    """All rows."""
    yield from text_rows(quick)
    yield from selection_rows(quick)


def test_benchmark_text_near_duplicates(benchmark: BenchmarkFixture) -> None:
    texts = make_texts(2_000)
    assert check_texts(texts[:500]) >= 0.99
    benchmark(lambda: text_near_duplicates(texts, _THRESHOLD, threads=1))


def test_benchmark_facility_location(benchmark: BenchmarkFixture) -> None:
    lists = make_lists(3_000)
    assert facility_location(*lists, 300).rows.tolist() == plain_lazy_greedy(lists, 300)
    benchmark(lambda: facility_location(*lists, 300))


if __name__ == "__main__":
    raise SystemExit(run_main("dedup", measure, packages=("numpy", "rensa", "datasketch", "submodlib-py")))
