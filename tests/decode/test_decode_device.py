"""Constraints as device tensors: the tables against the native trie and matcher. No kernel runs here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from obverse._core import Constraint, Matcher, Trie  # noqa: E402
from obverse.engine.decode.automaton import Automaton, Template, from_template, marked  # noqa: E402
from obverse.engine.decode.device import (  # noqa: E402
    DeviceConstraint,
    DeviceSlots,
    DeviceTries,
    automaton_tables,
    runs_on_device,
)
from obverse.engine.errors import InputError  # noqa: E402
from obverse.engine.records.sequence import MarkerIds  # noqa: E402
from obverse.kernels.mask_reference import (  # noqa: E402
    DENSE_ABOVE,
    TOO_MANY_POSITIONS,
    MaskRows,
    MaskStates,
    _Nodes,
    mask_logits_reference,
)

EOS = 1
VOCAB = 12


def build(names: list[list[int]]) -> Trie:
    offsets = np.cumsum([0] + [len(name) for name in names]).astype(np.int64)
    return Trie.build(np.array([token for name in names for token in name], np.int32), offsets)


def assert_same_trie(nodes: _Nodes, root: int, trie: Trie) -> None:
    """Every node of ``trie``, met from ``root`` on, has its children and its end."""
    waiting = [(root, 0)]
    while waiting:
        ours, theirs = waiting.pop()
        found = nodes.children(ours)
        assert sorted(found) == trie.children(theirs).tolist()
        assert nodes.terminal(ours) == trie.is_terminal(theirs)
        waiting += [(child, trie.step(theirs, token)) for token, child in found.items()]


@given(st.data())
def test_device_tables_hold_both_tries(data: st.DataObject) -> None:
    most = data.draw(st.sampled_from([8, 400, 70_000]))
    name = st.lists(st.integers(2, most), min_size=1, max_size=4)
    entities = data.draw(st.lists(name, min_size=1, max_size=120))
    if data.draw(st.booleans()):  # more children than a byte counts, and than a bitmask is for
        entities += [[token] for token in range(2, 2 + min(most - 2, 390))]
    tries = [build(entities), build(data.draw(st.lists(name, min_size=1, max_size=30)))]
    device = DeviceTries(*tries, most + 1, "cpu")
    nodes = _Nodes(device.tables)
    assert device.nbytes >= sum(len(trie.arrays()["low"]) * 3 for trie in tries)
    for slot, trie in (("subject", tries[0]), ("relation", tries[1]), ("object", tries[0])):
        assert_same_trie(nodes, device.roots[slot], trie)
    for node, bits in zip(device.tables.dense_nodes.tolist(), device.tables.dense_bits.numpy(), strict=True):
        tokens = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
        assert tokens.tolist() == sorted(nodes.children(node))
    wide = [trie.children(0).size > DENSE_ABOVE for trie in tries]
    assert [device.roots["subject"] in device.tables.dense_nodes.tolist(), wide[1]] == wide


def test_device_refuses_what_it_can_not_hold() -> None:
    trie = build([[5], [9, 3]])
    with pytest.raises(InputError, match="tokens below 9"):
        DeviceTries(trie, trie, 9, "cpu")
    one = DeviceTries(trie, trie, 10, "cpu")
    assert one.roots == {"subject": 0, "relation": 0, "object": 0}
    assert one.tables.low.numel() == 64
    assert DeviceTries(trie, None, 10, "cpu").roots == one.roots
    remembering = SimpleNamespace(has_memory=True)
    assert not runs_on_device(remembering)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="host"):
        DeviceConstraint.of(remembering, one, "cpu")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="slot"):
        automaton_tables([([3], [], True)], ([0], False), EOS, VOCAB, one.roots, "cpu")


@st.composite
def automata(draw: st.DrawFn) -> Automaton:
    """The two linearisations with markers that begin alike, and templates, by a tokenizer of letters."""
    marker = st.lists(st.integers(2, 5), min_size=1, max_size=2)
    kind = draw(st.sampled_from(["fully_expanded", "subject_collapsed", "template", "slots"]))
    if kind == "template":
        template = Template(
            item="c{subject}dc{relation}ec{object}d",
            begin=draw(st.sampled_from(["", "d", "de"])),
            separator=draw(st.sampled_from(["", "d", "de"])),
            end=draw(st.sampled_from(["", "d", "f"])),
            allow_empty=draw(st.booleans()),
        )
        return from_template(template, lambda text, *_: [ord(letter) - 97 for letter in text])
    if kind == "slots":
        return Automaton([("subject", [1], True), (draw(marker), [0], False)], ([0], False))
    return marked(kind, MarkerIds(*(draw(marker) for _ in range(4))))  # type: ignore[arg-type]


@given(st.data())
def test_device_reference_allows_what_the_matcher_does(data: st.DataObject) -> None:
    """Random walks over random small catalogues, one native matcher beside."""
    name = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=3)
    tries = [build(data.draw(st.lists(name, min_size=1, max_size=4))) for _ in range(2)]
    limit = data.draw(st.sampled_from([None, 1, 2]))
    automaton = data.draw(automata())
    constraint = Constraint(*tries, **automaton._asdict(), eos=EOS, vocab_size=VOCAB, max_triplets=limit)
    device = DeviceTries(*tries, VOCAB, "cpu")
    tables = DeviceConstraint.of(constraint, device, "cpu")
    slots = DeviceSlots(1, "cpu")
    slots.assign(0, owner=0, max_triplets=limit)
    slots.flush()
    matcher, tokens = Matcher(constraint), [0]
    for length in range(30):
        logits = torch.zeros((1, VOCAB))
        mask_logits_reference(logits, one_row(length - 1, tokens[-1]), *tables, slots.states)
        found = torch.nonzero(logits[0] > float("-inf"))[:, 0].tolist()
        if int(slots.states.flags[0]) == TOO_MANY_POSITIONS:
            assert found == [EOS]
            return
        assert int(slots.states.flags[0]) == 0
        assert found == (matcher.allowed().tolist() or [EOS])
        if matcher.is_complete:
            return
        tokens.append(data.draw(st.sampled_from(found)))
        assert matcher.accept(tokens[-1])


def one_row(position: int, token: int) -> MaskRows:
    columns: list[Any] = [torch.tensor([value]) for value in (0, position, token)]
    return MaskRows(*columns, torch.zeros((1, 1), dtype=torch.int32))


def test_device_slots_begin_anew_when_assigned() -> None:
    slots = DeviceSlots(3, "cpu")
    slots.flush()
    assert slots.states.slots[:, 0].tolist() == [-1, -1, -1]
    slots.assign(2, owner=4, max_triplets=7, prompt_length=9)
    slots.assign(0, owner=1)
    slots.assign(0, owner=5)  # the last word counts
    assert slots.states.slots[:, 0].tolist() == [-1, -1, -1]
    slots.states.tags.fill_(8)
    slots.states.flags.fill_(2)
    slots.flush()
    assert slots.states.slots.tolist() == [[5, -1, 0, 0], [-1, -1, 0, 0], [4, 7, 9, 0]]
    assert slots.states.tags.tolist() == [[-1, -1], [8, 8], [-1, -1]]
    assert slots.states.flags.tolist() == [0, 2, 0]
    empty = MaskStates.allocate(2, "cpu")
    assert empty.positions.shape == (2, 2, 4, 3)
