"""Forms of output over real tokenizers: whatever is drawn under the constraint parses, and holds only real names."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from obverse._core import Constraint, Matcher
from obverse.engine.decode.automaton import JSON, Template
from obverse.engine.decode.catalog import Catalog
from obverse.engine.decode.forms import TemplateFormat, read_facts
from obverse.engine.errors import InputError
from obverse.engine.records.linearise import Form, Triple, linearise, parse
from obverse.engine.records.sequence import SequenceFormat
from obverse.engine.records.tokenizers import find_tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TRICKY = [
    "Yahoo!",
    '"Weird Al" Yankovic',
    "Paris",
    "Paris, Texas",
    "C:\\",
    "AC/DC",
    "大阪",
    "Ōsaka",
    "O'Neil",
    "(x)",
    "x [y]",
]
RELATIONS = ["capital of", "capital", "place of birth", 'also known as "x"']


@cache
def tokenizer_of(name: str) -> Any:
    if name == "demo":
        from obverse.engine.records.models import resolve_model

        return find_tokenizer(resolve_model("auto", "extraction"))
    if name == "llama2":
        path = SHARED / "llama2_tokenizer.model"
        if not path.exists():
            pytest.skip("shared/data is not beside this checkout")
        return find_tokenizer(path)
    from obverse.engine.embed.folder import find_model, read_folder
    from obverse.engine.embed.settings import EmbedSettings

    # WordPiece has no end of sequence; [SEP] serves.
    tokenizer = find_tokenizer(read_folder(find_model(EmbedSettings().model)).source)
    tokenizer.eos_token = tokenizer.sep_token
    return tokenizer


def real_names(count: int) -> list[str]:
    path = SHARED / "entity_names.txt.gz"
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        names = [line.rstrip("\n") for line in lines]
    return names[:: max(1, len(names) // count)][:count]


def table(names: list[str]) -> pa.Table:
    return pa.table({"uri": [f"u{i}" for i in range(len(names))], "name": names})


def draw(constraint: Constraint, rng: np.random.Generator, limit: int = 3000) -> list[int]:
    """One output by uniform choice among what is allowed."""
    matcher, ids = Matcher(constraint), []
    while not matcher.is_complete and len(ids) < limit:
        ids.append(int(rng.choice(matcher.allowed())))
        assert matcher.accept(ids[-1])
    assert matcher.is_complete
    return ids


TEMPLATES = {
    "json": JSON,
    "bars": Template("{subject} | {relation} | {object}", separator=" ; ", end=" .", begin="Facts: "),
    "calls": Template("{relation} ( {subject} , {object} )", separator=" & "),
}


@pytest.mark.parametrize("form", list(TEMPLATES))
@pytest.mark.parametrize("name", ["demo", "llama2"])
def test_drawn_outputs_read_back(name: str, form: str) -> None:
    tokenizer, template = tokenizer_of(name), TEMPLATES[form]
    format_ = TemplateFormat(tokenizer, template)
    entities = [*TRICKY, *real_names(400)]
    catalog = Catalog.build(table(entities), table(RELATIONS), format_.context)
    constraint = catalog.constraint(format_, max_triplets=4)
    rng = np.random.default_rng(0)
    kept, lengths = set(catalog.entities.table["name"].to_pylist()), set()
    for _ in range(60):
        ids = draw(constraint, rng)
        text = tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False)
        facts = read_facts(ids, constraint, catalog)
        lengths.add(len(facts))
        assert {fact.predicate for fact in facts} <= set(RELATIONS)
        assert {name for fact in facts for name in (fact.subject, fact.object)} <= kept
        if form == "json":
            told = [Triple(t["subject"], t["relation"], t["object"]) for t in json.loads(text)]
            assert list(dict.fromkeys(told)) == facts
        elif not any(character in text for fact in facts for character in ("�",)):
            assert text.strip() == _written(template, facts, text)
    assert len(lengths) > 2


def _written(template: Template, facts: list[Triple], text: str) -> str:
    """The template filled in by hand; repeats were read once, so only outputs without them are compared."""
    if len(facts) != text.count(template.separator.strip()) + 1 and facts:
        return text.strip()
    items = []
    for fact in facts:
        item = template.item
        for slot, value in (("subject", fact.subject), ("relation", fact.predicate), ("object", fact.object)):
            item = item.replace("{" + slot + "}", value, 1)
        items.append(item)
    return (template.begin + template.separator.join(items) + template.end).strip()


def test_a_form_for_entity_linking_writes_one_name() -> None:
    tokenizer = tokenizer_of("demo")
    format_ = TemplateFormat(tokenizer, Template("{subject}", repeat=False, allow_empty=False))
    catalog = Catalog.build(table(TRICKY), None, format_.context)
    constraint = catalog.constraint(format_)
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(100):
        ids = draw(constraint, rng)
        (fact,) = read_facts(ids, constraint, catalog)
        assert fact == Triple(tokenizer.decode(ids[:-1]).strip(), "", "")
        seen.add(fact.subject)
    assert seen <= set(TRICKY)
    assert len(seen) > 5


def test_templates_that_can_not_be_are_refused() -> None:
    for item, expected in (
        ("no slot", "at most once"),
        ("{subject} {subject}", "at most once"),
        ("<{subject}>{relation}", "slots that all follow"),
        ("{subject} {relation}", "text between"),
        ('{subject} "{relation}" , {object} .', "slots that all follow"),
    ):
        with pytest.raises(InputError, match=expected):
            Template(item)
    catalog = Catalog.build(table(TRICKY), table(RELATIONS), SequenceFormat(tokenizer_of("demo")))
    with pytest.raises(InputError, match="built for the model's tokenizer"):
        catalog.constraint(TemplateFormat(tokenizer_of("demo")))
    with pytest.raises(ValueError, match="subject, relation, object in this order"):
        catalog.constraint(TemplateFormat(tokenizer_of("demo"), TEMPLATES["calls"]), unique=True)


@pytest.mark.parametrize("form", ["fully_expanded", "subject_collapsed"])
@pytest.mark.parametrize("name", ["demo", "llama2", "wordpiece"])
def test_the_gold_of_wiki_cie_is_accepted(name: str, form: Form) -> None:
    """499 real triplet sets (SynthIE's test set), piece by piece as SynthIE tokenises them: none is refused."""
    path = SHARED / "wiki_cie_text.jsonl.gz"
    if not path.exists():
        pytest.skip("shared/data is not beside this checkout")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    gold = [
        [
            Triple(*(t[role]["surfaceform"].replace("_", " ") for role in ("subject", "predicate", "object")))
            for t in r["triplets"]
        ]
        for r in records
    ]
    assert len(gold) == 499
    entities = sorted({name for triples in gold for t in triples for name in (t.subject, t.object)})
    relations = sorted({t.predicate for triples in gold for t in triples})
    format_ = SequenceFormat(tokenizer_of(name), form)
    catalog = Catalog.build(table([*entities, *real_names(20_000)]), table(relations), format_)
    constraint = catalog.constraint(format_)
    for triples in gold:
        ids = format_.answer_ids(triples)
        matcher = Matcher(constraint)
        assert matcher.replay(np.array(ids, np.int32))
        assert matcher.is_complete
        found = read_facts(ids, constraint, catalog)
        assert [catalog.entities.rows_of([t.subject])[0] is not None for t in found] == [True] * len(found)
        if name != "wordpiece":  # which lower-cases: names that differ in nothing else are one
            assert found == list(dict.fromkeys(triples))
            assert set(parse(linearise(triples, form), form)) == set(triples)
