"""Compile time, peak memory, size, opening and sharing of a catalogue's trie, each in a process of its own.

``python -m benchmarks.decoding_scale build|open|share|catalog FOLDER COUNT`` is what such a process runs; it prints
one JSON object. FOLDER holds ``tokens.npy``, ``offsets.npy`` and, once written, ``names.obv``.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.catalog_names import CACHE, SHARED, grown_names, relation_names
from benchmarks.catalog_vocabularies import Names, Vocabulary, entity_ids
from benchmarks.harness import OURS, Row, peak_extra_memory

__all__ = ["catalogue_rows", "scale_rows"]

_FILE, _PREFIX = "names.obv", "entities"


def scale_rows(vocabulary: Vocabulary, counts: list[int]) -> Iterator[Row]:
    """Ours alone at size: compile seconds and peak memory, bytes a name, opening, and a second process."""
    for count in counts:
        with tempfile.TemporaryDirectory(dir=CACHE) as place:
            folder = Path(place)
            names = entity_ids(vocabulary, count)
            np.save(folder / "tokens.npy", names.tokens)
            np.save(folder / "offsets.npy", names.offsets)
            shape = f"{count:,} {names.source}, {vocabulary.label}"
            yield from _built(folder, count, shape)
            yield from _opened(folder, count, shape)


def _built(folder: Path, count: int, shape: str) -> Iterator[Row]:
    runs = [_child("build", folder, count) for _ in range(3)]
    best = min(runs, key=lambda run: float(run["seconds"]))
    yield Row("decoding", "compile, fresh process", OURS, shape, "time", best["seconds"], "s")
    if best["peak"] is not None:
        ratio = best["peak"] / best["nbytes"]
        yield Row("decoding", "compile, fresh process", OURS, shape, "peak memory / result", ratio, "x")
    yield Row("decoding", "size", OURS, shape, "memory a name", best["nbytes"] / count, "B")
    yield Row("decoding", "size", OURS, shape, "file a name", best["file"] / count, "B")
    yield Row("decoding", "size", OURS, shape, "nodes a name", best["nodes"] / count, "nodes")


def _opened(folder: Path, count: int, shape: str) -> Iterator[Row]:
    file = folder / _FILE
    for state in ("warm", "cold"):
        runs = []
        for _ in range(5):
            if state == "cold" and not _drop_cache(file):
                return
            runs.append(_child("open", folder, count))
        for metric in ("open", "open and first mask"):
            values = sorted(float(run[metric]) * 1e3 for run in runs)
            row = Row("decoding", f"open, {state} cache", OURS, shape, metric, values[2], "ms")
            yield row._replace(p10=values[0], p90=values[-1])
    from obverse._core import SectionFile

    held = SectionFile.open(file)
    held.verify()  # reads every byte, so that all pages are this process's too
    shared = _child("share", folder, count)
    for name in ("private", "proportional"):
        if shared[name] is not None:
            row = Row("decoding", "a second process adds", OURS, shape, f"{name} memory", shared[name] / 1e6, "MB")
            yield row
    del held


def catalogue_rows(vocabulary: Vocabulary, counts: list[int]) -> Iterator[Row]:
    """The whole catalogue from names, ids and all: compile seconds with tokenising, bytes a name, opening."""
    import pyarrow as pa

    from obverse.engine.decode.catalog import Catalog
    from obverse.engine.records.context import NameContext
    from obverse.engine.records.models import resolve_model
    from obverse.engine.records.tokenizers import find_tokenizer

    llama = SHARED / "llama2_tokenizer.model"
    source = llama if vocabulary.name == "llama2" else resolve_model("auto", "extraction")
    context = NameContext(find_tokenizer(str(source)))
    kinds = relation_names(900)[0]
    relations = pa.table({"name": kinds, "uri": [f"P{i}" for i in range(len(kinds))]})
    for count in counts:
        names, origin = grown_names(count)
        entities = pa.table({"name": names, "uri": [f"Q{i}" for i in range(count)]})
        shape = f"{count:,} {origin}, {vocabulary.label}"
        begun = time.perf_counter()
        catalog = Catalog.build(entities, relations, context)
        seconds = time.perf_counter() - begun
        yield Row("decoding", "catalogue", OURS, shape, "compile with tokenising", seconds, "s")
        with tempfile.TemporaryDirectory(dir=CACHE) as place:
            file = Path(place) / _FILE
            catalog.save(file)
            size = file.stat().st_size / count
            yield Row("decoding", "catalogue", OURS, shape, "whole file a name (names, ids, linking)", size, "B")
            values = sorted(float(_child("catalog", Path(place), count)["open"]) * 1e3 for _ in range(5))
            row = Row("decoding", "catalogue", OURS, shape, "open, fresh process", values[2], "ms")
            yield row._replace(p10=values[0], p90=values[-1])


def _open_catalogue(folder: Path, count: int) -> dict[str, Any]:
    from obverse.engine.decode.catalog import Catalog

    begun = time.perf_counter()
    catalog = Catalog.open(folder / _FILE)
    opened = time.perf_counter() - begun
    if catalog.entities.trie.num_sequences != count:
        raise AssertionError(f"{catalog.entities.trie.num_sequences} names of {count}")
    return {"open": opened}


def _drop_cache(file: Path) -> bool:
    """Ask the system to forget the file's pages; False where it can't be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
    return True


