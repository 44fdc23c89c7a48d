"""Millions of entity names, grown from real ones by a seeded recipe, and the names of relations.

The seed is the list of 378,374 real names in the shared data folder, or, where that is absent, the names of the
embedded geography graph. A grown name takes a real name as its template and keeps what decides a trie's shape: the
number of words, the style (title case, lower case, digits) and the kind of suffix. Its words are the first ones of
the template and the last ones of another real name of the same shape; the suffix, such as "(film)" or ", Ohio", is
another name's of the same kind; numbers get new digits; and single words, and a share of the others, are spliced from
two real words where they share a letter, since a larger catalogue also has new words. All names are distinct, the real
ones stand first (shuffled), so the smaller catalogues, which are prefixes, are wholly real.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from obverse.engine.records.linearise import MARKERS

__all__ = ["CACHE", "SHARED", "Statistics", "grown_names", "real_names", "relation_names", "seed_statistics"]

CACHE = Path(__file__).resolve().parent / ".cache"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_SEED = 20261121
_NEW_WORD = 0.10
"""Share of names of several words that get one spliced word, so that new words appear as they do in real lists."""
_SUFFIX = re.compile(r"(?P<bracket> \([^()]+\))$|(?P<comma>, [^,]+)$")


class Statistics(NamedTuple):
    """What decides a trie's size and cost."""

    tokens_per_name: float
    nodes_per_name: float
    root_children: int


class _Shape(NamedTuple):
    words: list[str]
    suffix: str
    kind: str


@cache
def real_names() -> tuple[list[str], str]:
    """Distinct real names with plain spaces, in file order, and where they are from."""
    path = SHARED / "entity_names.txt.gz"
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines: list[str] = file.read().splitlines()
        source = "real names of public graphs"
    else:
        from obverse.engine.graph.load import load_graph

        lines, source = load_graph("geography").entities["name"].to_pylist(), "names of the geography graph"
    cleaned = dict.fromkeys(" ".join(line.replace("_", " ").split()) for line in lines)
    return [name for name in cleaned if name and name.isprintable() and not any(m in name for m in MARKERS)], source


def grown_names(count: int) -> tuple[list[str], str]:
    """``count`` distinct names, the first ones of one fixed endless list, and a few words on where they are from."""
    real, source = real_names()
    path = CACHE / f"names-{len(real)}-{_SEED}.txt"
    names = _read(path, count)
    if len(names) < count:
        names = _grow(real, count)
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text("\n".join(names) + "\n", encoding="utf-8")
        temporary.replace(path)
    return names, source if count <= len(real) else f"{source}, grown"


def _read(path: Path, count: int) -> list[str]:
    if not path.exists():
        return []
    names: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            names.append(line[:-1])
            if len(names) == count:
                break
    return names


def _grow(real: list[str], count: int) -> list[str]:
    chance = np.random.default_rng(_SEED)
    names = [real[i] for i in chance.permutation(len(real))]
    if count <= len(names):
        return names[:count]
    seen = set(names)
    for name in _synthetic(real, chance):
        if name not in seen:
            seen.add(name)
            names.append(name)
            if len(names) == count:
                break
    return names


def _synthetic(real: list[str], chance: np.random.Generator, block: int = 1 << 16) -> Iterator[str]:
    """An endless stream of grown names, repeats included."""
    shapes = [_shape(name) for name in real]
    partners, suffixes = _partners(shapes), _by_kind(shapes)
    order, start, size = partners
    while True:
        templates = chance.integers(len(shapes), size=block)
        others = order[start[templates] + (chance.random(block) * size[templates]).astype(np.int64)]
        draws = chance.random((block, 6)).tolist()
        digits = chance.integers(0, 10, size=(block, 24)).tolist()
        for template, other, draw, fresh in zip(templates.tolist(), others.tolist(), draws, digits, strict=True):
            shape = shapes[template]
            core = _recombined(shape.words, shapes[other].words, draw)
            suffix = shape.suffix
            if suffix:
                same = suffixes[shape.kind]
                suffix = same[int(draw[5] * len(same))]
            name = " ".join(core) + suffix
            if any(letter.isdigit() for letter in name):
                name = _renumbered(name, fresh)
            yield name


def _shape(name: str) -> _Shape:
    match = _SUFFIX.search(name)
    if match is None or match.start() == 0:
        return _Shape(name.split(" "), "", "")
    return _Shape(name[: match.start()].split(), match.group(), str(match.lastgroup))


