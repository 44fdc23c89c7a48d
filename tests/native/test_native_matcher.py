"""Constraint, Matcher and the batch calls against an oracle that knows neither tries nor state sets.

Alphabet of the random cases: names and markers share tokens 1 to 6, so names are prefixes of one another, names go
on with a marker's first token, and markers start alike. Vocabulary sizes sit on and beside a word's edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse._core import Constraint, Matcher, RowStates, Trie, argmax_allowed, bitmask_words, mask_logits
from obverse.engine.decode.automaton import marked
from obverse.engine.records.sequence import MarkerIds

Form = Literal["fully_expanded", "subject_collapsed"]
Name = tuple[int, ...]
EOS = 0


@dataclass(frozen=True)
class Language:
    """Catalogues and markers as plain tuples."""

    entities: tuple[Name, ...]
    relations: tuple[Name, ...]
    markers: tuple[Name, Name, Name, Name]
    form: Form

    def constraint(self, vocab_size: int) -> Constraint:
        return constraint_of(trie_of(self.entities), trie_of(self.relations), self.markers, EOS, self.form, vocab_size)

    def parts(self, state: str) -> list[tuple[tuple[Name, ...], str]]:
        """What may stand at `state`: alternatives, and the state after them."""
        s, r, o, e = ((marker,) for marker in self.markers)
        after_object: list[tuple[tuple[Name, ...], str]] = [(e, "start")]
        if self.form == "subject_collapsed":
            after_object.append((r, "relation"))
        table: dict[str, list[tuple[tuple[Name, ...], str]]] = {
            "start": [(((EOS,),), "done"), (s, "subject")],
            "subject": [(self.entities, "r")],
            "r": [(r, "relation")],
            "relation": [(self.relations, "o")],
            "o": [(o, "object")],
            "object": [(self.entities, "after_object")],
            "after_object": after_object,
            "done": [],
        }
        return table[state]

    def allowed(self, prefix: Name, state: str = "start") -> set[int]:
        """Next tokens by trying every whole alternative as a string: slow, and plainly right."""
        return set(self._next(prefix, state))

    def _next(self, prefix: Name, state: str) -> Iterator[int]:
        for alternatives, after in self.parts(state):
            for piece in alternatives:
                if len(piece) > len(prefix):
                    if piece[: len(prefix)] == prefix:
                        yield piece[len(prefix)]
                elif prefix[: len(piece)] == piece:
                    yield from self._next(prefix[len(piece) :], after)


def trie_of(names: tuple[Name, ...]) -> Trie:
    offsets = np.cumsum([0, *map(len, names)], dtype=np.int64)
    return Trie.build(np.array([t for name in names for t in name], dtype=np.int32), offsets)


def constraint_of(
    entities: Trie, relations: Trie, markers: tuple[Name, ...], eos: int, form: Form, vocab_size: int
) -> Constraint:
    parts, start = marked(form, MarkerIds(*(list(marker) for marker in markers)))
    return Constraint(entities, relations, parts=parts, start=start, eos=eos, vocab_size=vocab_size)


def mask_tokens(matcher: Matcher, vocab_size: int) -> list[int]:
    """The bitmask as a list of tokens, over a buffer that held garbage."""
    words = np.full(bitmask_words(vocab_size), -1, dtype=np.int32)
    matcher.fill_bitmask(words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist()


def ints(tokens: list[int] | Name) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(tokens, dtype=np.int32)


names = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
markers = st.lists(st.integers(1, 6), min_size=1, max_size=2).map(tuple)
languages = st.builds(
    Language,
    st.lists(names, min_size=1, max_size=5).map(tuple),
    st.lists(names, min_size=1, max_size=4).map(tuple),
    st.tuples(markers, markers, markers, markers),
    st.sampled_from(["fully_expanded", "subject_collapsed"]),
)


@settings(max_examples=250, deadline=None)
@given(language=languages, vocab_size=st.sampled_from([7, 31, 32, 33, 64]), data=st.data())
def test_native_matcher_agrees_with_the_oracle(language: Language, vocab_size: int, data: st.DataObject) -> None:
    constraint = language.constraint(vocab_size)
    matcher = Matcher(constraint)
    prefix: list[int] = []
    for _ in range(14):
        expected = sorted(language.allowed(tuple(prefix)))
        assert matcher.allowed().tolist() == expected
        assert mask_tokens(matcher, vocab_size) == expected
        tokens, offsets = RowStates(constraint).allowed(np.array([prefix], np.int64))
        assert tokens.tolist() == (expected or [EOS])
        assert offsets.tolist() == [0, len(tokens)]
        assert matcher.is_complete == (bool(prefix) and prefix[-1] == EOS) == (not expected)
        for wrong in sorted(set(range(-1, vocab_size + 1)) - set(expected)):
            assert not matcher.accept(wrong)
        if not expected:
            break
        token = data.draw(st.sampled_from(expected))
        assert matcher.accept(token)
        prefix.append(token)
        assert matcher.num_accepted == len(prefix)


@settings(max_examples=100, deadline=None)
@given(language=languages, data=st.data())
def test_native_rollback_fork_replay_reset(language: Language, data: st.DataObject) -> None:
    constraint = language.constraint(9)
    matcher = Matcher(constraint)
    prefix: list[int] = []
    for _ in range(25):
        action = data.draw(st.sampled_from(["accept", "accept", "accept", "rollback", "fork", "replay", "reset"]))
        allowed = sorted(language.allowed(tuple(prefix)))
        if action == "accept" and allowed:
            prefix.append(data.draw(st.sampled_from(allowed)))
            assert matcher.accept(prefix[-1])
        elif action == "rollback":
            count = data.draw(st.integers(0, len(prefix)))
            matcher.rollback(count)
            del prefix[len(prefix) - count :]
        elif action == "fork" and allowed:
            other = matcher.fork()
            assert other.accept(allowed[0])
            assert other.num_accepted == matcher.num_accepted + 1
            assert other.allowed().tolist() == sorted(language.allowed((*prefix, allowed[0])))
            if data.draw(st.booleans()):
                matcher, prefix = other, [*prefix, allowed[0]]
        elif action == "replay":
            assert not matcher.replay(ints([*prefix, 8]))  # 8 is in no name and no marker
            assert Matcher(constraint).replay(ints(prefix))
        elif action == "reset":
            matcher.reset()
            prefix = []
        assert matcher.allowed().tolist() == sorted(language.allowed(tuple(prefix)))
    with pytest.raises(ValueError, match=r"rollback must be in"):
        matcher.rollback(len(prefix) + 1)


@pytest.mark.parametrize("form", ["fully_expanded", "subject_collapsed"])
def test_native_every_walk_ends_in_the_language(form: Form) -> None:
    """Random walks over the matcher's own masks spell only catalogue names, read back by splitting on markers."""
    rng = np.random.default_rng(1)
    entities = tuple({tuple(rng.integers(10, 40, rng.integers(1, 4)).tolist()) for _ in range(300)})
    relations = tuple({tuple(rng.integers(10, 40, rng.integers(1, 3)).tolist()) for _ in range(20)})
    language = Language(entities, relations, ((1,), (2,), (3,), (4,)), form)
    matcher = Matcher(language.constraint(40))
    for _ in range(300):
        matcher.reset()
        tokens: list[int] = []
        while not matcher.is_complete and len(tokens) < 400:
            tokens.append(int(rng.choice(matcher.allowed())))
            assert matcher.accept(tokens[-1])
        names_by_marker: dict[int, list[list[int]]] = {1: [], 2: [], 3: [], 4: []}
        for token in tokens:
            if token in names_by_marker:
                current = names_by_marker[token]
                current.append([])
            elif token != EOS:
                current[-1].append(token)
        assert {tuple(n) for n in names_by_marker[1] + names_by_marker[3]} - {()} <= set(entities)
        assert {tuple(n) for n in names_by_marker[2]} - {()} <= set(relations)


