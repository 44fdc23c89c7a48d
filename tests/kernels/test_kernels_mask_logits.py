"""The constraint kernel against its plain reference, and the reference against every string of small languages.

The kernel's checks run in Triton's interpreter (in a process of its own, started from here: the flag is read when a
kernel is decorated) and on CUDA with ``-m gpu``. Tries come from a builder of this file, in plain Python.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from obverse.engine.decode.device import DeviceTries, automaton_tables
from obverse.kernels import mask_reference as truth
from obverse.kernels.launch import triton_installed, triton_interprets
from obverse.kernels.mask_reference import AutomatonTables, MaskRows, MaskStates, TrieTables, mask_logits_reference

ROOT = Path(__file__).resolve().parents[2]
EOS = 1
Name = tuple[int, ...]
Parts = list[tuple[Any, list[int], bool]]


class PlainTrie:
    """The arrays of a trie, node by node."""

    def __init__(self, names: Sequence[Name], *, spill: bool = False) -> None:
        children: dict[Name, set[int]] = {(): set()}
        for name in names:
            for i in range(len(name)):
                children.setdefault(name[:i], set()).add(name[i])
                children.setdefault(name[: i + 1], set())
        nodes = sorted(children, key=lambda node: (len(node), node))
        number = {node: i for i, node in enumerate(nodes)}
        tokens = [node[-1] if node else 0 for node in nodes]
        first, at = [], 1
        for node in nodes:
            first.append(at)
            at += len(children[node])
        first.append(at)
        self.names = sorted(set(names))
        terminal = {number[name] for name in names}
        count = -(-len(first) // 64)
        blocks, overflow = np.zeros((count, 4), np.uint32), []
        offset = np.zeros(len(first), np.uint8)
        for b in range(count):
            run = first[b * 64 : b * 64 + 64]
            for i in range(b * 64, b * 64 + 64):
                if i in terminal:
                    blocks[b, (i >> 5) & 1] |= np.uint32(1 << (i & 31))
            blocks[b, 2] = sum(1 for node in terminal if node < b * 64)
            if spill or run[-1] - run[0] > 255:
                blocks[b, 3] = np.uint32(len(overflow) | 1 << 31)
                overflow += run + [at] * (64 - len(run))
                offset[b * 64 : b * 64 + 64] = 99  # means nothing here
            else:
                blocks[b, 3] = run[0]
                offset[b * 64 : b * 64 + len(run)] = np.array(run) - run[0]
        used = np.zeros(max(tokens) // 32 + 1, np.uint32)
        for token in set(tokens[1:]):
            used[token // 32] |= np.uint32(1 << (token % 32))
        wide = max(tokens) >= 1 << 16
        self._arrays = {
            "low": np.array([token & 0xFFFF for token in tokens], np.uint16),
            "high": np.array([token >> 16 for token in tokens] if wide else [], np.uint8),
            "offset": offset,
            "blocks": blocks,
            "overflow": np.array(overflow, np.uint32),
            "used": used,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        return self._arrays


class Language(NamedTuple):
    """A linearisation over names."""

    parts: Parts
    start: tuple[list[int], bool]
    entities: PlainTrie
    relations: PlainTrie
    vocab_size: int

    def tables(self, device: str = "cpu") -> tuple[TrieTables, AutomatonTables]:
        tries = DeviceTries(self.entities, self.relations, self.vocab_size, device)  # type: ignore[arg-type]
        return tries.tables, automaton_tables(self.parts, self.start, EOS, self.vocab_size, tries.roots, device)

    def strings(self, most: int) -> Iterator[Name]:
        """Every whole token sequence of at most ``most`` triplets."""
        pools = {"subject": self.entities, "relation": self.relations, "object": self.entities}

        @cache
        def rest(following: tuple[int, ...], can_end: bool, count: int) -> list[Name]:
            found: list[Name] = [(EOS,)] if can_end else []
            for to in following:
                body, next_, ends = self.parts[to]
                slot = isinstance(body, str)
                if slot and count >= most:
                    continue
                tails = rest(tuple(next_), ends, count + (body == "object"))
                found += [head + tail for head in (pools[body].names if slot else [tuple(body)]) for tail in tails]
            return found

        return iter(rest(tuple(self.start[0]), self.start[1], 0))


def expanded(s: Name, r: Name, o: Name, e: Name) -> tuple[Parts, tuple[list[int], bool]]:
    parts: Parts = [
        (list(s), [1], False),
        ("subject", [2], False),
        (list(r), [3], False),
        ("relation", [4], False),
        (list(o), [5], False),
        ("object", [6], False),
        (list(e), [0], True),
    ]
    return parts, ([0], True)


def collapsed(s: Name, r: Name, o: Name, e: Name) -> tuple[Parts, tuple[list[int], bool]]:
    parts, start = expanded(s, r, o, e)
    parts[5] = ("object", [2, 6], False)
    return parts, start


def listed(s: Name, r: Name, o: Name, e: Name) -> tuple[Parts, tuple[list[int], bool]]:
    """As JSON would be: an open bracket, and closing literals that begin alike."""
    parts: Parts = [
        ([*s, 2], [1, 8], False),
        ([3, *s], [2], False),
        ("subject", [3], False),
        (list(r), [4], False),
        ("relation", [5], False),
        (list(o), [6], False),
        ("object", [7, 9], False),
        ([*e, *s], [2], False),
        ([3], [], True),
        ([*e, 3], [], True),
    ]
    return parts, ([0], False)


def bare(s: Name, r: Name, o: Name, e: Name) -> tuple[Parts, tuple[list[int], bool]]:
    """Begins with a slot."""
    del s
    parts: Parts = [
        ("subject", [1], False),
        (list(r), [2], False),
        ("relation", [3], False),
        (list(o), [4], False),
        ("object", [5], True),
        (list(e), [0], False),
    ]
    return parts, ([0], False)


FORMS = {"expanded": expanded, "collapsed": collapsed, "listed": listed, "bare": bare}


@st.composite
def languages(draw: st.DrawFn, *, most_names: int = 3) -> Language:
    """Few tokens, so that names are prefixes of one another, share tokens with markers, and hold whole markers."""
    vocab_size = draw(st.integers(5, 9))
    name = st.lists(st.integers(2, vocab_size - 1), min_size=1, max_size=3).map(tuple)
    marker = st.lists(st.integers(2, vocab_size - 1), min_size=1, max_size=2).map(tuple)
    form = FORMS[draw(st.sampled_from(sorted(FORMS)))]
    parts, start = form(*(draw(marker) for _ in range(4)))
    pools = [draw(st.lists(name, min_size=1, max_size=most, unique=True)) for most in (most_names, 2)]
    tries = [PlainTrie(pool, spill=draw(st.booleans())) for pool in pools]
    return Language(parts, start, *tries, vocab_size)


def follow(strings: Iterator[Name]) -> dict[Name, set[int]]:
    """Every prefix, and the tokens that may follow it."""
    found: dict[Name, set[int]] = {}
    for string in strings:
        for i, token in enumerate(string):
            found.setdefault(string[:i], set()).add(token)
    return found


def rows_of(prefixes: Sequence[Name], device: str = "cpu") -> MaskRows:
    """A row and a slot for each prefix."""
    columns = max(1, *(len(prefix) for prefix in prefixes))
    history = torch.zeros((len(prefixes), columns), dtype=torch.int32)
    for i, prefix in enumerate(prefixes):
        history[i, : len(prefix)] = torch.tensor(prefix, dtype=torch.int32)
    newest = torch.tensor([prefix[-1] if prefix else 0 for prefix in prefixes])
    lengths = torch.tensor([len(prefix) for prefix in prefixes])
    slots = torch.arange(len(prefixes), dtype=torch.int32)
    return MaskRows(*(tensor.to(device) for tensor in (slots, lengths - 1, newest, history)))


def states_of(count: int, limit: int | None, device: str = "cpu") -> MaskStates:
    states = MaskStates.allocate(count, device)
    states.slots[:, 0] = 0
    states.slots[:, 1] = -1 if limit is None else limit
    return states


def kept(logits: Tensor) -> list[set[int]]:
    return [set(torch.nonzero(row > float("-inf"))[:, 0].tolist()) for row in logits.cpu()]


@settings(max_examples=60)
@given(languages(), st.sampled_from([None, 1, 2]))
def test_kernels_mask_reference_allows_what_some_string_goes_on_with(language: Language, limit: int | None) -> None:
    expected = follow(language.strings(limit or 3))
    if limit is None:  # a fourth triplet is not among the strings: look at the beginnings only
        expected = {prefix: expected[prefix] for prefix in follow(language.strings(1))}
    prefixes = random.Random(len(expected)).sample(sorted(expected), min(len(expected), 400))
    logits = torch.zeros((len(prefixes), language.vocab_size + 3))
    states = states_of(len(prefixes), limit)
    mask_logits_reference(logits, rows_of(prefixes), *language.tables(), states)
    for prefix, slot, found in zip(prefixes, range(len(prefixes)), kept(logits), strict=True):
        if int(states.flags[slot]) == truth.TOO_MANY_POSITIONS:
            assert found == {EOS}
        else:
            assert int(states.flags[slot]) == 0
            assert found == expected[prefix], prefix


# --- the kernel -----------------------------------------------------------------------------------------------------


def _targets() -> list[Any]:
    found: list[Any] = []
    if os.environ.get("TRITON_INTERPRET") == "1" and triton_interprets():
        found.append(pytest.param("cpu", id="interpreter"))
    found.append(pytest.param("cuda", id="cuda", marks=pytest.mark.gpu))
    return found


@pytest.fixture(params=_targets(), scope="module")
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture
def rng() -> random.Random:
    """A fresh seed each run, printed when a test fails."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return random.Random(seed)


