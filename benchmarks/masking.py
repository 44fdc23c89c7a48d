"""How long does a decoding step's masking take on a GPU, over millions of names?

``python -m benchmarks.masking [--quick] [--json] [--csv FILE]``. It needs a CUDA device, and says so where none is.

Rows of logits stand at random places of the fully expanded linearisation over random names: inside names, at the root,
at markers. Ours advances every row's state by its newest token and masks its logits in one launch, here also from a
captured CUDA graph. The peer is what torch can do with a mask that is already there: unpack one bit a token and fill.
It advances nothing, and its mask must be made and sent by someone else. A bare fill of the logits is the yardstick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import OURS, Row, interleave, run_main, timing_rows
from obverse.engine.decode.device import DeviceTries, automaton_tables
from obverse.kernels.mask_reference import AutomatonTables, MaskRows, MaskStates, TrieTables, mask_logits_reference

FILL = "fill of the logits"
GRAPH = "in a CUDA graph"
EOS, MARKERS = 0, (1, 2, 3, 4)
FIRST_TOKEN = 10
LONGEST = 12


class Case(NamedTuple):
    """One step's size."""

    rows: int
    vocab_size: int
    names: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def shape(self) -> str:
        """As the rows print it."""
        kind = str(self.dtype).removeprefix("torch.")
        return f"[{self.rows},{self.vocab_size}] {kind}, {self.names / 1e6:g}M names"


QUICK = [Case(256, 152_064, 1_000_000)]
FULL = [
    Case(256, 152_064, 6_000_000),
    Case(256, 152_064, 6_000_000, torch.float32),
    Case(64, 152_064, 6_000_000),
    Case(1, 152_064, 6_000_000),
    Case(256, 32_000, 6_000_000),
]


