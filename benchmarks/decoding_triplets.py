"""The whole triplet grammar: entities, relations and markers, ours beside llguidance, and a dict trie in Hugging Face.

``[s] S [r] R [o] O [e]`` any number of times, then the end token (fully expanded). Rows walk along random valid
outputs. The dict constraint finds its state by looking back for the last marker, as GENRE, GenIE and SynthIE do.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.catalog_names import grown_names, relation_names
from benchmarks.catalog_vocabularies import Names, Vocabulary, entity_ids, relation_ids
from benchmarks.decoding_peers import BitmaskWalker, DictTrie, GuidanceEngine, llguidance_walker, quoted
from benchmarks.decoding_steps import ROWS, CallersWalker, OursWalker, Paths, agree, compared, single_rows, walk
from benchmarks.harness import OURS, Row

__all__ = ["DictTriplets", "Grammar", "grammar_rows", "host_step_rows", "sequences"]

RELATIONS = 900
_HOST_PEER = "transformers + dict trie"


class Grammar(NamedTuple):
    """Our constraint over so many entities and all relations, and what it was built from."""

    entities: Names
    relations: Names
    constraint: Any
    seconds: float

    @classmethod
    def build(cls, vocabulary: Vocabulary, count: int, **options: Any) -> Grammar:
        """From token ids; the seconds are those of both tries and the constraint.

        ``options``: ``form``; ``empty=False`` where no triplet at all may not be written; the rest is `Constraint`'s.
        """
        from obverse._core import Constraint, Trie
        from obverse.engine.decode.automaton import marked
        from obverse.engine.records.sequence import MarkerIds

        entities, relations = entity_ids(vocabulary, count), relation_ids(vocabulary, RELATIONS)
        form = options.pop("form", "fully_expanded")
        parts, start = marked(form, MarkerIds(*vocabulary.marker_ids))
        if not options.pop("empty", True):
            start = (start[0], False)
        begun = time.perf_counter()
        constraint = Constraint(
            Trie.build(entities.tokens, entities.offsets),
            Trie.build(relations.tokens, relations.offsets),
            parts=parts,
            start=start,
            eos=vocabulary.eos,
            vocab_size=options.pop("vocab_size", vocabulary.size),
            **options,
        )
        return cls(entities, relations, constraint, time.perf_counter() - begun)


def sequences(grammar: Grammar, vocabulary: Vocabulary, chance: np.random.Generator, triplets: int) -> list[int]:
    """The tokens of so many random triplets, without the end token."""
    subject, relation, object_, end = vocabulary.marker_ids
    ids: list[int] = []
    for _ in range(triplets):
        one, two = (grammar.entities.one(int(chance.integers(len(grammar.entities)))) for _ in range(2))
        between = grammar.relations.one(int(chance.integers(len(grammar.relations))))
        ids += [*subject, *one, *relation, *between, *object_, *two, *end]
    return ids


def _paths(grammar: Grammar, vocabulary: Vocabulary, seed: int) -> Paths:
    chance = np.random.default_rng(seed)
    return Paths(lambda: [*sequences(grammar, vocabulary, chance, int(chance.integers(1, 4))), vocabulary.eos])


class DictTriplets:
    """The fully expanded linearisation over two dict tries."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        self.subject, relation, object_, self.end = vocabulary.marker_ids
        self.eos = vocabulary.eos
        entities, relations = (
            DictTrie([[*ids, -1] for ids in n.lists()]) for n in (grammar.entities, grammar.relations)
        )
        self.slots = [(self.subject, entities, relation), (relation, relations, object_), (object_, entities, self.end)]

    def allowed(self, generated: list[int]) -> list[int]:
        """Tokens that may follow, from the last marker found scanning backwards."""
        for place in range(len(generated), 0, -1):
            if generated[place - len(self.end) : place] == self.end:
                return self._between(generated[place:])
            for marker, trie, following in self.slots:
                if generated[place - len(marker) : place] == marker:
                    return self._inside(trie, generated[place:], following)
        return self._between(generated)

    def _between(self, rest: list[int]) -> list[int]:
        return [self.subject[len(rest)]] + [self.eos] * (not rest)

    def _inside(self, trie: DictTrie, rest: list[int], following: list[int]) -> list[int]:
        answer = [token for token in trie.get(rest) if token != -1]
        for taken in range(min(len(following), len(rest) + 1)):
            cut = len(rest) - taken
            if rest[cut:] == following[:taken] and cut and -1 in trie.get(rest[:cut]):
                answer.append(following[taken])
        return answer