def poisoned(rows: int, columns: int, stride: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Logits of any values, NaN among them, inside a buffer of another value."""
    buffer = torch.full((rows + 2, stride), 7.0, dtype=dtype, device=device)
    logits = buffer[1:-1, :columns]
    values = torch.randn((rows, columns)) * 5
    values[torch.rand((rows, columns)) < 0.2] = float("nan")
    values[torch.rand((rows, columns)) < 0.1] = float("inf")
    logits.copy_(values)
    return buffer, logits


def assert_same_states(found: MaskStates, expected: MaskStates) -> None:
    assert torch.equal(found.tags.cpu(), expected.tags.cpu())
    assert torch.equal(found.flags.cpu(), expected.flags.cpu())
    for slot, entry in torch.nonzero(expected.tags.cpu() >= 0).tolist():
        both = [states.positions[slot, entry].tolist() for states in (found, expected)]
        ours, theirs = ([tuple(p) for p in positions if p[0] >= 0] for positions in both)
        assert len(ours) == len(set(ours))
        assert set(ours) == set(theirs)


def compare(
    language: Language,
    rows: MaskRows,
    states: MaskStates,
    logits: Tensor,
    device: str,
    *,
    tiles: int | None = None,
    times: int = 1,
) -> None:
    """One step by kernel and reference: the same logits, bit for bit, and the same states."""
    from obverse.kernels.mask_logits import mask_logits

    expected, copy = logits.cpu().clone(), MaskStates(*(part.cpu().clone() for part in states))
    given_rows = MaskRows(*(None if part is None else part.cpu() for part in rows))
    mask_logits_reference(expected, given_rows, *language.tables(), copy)
    tables = language.tables(device)
    for _ in range(times):  # a further time changes nothing
        mask_logits(logits, rows, *tables, states, tiles=tiles)
        assert torch.equal(logits.cpu().nan_to_num(123.0), expected.nan_to_num(123.0))
        assert_same_states(states, copy)


def one_step_before(language: Language, prefixes: Sequence[Name], states: MaskStates) -> MaskStates:
    """The states without each prefix's last token, by the reference."""
    earlier = MaskStates(*(part.cpu().clone() for part in states))
    logits = torch.zeros((len(prefixes), language.vocab_size))
    mask_logits_reference(logits, rows_of([prefix[:-1] for prefix in prefixes]), *language.tables(), earlier)
    return MaskStates(*(part.to(states.tags.device) for part in earlier))


@settings(max_examples=10 if triton_interprets() else 60)
@given(data=st.data())
def test_kernels_mask_follows_random_languages(device: str, data: st.DataObject) -> None:
    language = data.draw(languages())
    limit = data.draw(st.sampled_from([None, 1, 2]))
    prefixes = sorted(follow(language.strings(limit or 2)))
    chosen = random.Random(len(prefixes)).sample(prefixes, min(len(prefixes), 4 if triton_interprets() else 400))
    rows, states = rows_of(chosen, device), states_of(len(chosen), limit, device)
    if not triton_interprets() or data.draw(st.integers(0, 3)):  # else replayed from the first token
        states = one_step_before(language, chosen, states)
        rows = rows._replace(history=torch.full_like(rows.history, language.vocab_size - 1))
    _, logits = poisoned(len(chosen), language.vocab_size + 2, language.vocab_size + 2, torch.float32, device)
    compare(language, rows, states, logits, device, tiles=1)


def big(rng: random.Random, vocab_size: int) -> Language:
    """Names over a whole vocabulary: a root of thousands of children, nodes around the limit for bitmasks."""
    pool = [rng.randrange(10, vocab_size) for _ in range(3000)] + [vocab_size - 1, 10]
    names = [(token,) for token in pool[:100]]
    names += [(token, *rng.choices(pool, k=rng.randrange(1, 4))) for token in pool]
    for parent, count in ((pool[0], 256), (pool[1], 257), (pool[2], 900), (pool[3], 130), (pool[4], 128)):
        names += [(parent, token) for token in rng.sample(range(10, vocab_size), count)]
    relations = [(rng.choice(pool), rng.choice(pool)) for _ in range(300)]
    # The first marker tokens are in the names too, and two markers begin alike.
    parts, start = collapsed((5,), (pool[0], pool[1]), (pool[5], 6), (pool[0], 7))
    return Language(parts, start, PlainTrie(sorted(set(names))), PlainTrie(sorted(set(relations))), vocab_size)


def big_prefixes(language: Language, rng: random.Random) -> list[Name]:
    """Beginnings of outputs: at the roots, inside long and short runs of children, at ends of names, after eos."""
    s, r, o, e = (tuple(language.parts[part][0]) for part in (0, 2, 4, 6))
    names, relations = language.entities.names, language.relations.names
    one = (*s, *rng.choice(names), *r, *rng.choice(relations), *o, *rng.choice(names), *e)
    found = [(), (EOS,), s, (*s, r[0]), (*s, r[1]), (*one, EOS), (*one, EOS, 8), (8,), (*s, 8, 8)]
    found += [one[:i] for i in range(2, len(one) + 1)]
    found += [(*s, *name[:1]) for name in rng.sample(names, 4)]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("vocab_size", "padding", "stride"), [(32001, 0, 32001), (50257, 47, 50304 + 13), (152064, 0, 152064)]
)
def test_kernels_mask_whole_vocabularies(
    device: str, rng: random.Random, vocab_size: int, padding: int, stride: int, dtype: torch.dtype
) -> None:
    language = big(rng, vocab_size)
    columns = vocab_size + padding
    prefixes = big_prefixes(language, rng)
    states = states_of(len(prefixes), rng.choice([None, 1, 2]), device)
    if device == "cpu":
        # One in a dense node below a root, and three of the others.
        prefixes = [(5, language.parts[2][0][0]), *rng.sample(prefixes, 3)]
        states = one_step_before(language, prefixes, states_of(4, rng.choice([None, 1]), device))
    torch.manual_seed(rng.randrange(1 << 30))
    buffer, logits = poisoned(len(prefixes), columns, stride, dtype, device)
    tiles = rng.choice([1, 3]) if device == "cpu" else rng.choice([None, 1, 5])
    compare(language, rows_of(prefixes, device), states, logits, device, tiles=tiles)
    assert bool((buffer[0] == 7).all()), "wrote before the rows"
    assert bool((buffer[-1] == 7).all()), "wrote behind the rows"
    assert bool((buffer[1:-1, columns:] == 7).all()), "wrote between the rows"