def _child(task: str, folder: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.decoding_scale", task, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{task} in a process of its own failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _build(folder: Path, count: int) -> dict[str, Any]:
    from obverse._core import SectionFile, Trie

    names = Names(np.load(folder / "tokens.npy"), np.load(folder / "offsets.npy"), "")
    kept: list[Any] = []
    seconds = [0.0]

    def build() -> None:
        begun = time.perf_counter()
        kept.append(Trie.build(names.tokens, names.offsets))
        seconds[0] = time.perf_counter() - begun

    peak = peak_extra_memory(build)
    trie = kept[0]
    if trie.num_sequences != count:
        raise AssertionError(f"{trie.num_sequences} sequences of {count}")
    file = folder / _FILE
    SectionFile.write(file, "benchmark", trie.sections(_PREFIX))
    return {
        "seconds": seconds[0],
        "peak": peak,
        "nbytes": trie.nbytes,
        "nodes": trie.num_nodes,
        "file": file.stat().st_size,
    }


def _open(folder: Path, count: int) -> dict[str, Any]:
    from obverse._core import SectionFile, Trie

    begun = time.perf_counter()
    trie = Trie.from_sections(SectionFile.open(folder / _FILE), _PREFIX)
    opened = time.perf_counter()
    trie.children(int(trie.step(0, int(trie.children(0)[0]))))
    masked = time.perf_counter()
    if trie.num_sequences != count:
        raise AssertionError(f"{trie.num_sequences} sequences of {count}")
    return {"open": opened - begun, "open and first mask": masked - begun}


def _share(folder: Path, count: int) -> dict[str, Any]:
    """What opening the file and walking to 50,000 names adds to a process that has run the like before."""
    from obverse._core import SectionFile, Trie

    small = Trie.build(np.arange(1, 4, dtype=np.int32), np.array([0, 2, 3], np.int64))
    _wander(small, 50_000)  # whatever the same calls take without a catalogue is not the catalogue's
    gc.collect()
    before = _memory()
    trie = Trie.from_sections(SectionFile.open(folder / _FILE), _PREFIX)
    _wander(trie, 50_000)
    after = _memory()
    if before is None or after is None or trie.num_sequences != count:
        return {"private": None, "proportional": None}
    return {"private": after[0] - before[0], "proportional": after[1] - before[1]}


def _wander(trie: Any, walks: int) -> None:
    chance = np.random.default_rng(0)
    draws = chance.random(walks * 4)
    for walk in range(walks):
        node = 0
        for draw in draws[walk * 4 : walk * 4 + 4].tolist():
            children = trie.children(node)
            if not len(children):
                break
            node = trie.step(node, int(children[int(draw * len(children))]))


def _memory() -> tuple[int, int] | None:
    """This process's private and proportional resident bytes."""
    path = Path("/proc/self/smaps_rollup")
    if not path.exists():
        return None
    fields = {}
    for line in path.read_text(encoding="ascii").splitlines()[1:]:
        name, value, _ = line.split()
        fields[name.rstrip(":")] = int(value) * 1024
    return fields["Private_Clean"] + fields["Private_Dirty"], fields["Pss"]


if __name__ == "__main__":
    tasks = {"build": _build, "open": _open, "share": _share, "catalog": _open_catalogue}
    print(json.dumps(tasks[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))))
