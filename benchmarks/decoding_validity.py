"""Do outputs sampled under the constraint from random logits parse, and is every name in the catalogue?

An output is sampled token by token: logits are drawn independently for all tokens, the constraint leaves the allowed
ones, the greatest is taken. Which allowed token has the greatest of independent logits is uniform over them, so most
outputs are drawn that way, without drawing 32,000 numbers a token; one in 800 does draw and mask the logits. The
outputs are decoded to text by the tokenizer, parsed here by regular expressions of this file's own, and every name is
looked up in a Python set.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.catalog_names import grown_names, relation_names
from benchmarks.catalog_vocabularies import Vocabulary, say
from benchmarks.decoding_triplets import RELATIONS, Grammar
from benchmarks.harness import OURS, Row

__all__ = ["validity_rows"]

_ROWS = 2048
_MOST = 3
_MARKER = re.compile(r"(\[[sroe]\])")
_FACT = re.compile(r"\[s\] (?P<s>.+?) \[r\] (?P<r>.+?) \[o\] (?P<o>.+?) \[e\](?: |$)")
_GROUP = re.compile(r"\[s\] (?P<s>.+?)(?P<facts>(?: \[r\] .+? \[o\] .+?)+) \[e\](?: |$)")
_PAIR = re.compile(r" \[r\] (?P<r>.+?) \[o\] (?P<o>.+?)(?= \[r\] |$)")


def validity_rows(vocabulary: Vocabulary, names: int, count: int) -> Iterator[Row]:
    """The share of ``count`` sampled outputs that are wholly right, half of each linearisation: all, or it raises."""
    entities, kinds = set(grown_names(names)[0]), set(relation_names(RELATIONS)[0])
    for form in ("fully_expanded", "subject_collapsed"):
        grammar = Grammar.build(vocabulary, names, form=form, max_triplets=_MOST, empty=False)
        wanted, done, facts = count // 2, 0, 0
        for texts in _sampled(grammar.constraint, vocabulary, wanted):
            for text in texts:
                facts += _checked(text, form, entities, kinds)
            done += len(texts)
        if done != wanted:
            raise AssertionError(f"{done} outputs of {wanted}")
        shape = f"{names:,} names, {form.replace('_', ' ')}, {vocabulary.label}"
        yield Row("decoding", "validity of sampled outputs", OURS, shape, "valid", 100.0, "%")
        yield Row("decoding", "validity of sampled outputs", OURS, shape, "outputs", float(done), "outputs")
        yield Row("decoding", "validity of sampled outputs", OURS, shape, "triplets", float(facts), "triplets")


def _sampled(constraint: Any, vocabulary: Vocabulary, count: int) -> Iterator[list[str]]:
    chance = np.random.default_rng(count)
    done = turn = 0
    while done < count:
        rows = min(_ROWS, count - done)
        outputs = _by_choice(constraint, rows, chance)
        if turn % 25 == 0:
            outputs[:64] = _by_logits(constraint, min(rows, 64), chance)
        # Whether a tokenizer's decoder puts a space beside a marker is its own affair.
        yield [" ".join(_MARKER.sub(r" \1 ", text).split()) for text in vocabulary.decode(outputs)]
        done += rows
        turn += 1
        if turn % 100 == 0:
            say(f"validity: {done:,} of {count:,} outputs")


def _by_choice(constraint: Any, rows: int, chance: np.random.Generator) -> list[list[int]]:
    """Outputs without their end token, each token uniform over the allowed ones."""
    from obverse._core import accept_batch, allowed_batch

    def choose(matchers: list[Any]) -> np.ndarray:
        tokens, offsets = allowed_batch(matchers)
        counts = np.diff(offsets)
        if not counts.all():
            raise AssertionError("a row with no token left")
        chosen: np.ndarray = tokens[offsets[:-1] + (chance.random(len(counts)) * counts).astype(np.int64)]
        accept_batch(matchers, chosen)
        return chosen

    return _grown(constraint, rows, choose)


def _by_logits(constraint: Any, rows: int, chance: np.random.Generator) -> list[list[int]]:
    """The same through logits that are drawn and masked in full."""
    from obverse._core import accept_batch, mask_logits

    def choose(matchers: list[Any]) -> np.ndarray:
        logits = chance.random((len(matchers), constraint.vocab_size), np.float32)
        mask_logits(matchers, logits)
        chosen: np.ndarray = logits.argmax(axis=1).astype(np.int32)
        if not np.isfinite(logits[np.arange(len(matchers)), chosen]).all():
            raise AssertionError("a row with no token left")
        accept_batch(matchers, chosen)
        return chosen

    return _grown(constraint, rows, choose)


def _grown(constraint: Any, rows: int, choose: Callable[[list[Any]], np.ndarray]) -> list[list[int]]:
    """Rows until each has ended; ``choose`` takes a token a row and goes on by it."""
    from obverse._core import Matcher

    matchers = [Matcher(constraint) for _ in range(rows)]
    live = np.arange(rows)
    columns = []
    while len(live):
        column = np.full(rows, -1, np.int32)
        column[live] = chosen = choose(matchers)
        columns.append(column)
        going = chosen != constraint.eos
        if not going.all():
            live, matchers = live[going], list(itertools.compress(matchers, going.tolist()))
    table = np.stack(columns, axis=1)
    lengths = (table >= 0).sum(axis=1) - 1
    return [row[:length] for row, length in zip(table.tolist(), lengths.tolist(), strict=True)]


def _checked(text: str, form: str, entities: set[str], kinds: set[str]) -> int:
    """The number of triplets in ``text``; raises where a part of it is not one, or a name is not in the catalogue."""
    facts, at = [], 0
    pattern = _FACT if form == "fully_expanded" else _GROUP
    while at < len(text):
        match = pattern.match(text, at)
        if match is None:
            raise AssertionError(f"not a linearised set of triplets: {text!r}")
        if form == "fully_expanded":
            facts.append((match["s"], match["r"], match["o"]))
        else:
            facts += [(match["s"], pair["r"], pair["o"]) for pair in _PAIR.finditer(match["facts"])]
        at = match.end()
    if len(facts) > _MOST:
        raise AssertionError(f"{len(facts)} triplets, of at most {_MOST}: {text!r}")
    for subject, relation, object_ in facts:
        if subject not in entities or object_ not in entities or relation not in kinds:
            raise AssertionError(f"a name that is not in the catalogue: {(subject, relation, object_)}")
    return len(facts)
