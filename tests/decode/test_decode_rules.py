"""Rules in the users' words: what is drawn under them obeys them, and all that obeys them can be drawn."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from obverse._core import Matcher
from obverse.engine.decode.catalog import Catalog
from obverse.engine.decode.forms import read_facts
from obverse.engine.decode.rules import mentioned, subset_of
from obverse.engine.errors import InputError
from obverse.engine.records.linearise import Triple
from obverse.engine.records.models import load_tokenizer
from obverse.engine.records.sequence import SequenceFormat

ENTITIES = pa.table(
    {
        "uri": ["Q1", "Q2", "Q3", "Q4", "Q5", "Q6"],
        "name": ["Oslo", "Norway", "Edvard Munch", "New York", "New York City", "大阪"],
        "aliases": [["Kristiania"], [], ["Munch"], [], ["NYC"], []],
        "types": [["city"], ["country"], ["person"], ["state"], ["city"], ["city", "port"]],
    }
)
RELATIONS = pa.table({"uri": ["P1", "P2", "P3"], "name": ["capital of", "place of birth", "twinned with"]})
TYPES = {"capital of": (["city"], ["country", "state"]), "P2": (["person"], ["city"])}
CITIES = {"Oslo", "Kristiania", "New York City", "NYC", "大阪"}


@pytest.fixture(scope="module")
def form(tiny_llama: Path) -> SequenceFormat:
    return SequenceFormat(load_tokenizer(tiny_llama), "subject_collapsed")


@pytest.fixture(scope="module")
def catalog(form: SequenceFormat) -> Catalog:
    return Catalog.build(ENTITIES, RELATIONS, form)


def every_fact(catalog: Catalog, form: SequenceFormat, subset: Any = None, **rules: Any) -> set[Triple]:
    """All triplets that the constraint lets stand alone."""
    constraint = catalog.constraint(form, **rules)
    names = catalog.entities.table["name"].to_pylist()
    found = set()
    for subject, predicate, object_ in itertools.product(names, RELATIONS["name"].to_pylist(), names):
        triple = Triple(subject, predicate, object_)
        if Matcher(constraint, subset=subset).replay(np.array(form.answer_ids([triple]), np.int32)):
            found.add(triple)
    return found


def test_types_by_name_and_uri(catalog: Catalog, form: SequenceFormat) -> None:
    found = every_fact(catalog, form, types=TYPES)
    names = set(catalog.entities.table["name"].to_pylist())
    expected = {Triple(c, "capital of", o) for c in CITIES for o in ("Norway", "New York")}
    expected |= {Triple(p, "place of birth", c) for p in ("Edvard Munch", "Munch") for c in CITIES}
    assert found == expected | {Triple(s, "twinned with", o) for s in names for o in names}
    nowhere = every_fact(catalog, form, types={**TYPES, "P3": (["planet"], [])})
    assert nowhere == expected


def test_graphs_by_name_and_uri(catalog: Catalog, form: SequenceFormat) -> None:
    graph = pa.table(
        {
            "subject": ["Q1", "Munch", "Q404", "Q5"],
            "predicate": ["capital of", "P2", "P1", "P404"],
            "object": ["Q2", "Q1", "Q2", "Q1"],
        }
    )
    expected = {Triple(c, "capital of", "Norway") for c in ("Oslo", "Kristiania")}
    expected |= {Triple("Munch", "place of birth", c) for c in ("Oslo", "Kristiania")}
    assert every_fact(catalog, form, graph=graph) == expected
    assert every_fact(catalog, form, graph=graph, only_graph=False) == every_fact(catalog, form) - expected
    named = pa.table(
        {f"{role}_name": graph[role] for role in graph.column_names} | {r: ["?"] * 4 for r in graph.column_names}
    )
    assert every_fact(catalog, form, graph=named) == expected
    assert every_fact(catalog, form, graph=graph, types={"P2": (["city"], [])}) == {
        t for t in expected if t.predicate == "capital of"
    }


def test_subsets_and_unique_and_limits(catalog: Catalog, form: SequenceFormat) -> None:
    subset = subset_of(catalog, ["Q1", "Norway"])
    assert len(subset) == 3
    found = every_fact(catalog, form, subset)
    assert {name for t in found for name in (t.subject, t.object)} == {"Oslo", "Kristiania", "Norway"}
    constraint = catalog.constraint(form, unique=True, max_triplets=5, types=TYPES)
    rng, lengths = np.random.default_rng(0), set()
    for _ in range(150):
        matcher, ids = Matcher(constraint, subset=subset), []
        while not matcher.is_complete:
            ids.append(int(rng.choice(matcher.allowed())))
            assert matcher.accept(ids[-1])
        facts = read_facts(ids, constraint, catalog)
        assert form.decode(ids).count("[o]") == len(facts) <= 5
        lengths.add(len(facts))
    assert lengths == {0, 1, 2, 3, 4, 5}


def test_mentioned_entities(catalog: Catalog, form: SequenceFormat) -> None:
    def names(text: str) -> set[str]:
        nodes = mentioned(catalog, text).nodes
        return {catalog.entities.name_at(catalog.entities.rows_of_node(int(node))[0]) for node in nodes}

    assert names('Munch (born near Oslo, in Norway) never saw "New York City".') == {
        "Munch",
        "Oslo",
        "Norway",
        "New York",
        "New York City",
    }
    assert names("Edvard Munch's NYC") == {"Edvard Munch", "Munch", "NYC"}
    assert names("oslo, Osloer, Kristian") == set()
    assert names("私は大阪です") == {"大阪"}
    assert names("") == set()
    empty = mentioned(catalog, "nothing here")
    matcher = Matcher(catalog.constraint(form), subset=empty)
    assert matcher.allowed().tolist() == [form.eos_id]


def test_mistakes_are_named(catalog: Catalog, form: SequenceFormat) -> None:
    with pytest.raises(InputError, match=r"field 'types': expected a relation of the catalogue.*saw 'capital'"):
        catalog.constraint(form, types={"capital": ([], [])})
    with pytest.raises(InputError, match=r"row 1, field 'entities': expected an entity.*saw 'Bergen'"):
        subset_of(catalog, ["Oslo", "Bergen"])
    with pytest.raises(InputError, match=r"field 'graph': expected triplets of the catalogue.*saw '1 others'"):
        catalog.constraint(form, graph=pa.table({"subject": ["x"], "predicate": ["y"], "object": ["z"]}))
    with pytest.raises(InputError, match=r"column"):
        catalog.constraint(form, graph=pa.table({"subject": ["x"]}))
    bare = Catalog.build(ENTITIES.select(["uri", "name"]), RELATIONS, form)
    with pytest.raises(InputError, match=r"whose entities have types"):
        bare.constraint(form, types=TYPES)
    alone = Catalog.build(ENTITIES, None, form)
    with pytest.raises(InputError, match=r"build it with --relations"):
        alone.constraint(form)
    with pytest.raises(ValueError, match=r"allow at least one triplet, got none"):
        catalog.constraint(form, types={name: (["planet"], []) for name in ("P1", "P2", "P3")})
