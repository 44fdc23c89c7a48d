"""The truth of `mask_logits`: the same tables, states and masks in plain Python over numpy; and their layout.

A constraint is a small automaton of *parts* (literals, and slots that are filled from a trie) over one table of trie
nodes. A sequence's state is a set of at most `WIDTH` *positions* (part, index, whole triplets): in a literal the index
is the number of its tokens taken, in a slot the trie node.

Two entries of state are kept per slot of the batch: the state after L generated tokens stands at entry L % 2 with L as
its tag. Whoever needs it can redo the step from the other entry, which nobody writes in the meantime.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "DEAD_END",
    "DENSE_ABOVE",
    "MISSING_TOKENS",
    "NOT_ALLOWED",
    "TOO_MANY_POSITIONS",
    "WIDTH",
    "AutomatonTables",
    "MaskRows",
    "MaskStates",
    "TrieTables",
    "mask_logits_reference",
]

WIDTH = 4
"""Most positions of one state."""
DENSE_ABOVE = 256
"""A node with more children than this has its children as a bitmask."""

# What `MaskStates.flags` says of a slot, added up. Its rows keep end-of-sequence only from there on.
TOO_MANY_POSITIONS = 1
NOT_ALLOWED = 2
MISSING_TOKENS = 4
DEAD_END = 8


class TrieTables(NamedTuple):
    """The nodes of all tries on one device, one after another, each trie's first node at a multiple of 64.

    The children of node i are the nodes first_child(i) .. first_child(i + 1), ascending by token. With
    ``base = blocks[i // 64, 3]``: first_child(i) is ``base + offset[i]``, or, where base is negative as an int32,
    ``overflow[(base & 0x7fffffff) + i % 64]``.
    """

    low: Tensor
    """int16 [nodes]: the low half of each node's token."""
    high: Tensor
    """uint8 [nodes]: bits 16 to 23 of it; [0] where no token needs them."""
    offset: Tensor
    """uint8 [nodes + 1]."""
    blocks: Tensor
    """int32 [blocks, 4]: terminal bits of nodes 0 to 31 and 32 to 63 of the block, (unused here), base."""
    overflow: Tensor
    """int32 [64 k]."""
    dense_nodes: Tensor
    """int32 [d], ascending: the nodes with more than `DENSE_ABOVE` children."""
    dense_bits: Tensor
    """int32 [d, words]: their children, token t at bit t % 32 of word t // 32."""


class AutomatonTables(NamedTuple):
    """Parts and moves; part P is the start and part P + 1 the end, after end-of-sequence."""

    parts: Tensor
    """int32 [P + 2, 8]: first move (literals); index behind its last token (-1 for a slot); first edge; edges; may end
    after it; whether its index is a trie node; triplets that are whole once it is left; part of that node's children.
    The start's index is 0, or the root of the slot that an output begins with."""
    moves: Tensor
    """int32 [m, 4]: token, part and index it leads to, closed at the greatest number of triplets."""
    eos: int
    vocab_size: int
    max_edges: int
    """The most edges that leave one part."""


class MaskStates(NamedTuple):
    """What a batch of ``num_slots`` sequences keeps on the device."""

    positions: Tensor
    """int32 [slots, 2, WIDTH, 3]: part (-1: none), index, whole triplets."""
    tags: Tensor
    """int32 [slots, 2]: generated tokens that each entry stands for; -1: no state."""
    flags: Tensor
    """int32 [slots]: 0, or what went wrong (`NOT_ALLOWED` and so on)."""
    slots: Tensor
    """int32 [slots, 4]: the constraint's number (-1: none), most triplets (-1: any number), tokens of the prompt, 0."""

    @classmethod
    def allocate(cls, num_slots: int, device: torch.device | str) -> MaskStates:
        """No slot has a constraint yet."""

        def filled(value: int, *shape: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.int32, device=device)

        slots = filled(-1, num_slots, 4)
        slots[:, 2:] = 0
        return cls(filled(-1, num_slots, 2, WIDTH, 3), filled(-1, num_slots, 2), filled(0, num_slots), slots)


class MaskRows(NamedTuple):
    """This step's rows of logits; integer tensors of any width, on the logits' device."""

    slots: Tensor
    """[rows]: the slot of each row; negative: leave the row alone."""
    positions: Tensor
    """[rows]: place of the row's newest token in its sequence (prompt and all)."""
    newest: Tensor
    """[rows]: that token."""
    history: Tensor
    """[slots, columns]: every sequence's tokens by place. Read only where a slot has no state to go on from."""
    drafts: Tensor | None = None
    """[rows]: how many of the sequence's newest tokens are drafts; its rows lie together, fewest drafts first."""


class _Nodes:
    """Trie tables as lookups."""

    def __init__(self, tables: TrieTables) -> None:
        self.low = tables.low.cpu().numpy().view(np.uint16)
        self.high = tables.high.cpu().numpy()
        self.offset = tables.offset.cpu().numpy()
        self.blocks = tables.blocks.cpu().numpy()
        self.overflow = tables.overflow.cpu().numpy()

    def first_child(self, node: int) -> int:
        base = int(self.blocks[node >> 6, 3])
        if base >= 0:
            return base + int(self.offset[node])
        return int(self.overflow[(base & 0x7FFFFFFF) + (node & 63)])

    def children(self, node: int) -> dict[int, int]:
        """Token to node."""
        found = {}
        for child in range(self.first_child(node), self.first_child(node + 1)):
            high = int(self.high[child]) << 16 if len(self.high) else 0
            found[high | int(self.low[child])] = child
        return found

    def terminal(self, node: int) -> bool:
        return bool(int(self.blocks[node >> 6, (node >> 5) & 1]) >> (node & 31) & 1)


_Position = tuple[int, int, int]


class _Steps:
    """One constraint with its greatest number of triplets."""

    def __init__(self, tries: TrieTables, automaton: AutomatonTables, limit: int) -> None:
        self.nodes, self.limit, self.eos = _Nodes(tries), limit, automaton.eos
        self.parts = automaton.parts.cpu().numpy().tolist()
        self.moves = automaton.moves.cpu().numpy().tolist()
        self.start: set[_Position] = {(len(self.parts) - 2, self.parts[-2][1], 0)}
        self.done = len(self.parts) - 1

    def ways(self, position: _Position) -> Iterator[tuple[int, _Position]]:
        """Every token that may follow, and where it leads."""
        part, index, count = position
        cells, length, edges, num_edges, can_end, in_trie, completes, child_part = self.parts[part]
        if in_trie:
            for token, child in self.nodes.children(index).items():
                yield token, (child_part, child, count)
        if index < length:
            token, to, place, _ = self.moves[cells + index]
            yield token, (to, place, count)
        elif index == length or (length < 0 and self.nodes.terminal(index)):
            count = count + completes if self.limit >= 0 else 0
            for token, to, place, closed in self.moves[edges : edges + num_edges]:
                if not (closed and 0 <= self.limit <= count):
                    yield token, (to, place, count)
            if can_end:
                yield self.eos, (self.done, 0, 0)

    def step(self, state: set[_Position], token: int) -> tuple[set[_Position], int]:
        """The state after one more token, and flags."""
        if not state or any(part == self.done for part, _, _ in state):
            return state, 0
        after = {to for position in state for way, to in self.ways(position) if way == token}
        if len(after) > WIDTH:
            return set(), TOO_MANY_POSITIONS
        return after, 0 if after else NOT_ALLOWED

    def allowed(self, state: set[_Position]) -> tuple[set[int], int]:
        """Tokens that may follow, and flags; end-of-sequence where nothing else may."""
        if not state or any(part == self.done for part, _, _ in state):
            return {self.eos}, 0
        tokens = {token for position in state for token, _ in self.ways(position)}
        return tokens or {self.eos}, 0 if tokens else DEAD_END


def mask_logits_reference(
    logits: Tensor, rows: MaskRows, tries: TrieTables, automaton: AutomatonTables, states: MaskStates, *, owner: int = 0
) -> None:
    """Advance and mask in place, as `mask_logits` does (see there for the arguments)."""
    masked = [_mask_row(logits[row], row, rows, tries, automaton, states, owner) for row in range(len(logits))]
    # Every row reads the states as they were.
    for row, found in enumerate(masked):
        if found is not None:
            _keep_state(int(rows.slots[row]), states, *found)


def _mask_row(
    logits: Tensor,
    row: int,
    rows: MaskRows,
    tries: TrieTables,
    automaton: AutomatonTables,
    states: MaskStates,
    owner: int,
) -> tuple[int, set[_Position], int] | None:
    slot = int(rows.slots[row])
    if slot < 0 or int(states.slots[slot, 0]) != owner:
        return None
    _, limit, prompt, _ = states.slots[slot].tolist()
    drafts = 0 if rows.drafts is None else int(rows.drafts[row])
    committed = max(int(rows.positions[row]) + 1 - prompt - drafts, 0)
    steps = _Steps(tries, automaton, limit)
    base, state, flags = 0, steps.start, 0
    entry = (committed + 1) % 2
    if committed and 0 <= int(states.tags[slot, entry]) < committed:
        base = int(states.tags[slot, entry])
        kept = states.positions[slot, entry].tolist()
        state = {(part, index, count) for part, index, count in kept if part >= 0}
    for t in range(base, committed + drafts):
        recent = t - (committed - 1)
        place = prompt + t
        if recent < 0 and not 0 <= place < rows.history.shape[1]:
            state, flags = set(), flags | MISSING_TOKENS
            break
        source = rows.newest[row - drafts + recent] if recent >= 0 else rows.history[slot, place]
        state, flag = steps.step(state, int(source))
        flags |= flag
    allowed, flag = steps.allowed(state)
    mask = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    mask[sorted(allowed)] = False
    logits.masked_fill_(mask, float("-inf"))
    return None if drafts else (committed, state, flags | flag)


def _keep_state(slot: int, states: MaskStates, committed: int, state: set[_Position], flags: int) -> None:
    entry = committed % 2
    kept = [list(position) for position in sorted(state)] + [[-1, 0, 0]] * (WIDTH - len(state))
    states.positions[slot, entry] = torch.tensor(kept, dtype=torch.int32)
    states.tags[slot, entry] = committed
    if committed == 0:
        states.tags[slot, 1] = -1
    if flags or committed == 0:
        states.flags[slot] = flags
