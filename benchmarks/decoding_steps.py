"""64-row steps along random valid names: what a mask costs, ours and the peers', in turn.

The constraint is "exactly one of N names". All walkers go the same ways: each step a walker works out its rows' masks
(timed) and goes on by the rows' tokens (timed apart), a block of steps at a time, in an order that rotates. A row that
ends its name begins another, so the rows stand at all depths, as in continuous batching. Before the timed walk the same
is done untimed along other ways, and what the walkers allow is compared row by row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.catalog_vocabularies import Names, Vocabulary
from benchmarks.decoding_peers import Walker, unpack
from benchmarks.harness import OURS, Row

__all__ = [
    "ROWS",
    "CallersWalker",
    "LogitsWalker",
    "OursWalker",
    "Paths",
    "Samples",
    "agree",
    "cold_steps",
    "compared",
    "name_constraint",
    "single_rows",
    "step_rows",
    "walk",
    "walk_apart",
]

ROWS = 64
_BLOCK = 16
_US = 1e6


class Samples(NamedTuple):
    """Seconds of each timed step."""

    fill: np.ndarray
    advance: np.ndarray


def name_constraint(trie: Any, vocabulary: Vocabulary) -> tuple[Any, list[int]]:
    """Our constraint "a marker, then exactly one name of the trie", and the marker that opens it."""
    from obverse._core import Constraint

    marker = vocabulary.marker_ids[2]
    parts: list[tuple[list[int] | str, list[int], bool]] = [(marker, [1], False), ("object", [], True)]
    start = ([0], False)
    constraint = Constraint(trie, None, parts=parts, start=start, eos=vocabulary.eos, vocab_size=vocabulary.size)
    return constraint, marker


class OursWalker:
    """Our rows: one call a step, packed masks out. ``opening`` is written when a row begins."""

    def __init__(self, constraint: Any, opening: Sequence[int], rows: int) -> None:
        from obverse._core import MaskRows, Matcher, accept_batch

        self.accept_batch = accept_batch
        self.opening, self.size = opening, constraint.vocab_size
        self.matchers = [Matcher(constraint) for _ in range(rows)]
        self.rows = MaskRows(rows, self.size)
        self.mask = self.rows.words

    def fill(self) -> None:
        self.rows.fill(self.matchers)

    def advance(self, tokens: list[int], array: np.ndarray) -> None:
        self.accept_batch(self.matchers, array)

    def restart(self, row: int) -> None:
        self.matchers[row].reset()
        if not all(self.matchers[row].accept(token) for token in self.opening):
            raise AssertionError("the opening is refused")

    def allowed(self) -> list[np.ndarray]:
        return unpack(self.mask, self.size)


class CallersWalker(OursWalker):
    """Our rows with masks of the caller's, which every call clears whole."""

    def __init__(self, constraint: Any, opening: Sequence[int], rows: int) -> None:
        from obverse._core import fill_bitmask_batch

        super().__init__(constraint, opening, rows)
        self.fill_batch = fill_bitmask_batch
        self.mask = np.zeros((rows, (self.size + 31) // 32), np.int32)

    def fill(self) -> None:
        self.fill_batch(self.matchers, self.mask)


class LogitsWalker(OursWalker):
    """Our rows, masking float32 logits in place instead."""

    def __init__(self, constraint: Any, opening: Sequence[int], rows: int) -> None:
        from obverse._core import mask_logits

        super().__init__(constraint, opening, rows)
        self.mask_logits = mask_logits
        self.logits = np.zeros((rows, self.size), np.float32)

    def fill(self) -> None:
        self.mask_logits(self.matchers, self.logits)

    def allowed(self) -> list[np.ndarray]:
        """What is left finite, after the logits were made whole."""
        self.logits.fill(0.0)
        self.fill()
        return [np.flatnonzero(np.isfinite(row)).astype(np.int32) for row in self.logits]


class Paths:
    """A sequence for every row, and another when it is done; ``make`` draws them."""

    def __init__(self, make: Callable[[], list[int]], rows: int = ROWS) -> None:
        self.make = make
        self.current = [make() for _ in range(rows)]
        self.places = [0] * rows

    @classmethod
    def of_names(cls, names: Names, eos: int, seed: int) -> Paths:
        """Random names, each with the end token behind it."""
        chance = np.random.default_rng(seed)
        return cls(lambda: [*names.one(int(chance.integers(len(names)))), eos])

    def advance(self) -> tuple[list[int], list[int]]:
        """The next token of every row, and the rows whose name it ends."""
        tokens = [path[place] for path, place in zip(self.current, self.places, strict=True)]
        ended = []
        for row, path in enumerate(self.current):
            self.places[row] += 1
            if self.places[row] == len(path):
                self.current[row], self.places[row] = self.make(), 0
                ended.append(row)
        return tokens, ended

    def scatter(self, walkers: Sequence[Walker]) -> None:
        """Begin, and take some untimed steps, so that the rows stand at all depths."""
        for walker in walkers:
            for row in range(len(self.current)):
                walker.restart(row)
        for _ in range(8):
            self.step(walkers)

    def step(self, walkers: Sequence[Walker]) -> None:
        tokens, ended = self.advance()
        array = np.array(tokens, np.int32)
        for walker in walkers:
            walker.advance(tokens, array)
            for row in ended:
                walker.restart(row)


def agree(walkers: Mapping[str, Walker], paths: Paths, steps: int, wider: Sequence[str] = ()) -> dict[str, float]:
    """Compare what the walkers allow, row by row, with what the first allows; raise where a trie differs.

    ``wider`` are engines over bytes, which also allow other ways to cut a name into tokens: they must allow at least
    what the first allows. Returned: of each, the share of rows in which it does not.
    """
    first, *others = walkers
    missing = dict.fromkeys(wider, 0)
    paths.scatter(list(walkers.values()))
    for _ in range(steps):
        for walker in walkers.values():
            walker.fill()
        expected = walkers[first].allowed()
        for label in others:
            for mine, theirs in zip(expected, walkers[label].allowed(), strict=True):
                if label in missing:
                    missing[label] += not np.isin(mine, theirs, assume_unique=True).all()
                elif not np.array_equal(mine, theirs):
                    raise AssertionError(f"{first} and {label} allow different tokens: {mine[:9]} and {theirs[:9]}")
        paths.step(list(walkers.values()))
    return {label: count / (steps * len(paths.current)) for label, count in missing.items()}


def walk(walkers: Mapping[str, Walker], paths: Paths, steps: int) -> dict[str, Samples]:
    """Time ``steps`` steps of every walker: blocks of steps, each block of all before the next, in a rotating order.

    A block's first steps find the caches as the walker before left them; `cold_steps` has nothing but such steps.
    """
    labels = list(walkers)
    fills, advances = ({label: np.zeros(steps) for label in labels} for _ in range(2))
    paths.scatter(list(walkers.values()))
    clock = time.perf_counter
    for turn, begin in enumerate(range(0, steps, _BLOCK)):
        block = [paths.advance() for _ in range(begin, min(begin + _BLOCK, steps))]
        arrays = [np.array(tokens, np.int32) for tokens, _ in block]
        cut = turn % len(labels)
        for label in labels[cut:] + labels[:cut]:
            walker, fill, advance = walkers[label], fills[label], advances[label]
            for step, ((tokens, ended), array) in enumerate(zip(block, arrays, strict=True), start=begin):
                begun = clock()
                walker.fill()
                filled = clock()
                walker.advance(tokens, array)
                advance[step] = clock() - filled
                fill[step] = filled - begun
                for row in ended:
                    walker.restart(row)
    return {label: Samples(fills[label], advances[label]) for label in labels}


def cold_steps(walker: Walker, paths: Paths, steps: int) -> np.ndarray:
    """Seconds of mask steps with 64 MB of other work between them, as a model would do."""
    paths.scatter([walker])
    other = np.zeros(1 << 26, np.uint8)
    times = np.zeros(steps)
    for step in range(steps):
        other += 1
        begun = time.perf_counter()
        walker.fill()
        times[step] = time.perf_counter() - begun
        paths.step([walker])
    return times


def walk_apart(walkers: Mapping[str, Walker], paths: Mapping[str, Paths], steps: int) -> dict[str, np.ndarray]:
    """Seconds of each mask step of walkers that go each its own way, a block of steps at a time, in turn."""
    labels = list(walkers)
    times = {label: np.zeros(steps) for label in labels}
    for label in labels:
        paths[label].scatter([walkers[label]])
    for turn, block in enumerate(range(0, steps, _BLOCK)):
        cut = turn % len(labels)
        for label in labels[cut:] + labels[:cut]:
            for step in range(block, min(block + _BLOCK, steps)):
                begun = time.perf_counter()
                walkers[label].fill()
                times[label][step] = time.perf_counter() - begun
                paths[label].step([walkers[label]])
    return times


def single_rows(walker: CallersWalker, paths: Paths, steps: int) -> np.ndarray:
    """Seconds of one-row calls along the paths, float64 [steps x rows]: a row's own cost with a call's around it."""
    paths.scatter([walker])
    times = np.zeros((steps, len(walker.matchers)))
    lines = [([matcher], walker.mask[row : row + 1]) for row, matcher in enumerate(walker.matchers)]
    clock, fill = time.perf_counter, walker.fill_batch
    for step in range(steps):
        for row, (one, line) in enumerate(lines):
            begun = clock()
            fill(one, line)
            times[step, row] = clock() - begun
        paths.step([walker])
    return times.ravel()


def step_rows(op: str, shape: str, samples: Mapping[str, Samples]) -> Iterator[Row]:
    """Mean, median and 99th percentile of a step over its rows, in microseconds; and with going on, the mean."""
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "mean a row": lambda values: float(values.mean()),
        "p50 a row": lambda values: float(np.median(values)),
        "p99 a row": lambda values: float(np.percentile(values, 99)),
    }
    for metric, statistic in statistics.items():
        found = {label: statistic(sample.fill) / ROWS * _US for label, sample in samples.items()}
        yield from compared(op, shape, metric, found, each=metric != "p99 a row")
    found = {label: float((sample.fill + sample.advance).mean()) / ROWS * _US for label, sample in samples.items()}
    yield from compared(f"{op} and going on", shape, "mean a row", found, each=False)


def compared(
    op: str, shape: str, metric: str, found: Mapping[str, float], *, unit: str = "us", each: bool = True
) -> Iterator[Row]:
    """One row a provider; ours with its ratio to the best peer, and, if ``each``, one row more a peer's ratio."""
    peers = {label: value for label, value in found.items() if label != OURS}
    for label, value in found.items():
        ratio = min(peers.values()) / value if label == OURS and peers and value > 0 else None
        yield Row("decoding", op, label, shape, metric, value, unit, ratio)
    if OURS in found and each:
        for label, value in peers.items():
            yield Row("decoding", op, f"{OURS} against {label}", shape, f"ratio, {metric}", value / found[OURS], "x")
