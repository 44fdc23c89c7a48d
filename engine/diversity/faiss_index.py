"""`FaissIndex`: an index of FAISS over rows by cosine, that can be saved, mapped, added to and searched."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil

from obverse.engine.diversity import exact, faiss
from obverse.engine.diversity.estimate import sample_rows
from obverse.engine.diversity.vectors import unit_blocks, unit_rows
from obverse.engine.errors import InputError
from obverse.engine.records.shards import atomic_write

__all__ = ["FaissIndex", "Kind", "choose_kind", "ivf_lists"]

Matrix = npt.NDArray[Any]
Kind = Literal["auto", "flat", "ivf", "rabitq", "hnsw"]
Progress = Callable[[int], None]

_BLOCK = 8192
# Up to here a flat search costs no more than an inverted file of recall 0.99 (65,000 MiniLM vectors, 2 cores: 28
# CPU-s flat, 26 with 128 probes).
_FLAT_ROWS = 65_536
_TRAIN_PER_LIST = 64
_TUNE_ROWS = 256
_CLASSES = {
    "IndexFlatIP": "flat",
    "IndexIVFScalarQuantizer": "ivf",
    "IndexIVFRaBitQ": "rabitq",
    "IndexHNSWFlat": "hnsw",
}


def choose_kind(rows: int, dim: int, recall: float) -> tuple[str, str]:
    """A kind of index for ``rows`` vectors and the reason. Never hnsw.

    HNSW at a recall of 0.98 gave 1% of the rows of clustered sets neighbours of another cluster, wrong by 0.65 in
    cosine; inverted files degrade softly (p99 error of the score 0.003 to 0.014 at recalls of 0.98).
    """
    if rows <= _FLAT_ROWS or recall >= 1.0:
        return "flat", "exact, and no slower here" if rows <= _FLAT_ROWS else "a recall of 1 was asked for"
    need, free = rows * (2 * dim + 8), int(psutil.virtual_memory().available)
    if need > free // 2:
        return "rabitq", f"float16 codes need {need / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    return "ivf", f"{rows:,} rows are above {_FLAT_ROWS:,}; float16 codes fit the memory"


def ivf_lists(rows: int) -> int:
    """Lists of an inverted file over ``rows`` rows: 4 sqrt(N), as FAISS's guide advises, of at least 39 rows each."""
    return max(1, min(round(4 * math.sqrt(rows)), rows // 39))


class FaissIndex:
    """An index over rows ``[N, d]``, numbered from 0 in the order they were added; nearness is the cosine.

    ::

        index = FaissIndex.build(x, recall=0.99)
        index.save("x.faiss")
        indices, similarities = FaissIndex.open("x.faiss").search(queries, 10)
    """

    def __init__(self, index: Any, *, mapped: bool = False) -> None:
        name = type(index).__name__
        if name not in _CLASSES:
            raise InputError(f"an index of a kind of {', '.join(_CLASSES)}", seen=name)
        self.kind, self.mapped, self._index = _CLASSES[name], mapped, index

    @classmethod
    def build(
        cls,
        x: Matrix,
        *,
        kind: Kind = "auto",
        k: int = 10,
        recall: float = 0.99,
        threads: int = 0,
        seed: int = 0,
        on_progress: Progress = lambda _: None,
    ) -> FaissIndex:
        """Index the rows ``x [N, d]`` (float16 or float32, not necessarily unit; read in blocks).

        ``flat``: float32, exact up to rounding. ``ivf``: inverted lists of float16 codes; ``rabitq``: of 1-bit
        codes (RaBitQ, arXiv 2405.12497), for sets that don't fit memory: search wide and rank again. The number of
        lists visited is the smallest power of 2 that gives ``recall`` at ``k`` on 256 rows of ``x``, searched exactly
        besides. ``hnsw``: a navigable small-world graph (M 32, efConstruction 80, efSearch 64 or more), built by one
        thread, for with several it differs from run to run. ``auto``: see `choose_kind`.

        Raises `MissingPackageError` without FAISS and `InputError` for an empty ``x``.
        """
        if not len(x):
            raise InputError("at least one vector")
        kind = choose_kind(len(x), x.shape[1], recall)[0] if kind == "auto" else kind  # type: ignore[assignment]
        with faiss.threads(threads):
            index = cls(_empty(kind, len(x), x.shape[1]))
            index._train(x, seed)
            index.add(x, on_progress=on_progress)
            if kind in ("ivf", "rabitq"):
                index._tune(x, k, recall, seed, threads)
            elif kind == "hnsw":
                index._index.hnsw.efSearch = max(64, 2 * k)
        return index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Dimensions of its rows."""
        return int(self._index.d)

    @property
    def parameters(self) -> dict[str, int | str]:
        """Kind, and lists and probes of inverted files, or links and efSearch of a graph."""
        if self.kind in ("ivf", "rabitq"):
            return {"index": self.kind, "lists": int(self._index.nlist), "probes": int(self._index.nprobe)}
        if self.kind == "hnsw":
            return {"index": self.kind, "links": 32, "ef_search": int(self._index.hnsw.efSearch)}
        return {"index": self.kind}

    def add(self, x: Matrix, *, on_progress: Progress = lambda _: None) -> None:
        """Add the rows ``x [M, d]`` behind those there are. Lists and centroids stay as they were trained.

        Raises `InputError` for rows of another dimension, and for an index that is mapped from its file.
        """
        if self.mapped:
            raise InputError("an index in memory (open it with mapped=False)", seen="one mapped from its file")
        self._check(x)
        threads = 1 if self.kind == "hnsw" else 0
        for _, block in unit_blocks(x, _BLOCK):
            with faiss.threads(threads):
                self._index.add(block)
            on_progress(len(block))

    def search(
        self, x: Matrix, k: int, *, threads: int = 0, on_progress: Progress = lambda _: None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Row numbers ``[Q, k]`` likely nearest to each of ``x [Q, d]``, best first, and their cosines.

        -1 and -inf where fewer were found. The cosines are those of the stored codes: rank again where that matters.
        """
        self._check(x)
        indices, values = np.empty((len(x), k), np.int64), np.empty((len(x), k), np.float32)
        with faiss.threads(threads):
            for start, block in unit_blocks(x, _BLOCK):
                found = slice(start, start + len(block))
                values[found], indices[found] = self._index.search(block, k)
                on_progress(len(block))
        values[indices < 0] = -np.inf
        return indices, values

    def save(self, path: Path | str) -> None:
        """Write the index whole, or not at all."""
        atomic_write(Path(path), lambda temporary: faiss.load().write_index(self._index, str(temporary)))

    @classmethod
    def open(cls, path: Path | str, *, mapped: bool = True) -> FaissIndex:
        """Open what `save` wrote; ``mapped``: codes stay in the file and are read as they are needed.

        Raises `InputError` for a file that is absent, cut short or not an index of these kinds.
        """
        package, path = faiss.load(), Path(path)
        if not path.is_file():
            raise InputError("an existing file", file=path)
        with path.open("rb") as handle:
            inverted = handle.read(2) == b"Iw"
        # The one flag maps inverted lists and reads all else; the other maps arrays, and fails on inverted lists.
        flag = package.IO_FLAG_MMAP if inverted else package.IO_FLAG_MMAP_IFC
        try:
            index = package.read_index(str(path), flag if mapped else 0)
        except RuntimeError as error:
            reason = str(error).strip().rsplit("\n", 1)[-1]
            raise InputError(f"a whole index of FAISS ({reason})", file=path) from None
        return cls(index, mapped=mapped)

    def _check(self, x: Matrix) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InputError(f"rows of {self.dim} values", field="vector", seen=x.shape)

    def _train(self, x: Matrix, seed: int) -> None:
        if self.kind not in ("ivf", "rabitq"):
            return
        self._index.cp.seed, self._index.cp.spherical = seed, True
        self._index.cp.niter = 10
        self._index.cp.min_points_per_centroid = 1
        rows = sample_rows(len(x), _TRAIN_PER_LIST * self._index.nlist, seed)
        self._index.train(unit_rows(x[rows]))

    def _tune(self, x: Matrix, k: int, recall: float, seed: int, threads: int) -> None:
        """Set the number of lists to visit by what it takes on a sample."""
        k = min(k, len(x) - 1)
        if not k:
            return
        rows = sample_rows(len(x), _TUNE_ROWS, seed + 1)
        queries = unit_rows(x[rows])
        # A row is its own nearest, so k + 1; one among many equals may miss itself, which changes no similarity.
        truth = exact.join(x[rows], x, k + 1, threads=threads)[1][:, -1:]
        wide = min(k + 8 if self.kind == "ivf" else 4 * k + 8, len(x))
        probes = 1
        while True:
            self._index.nprobe = min(probes, self._index.nlist)
            found = self._index.search(queries, wide)[1]
            cosines = np.einsum("qd,qmd->qm", queries, unit_rows(x[found.reshape(-1)]).reshape(*found.shape, -1))
            cosines[found < 0] = -np.inf
            share = np.minimum((cosines >= truth - 1e-5).sum(axis=1) / (k + 1), 1.0).mean()
            if share >= recall or probes >= self._index.nlist:
                return
            probes *= 2


def _empty(kind: str, rows: int, dim: int) -> Any:
    package = faiss.load()
    metric = package.METRIC_INNER_PRODUCT
    if kind == "flat":
        return package.IndexFlatIP(dim)
    if kind == "hnsw":
        index = package.IndexHNSWFlat(dim, 32, metric)
        index.hnsw.efConstruction = 80
        return index
    if kind not in ("ivf", "rabitq"):
        raise InputError("one of flat, ivf, rabitq, hnsw (cagra needs a GPU)", field="kind", seen=kind)
    codes = {"ivf": "SQfp16", "rabitq": "RaBitQ"}[kind]
    return package.index_factory(dim, f"IVF{ivf_lists(rows)},{codes}", metric)