@pytest.mark.parametrize("vocab_size", [32_000, 32_001, 32_011])
def test_native_masks_at_awkward_vocabulary_sizes(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    entities = tuple((int(t), int(u)) for t, u in rng.integers(10, vocab_size, (5000, 2)))
    language = Language(
        (*entities, (vocab_size - 1,)), ((11, 12), (13,)), ((1, 2), (1, 3), (1, 4), (1, 5)), "fully_expanded"
    )
    constraint = language.constraint(vocab_size)
    assert bitmask_words(vocab_size) == -(-vocab_size // 32)
    matchers, rows = [], []
    prefixes: tuple[list[int], ...] = (
        [],
        [1, 2],
        [1, 2, vocab_size - 1],
        [1, 2, *entities[7], 1, 3, 11],
        [1, 2, *entities[9], 1, 3, 13, 1, 4],
    )
    for prefix in prefixes:
        matcher = Matcher(constraint)
        assert matcher.replay(ints(prefix))
        expected = sorted(language.allowed(tuple(prefix)))
        assert matcher.allowed().tolist() == expected == mask_tokens(matcher, vocab_size)
        matchers.append(matcher)
        rows.append(expected)
    for columns in (vocab_size, vocab_size + 117):  # padded embeddings: the rest is disallowed
        logits = rng.standard_normal((5, columns + 3)).astype(np.float32)
        before = logits.copy()
        mask_logits(matchers, logits[:, :columns])
        for row, expected in enumerate(rows):
            assert np.flatnonzero(np.isfinite(logits[row, :columns])).tolist() == expected
            assert np.array_equal(logits[row, expected], before[row, expected])
        assert np.array_equal(logits[:, columns:], before[:, columns:]), "nothing outside the view is written"


def test_native_complete_rows_keep_eos_and_bad_rows_get_nothing() -> None:
    language = Language(((5,),), ((6,),), ((1,), (2,), (3,), (4,)), "fully_expanded")
    constraint = language.constraint(8)
    matcher = Matcher(constraint)
    assert matcher.replay(ints([1, 5, 2, 6, 3, 5, 4, EOS]))
    logits = np.arange(8, dtype=np.float32)[None].copy()
    mask_logits([matcher], logits)
    assert np.flatnonzero(np.isfinite(logits[0])).tolist() == [EOS]
    states = RowStates(constraint)
    rows = [[1, 5], [1, 6], [EOS, EOS], [-7, 1], [1, 9], [0, 7]]
    tokens, starts = states.allowed(np.array(rows, np.int64))
    lists = [tokens[a:b].tolist() for a, b in pairwise(starts.tolist())]
    assert lists == [[2], [EOS], [EOS], [EOS], [EOS], [EOS]]


def test_native_row_states_follow_beams_and_reuse_their_buffer() -> None:
    """Rows that change places, split and end, against a matcher for each; the buffer never keeps a stale entry."""
    rng = np.random.default_rng(4)
    entities = tuple({tuple(rng.integers(10, 60, rng.integers(1, 5)).tolist()) for _ in range(400)})
    language = Language(entities, ((6,), (6, 7)), ((1,), (2,), (3,), (4,)), "subject_collapsed")
    constraint = language.constraint(61)
    states = RowStates(constraint)
    rows: list[list[int]] = [[] for _ in range(6)]
    buffers = [np.full((6, 64), np.nan, np.float32) for _ in range(2)]
    for step in range(60):
        scores = rng.standard_normal((6, 64)).astype(np.float32)
        out = buffers[step % 2]
        states.step(np.array(rows, np.int64).reshape(6, step), scores, out, step % 2, step > 1)
        for i, row in enumerate(rows):
            matcher = Matcher(constraint)
            ended = EOS in row
            assert ended or matcher.replay(ints(row))
            expected = [EOS] if ended else matcher.allowed().tolist()
            assert np.flatnonzero(np.isfinite(out[i])).tolist() == expected
            assert np.array_equal(out[i, expected], scores[i, expected])
        chosen = [rng.choice(np.flatnonzero(np.isfinite(out[i]))) for i in range(6)]
        order = rng.integers(0, 6, 6)  # as beam search does: a row may be dropped or continue twice
        rows = [[*rows[i], int(chosen[i])] for i in order]


def test_native_argmax_of_what_is_allowed() -> None:
    rng = np.random.default_rng(8)
    entities = tuple({tuple(rng.integers(10, 60, 3).tolist()) for _ in range(200)})
    language = Language(entities, ((6,),), ((1,), (2,), (3,), (4,)), "fully_expanded")
    constraint = language.constraint(60)
    matchers = [Matcher(constraint) for _ in range(5)]
    for _ in range(200):
        logits = rng.standard_normal((5, 60)).astype(np.float32)
        logits[:, rng.integers(0, 60, 4)] = np.nan
        chosen = argmax_allowed(matchers, logits)
        for row, matcher, token in zip(logits, matchers, chosen.tolist(), strict=True):
            allowed = [EOS] if matcher.is_complete else matcher.allowed().tolist()
            numbers = [t for t in allowed if not np.isnan(row[t])]
            assert token == (max(numbers, key=lambda t: row[t]) if numbers else allowed[0])
            if matcher.is_complete:
                matcher.reset()
            else:
                assert matcher.accept(token)


def test_native_constraint_keeps_its_tries_alive_and_is_shared_by_threads() -> None:
    rng = np.random.default_rng(0)
    entities = tuple({tuple(rng.integers(10, 200, 3).tolist()) for _ in range(2000)})
    language = Language(entities, ((6,), (6, 7)), ((1,), (2,), (3,), (4,)), "subject_collapsed")
    constraint = language.constraint(200)

    def work(seed: int) -> list[int]:
        own = np.random.default_rng(seed)
        matcher, out = Matcher(constraint), []
        logits = np.zeros((1, 200), dtype=np.float32)
        for _ in range(300):
            logits[:] = own.standard_normal((1, 200))
            mask_logits([matcher], logits)
            out.append(int(logits.argmax()))
            assert matcher.accept(out[-1])
            if matcher.is_complete:
                matcher.reset()
        return out

    alone = [work(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == alone


def test_native_constraint_refuses_bad_values() -> None:
    trie, good = trie_of(((5,),)), Language(((5,),), ((6,),), ((1,), (2,), (3,), (4,)), "fully_expanded")
    constraint = good.constraint(8)
    marks = ((1,), (2,), (3,), (4,))
    with pytest.raises(ValueError, match=r"parts\[2\] must hold at least one token"):
        constraint_of(trie, trie, ((1,), (), (3,), (4,)), 0, "fully_expanded", 8)
    with pytest.raises(ValueError, match=r"parts\[6\] must hold tokens in \[0, 8\), got 8"):
        constraint_of(trie, trie, ((1,), (2,), (3,), (8,)), 0, "fully_expanded", 8)
    with pytest.raises(ValueError, match=r"parts\[4\] must not contain eos = 3"):
        constraint_of(trie, trie, marks, 3, "fully_expanded", 8)
    with pytest.raises(ValueError, match=r"names without eos = 5: leave it off"):
        constraint_of(trie, trie, marks, 5, "fully_expanded", 8)
    with pytest.raises(ValueError, match=r"entities must hold tokens in \[0, 5\), got 5"):
        constraint_of(trie, trie, marks, 0, "fully_expanded", 5)
    with pytest.raises(ValueError, match=r"bitmask must hold 1 words for vocab_size = 8, got 2"):
        Matcher(constraint).fill_bitmask(np.zeros(2, dtype=np.int32))
    words = np.zeros(1, dtype=np.int32)
    words.flags.writeable = False
    with pytest.raises(ValueError, match=r"bitmask must be writable"):
        Matcher(constraint).fill_bitmask(words)
    logits = np.zeros((1, 8), dtype=np.float32)
    with pytest.raises(ValueError, match=r"one matcher a row of logits, 1, got 2"):
        mask_logits([Matcher(constraint)] * 2, logits)
    with pytest.raises(ValueError, match=r"at least vocab_size = 8 columns, got 7"):
        mask_logits([Matcher(constraint)], np.zeros((1, 7), dtype=np.float32))
    with pytest.raises(ValueError, match=r"logits must be a 2-D numpy array of float32, got dtype float64"):
        mask_logits([Matcher(constraint)], np.zeros((1, 8)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"logits must have contiguous rows"):
        mask_logits([Matcher(constraint)] * 8, np.zeros((8, 8), dtype=np.float32).T)
    assert not np.isinf(logits).any(), "a refused call writes nothing"