def test_kernels_mask_dense_nodes_are_those_above_the_limit(rng: random.Random) -> None:
    language = big(rng, 32001)
    tries, _ = language.tables()
    sizes: dict[tuple[str, Name], set[int]] = {}
    for kind, trie in (("entity", language.entities), ("relation", language.relations)):
        for name in trie.names:
            for i in range(len(name)):
                sizes.setdefault((kind, name[:i]), set()).add(name[i])
    expected = sorted(len(tokens) for tokens in sizes.values() if len(tokens) > truth.DENSE_ABOVE)
    counts = np.unpackbits(tries.dense_bits.numpy().view(np.uint8), axis=1).sum(axis=1)
    assert len(expected) >= 4
    assert sorted(counts.tolist()) == expected


def test_kernels_mask_decodes_step_by_step_and_recycles_slots(device: str, rng: random.Random) -> None:
    """Whole outputs token by token in two slots, each used again for a shorter and a longer output."""
    language = small()
    strings = [s for s in language.strings(2) if len(s) > 8]
    queues = [[rng.choice(strings) for _ in range(2)] for _ in range(2)]
    states, allowed = states_of(2, 2, device), follow(language.strings(2))
    progress = [0, 0]
    while any(queues):
        live = [slot for slot in (1, 0) if queues[slot]]
        prefixes = [queues[slot][0][: progress[slot]] for slot in live]
        rows = rows_of(prefixes, device)._replace(slots=torch.tensor(live, device=device))
        # No history: the states alone must carry the sequence.
        rows = rows._replace(history=torch.full((2, 1), 3, dtype=torch.int32, device=device))
        logits = torch.zeros((len(live), language.vocab_size), device=device)
        compare(language, rows, states, logits, device, tiles=1)
        for slot, prefix, found in zip(live, prefixes, kept(logits), strict=True):
            assert found == allowed.get(prefix, {EOS})
            progress[slot] += 1
            if progress[slot] > len(queues[slot][0]):
                queues[slot].pop(0)
                progress[slot] = 0


