"""A constraint as tensors on one device, and the slots of a running batch: what `kernels.mask_logits` works on.

The tries of a catalogue are copied to a device once and shared by all constraints over them; an automaton is a few
hundred bytes. Requests that need memory of what was written (no repeated triplet, types, a graph) or a subset of the
names stay on the host, with `Matcher`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from obverse.engine.errors import InputError

if TYPE_CHECKING:
    import torch

    from obverse._core import Constraint, Trie
    from obverse.kernels.mask_reference import AutomatonTables, MaskStates, TrieTables

__all__ = ["DeviceConstraint", "DeviceSlots", "DeviceTries", "automaton_tables", "runs_on_device"]

Parts = Sequence[tuple[Sequence[int] | str, Sequence[int], bool]]
_NODES = 64  # of a block
_OVERFLOW = 1 << 31
_ENTITY_SLOTS = ("subject", "object")


class DeviceTries:
    """The tries of one catalogue on one device.

    Attributes:
        tables: their nodes, one trie after another.
        roots: the root node of each slot's trie: subject, relation, object.
    """

    def __init__(self, entities: Trie, relations: Trie | None, vocab_size: int, device: torch.device | str) -> None:
        """Copy both tries; a trie that serves as both is copied once.

        Raises:
            InputError: a token outside the vocabulary, or more nodes than an int32 counts.
        """
        tries = [entities] if relations is None or relations is entities else [entities, relations]
        arrays = [trie.arrays() for trie in tries]
        shifts = np.cumsum([0] + [len(part["blocks"]) * _NODES for part in arrays])
        if shifts[-1] >= _OVERFLOW:
            raise InputError("at most 2^31 trie nodes", seen=int(shifts[-1]))
        self.tables: TrieTables = _merge(arrays, shifts, vocab_size, device)
        relation_root = int(shifts[len(arrays) - 1])
        self.roots: dict[str, int] = {"subject": 0, "relation": relation_root, "object": 0}

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tables)


class DeviceConstraint(NamedTuple):
    """What the kernel needs of a constraint."""

    tries: TrieTables
    automaton: AutomatonTables

    @classmethod
    def of(cls, constraint: Constraint, tries: DeviceTries, device: torch.device | str) -> DeviceConstraint:
        """``constraint`` over tries that are on the device already; its greatest number of triplets is the slot's.

        Raises `InputError` for a constraint that only the host can follow; `runs_on_device` says so beforehand.
        """
        if not runs_on_device(constraint):
            raise InputError("a constraint without unique, types or graph: those are followed on the host")
        tables = automaton_tables(
            constraint.parts, constraint.start, constraint.eos, constraint.vocab_size, tries.roots, device
        )
        return cls(tries.tables, tables)


def runs_on_device(constraint: Constraint) -> bool:
    """Whether the constraint needs nothing but a set of positions."""
    return not constraint.has_memory


def automaton_tables(
    parts: Parts,
    start: tuple[Sequence[int], bool],
    eos: int,
    vocab_size: int,
    roots: Mapping[str, int],
    device: torch.device | str,
) -> AutomatonTables:
    """Parts and their successors as tables; ``roots``: the root node of each slot's trie.

    Every step of a literal and every way from a part into a literal is one row of moves, which names the position
    behind it: a literal that is whole stands at once in the slot that follows it.
    """
    import torch

    from obverse.kernels.mask_reference import AutomatonTables

    outline = _Outline(parts, start, roots)
    rows: list[list[int]] = []
    moves: list[list[int]] = []
    for part in range(len(parts) + 1):
        body, next_, can_end = (*((), *start),)[:3] if part == len(parts) else parts[part]
        first = len(moves)
        if not isinstance(body, str):
            moves += [[token, *outline.after(part, i + 1), 0] for i, token in enumerate(body)]
        edges = [outline.edge(part, to) for to in next_ if not isinstance(parts[to][0], str)]
        slot = part if isinstance(body, str) else outline.slot_after(part)
        # A whole literal stands in the slot behind it already; only the start, without tokens, opens one itself.
        opens = isinstance(body, str) or (part == len(parts) and slot >= 0)
        if isinstance(body, str):
            whole = -1
        else:
            whole = outline.root(slot) if opens else len(body)
        completes = isinstance(body, str) and body == outline.last_slot
        rows.append(
            [first, whole, len(moves), len(edges), int(can_end), int(opens), int(completes), slot if opens else -1]
        )
        moves += edges
    rows.append([0] * 7 + [-1])
    most = max(row[3] for row in rows)
    parts_table, moves_table = (
        torch.tensor(table, dtype=torch.int32, device=device) for table in (rows, moves or [[0] * 4])
    )
    return AutomatonTables(parts_table, moves_table, eos, vocab_size, most)


class _Outline:
    """Where the parts of a linearisation lead."""

    def __init__(self, parts: Parts, start: tuple[Sequence[int], bool], roots: Mapping[str, int]) -> None:
        self.parts = [*parts, ((), *start)]
        self.roots = roots
        self.last_slot = self._last_slot()

    def root(self, slot: int) -> int:
        """The node where the names of part ``slot`` begin."""
        name = self.parts[slot][0]
        assert isinstance(name, str)
        return self.roots[name]

    def slot_after(self, part: int) -> int:
        """The slot part that a whole literal leads to; -1: none."""
        return next((to for to in self.parts[part][1] if isinstance(self.parts[to][0], str)), -1)

    def after(self, part: int, taken: int) -> tuple[int, int]:
        """The position once ``taken`` tokens of a literal are in."""
        slot = self.slot_after(part)
        return (slot, self.root(slot)) if taken == len(self.parts[part][0]) and slot >= 0 else (part, taken)

    def edge(self, part: int, to: int) -> list[int]:
        """The move from the end of ``part`` into literal ``to``.

        It is closed at the greatest number of triplets where it can only begin one more: out of anything but a slot
        inside a triplet, to literals that must come to a slot.
        """
        body = self.parts[part][0]
        anew = not isinstance(body, str) or body == self.last_slot
        token = self.parts[to][0][0]
        return [int(token), *self.after(to, 1), int(anew and self._leads_to_slot(to))]

    def _leads_to_slot(self, part: int, depth: int = 0) -> bool:
        body, following, can_end = self.parts[part]
        if isinstance(body, str):
            return True
        if can_end or depth > len(self.parts):
            return False
        return all(self._leads_to_slot(to, depth + 1) for to in following)

    def _last_slot(self) -> str:
        """The slot that ends a triplet: the last one on the first way from the start, before one comes again."""
        seen: list[str] = []
        at = len(self.parts) - 1
        for _ in range(2 * len(self.parts)):
            if not self.parts[at][1]:
                break
            at = self.parts[at][1][0]
            body = self.parts[at][0]
            if isinstance(body, str):
                if body in seen:
                    break
                seen.append(body)
        if not seen:
            raise InputError("an automaton with a slot", seen=self.parts)
        return seen[-1]


def _merge(
    arrays: Sequence[Mapping[str, np.ndarray]], shifts: np.ndarray, vocab_size: int, device: torch.device | str
) -> TrieTables:
    """Tries one after another: their node numbers grow by ``shifts``."""
    import torch

    from obverse.kernels.mask_reference import DENSE_ABOVE, TrieTables

    total = int(shifts[-1])
    wide = any(len(part["high"]) for part in arrays)
    low, high = np.zeros(total, np.uint16), np.zeros(total if wide else 0, np.uint8)
    offset, blocks, overflow = np.zeros(total, np.uint8), [], []
    dense_nodes, dense_bits = [], []
    held = 0
    for part, shift in zip(arrays, shifts.tolist(), strict=False):
        nodes = len(part["low"])
        low[shift : shift + nodes] = part["low"]
        if len(part["high"]):
            high[shift : shift + nodes] = part["high"]
        offset[shift : shift + nodes + 1] = part["offset"]
        rows = part["blocks"].astype(np.int64)
        spilt = rows[:, 3] >= _OVERFLOW
        rows[:, 3] += np.where(spilt, held, shift)
        blocks.append(rows.astype(np.uint32))
        overflow.append((part["overflow"].astype(np.int64) + shift).astype(np.uint32))
        held += len(part["overflow"])
        parents, bits = _dense(part, DENSE_ABOVE, vocab_size)
        dense_nodes.append(parents + shift)
        dense_bits.append(bits)
    signed = [
        low.view(np.int16),
        high,
        offset,
        np.concatenate(blocks).view(np.int32),
        np.concatenate(overflow).view(np.int32),
        np.concatenate(dense_nodes).astype(np.int32),
        np.concatenate(dense_bits).view(np.int32),
    ]
    return TrieTables(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in signed))


def _dense(part: Mapping[str, np.ndarray], above: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The nodes with more than ``above`` children, int64 [d], and the bitmasks of those, uint32 [d, words]."""
    words = -(-vocab_size // 32)
    nodes = len(part["low"])
    used = np.flatnonzero(np.unpackbits(part["used"].view(np.uint8), bitorder="little"))
    if len(used) and used[-1] >= vocab_size:
        raise InputError(f"names of tokens below {vocab_size}", field="vocab_size", seen=int(used[-1]))
    first = np.repeat(part["blocks"][:, 3].astype(np.int64), _NODES)[: nodes + 1]
    spilt = first >= _OVERFLOW
    if spilt.any():
        place = (first[spilt] & (_OVERFLOW - 1)) + np.flatnonzero(spilt) % _NODES
    first += part["offset"]
    if spilt.any():
        first[spilt] = part["overflow"][place]
    parents = np.flatnonzero(np.diff(first) > above)
    bits = np.zeros((len(parents), words * 4), np.uint8)
    row = np.zeros(words * 32, np.uint8)
    for i, parent in enumerate(parents.tolist()):
        run = slice(int(first[parent]), int(first[parent + 1]))
        tokens = part["low"][run].astype(np.int64)
        if len(part["high"]):
            tokens |= part["high"][run].astype(np.int64) << 16
        row[:] = 0
        row[tokens] = 1
        bits[i] = np.packbits(row, bitorder="little")
    return parents, bits.view(np.uint32)


class DeviceSlots:
    """The slots of a batch: their states on the device, and what the host has yet to tell of them."""

    def __init__(self, num_slots: int, device: torch.device | str) -> None:
        from obverse.kernels.mask_reference import MaskStates

        self.states: MaskStates = MaskStates.allocate(num_slots, device)
        self._staged: dict[int, tuple[int, int, int, int]] = {}

    def assign(self, slot: int, *, owner: int, max_triplets: int | None = None, prompt_length: int = 0) -> None:
        """Give ``slot`` to a new sequence of constraint ``owner`` (-1: none), from the next `flush` on."""
        self._staged[slot] = (owner, -1 if max_triplets is None else max_triplets, prompt_length, 0)

    def flush(self) -> None:
        """Send what was assigned, without waiting for it; the slots' earlier states are forgotten."""
        if not self._staged:
            return
        rows = np.array([(slot, *row) for slot, row in self._staged.items()], dtype=np.int32)
        self._staged.clear()
        sent = to_device(rows, self.states.slots.device)
        where = sent[:, 0].long()
        self.states.slots.index_copy_(0, where, sent[:, 1:])
        self.states.tags.index_fill_(0, where, -1)
        self.states.flags.index_fill_(0, where, 0)


def to_device(array: np.ndarray, device: torch.device) -> Any:
    """A copy of ``array`` on ``device``; on an accelerator from pinned memory, so that nothing waits."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.clone()
