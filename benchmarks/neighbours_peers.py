"""Self-joins by every provider, each run in a process of its own: ``python -m benchmarks.neighbours_peers NAME ...``.

A process of its own shows what a first call costs (imports aside: they are done before the clock starts, compilation
is not), and its peak memory. All get the same float16 file, the same k and two threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import peak_extra_memory

__all__ = ["APPROXIMATE", "EXACT", "PROVIDERS", "modules_of"]

Vectors = npt.NDArray[np.float32]
Found = npt.NDArray[np.int64]
THREADS = 2


def _unit(stored: npt.NDArray[np.float16]) -> Vectors:
    x = np.asarray(stored, np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def _others(found: npt.NDArray[Any], k: int) -> Found:
    """Without the row itself: lists one longer than k, from engines that return it."""
    rows = np.arange(len(found))[:, None]
    own = found == rows
    own[~own.any(axis=1), -1] = True
    return found[~own].reshape(len(found), k).astype(np.int64)


def exact(stored: Any, k: int) -> Found:
    """Ours."""
    from obverse.engine.diversity import exact as engine

    return np.asarray(engine.self_join(stored, k, threads=THREADS)[0], np.int64)


def descent(stored: Any, k: int) -> Found:
    """Ours."""
    from obverse.engine.diversity import descent as engine

    return np.asarray(engine.self_join(stored, k, recall=0.99, threads=THREADS)[0], np.int64)


def faiss_flat(stored: Any, k: int) -> Found:
    """Exact, float32."""
    import faiss

    x = _unit(stored)
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    return _others(index.search(x, k + 1)[1], k)


def torch_bf16(stored: Any, k: int, spare: int = 14) -> Found:
    """Chunked products in bfloat16, the best k + 1 + ``spare`` ranked again in float32: what one would write."""
    import torch

    torch.set_num_threads(THREADS)
    x = torch.from_numpy(_unit(stored))
    short = x.bfloat16()
    out = np.empty((len(x), k), np.int64)
    for low in range(0, len(x), 1024):
        products = short[low : low + 1024] @ short.T
        near = products.topk(min(k + 1 + spare, len(x)), dim=1).indices
        values = torch.einsum("rd,rmd->rm", x[low : low + 1024], x[near])
        values[near == torch.arange(low, low + len(near))[:, None]] = -2
        best = values.topk(k, dim=1).indices
        out[low : low + len(near)] = near.gather(1, best).numpy()
    return out


def pynndescent(stored: Any, k: int) -> Found:
    """30 neighbours: 0.99 on real embeddings."""
    import numba
    from pynndescent import NNDescent

    numba.set_num_threads(THREADS)
    index = NNDescent(_unit(stored), metric="cosine", n_neighbors=30, random_state=0, n_jobs=THREADS)
    return _others(index.neighbor_graph[0][:, : k + 1], k)


def hnswlib(stored: Any, k: int) -> Found:
    """M 32, 200 candidates to build, 100 to search."""
    import hnswlib as library

    x = _unit(stored)
    index = library.Index(space="ip", dim=x.shape[1])
    index.init_index(max_elements=len(x), M=32, ef_construction=200, random_seed=0)
    index.set_ef(100)
    index.add_items(x, num_threads=THREADS)
    return _others(index.knn_query(x, k + 1, num_threads=THREADS)[0].astype(np.int64), k)


def usearch(stored: Any, k: int) -> Found:
    """bf16, connectivity 32, 128 candidates to build, 100 to search."""
    from usearch.index import Index

    x = _unit(stored)
    index = Index(ndim=x.shape[1], metric="cos", dtype="bf16", connectivity=32, expansion_add=128, expansion_search=100)
    index.add(np.arange(len(x)), x, threads=THREADS)
    found = index.search(x, k + 1, threads=THREADS).keys
    return _others(np.asarray(found).astype(np.int64), k)


def faiss_hnsw(stored: Any, k: int) -> Found:
    """M 32, 80 candidates to build, 64 to search."""
    import faiss

    x = _unit(stored)
    index = faiss.IndexHNSWFlat(x.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 80, 64
    index.add(x)
    return _others(index.search(x, k + 1)[1], k)


def faiss_ivf(stored: Any, k: int) -> Found:
    """4 sqrt(N) lists of float16, 64 of them visited."""
    import faiss

    x = _unit(stored)
    lists = int(4 * np.sqrt(len(x)))
    index = faiss.index_factory(x.shape[1], f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(0)
    index.train(x[rng.permutation(len(x))[: 40 * lists]])
    index.add(x)
    index.nprobe = 64
    return _others(index.search(x, k + 1)[1], k)


EXACT: dict[str, Callable[[Any, int], Found]] = {
    "obverse": exact,
    "faiss flat": faiss_flat,
    "torch bf16, re-ranked": torch_bf16,
}
APPROXIMATE: dict[str, Callable[[Any, int], Found]] = {
    "obverse": descent,
    "pynndescent": pynndescent,
    "hnswlib": hnswlib,
    "usearch": usearch,
    "faiss hnsw": faiss_hnsw,
    "faiss ivf": faiss_ivf,
}
PROVIDERS = {"exact": EXACT, "approximate": APPROXIMATE}
_MODULES = {
    "obverse": ("obverse.engine.diversity.exact", "obverse.engine.diversity.descent"),
    "torch bf16, re-ranked": ("torch",),
    "hnswlib": ("hnswlib",),
    "usearch": ("usearch.index",),
    "pynndescent": ("pynndescent",),
}


def modules_of(name: str) -> tuple[str, ...]:
    """What a provider imports; done before the clock starts."""
    return _MODULES.get(name, ("faiss",))


def main() -> int:
    """Run one provider and print one line of JSON: seconds of each call, peak memory in bytes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours_peers")
    parser.add_argument("kind", choices=PROVIDERS)
    parser.add_argument("name")
    parser.add_argument("vectors", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--calls", type=int, default=1)
    options = parser.parse_args()
    import importlib

    for module in modules_of(options.name):
        importlib.import_module(module)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(THREADS)
    run = PROVIDERS[options.kind][options.name]
    stored = np.load(options.vectors, mmap_mode="r")
    stored[:].sum(dtype=np.float64)  # every page of the file read before the clock starts
    seconds: list[float] = []
    found: list[Found] = []

    def call() -> None:
        start = time.perf_counter()
        found[:] = [run(stored, options.k)]
        seconds.append(time.perf_counter() - start)

    peaks = [peak_extra_memory(call) for _ in range(options.calls)]
    np.save(options.out, found[0])
    print(json.dumps({"seconds": seconds, "peak_bytes": peaks[0]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
