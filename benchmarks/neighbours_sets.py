"""Near-duplicate pairs, and figures of whole sets, at a million rows: ours, beside what else could do it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import OURS, Row, peak_extra_memory
from benchmarks.neighbours_data import grown, real_texts

__all__ = ["metric_rows", "planted", "threshold_rows"]

BENCH = "neighbours"
THREADS = 2
_SHARE, _THRESHOLD = 0.05, 0.9


def planted(rows: int) -> tuple[Path, str]:
    """Grown vectors of which a twentieth are replaced by another row plus noise: cosines of 0.90 to 0.999 with it."""
    source, shape = grown(rows)
    path = source.with_name(source.name.replace("grown", "planted"))
    if not path.exists():
        x = np.load(source)
        rng = np.random.default_rng(5)
        copies = rng.choice(rows, int(_SHARE * rows), replace=False)
        for low in range(0, len(copies), 1 << 14):
            part = copies[low : low + (1 << 14)]
            base = x[rng.integers(rows, size=len(part))].astype(np.float32)
            noise = rng.standard_normal(base.shape, np.float32) / np.sqrt(base.shape[1])
            near = base + rng.uniform(0.04, 0.48, (len(part), 1)).astype(np.float32) * noise
            x[part] = near / np.linalg.norm(near, axis=1, keepdims=True)
        temporary = path.with_suffix(".part.npy")
        np.save(temporary, x)
        temporary.replace(path)
    return path, f"{shape}, 5% near-duplicates"


def _once(op: str, shape: str, call: Callable[[], Any]) -> tuple[Any, list[Row]]:
    kept: list[Any] = []
    start = time.perf_counter()
    peak = peak_extra_memory(lambda: kept.append(call()))
    rows = [Row(BENCH, op, OURS, shape, "time, first call", time.perf_counter() - start, "s")]
    if peak is not None:
        rows.append(Row(BENCH, op, OURS, shape, "peak beyond the vectors", peak / 2**20, "MiB"))
    return kept[0], rows


def _check_pairs(x: npt.NDArray[Any], first: Any, second: Any, sample: int = 500) -> None:
    """All pairs of a sample of rows, by float64."""
    rows = np.sort(np.random.default_rng(2).choice(len(x), sample, replace=False))
    query = np.asarray(x[rows], np.float64)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    expected = set()
    for low in range(0, len(x), 1 << 16):
        block = np.asarray(x[low : low + (1 << 16)], np.float64)
        values = (query @ block.T / np.linalg.norm(block, axis=1)).astype(np.float32)
        for place, other in np.argwhere(values >= np.float32(_THRESHOLD)):
            pair = (int(rows[place]), int(other) + low)
            if pair[0] != pair[1]:
                expected.add((min(pair), max(pair)))
    wanted = np.isin(first, rows) | np.isin(second, rows)
    found = set(zip(first[wanted].tolist(), second[wanted].tolist(), strict=True))
    if found != expected:
        raise AssertionError(
            f"pairs of {sample} rows: {len(found - expected)} too many, {len(expected - found)} missing"
        )


def threshold_rows(rows: int) -> Iterator[Row]:
    """All pairs of cosine 0.9 and up."""
    from obverse.engine.diversity import exact

    path, shape = planted(rows)
    x = np.load(path, mmap_mode="r")
    x[:].max()  # the file is read before the clock starts
    found, measured = _once("all pairs >= 0.9", shape, lambda: exact.pairs_above(x, _THRESHOLD, threads=THREADS))
    _check_pairs(x, np.asarray(found[0]), np.asarray(found[1]))
    yield from measured
    yield Row(BENCH, "all pairs >= 0.9", OURS, shape, "pairs", float(len(found[0])), "pairs")


def _grown_texts(rows: int) -> list[str]:
    """The first words of one real text and the last ones of another; the real texts themselves come first."""
    source = [text.split() for text in real_texts()]
    if not source:
        rng = np.random.default_rng(0)
        words = [f"w{i}" for i in range(20_000)]
        source = [[words[j] for j in rng.zipf(1.3, 20) % 20_000] for _ in range(50_000)]
    rng = np.random.default_rng(9)
    texts = [" ".join(words) for words in source[:rows]]
    first, second = (rng.integers(len(source), size=rows - len(texts)) for _ in range(2))
    cuts = rng.random((len(first), 2))
    for a, b, (u, v) in zip(first.tolist(), second.tolist(), cuts.tolist(), strict=True):
        left, right = source[a], source[b]
        texts.append(" ".join(left[: 1 + int(u * len(left))] + right[int(v * len(right)) :]))
    return texts


def metric_rows(rows: int) -> Iterator[Row]:
    """Vendi score, PRDC (half the rows as real, half as made), self-BLEU and distinct-n."""
    from obverse.engine.diversity.ngram_metrics import distinct_ngrams, self_bleu
    from obverse.engine.diversity.prdc import prdc
    from obverse.engine.diversity.vendi import vendi_score

    path, shape = grown(rows)
    x = np.load(path, mmap_mode="r")
    x[:].max()
    score, measured = _once("Vendi score", shape, lambda: vendi_score(x))
    yield from measured
    yield Row(BENCH, "Vendi score", OURS, shape, "value", score, "")
    texts = _grown_texts(rows)
    words = sum(len(text.split()) for text in texts) / len(texts)
    said = f"{rows:,} texts of {words:.0f} words"
    for op, call in (
        ("distinct-1 to 4", distinct_1_to_4(distinct_ngrams, texts)),
        ("self-BLEU", lambda: self_bleu(texts)),
    ):
        value, measured = _once(op, said, call)
        yield from measured
        yield Row(BENCH, op, OURS, said, "value", value, "")
    half = rows // 2
    figures, measured = _once("PRDC, k=5", f"{shape}, halves", lambda: prdc(x[:half], x[half:], 5))
    yield from measured
    for name, value in figures.items():
        yield Row(BENCH, "PRDC, k=5", OURS, f"{shape}, halves", name, float(value), "")


def distinct_1_to_4(function: Callable[..., dict[str, float]], texts: list[str]) -> Callable[[], float]:
    """All four orders in one call; the value shown is that of pairs of words."""
    return lambda: function(texts, (1, 2, 3, 4))["distinct_2"]