def _partners(shapes: list[_Shape]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names sorted by shape, and each name's group in that order: (order, start, size), int64 [n]."""
    groups: dict[tuple[int, int], int] = {}
    label = np.empty(len(shapes), np.int64)
    for i, shape in enumerate(shapes):
        text = "".join(shape.words)
        style = 0 if text == text.lower() else 1 if shape.words[-1][0].islower() else 2
        label[i] = groups.setdefault((min(len(shape.words), 8), style), len(groups))
    order = np.argsort(label, kind="stable")
    counts = np.bincount(label)
    first = np.cumsum(counts) - counts
    return order, first[label], counts[label]


def _by_kind(shapes: list[_Shape]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for shape in shapes:
        kinds.setdefault(shape.kind, []).append(shape.suffix)
    return kinds


def _recombined(words: list[str], others: list[str], draw: list[float]) -> list[str]:
    """The first of ``words`` and the last of ``others``; one of them spliced, always so where there is only one."""
    count = len(words)
    if count > 1:
        cut = 1 + int(draw[0] * (count - 1))
        core = words[:cut] + (others[cut:] or words[cut:])
        if draw[1] >= _NEW_WORD:
            return core
        place = int(draw[2] * len(core))
        source = others[min(place, len(others) - 1)] if place < cut else words[min(place, count - 1)]
    else:
        core, place, source = list(words), 0, others[0]
    core[place] = _spliced(core[place], source, draw[3], draw[4])
    return core


def _spliced(left: str, right: str, at: float, where: float) -> str:
    """The beginning of ``left`` and the end of ``right``, joined at a letter that both have, if there is one."""
    cut = 1 + int(at * max(1, len(left) - 1))
    joint = left[cut - 1]
    places = [i for i in range(1, len(right)) if right[i - 1] == joint]
    place = places[int(where * len(places))] if places else max(1, len(right) // 2)
    return left[:cut] + right[place:]


def _renumbered(name: str, fresh: list[int]) -> str:
    """New values for the last two digits of every number: years stay in their century."""
    supply = iter(fresh)

    def change(match: re.Match[str]) -> str:
        text = match.group()
        kept = max(len(text) - 2, 1) if len(text) > 1 else 0
        return text[:kept] + "".join(str(next(supply, 7)) for _ in text[kept:])

    return re.sub(r"\d+", change, name)


@cache
def relation_names(count: int) -> tuple[list[str], str]:
    """``count`` distinct relation names: real ones from the shared data, filled up with pairs of them."""
    names: dict[str, None] = {}
    for text in _relation_sources():
        names.setdefault(" ".join(text.replace("_", " ").split()))
    names.pop("", None)
    real = list(names)[:count]
    chance = np.random.default_rng(_SEED)
    filled = dict.fromkeys(real)
    heads = [name.split(" ") for name in real]
    while len(filled) < count:
        one, two = (heads[i] for i in chance.integers(len(heads), size=2))
        name = " ".join([*one[: (len(one) + 1) // 2], *two[len(two) // 2 :]])
        filled.setdefault(f"{name} {len(filled)}" if name in filled else name)
    return list(filled), f"{len(real)} real"


def _relation_sources() -> Iterator[str]:
    texts = SHARED / "wiki_cie_text.jsonl.gz"
    if not texts.exists():
        from obverse.engine.graph.load import load_graph

        yield from load_graph("geography").relations["name"].to_pylist()
        return
    with gzip.open(texts, "rt", encoding="utf-8") as file:
        for line in file:
            yield from (triplet["predicate"]["surfaceform"] for triplet in json.loads(line)["triplets"])
    for part in ("train", "valid", "test"):
        with gzip.open(SHARED / f"fb15k237_{part}.tsv.gz", "rt", encoding="utf-8") as file:
            yield from dict.fromkeys(line.split("\t")[3].replace(".", "") for line in file)


def seed_statistics(tokens: np.ndarray, offsets: np.ndarray) -> Statistics:
    """Tokens and trie nodes a name, and the root's children, of token sequences: int32 [n], int64 [m + 1].

    Counted with numpy alone, level by level, so it is also an independent check of the trie's number of nodes.
    """
    count = len(offsets) - 1
    lengths = np.diff(offsets)
    prefix = np.zeros(count, np.int64)
    alive = np.arange(count)
    nodes, root = 0, 0
    for level in range(int(lengths.max())):
        alive = alive[lengths[alive] > level]
        keys = prefix[alive] * (1 << 20) + tokens[offsets[alive] + level]
        unique, prefix[alive] = np.unique(keys, return_inverse=True)
        nodes += len(unique)
        root = root or len(unique)
    return Statistics(float(lengths.mean()), nodes / count, root)