def small() -> Language:
    names = [(4,), (4, 5), (4, 5, 6), (7, 4), (6,)]
    return Language(*collapsed((4,), (5, 2), (3,), (5, 3)), PlainTrie(names), PlainTrie([(8,), (8, 3)]), 12)


def test_kernels_mask_drafts_read_their_own_tokens_and_keep_no_state(device: str) -> None:
    language = small()
    whole = next(s for s in language.strings(2) if len(s) >= 16)
    states = states_of(2, None, device)
    allowed = follow(language.strings(3))
    committed = 3
    for verified in (3, 0, 2, 1):  # drafts taken, of three a step
        drafted = (*whole[committed : committed + verified], 11, 11, 11)[:3]
        prefixes = [whole[:committed] + drafted[:count] for count in range(4)]
        rows = rows_of(prefixes, device)._replace(slots=torch.zeros(4, dtype=torch.int64, device=device))
        history = rows.history[-1:].clone()
        history[0, committed:] = 11  # drafts are no history yet
        rows = rows._replace(history=history, drafts=torch.arange(4, dtype=torch.int32, device=device))
        logits = torch.zeros((4, language.vocab_size), device=device)
        compare(language, rows, states, logits, device, tiles=1, times=1 + (verified == 3))
        for prefix, found in zip(prefixes, kept(logits), strict=True):
            assert found == allowed.get(prefix, {EOS})
        committed += verified + 1
    assert int(states.flags[0]) == 0


