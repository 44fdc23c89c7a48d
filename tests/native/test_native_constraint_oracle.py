"""The constraint against brute force: every state of small random catalogues, under every rule."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse._core import (
    Constraint,
    MaskRows,
    Matcher,
    RowStates,
    Subset,
    Trie,
    allowed_batch,
    bitmask_words,
    fill_bitmask_batch,
    mask_logits,
)

VOCAB = 12
EOS = 0
MOST = 3  # triplets that the oracle writes out

Name = tuple[int, ...]


def trie_of(names: list[Name]) -> Trie:
    offsets = np.cumsum([0, *map(len, names)]).astype(np.int64)
    return Trie.build(np.array([t for name in names for t in name], np.int32), offsets)


def linearisation(form: str, marks: list[Name]) -> tuple[list[Any], tuple[list[int], bool]]:
    s, r, o, e = (list(mark) for mark in marks)
    if form == "json":  # one literal closes and opens; the empty set has a literal of its own
        parts: list[Any] = [
            (s, [1], False),
            ("subject", [2], False),
            (r, [3], False),
            ("relation", [4], False),
            (o, [5], False),
            ("object", [6, 7], False),
            ([*e, *s], [1], False),
            (e, [], True),
        ]
        return parts, ([0, 7], False)
    parts = [
        (s, [1], False),
        ("subject", [2], False),
        (r, [3], False),
        ("relation", [4], False),
        (o, [5], False),
        ("object", [6] if form == "fully_expanded" else [2, 6], False),
        (e, [0], True),
    ]
    return parts, ([0], True)


def written(form: str, marks: list[Name], facts: tuple[tuple[Name, Name, Name], ...]) -> list[Name]:
    """All ways to write these triplets in this order, eos at the end."""
    s, r, o, e = marks
    if not facts:
        return [(*e, EOS)] if form == "json" else [(EOS,)]
    outputs: list[Name] = [()]
    for i, (subject, relation, object_) in enumerate(facts):
        head = (*s, *subject)
        tail = (*r, *relation, *o, *object_)
        if form == "json":
            outputs = [(*out, *(e if i else ()), *head, *tail) for out in outputs]
        elif form == "fully_expanded":
            outputs = [(*out, *head, *tail, *e) for out in outputs]
        else:
            shared = i > 0 and facts[i - 1][0] == subject
            anew = [(*out, *(e if i else ()), *head, *tail) for out in outputs]
            outputs = anew + ([(*out, *tail) for out in outputs] if shared else [])
    closing = () if form == "fully_expanded" else e
    return [(*out, *closing, EOS) for out in outputs]


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    tokens = st.integers(1, 4)
    name = st.lists(tokens, min_size=1, max_size=3).map(tuple)
    case: dict[str, Any] = {
        "entities": draw(st.lists(name, min_size=1, max_size=4)),
        "relations": draw(st.lists(name, min_size=1, max_size=2)),
        "form": draw(st.sampled_from(["fully_expanded", "subject_collapsed", "json"])),
        # Markers that share tokens with one another and with the names.
        "marks": draw(st.lists(st.lists(st.integers(3, 8), min_size=1, max_size=2).map(tuple), min_size=4, max_size=4)),
        "max_triplets": draw(st.sampled_from([None, 1, 2])),
        "unique": draw(st.booleans()),
        "subset": None,
        "types": None,
        "graph": None,
    }
    n, m = len(case["entities"]), len(case["relations"])
    if draw(st.booleans()):
        case["subset"] = draw(st.lists(st.integers(0, n - 1), min_size=0, max_size=n))
    if draw(st.booleans()):
        kinds = st.lists(st.integers(0, 2), max_size=2, unique=True)
        case["types"] = [draw(st.lists(kinds, min_size=k, max_size=k)) for k in (m, m, n)]
    if draw(st.booleans()):
        edge = st.tuples(st.integers(0, n - 1), st.integers(0, m - 1), st.integers(0, n - 1))
        case["graph"] = (draw(st.lists(edge, max_size=6)), draw(st.booleans()))
    return case


def allowed_facts(case: dict[str, Any]) -> set[tuple[Name, Name, Name]]:
    """Triplets of distinct names that types, graph and subset allow, by definition."""
    entities, relations = case["entities"], case["relations"]
    facts = set(itertools.product(set(entities), set(relations), set(entities)))

    def types_of(entity: Name) -> set[int]:
        return {t for i, other in enumerate(entities) if other == entity for t in case["types"][2][i]}

    if case["types"] is not None:
        for fact in list(facts):
            relation = relations.index(fact[1])
            wanted = case["types"][0][relation], case["types"][1][relation]
            for kinds, entity in zip(wanted, (fact[0], fact[2]), strict=True):
                if kinds and not set(kinds) & types_of(entity):
                    facts.discard(fact)
    if case["graph"] is not None:
        edges, only = case["graph"]
        known = {(entities[s], relations[r], entities[o]) for s, r, o in edges}
        facts = facts & known if only else facts - known
    return facts


def within_subset(case: dict[str, Any], facts: set[Any]) -> set[Any]:
    if case["subset"] is None:
        return facts
    kept = {case["entities"][i] for i in case["subset"]}
    return {fact for fact in facts if fact[0] in kept and fact[2] in kept}


def language(case: dict[str, Any], facts: set[Any]) -> set[Name]:
    most = MOST if case["max_triplets"] is None else case["max_triplets"]
    out: set[Name] = set()
    for count in range(most + 1):
        for chosen in itertools.product(sorted(facts), repeat=count):
            if not (case["unique"] and len(set(chosen)) < count):
                out.update(written(case["form"], case["marks"], chosen))
    return out


def constraint_of(case: dict[str, Any]) -> tuple[Constraint, Subset | None]:
    parts, start = linearisation(case["form"], case["marks"])
    entities = trie_of(case["entities"])
    types = graph = None
    if case["types"] is not None:
        subject, object_, kinds = case["types"]
        offsets = np.cumsum([0, *map(len, kinds)]).astype(np.int64)
        types = (subject, object_, np.array([t for row in kinds for t in row], np.int32), offsets)
    if case["graph"] is not None:
        edges, only = case["graph"]
        columns = np.array(edges, np.int32).reshape(-1, 3).T
        graph = (*(np.ascontiguousarray(column) for column in columns), only)
    constraint = Constraint(
        entities,
        trie_of(case["relations"]),
        parts=parts,
        start=start,
        eos=EOS,
        vocab_size=VOCAB,
        max_triplets=case["max_triplets"],
        unique=case["unique"],
        types=types,
        graph=graph,  # type: ignore[arg-type]
    )
    if case["subset"] is None:
        return constraint, None
    nodes = entities.nodes_of_sequences()[np.array(case["subset"], np.int64)]
    return constraint, Subset(entities, nodes)


def check_state(matcher: Matcher, expected: set[int], rows: MaskRows) -> None:
    found = matcher.allowed().tolist()
    assert found == sorted(expected)
    rows.fill([matcher])
    assert [t for t in range(32) if rows.words[0, 0] >> t & 1] == found
    words = np.full((1, bitmask_words(VOCAB)), -1, np.int32)
    fill_bitmask_batch([matcher], words)
    assert [t for t in range(32) if words[0, 0] >> t & 1] == found
    assert allowed_batch([matcher])[0].tolist() == found
    logits = np.random.default_rng(0).normal(size=(1, VOCAB + 3)).astype(np.float32)
    kept = logits.copy()
    mask_logits([matcher], logits)
    finite = np.flatnonzero(np.isfinite(logits[0])).tolist()
    assert finite == (found or [EOS])
    assert np.array_equal(logits[0, finite], kept[0, finite])


@settings(max_examples=250)
@given(problems())
def test_every_state_of_small_catalogues(case: dict[str, Any]) -> None:
    facts = allowed_facts(case)
    if not facts and (case["types"] is not None or case["graph"] is not None):
        with pytest.raises(ValueError, match="at least one triplet"):
            constraint_of(case)
        return
    facts = within_subset(case, facts)
    if len(facts) > 12:  # the oracle writes everything out
        case["max_triplets"] = min(case["max_triplets"] or 2, 2)
    constraint, subset = constraint_of(case)
    outputs = language(case, facts)
    following: dict[Name, set[int]] = {}
    for output in outputs:
        for end in range(len(output)):
            following.setdefault(output[:end], set()).add(output[end])
    # Without a limit the oracle knows only what up to MOST triplets can say.
    shortest = min((sum(map(len, case["marks"][:3])) + 3 - (case["form"] == "subject_collapsed")) - 1, 9)
    reach = 10**9 if case["max_triplets"] is not None else MOST * shortest
    matcher = Matcher(constraint, subset=subset)
    rows, masks = [], MaskRows(1, VOCAB)

    def visit(prefix: Name) -> None:
        if len(prefix) >= reach or len(rows) > 4000:
            return
        rows.append(prefix)
        check_state(matcher, following.get(prefix, set()), masks)
        refused = set(range(VOCAB)) - following.get(prefix, set())
        for token in refused:
            assert not matcher.accept(token)
        for token in sorted(following.get(prefix, set())):
            assert matcher.accept(token)
            if token == EOS:
                assert (matcher.is_complete, matcher.allowed().tolist()) == (True, [])
            else:
                visit((*prefix, token))
            matcher.rollback(1)

    visit(())
    check_rows(constraint, subset, rows, following)


def check_rows(
    constraint: Constraint, subset: Subset | None, rows: list[Name], following: dict[Name, set[int]]
) -> None:
    """Rows known by their tokens alone: the same states, in any order, from any earlier step."""
    states = RowStates(constraint)
    if subset is not None:
        states.restrict_to([subset])
    by_length: dict[int, list[Name]] = {}
    for row in rows:
        by_length.setdefault(len(row), []).append(row)
    for length in sorted(by_length):
        chosen = by_length[length][:40][::-1]
        tokens = np.array(chosen, np.int64).reshape(len(chosen), length)
        flat, offsets = states.allowed(tokens)
        for i, row in enumerate(chosen):
            assert flat[offsets[i] : offsets[i + 1]].tolist() == sorted(following.get(row, set()) or {EOS})


@settings(max_examples=60)
@given(problems())
def test_whole_outputs_read_back(case: dict[str, Any]) -> None:
    case.update(types=None, graph=None, subset=None, unique=False, marks=[(5,), (6,), (7,), (8,)])
    case["max_triplets"] = 2
    constraint, _ = constraint_of(case)
    entities, relations = constraint.entities, constraint.relations
    assert relations is not None
    facts = sorted(allowed_facts(case))
    for chosen in itertools.islice(itertools.product(facts, repeat=2), 20):
        for output in written(case["form"], case["marks"], chosen):
            nodes = [
                (
                    entities.walk(np.array(s, np.int32)),
                    relations.walk(np.array(r, np.int32)),
                    entities.walk(np.array(o, np.int32)),
                )
                for s, r, o in chosen
            ]
            assert constraint.read(np.array(output, np.int32)) == nodes
            assert constraint.read(np.array([*output[:-1], 11, EOS], np.int32)) == nodes
            assert constraint.read(np.array([11, *output], np.int32)) == []