def host_step_rows(vocabulary: Vocabulary, count: int, steps: int) -> Iterator[Row]:
    """What a Hugging Face step of 64 rows costs more with a constraint: the processors' calls, along the same rows."""
    import torch
    from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

    from obverse.engine.decode.processor import ConstrainedLogitsProcessor

    grammar = Grammar.build(vocabulary, count)
    peer = DictTriplets(grammar, vocabulary)
    prefix = PrefixConstrainedLogitsProcessor(lambda _, ids: peer.allowed(ids[1:].tolist()), num_beams=1)
    kept: dict[str, list[float]] = {OURS: [], _HOST_PEER: []}
    pool = torch.randn(ROWS, vocabulary.size)
    for seed in (1, 2):  # the first time round compares, the second is timed
        ids = torch.tensor(_matrix(grammar, vocabulary, steps, seed))
        ours = ConstrainedLogitsProcessor(grammar.constraint, prompt_length=1)
        cases = {OURS: ours, _HOST_PEER: prefix}
        for step in range(steps):
            results, taken = [], []
            for label in list(cases)[:: 1 if step % 2 else -1]:
                scores, given = pool.clone(), ids[:, : step + 1].clone()
                begun = time.perf_counter()
                result = cases[label](given, scores)
                taken.append((label, time.perf_counter() - begun))
                results.append(result > float("-inf"))
            if seed == 1 and not torch.equal(*results):
                raise AssertionError("ours and the dict trie allow different tokens in Hugging Face")
            if seed == 2:
                for label, seconds in taken:
                    kept[label].append(seconds)
    shape = f"{count:,} names, {ROWS} rows x {vocabulary.size:,}"
    found = {label: float(np.mean(values)) * 1e3 for label, values in kept.items()}
    yield from compared("Hugging Face step, added", shape, "mean", found, unit="ms", each=False)
    for metric, share in (("p50", 50), ("p99", 99)):
        found = {label: float(np.percentile(values, share)) * 1e3 for label, values in kept.items()}
        yield from compared("Hugging Face step, added", shape, metric, found, unit="ms", each=False)


def _matrix(grammar: Grammar, vocabulary: Vocabulary, width: int, seed: int) -> list[list[int]]:
    """Rows of one length: a start token, then as much of random triplets as fits."""
    chance = np.random.default_rng(seed)
    rows = []
    for _ in range(ROWS):
        row = [vocabulary.eos]
        while len(row) < width:
            row += sequences(grammar, vocabulary, chance, 1)
        rows.append(row[:width])
    return rows


def guidance_grammar(vocabulary: Vocabulary, entities: Sequence[str], relations: Sequence[str]) -> str:
    """The triplet grammar for llguidance, each marker in one lexeme with the name before it, or it is not found."""
    pieces = vocabulary.pieces()
    subject, relation, object_, end = (
        quoted(b"".join(pieces[token] for token in marker).decode()) for marker in vocabulary.marker_ids
    )
    return "\n".join([
        "start: (SUBJECT RELATION OBJECT)*",
        f"SUBJECT: {subject} NAME {relation}",
        f"RELATION: KIND {object_}",
        f"OBJECT: NAME {end}",
        "NAME: " + " | ".join(quoted(f" {name}") for name in entities),
        "KIND: " + " | ".join(quoted(f" {name}") for name in relations),
    ])  # fmt: skip


def grammar_rows(vocabulary: Vocabulary, count: int, peer_count: int, steps: int) -> Iterator[Row]:
    """Build seconds, and a row's mask: ours at ``count`` entities, and at ``peer_count`` beside llguidance."""
    for size in sorted({peer_count, count}):
        grammar = Grammar.build(vocabulary, size)
        shape = f"{size:,} entities + {RELATIONS}, V={vocabulary.size:,}"
        walkers: dict[str, Any] = {OURS: OursWalker(grammar.constraint, [], ROWS)}
        seconds = {OURS: grammar.seconds}
        if size == peer_count:
            peer, label, seconds_peer = _guidance(vocabulary, size)
            walkers[label], seconds[label] = peer, seconds_peer
            agree(walkers, _paths(grammar, vocabulary, 1), steps // 4, wider=[label])
        yield from compared("triplet grammar, build", shape, "time", seconds, unit="s")
        samples = walk(walkers, _paths(grammar, vocabulary, 2), steps)
        for metric, share in (("p50 a row", 50), ("p90 a row", 90)):
            found = {label: float(np.percentile(s.fill, share)) / ROWS * 1e6 for label, s in samples.items()}
            yield from compared("triplet grammar, 64-row mask", shape, metric, found)
        singles = {
            OURS: single_rows(CallersWalker(grammar.constraint, [], ROWS), _paths(grammar, vocabulary, 3), steps)
        }
        for label, walker in walkers.items():
            if label != OURS:
                singles[label] = _single_masks(walker, _paths(grammar, vocabulary, 3), steps)
        for metric, share in (("p50", 50), ("p90", 90), ("p99", 99)):
            found = {label: float(np.percentile(times, share)) * 1e6 for label, times in singles.items()}
            yield from compared("triplet grammar, 1-row mask", shape, metric, found)
        walkers.clear()
        gc.collect()


def _guidance(vocabulary: Vocabulary, count: int) -> tuple[BitmaskWalker, str, float]:
    engine = GuidanceEngine(vocabulary)
    grammar = guidance_grammar(vocabulary, grown_names(count)[0], relation_names(RELATIONS)[0])
    begun = time.perf_counter()
    compiled = engine.compile(grammar)
    return llguidance_walker(engine, compiled, ROWS), engine.label, time.perf_counter() - begun


def _single_masks(walker: BitmaskWalker, paths: Paths, steps: int) -> np.ndarray:
    paths.scatter([walker])
    times = np.zeros((steps, len(walker.matchers)))
    clock = time.perf_counter
    for step in range(steps):
        for row, matcher in enumerate(walker.matchers):
            begun = clock()
            walker.fill_row(matcher, walker.mask, row)
            times[step, row] = clock() - begun
        paths.step([walker])
    return times.ravel()
