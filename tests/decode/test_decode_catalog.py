from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from obverse.engine.decode.catalog import Catalog
from obverse.engine.decode.reading import read_triples
from obverse.engine.errors import InputError
from obverse.engine.records.linearise import Form, Triple
from obverse.engine.records.models import load_tokenizer
from obverse.engine.records.sequence import SequenceFormat

RELATIONS = pa.table({"uri": ["P1", "P2"], "name": ["capital of", "capital"]})


def names(*pairs: tuple[str, str | None]) -> pa.Table:
    return pa.table({"uri": [uri for uri, _ in pairs], "name": pa.array([name for _, name in pairs], pa.string())})


ENTITIES = names(
    ("Q1", "New York"),
    ("Q2", "New York City"),
    ("Q3", "Paris"),
    ("Q4", "Paris"),
    ("Q5", "  Paris\u00a0 "),
    ("Q6", ""),
    ("Q7", None),
    ("Q8", "a [r] b"),
    ("Q9", "Ōsaka 大阪"),
)


def test_names_are_unique_in_order_with_all_their_uris(tiny_llama: Path) -> None:
    form = SequenceFormat(load_tokenizer(tiny_llama))
    catalog = Catalog.build(ENTITIES, RELATIONS, form)
    assert catalog.entities.table.to_pydict() == {
        "name": ["New York", "New York City", "Paris", "Ōsaka 大阪"],
        "uris": [["Q1"], ["Q2"], ["Q3", "Q4", "Q5"], ["Q9"]],
    }
    assert catalog.entities.link(["Paris", "Lyon", "New York"]) == ["Q3", None, "Q1"]
    assert sorted(zip(catalog.dropped["uri"].to_pylist(), catalog.dropped["reason"].to_pylist(), strict=True)) == [
        ("Q6", "empty"),
        ("Q7", "empty"),
        ("Q8", "contains a marker"),
    ]
    stats = catalog.stats()
    assert (stats["entities"], stats["relations"], stats["ambiguous_names"]) == (4, 2, 1)
    for name in catalog.entities.table["name"].to_pylist():
        ids = form.name_ids([name])[0]
        assert catalog.entities.name_of(ids) == name
        if name != "New York City":
            assert catalog.entities.name_of(ids[:-1]) is None
        assert catalog.entities.name_of([*ids, ids[0]]) is None


def test_saved_and_opened_it_is_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    form = SequenceFormat(load_tokenizer(tiny_llama))
    first = Catalog.cached(ENTITIES, RELATIONS, tiny_llama, tmp_path)
    folder = next(tmp_path.iterdir())
    stamp = (folder / "entities.trie").stat().st_mtime_ns
    again = Catalog.cached(ENTITIES, RELATIONS, tiny_llama, tmp_path)
    assert (folder / "entities.trie").stat().st_mtime_ns == stamp
    assert again.entities.table == first.entities.table
    assert again.stats() == first.stats()
    assert again.entities.name_of(form.name_ids(["Ōsaka 大阪"])[0]) == "Ōsaka 大阪"
    Catalog.cached(ENTITIES.slice(1), RELATIONS, tiny_llama, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    (folder / "catalog.json").unlink()
    with pytest.raises(InputError, match=r"catalog\.json"):
        Catalog.open(folder)


def test_names_that_the_tokenizer_cannot_write_are_reported(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<unk>", "<eos>", "[", "]", "s", "r", "o", "e", "oslo", "a"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    form = SequenceFormat(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>"))
    catalog = Catalog.build(names(("Q1", "oslo"), ("Q2", "大阪"), ("Q3", "a oslo")), names(("P", "a")), form)
    assert catalog.entities.table["name"].to_pylist() == ["oslo", "a oslo"]
    assert catalog.dropped.to_pylist() == [
        {"kind": "entity", "name": "大阪", "uri": "Q2", "reason": "not writable by the tokenizer"}
    ]
    with pytest.raises(InputError, match="at least one entity"):
        Catalog.build(names(("Q2", "大阪")), names(("P", "a")), form)


def test_a_catalogue_of_another_tokenizer_is_refused(tiny_llama: Path) -> None:
    form = SequenceFormat(load_tokenizer(tiny_llama))
    catalog = Catalog.build(ENTITIES, RELATIONS, form)
    other = load_tokenizer(tiny_llama)
    other.add_tokens(["Oslo"])
    with pytest.raises(InputError, match="model's tokenizer"):
        catalog.constraint(SequenceFormat(other), 400)


@pytest.mark.parametrize("form_name", ["fully_expanded", "subject_collapsed"])
def test_reading_is_exact_and_leaves_out_what_is_unfinished(tiny_llama: Path, form_name: Form) -> None:
    form = SequenceFormat(load_tokenizer(tiny_llama), form_name)
    catalog = Catalog.build(ENTITIES, RELATIONS, form)
    triples = [
        Triple("Paris", "capital", "New York City"),
        Triple("Paris", "capital of", "New York"),
        Triple("Ōsaka 大阪", "capital of", "Paris"),
    ]
    ids = form.answer_ids(triples)
    assert read_triples(ids, form, catalog) == triples
    assert read_triples(ids[:-1], form, catalog) == triples
    assert read_triples(ids[:-2], form, catalog) == triples[:2]
    # cut inside "New York City" behind "New York": a name, but not a finished one
    city = form.name_ids(["New York City"])[0]
    place = next(i for i in range(len(ids)) if ids[i : i + len(city)] == city)
    assert read_triples(ids[: place + len(city) - 1], form, catalog) == []
    unknown = form.answer_ids([triples[0], Triple("Paris", "capital", "Lyon"), triples[2]])
    assert read_triples(unknown, form, catalog) == triples[:1]
    assert read_triples(form.answer_ids([*triples, triples[0]]), form, catalog) == triples
