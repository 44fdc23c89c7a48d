"""What does one constrained step cost over every name of the geography graph, beside what the field uses?

``python -m benchmarks.decoding [--quick] [--json] [--csv FILE]``

The peer is Hugging Face's ``PrefixConstrainedLogitsProcessor`` over a trie of nested dicts, the way GENRE, GenIE and
SynthIE constrain: state found from the last marker of each row. Both get the same 64 half-written rows and the same
logits; the gate is that both leave the same tokens. Shown beside them: our `Matcher` path, which keeps a state per row
(the greedy loop of `obverse decode` uses it), and the two tries' build times and bytes.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.harness import OURS, Row, interleave, run_main, timing_rows
from obverse.engine.decode.catalog import Catalog
from obverse.engine.decode.processor import ConstrainedLogitsProcessor, mask_disallowed
from obverse.engine.graph.graph import KnowledgeGraph
from obverse.engine.graph.load import load_graph
from obverse.engine.graph.sampling import SampleSettings, TargetSampler
from obverse.engine.records.linearise import triples_of
from obverse.engine.records.models import load_tokenizer, resolve_model
from obverse.engine.records.sequence import SequenceFormat

ROWS = 64
PEER = "transformers + dict trie"


class DictTrie:
    """A node per token, each a dict: what the constrained-decoding papers ship."""

    def __init__(self, sequences: list[list[int]]) -> None:
        self.root: dict[int, Any] = {}
        for sequence in sequences:
            node = self.root
            for token in sequence:
                node = node.setdefault(token, {})
            node[-1] = True

    def after(self, tokens: list[int]) -> dict[int, Any]:
        """The node reached by ``tokens``."""
        node = self.root
        for token in tokens:
            node = node[token]
        return node


class DictConstraint:
    """The fully expanded linearisation over two dict tries, for single-token markers."""

    def __init__(self, entities: DictTrie, relations: DictTrie, form: SequenceFormat) -> None:
        self.subject, self.relation, self.object, self.end = (marker[0] for marker in form.markers)
        self.eos = form.eos_id
        self.spans = {
            self.subject: (entities, self.relation),
            self.relation: (relations, self.object),
            self.object: (entities, self.end),
        }

    def allowed(self, generated: list[int]) -> list[int]:
        """Tokens that may follow, from the last marker found scanning backwards."""
        for place in range(len(generated) - 1, -1, -1):
            token = generated[place]
            if token in self.spans:
                trie, following = self.spans[token]
                node = trie.after(generated[place + 1 :])
                return [following if child == -1 else child for child in node]
            if token == self.end:
                break
        return [self.subject, self.eos]


def _prefixes(graph: KnowledgeGraph, form: SequenceFormat, seed: int) -> list[list[int]]:
    """Gold outputs cut anywhere but at their ends, padded on the left by repeating a finished triplet's end."""
    targets = TargetSampler(graph, SampleSettings(), seed).draw(ROWS)
    chance = random.Random(seed)
    rows = []
    for triplets in targets["triplets"].to_pylist():
        ids = form.answer_ids(triples_of(triplets))
        rows.append(ids[: chance.randrange(1, len(ids) - 1)])
    return rows


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begun


def measure(quick: bool) -> Iterator[Row]:
    """Rows of milliseconds for one step of 64 rows, then build seconds and bytes."""
    graph = load_graph("geography")
    form = SequenceFormat(load_tokenizer(resolve_model("auto", "extraction")))
    vocabulary = len(form.tokenizer)
    catalog, ours_build = _timed(lambda: Catalog.build(graph.entities, graph.relations, form))
    constraint = catalog.constraint(form, vocabulary)
    names = form.name_ids(catalog.entities.table["name"].to_pylist())
    entities, peer_build = _timed(lambda: DictTrie(names))
    relations = DictTrie(form.name_ids(catalog.relations.table["name"].to_pylist()))
    peer = DictConstraint(entities, relations, form)
    for seed in range(2 if quick else 6):
        yield from _step(constraint, peer, form, _prefixes(graph, form, seed), vocabulary, 5 if quick else 25)
    shape = f"{len(names):,} names"
    yield Row("decoding", "build (with tokenising)", OURS, shape, "time", ours_build, "s")
    yield Row("decoding", "build (ids given)", PEER, shape, "time", peer_build, "s")
    yield Row("decoding", "memory", OURS, shape, "bytes", float(catalog.stats()["bytes"]), "B")
    yield Row("decoding", "memory", PEER, shape, "bytes", float(_dict_bytes(entities.root)), "B")


def _dict_bytes(node: dict[int, Any]) -> int:
    total, stack = 0, [node]
    while stack:
        current = stack.pop()
        total += sys.getsizeof(current)
        stack += [child for child in current.values() if isinstance(child, dict)]
    return total


def _step(
    constraint: Any, peer: DictConstraint, form: SequenceFormat, rows: list[list[int]], vocabulary: int, repeats: int
) -> Iterator[Row]:
    from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

    from obverse._core import Matcher

    logits = torch.randn(len(rows), vocabulary)
    lengths = sorted({len(row) for row in rows})
    # Rows of unequal length can't share one input_ids matrix, so each length is a call of its own, for both alike.
    groups = [[i for i, row in enumerate(rows) if len(row) == length] for length in lengths]
    inputs = [(torch.tensor([rows[i] for i in group]), logits[group].contiguous()) for group in groups]
    replay = ConstrainedLogitsProcessor(constraint, prompt_length=0, eos_id=form.eos_id)
    prefix = PrefixConstrainedLogitsProcessor(lambda _, ids: peer.allowed(ids.tolist()), num_beams=1)
    matchers = [[_matcher(Matcher(constraint), rows[i]) for i in group] for group in groups]
    for (ids, scores), held in zip(inputs, matchers, strict=True):
        mine, theirs = replay(ids, scores) > float("-inf"), prefix(ids, scores) > float("-inf")
        kept = mask_disallowed(constraint, held, scores.clone()) > float("-inf")
        if not (torch.equal(mine, theirs) and torch.equal(mine, kept)):
            raise AssertionError("ours and the dict trie allow different tokens")
    timings = interleave(
        {
            OURS: lambda: [replay(ids, scores) for ids, scores in inputs],
            "obverse (matchers)": lambda: [
                mask_disallowed(constraint, held, scores.clone())
                for (_, scores), held in zip(inputs, matchers, strict=True)
            ],
            PEER: lambda: [prefix(ids, scores) for ids, scores in inputs],
        },
        repeats=repeats,
    )
    shape = f"{len(rows)} rows x {vocabulary}"
    yield from timing_rows("decoding", "one step", shape, timings, references=("obverse (matchers)",))


def _matcher(matcher: Any, row: list[int]) -> Any:
    for token in row:
        if not matcher.accept(token):
            raise AssertionError("a gold output was refused")
    return matcher


if __name__ == "__main__":
    raise SystemExit(run_main("decoding", measure, packages=("transformers", "torch")))