def test_kernels_mask_flags_what_it_can_not_follow(device: str) -> None:
    # Five markers that begin alike after one name: more positions than a state holds.
    parts: Parts = [([2], [1], False), ("subject", [2, 3, 4, 5, 6], False)]
    parts += [([3, 3, t], [7], False) for t in range(4, 9)] + [("object", [8], True), ([2], [1], False)]
    language = Language(parts, ([0], False), PlainTrie([(3,), (3, 3), (4,)]), PlainTrie([(3,)]), 10)
    prefixes: list[Name] = [(2, 3, 3), (2, 3, 3, 3), (2, 9), (2, 3, 3, 3, 4)]
    rows, states = rows_of(prefixes, device), states_of(5, None, device)
    states.slots[3, 2] = -2  # as if its first tokens lay before the history
    rows = rows._replace(positions=rows.positions - torch.tensor([0, 0, 0, 2], device=device))
    logits = torch.zeros((4, 10), device=device)
    compare(language, rows, states, logits, device, tiles=1)
    expected = [truth.TOO_MANY_POSITIONS, truth.TOO_MANY_POSITIONS, truth.NOT_ALLOWED, truth.MISSING_TOKENS, 0]
    assert states.flags.tolist() == expected
    assert kept(logits) == [{EOS}] * 4


