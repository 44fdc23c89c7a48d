"""Vectors for the benchmarks of neighbours: embeddings of real texts, grown to any size by a documented mixing.

The seed is the MiniLM embeddings of up to 65,536 distinct real texts of the shared data folder (tweets, reviews,
model-written sentences, verbalised triples); where that is absent, clustered vectors of low rank. A grown row is
``normalise(normalise(u x_a + (1 - u) x_b) + v g)``: x_a an even draw from the seed, x_b one of its 10 nearest, u even
in [0.5, 1], g Gaussian noise with the seed's own covariance and an expected norm of 1, so that it points where texts
point, and v even in [0.2, 1]. So the cosines of the 10th nearest stay near the seed's: at 500,000 rows their
percentiles 5, 50 and 95 are 0.52, 0.71 and 0.89, against 0.45, 0.68 and 0.93 of the seed. (With v 0.2 throughout they
are 0.62, 0.88 and 0.95, a far easier set.) The first rows are the seed itself. Everything is cached beside this file.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["CACHE", "clustered", "grown", "real_texts", "real_vectors"]

CACHE = Path(__file__).resolve().parent / ".cache"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_SEED = 20261121
_MOST = 65_536
_BLOCK = 65_536
_NOISE = (0.2, 1.0)

Vectors = npt.NDArray[np.float16]


def _sentences() -> Iterator[str]:
    for path in sorted(SHARED.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                yield from (record[name] for name in ("text", "seed_text") if name in record)
    for part in ("train", "valid", "test"):
        path = SHARED / f"fb15k237_{part}.tsv.gz"
        if path.exists():
            with gzip.open(path, "rt", encoding="utf-8") as file:
                for line in file:
                    fields = line.rstrip("\n").split("\t")
                    yield f"{fields[1]}: {fields[3]} {fields[5]}"


def real_texts(count: int = _MOST) -> list[str]:
    """Up to ``count`` distinct real texts, in the order of the files; none where the shared data is absent."""
    seen: dict[str, None] = {}
    for text in _sentences():
        if text.strip():
            seen.setdefault(text)
        if len(seen) == count:
            break
    return list(seen)


def real_vectors() -> tuple[Vectors, str]:
    """Unit rows of real texts, float16 [N, 384], and what they are."""
    path = CACHE / f"real-{_MOST}.npy"
    if path.exists():
        return np.load(path), f"real {_MOST:,} x 384"
    texts = real_texts()
    if not texts:
        return clustered(_MOST, 384), f"clustered {_MOST:,} x 384"
    from obverse.engine.embed import EmbedSettings, Encoder

    print(f"embedding {len(texts):,} texts (once; cached)", file=sys.stderr, flush=True)
    vectors = Encoder(EmbedSettings()).encode(texts).astype(np.float16)
    _save(path, vectors)
    return vectors, f"real {_MOST:,} x 384"


def grown(rows: int) -> tuple[Path, str]:
    """A file of ``rows`` vectors, float16 [rows, d], and what they are."""
    source, said = real_vectors()
    path = CACHE / f"grown-{said.split()[0]}-{_NOISE[0]}-{_NOISE[1]}-{rows}.npy"
    if not path.exists():
        print(f"growing {rows:,} vectors (once; cached)", file=sys.stderr, flush=True)
        _grow(source, path, rows)
    return path, f"{said.split()[0]}, grown, {rows:,} x {source.shape[1]}"


def _grow(source: Vectors, path: Path, rows: int) -> None:
    from obverse.engine.diversity import exact

    x = source.astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    near = exact.self_join(source, 10)[0]
    values, axes = np.linalg.eigh(np.cov(x, rowvar=False))
    shape = (axes * np.sqrt(np.maximum(values, 0))).astype(np.float32)
    shape /= np.sqrt((shape**2).sum())
    CACHE.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    out = np.lib.format.open_memmap(part, "w+", np.float16, (rows, x.shape[1]))
    kept = min(rows, len(x))
    out[:kept] = source[:kept]
    for start in range(kept, rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        rng = np.random.default_rng([_SEED, start])
        a = rng.integers(len(x), size=count)
        b = near[a, rng.integers(near.shape[1], size=count)]
        u = rng.uniform(0.5, 1.0, count).astype(np.float32)[:, None]
        mixed = u * x[a] + (1 - u) * x[b]
        mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
        size = rng.uniform(*_NOISE, count).astype(np.float32)[:, None]
        mixed += size * (rng.standard_normal((count, x.shape[1]), np.float32) @ shape.T)
        out[start : start + count] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    out.flush()
    part.replace(path)


def clustered(rows: int, dim: int, *, seed: int = _SEED) -> Vectors:
    """Clusters of Zipf-like sizes, each a Gaussian of 24 directions of falling size about its centre, plus noise."""
    rng = np.random.default_rng(seed)
    number = max(1, rows // 200)
    share = 1 / np.arange(1, number + 1)
    labels = rng.choice(number, size=rows, p=share / share.sum())
    centres = rng.standard_normal((number, dim), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    axes = rng.standard_normal((24, dim), np.float32) * (np.arange(1, 25, dtype=np.float32) ** -0.7)[:, None]
    axes *= 0.5 / np.linalg.norm(axes)
    out = np.empty((rows, dim), np.float16)
    for start in range(0, rows, _BLOCK):
        own = labels[start : start + _BLOCK]
        values = centres[own] + rng.standard_normal((len(own), 24), np.float32) @ axes
        values += (0.15 / np.sqrt(dim)) * rng.standard_normal(values.shape, np.float32)
        out[start : start + len(own)] = values / np.linalg.norm(values, axis=1, keepdims=True)
    return out


def _save(path: Path, values: Vectors) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npy")
    np.save(part, values)
    part.replace(path)