class LevelTrie:
    """A trie's arrays, level by level in numpy, and the sequences it was made of (tokens [n, longest], -1 behind)."""

    def __init__(self, tokens: np.ndarray, vocab_size: int) -> None:
        self.tokens = tokens
        node = np.zeros(len(tokens), np.int64)
        token_of, parent_of, ends = [np.zeros(1, np.int64)], [], []
        base = 1
        for column in tokens.T:
            alive = column >= 0
            keys, place = np.unique(node[alive] * vocab_size + column[alive], return_inverse=True)
            node[alive] = base + place
            token_of.append(keys % vocab_size)
            parent_of.append(keys // vocab_size)
            base += len(keys)
        ends = np.unique(node)
        children = np.bincount(np.concatenate(parent_of), minlength=base)
        self._arrays = _arrays(np.concatenate(token_of), children, ends, vocab_size)

    def arrays(self) -> dict[str, np.ndarray]:
        """As `obverse._core.Trie.arrays`, but for the names' numbers."""
        return self._arrays


def _arrays(tokens: np.ndarray, children: np.ndarray, ends: np.ndarray, vocab_size: int) -> dict[str, np.ndarray]:
    nodes = len(tokens)
    first = np.concatenate([[1], 1 + np.cumsum(children)])
    padded = np.append(first, np.full(-len(first) % 64, first[-1])).reshape(-1, 64)
    far = padded[:, -1] - padded[:, 0] > 255
    terminal = np.zeros(padded.size, bool)
    terminal[ends] = True
    blocks = np.zeros((len(padded), 4), np.uint32)
    blocks[:, :2] = np.packbits(terminal, bitorder="little").view(np.uint32).reshape(-1, 2)
    blocks[:, 3] = np.where(far, (np.cumsum(far) - 1) * 64 | 1 << 31, padded[:, 0])
    used = np.zeros(-(-vocab_size // 32) * 32, bool)
    used[np.unique(tokens[1:])] = True
    return {
        "low": (tokens & 0xFFFF).astype(np.uint16),
        "high": (tokens >> 16).astype(np.uint8) if vocab_size > 1 << 16 else np.zeros(0, np.uint8),
        "offset": np.where(far[:, None], 0, padded - padded[:, :1]).astype(np.uint8).reshape(-1)[: nodes + 1],
        "blocks": blocks,
        "overflow": padded[far].astype(np.uint32).reshape(-1),
        "used": np.packbits(used, bitorder="little").view(np.uint32),
    }


def random_names(count: int, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    """Token sequences [count, LONGEST], -1 behind, whose trie has about the shape of 6 million real titles' with GPT-2.

    (6 tokens a name, 4 to 4.5 nodes a name, a root of 10 to 15 thousand children.) What follows a token is drawn from
    that token's own list of tokens, its first ones far more often than its last.
    """
    lengths = np.clip(rng.poisson(5.1, count) + 1, 2, LONGEST)
    tokens = np.full((count, LONGEST), -1, np.int64)
    before = np.zeros(count, np.int64)
    for place in range(LONGEST):
        most = 15_000 if place == 0 else 5_000
        rank = (most ** rng.random(count)).astype(np.int64)  # density 1 / rank: Zipf's law
        before = FIRST_TOKEN + (before * 7919 + rank * 104_729 + place) % (vocab_size - FIRST_TOKEN)
        tokens[:, place] = np.where(place < lengths, before, -1)
    return tokens


class Problem(NamedTuple):
    """One step: every row's state stands one token behind."""

    tries: TrieTables
    automaton: AutomatonTables
    states: MaskStates
    rows: MaskRows
    logits: Tensor


def make_tries(case: Case, device: str) -> tuple[LevelTrie, LevelTrie, DeviceTries]:
    """Random entities and 900 relations, and their tables on the device."""
    rng = np.random.default_rng(0)
    entities = LevelTrie(random_names(case.names, case.vocab_size, rng), case.vocab_size)
    relations = LevelTrie(random_names(900, case.vocab_size, rng), case.vocab_size)
    return entities, relations, DeviceTries(entities, relations, case.vocab_size, device)  # type: ignore[arg-type]


def random_prefix(entities: LevelTrie, relations: LevelTrie, rng: np.random.Generator) -> list[int]:
    """The beginning of a fact, cut anywhere after its first token."""
    whole: list[int] = []
    for marker, trie in zip(MARKERS[:3], (entities, relations, entities), strict=True):
        name = trie.tokens[rng.integers(len(trie.tokens))]
        whole += [marker, *name[name >= 0].tolist()]
    return whole[: int(rng.integers(1, len(whole) + 1))]


def make_problem(case: Case, device: str, tries: tuple[LevelTrie, LevelTrie, DeviceTries]) -> Problem:
    """Random prefixes, replayed up to their last token."""
    from obverse.kernels.mask_logits import mask_logits

    s, r, o, e = MARKERS
    parts: list[tuple[list[int] | str, list[int], bool]] = [
        ([s], [1], False),
        ("subject", [2], False),
        ([r], [3], False),
        ("relation", [4], False),
        ([o], [5], False),
        ("object", [6], False),
        ([e], [0], True),
    ]
    automaton = automaton_tables(parts, ([0], True), EOS, case.vocab_size, tries[2].roots, device)
    rng = np.random.default_rng(1)
    prefixes = [random_prefix(tries[0], tries[1], rng) for _ in range(case.rows)]
    history = torch.zeros((case.rows, 3 * LONGEST + 3), dtype=torch.int32)
    for line, prefix in zip(history, prefixes, strict=True):
        line[: len(prefix)] = torch.tensor(prefix)
    lengths = torch.tensor([len(prefix) for prefix in prefixes])
    slots = torch.arange(case.rows, dtype=torch.int32)
    newest = torch.tensor([prefix[-1] for prefix in prefixes], dtype=torch.int32)
    rows = MaskRows(*(part.to(device) for part in (slots, lengths - 1, newest, history)))
    states = MaskStates.allocate(case.rows, device)
    states.slots[:, 0] = 0
    logits = torch.randn((case.rows, case.vocab_size), device=device).to(case.dtype)
    earlier = torch.tensor([prefix[-2] if len(prefix) > 1 else 0 for prefix in prefixes], device=device)
    mask_logits(
        logits.clone(), rows._replace(positions=rows.positions - 1, newest=earlier), tries[2].tables, automaton, states
    )
    return Problem(tries[2].tables, automaton, states, rows, logits)


def check(problem: Problem, most: int = 48) -> None:
    """Raise unless the kernel agrees with the reference, bit for bit, from the same states."""
    from obverse.kernels.mask_logits import mask_logits

    rows = MaskRows(*(None if part is None else part[:most] for part in problem.rows))
    expected, found = problem.logits[:most].cpu(), problem.logits[:most].clone()
    states = MaskStates(*(part.cpu().clone() for part in problem.states))
    tables = [type(table)(*(x.cpu() if isinstance(x, Tensor) else x for x in table)) for table in problem[:2]]
    given = MaskRows(*(None if part is None else part.cpu() for part in rows))
    mask_logits_reference(expected, given, *tables, states)  # type: ignore[arg-type]
    mask_logits(found, rows, problem.tries, problem.automaton, problem.states)
    if not torch.equal(found.cpu(), expected):
        raise RuntimeError("the kernel's logits differ from the reference's")
    if bool(problem.states.flags.any()):
        raise RuntimeError(f"states were lost: {problem.states.flags.unique().tolist()}")


def unpack_and_fill(logits: Tensor, packed: Tensor, shifts: Tensor) -> Tensor:
    """Torch's own masking from one bit a token."""
    bits = (packed[:, :, None] >> shifts) & 1
    return logits.masked_fill_(bits.flatten(1)[:, : logits.shape[1]] == 0, float("-inf"))


def calls(problem: Problem) -> dict[str, Callable[[], object]]:
    """What is timed. Every call may run again on its own result: masked logits mask to themselves."""
    from obverse.kernels.mask_logits import mask_logits

    ours = partial(mask_logits, problem.logits, problem.rows, problem.tries, problem.automaton, problem.states)
    ours()
    packed = _packed(problem.logits)
    shifts = torch.arange(32, dtype=torch.int32, device=packed.device)
    other = problem.logits.clone()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        ours()
    return {
        OURS: ours,
        f"{OURS}, {GRAPH}": graph.replay,
        "torch eager, mask given": partial(unpack_and_fill, other, packed, shifts),
        "torch compile, mask given": partial(torch.compile(unpack_and_fill), other, packed, shifts),
        FILL: partial(problem.logits.clone().fill_, float("-inf")),
    }


def _packed(masked: Tensor) -> Tensor:
    """The mask that masked logits show, int32 [rows, words]."""
    kept = (masked > float("-inf")).cpu().numpy()
    bits = np.packbits(np.pad(kept, ((0, 0), (0, -kept.shape[1] % 32))), axis=1, bitorder="little")
    return torch.from_numpy(bits.view(np.int32)).to(masked.device)


def measure(quick: bool) -> Iterator[Row]:
    """Every case, ours beside torch; nothing where there is no CUDA device."""
    if not torch.cuda.is_available():
        print("masking: no CUDA device here: nothing was measured", file=sys.stderr)
        return
    made: dict[tuple[int, int], tuple[LevelTrie, LevelTrie, DeviceTries]] = {}
    for case in QUICK if quick else FULL:
        key = (case.vocab_size, case.names)
        if key not in made:
            made.clear()
            made[key] = make_tries(case, "cuda")
            yield Row(
                "masking", "tables", OURS, f"{case.names / 1e6:g}M names", "size", made[key][2].nbytes / 2**20, "MiB"
            )
        problem = make_problem(case, "cuda", made[key])
        check(problem)
        torch.compiler.reset()
        timings = interleave(calls(problem), repeats=20, inner=50, synchronise=torch.cuda.synchronize)
        references = (FILL, f"{OURS}, {GRAPH}")
        yield from timing_rows("masking", "advance and mask", case.shape, timings, unit="us", references=references)


if __name__ == "__main__":
    raise SystemExit(run_main("masking", measure))