def test_kernels_mask_counts_a_position_once_however_it_was_reached(device: str) -> None:
    parts: Parts = [("subject", [1, 2, 3, 4, 5], False)] + [([3], [6], False) for _ in range(5)]
    parts += [("object", [7], True), ([4], [0], False)]
    language = Language(parts, ([0], False), PlainTrie([(2,), (2, 3)]), PlainTrie([(3,)]), 10)
    states = states_of(1, None, device)
    logits = torch.zeros((1, 10), device=device)
    compare(language, rows_of([(2, 3)], device), states, logits, device, tiles=1)
    assert states.flags.tolist() == [0]
    assert kept(logits) == [{2, 3}]


def test_kernels_mask_leaves_other_rows_alone(device: str) -> None:
    language = small()
    rows = rows_of([(4,), (4,), (4,)], device)
    rows = rows._replace(slots=torch.tensor([0, -1, 2], device=device))
    states = states_of(3, None, device)
    states.slots[0, 0] = 5
    logits = torch.zeros((3, 12), device=device)
    compare(language, rows, states, logits, device)
    assert [len(found) for found in kept(logits)] == [12, 12, 3]
    assert states.tags.tolist()[:2] == [[-1, -1]] * 2


def test_kernels_mask_refuses_logits_it_would_misread(device: str) -> None:
    from obverse.kernels.mask_logits import mask_logits

    language, rows = small(), rows_of([(4,)], device)
    for logits in (torch.zeros((1, 11), device=device), torch.zeros((1, 24), device=device)[:, ::2]):
        with pytest.raises(ValueError, match="columns"):
            mask_logits(logits, rows, *language.tables(device), states_of(1, None, device))


@pytest.mark.gpu
def test_kernels_mask_runs_in_a_cuda_graph() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from obverse.kernels.mask_logits import mask_logits

    language, device = small(), "cuda"
    tables, states = language.tables(device), states_of(1, None, device)
    rows = rows_of([()], device)
    logits = torch.zeros((1, 12), device=device)
    mask_logits(logits, rows, *tables, states)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mask_logits(logits, rows, *tables, states)
    allowed = follow(language.strings(2))
    whole = next(s for s in language.strings(1) if len(s) >= 9)
    for i in range(len(whole) + 1):
        rows.positions.fill_(i - 1)
        rows.newest.fill_(whole[i - 1] if i else 0)
        logits.zero_()
        graph.replay()
        assert kept(logits) == [allowed.get(whole[:i], {EOS})]


@pytest.mark.skipif(not triton_installed(), reason="Triton is not installed")
def test_kernels_mask_passes_every_check_in_the_interpreter() -> None:
    if triton_interprets():
        pytest.skip("this process interprets already: the checks run in it")
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-k", "interpreter", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    ran = done.stdout.strip().splitlines()[-1]
    assert int(ran.split(" passed")[0].split()[-1]) >= 16, f"too few checks ran: {ran}"
