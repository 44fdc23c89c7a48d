from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obverse._core import SectionFile
from obverse.engine.decode.automaton import Template
from obverse.engine.decode.catalog import Catalog
from obverse.engine.decode.forms import TemplateFormat, read_facts
from obverse.engine.decode.name_index import Entity, HashIndex, NameIndex, hash_names
from obverse.engine.errors import InputError
from obverse.engine.records.context import NameContext
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
RICH = pa.table(
    {
        "uri": ["Q1", "Q2", "Q3", "Q1"],
        "name": ["New York", "Paris", "Paris", "Big Apple"],
        "aliases": [["NYC", ""], None, ["Paname", "Paris"], []],
        "type": ["state", "city", "person", None],
    }
)


def reasons(catalog: Catalog, *, kept: bool) -> list[tuple[str, str, str, str | None]]:
    rows = catalog.report.filter(pc.equal(catalog.report["kept"], kept)).to_pylist()
    return sorted((row["reason"], row["name"], row["uri"], row["detail"]) for row in rows)


def word_level(*tokens: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<unk>", "<eos>", "[", "]", "s", "r", "o", "e", *tokens])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


def test_names_are_unique_in_order_with_all_their_uris(tiny_llama: Path) -> None:
    form = SequenceFormat(load_tokenizer(tiny_llama))
    catalog = Catalog.build(ENTITIES, RELATIONS, form)
    assert catalog.entities.table.to_pydict() == {
        "name": ["New York", "New York City", "Paris", "Ōsaka 大阪"],
        "uris": [["Q1"], ["Q2"], ["Q3", "Q4", "Q5"], ["Q9"]],
    }
    assert catalog.entities.link(["Paris", "Lyon", "New York", ""]) == ["Q3", None, "Q1", None]
    assert reasons(catalog, kept=False) == [
        ("contains a marker", "a [r] b", "Q8", None),
        ("empty", "", "Q6", None),
        ("empty", "", "Q7", None),
    ]
    assert catalog.dropped["uri"].to_pylist() == ["Q6", "Q7", "Q8"]
    assert reasons(catalog, kept=True) == [("white space normalised", "Paris", "Q5", "  Paris\u00a0 ")]
    stats = catalog.stats()
    assert (stats["entities"], stats["relations"], stats["ambiguous_names"], stats["prefixes"]) == (4, 2, 1, 1)
    assert stats["dropped"] == {"contains a marker": 1, "empty": 2}
    for row, name in enumerate(catalog.entities.table["name"].to_pylist()):
        ids = form.name_ids([name])[0]
        assert catalog.entities.name_of(ids) == name
        assert catalog.entities.tokens_at(row) == ids
        assert catalog.entities.node_of(name) == catalog.entities.trie.walk(np.array(ids, np.int32))
        if name != "New York City":
            assert catalog.entities.name_of(ids[:-1]) is None
        assert catalog.entities.name_of([*ids, ids[0]]) is None
    assert catalog.entities.name_of([]) is None
    assert catalog.entities.node_of("Lyon") is None


def test_aliases_types_and_what_a_name_means(tiny_llama: Path, tmp_path: Path) -> None:
    built = Catalog.build(RICH, None, SequenceFormat(load_tokenizer(tiny_llama)))
    built.save(tmp_path / "c")
    for index in (built.entities, Catalog.open(tmp_path / "c").entities):
        assert index.table.select(["name", "uris", "canonical"]).to_pydict() == {
            "name": ["New York", "NYC", "Paris", "Paname", "Big Apple"],
            "uris": [["Q1"], ["Q1"], ["Q2", "Q3"], ["Q3"], ["Q1"]],
            "canonical": [["New York"], ["New York"], ["Paris", "Paris"], ["Paris"], ["New York"]],
        }
        assert index.entity_of("Big Apple") == Entity("Q1", "New York", ["state"])
        assert index.entity_of("Paris") == Entity("Q2", "Paris", ["city"])
        assert index.entity_of("Paris", types=["person", "ship"]) == Entity("Q3", "Paris", ["person"])
        assert index.entity_of("Paris", types=["ship"]) is None
        assert index.entity_of(index.tokens_at(3)) == Entity("Q3", "Paris", ["person"])
        assert index.entity_of("Lyon") is None
        types, codes, offsets = index.type_codes()
        found = [[types[code] for code in codes[offsets[i] : offsets[i + 1]]] for i in range(len(index))]
        assert found == [["state"], ["state"], ["city", "person"], ["person"], ["state"]]
    assert reasons(built, kept=True) == [("duplicate", "Paris", "Q3", None)]
    assert reasons(built, kept=False) == [("empty", "", "Q1", None)]
    assert built.stats()["entities"] == 5
    assert built.card["kinds"]["entities"]["entities"] == 3


def test_columns_that_say_nothing_are_absent(tiny_llama: Path) -> None:
    catalog = Catalog.build(pa.table({"name": ["Oslo", "Lima"]}), None, SequenceFormat(load_tokenizer(tiny_llama)))
    assert catalog.entities.table.to_pydict() == {"name": ["Oslo", "Lima"], "uris": [["Oslo"], ["Lima"]]}
    types, codes, offsets = catalog.entities.type_codes()
    assert (types, codes.tolist(), offsets.tolist()) == ([], [], [0, 0, 0])


def test_saved_and_opened_it_is_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    form = SequenceFormat(load_tokenizer(tiny_llama))
    first = Catalog.cached(ENTITIES, RELATIONS, tiny_llama, tmp_path)
    (path,) = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    again = Catalog.cached(ENTITIES, RELATIONS, tiny_llama, tmp_path)
    assert path.stat().st_mtime_ns == stamp
    built = Catalog.build(ENTITIES, RELATIONS, form)
    for other in (again, built):
        assert other.entities.table == first.entities.table
        assert other.stats() == first.stats()
        assert other.report == first.report
        assert other.fingerprint == form.fingerprint
    again.verify()
    assert again.entities.name_of(form.name_ids(["Ōsaka 大阪"])[0]) == "Ōsaka 大阪"
    assert again.card["tokenizer"] == str(tiny_llama)
    Catalog.cached(ENTITIES.slice(1), RELATIONS, tiny_llama, tmp_path)
    Catalog.cached(ENTITIES, None, tiny_llama, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(InputError, match="not a folder"):
        first.save(tmp_path)


def test_opening_reads_no_table(tiny_llama: Path, tmp_path: Path) -> None:
    Catalog.build(ENTITIES, RELATIONS, SequenceFormat(load_tokenizer(tiny_llama))).save(tmp_path / "c")
    opened = Catalog.open(tmp_path / "c")
    opened.stats()
    assert not {"table", "hashes"} & vars(opened.entities).keys()
    opened.entities.link(["Paris"])
    buffer = opened.entities.table["name"].chunk(0).buffers()[2]
    section = SectionFile.open(tmp_path / "c").section("entities.names")
    assert buffer.size <= len(section)
    assert buffer.is_mutable is False  # the mapping's own memory, not a copy's


def test_names_that_the_tokenizer_cannot_write_are_reported() -> None:
    form = SequenceFormat(word_level("oslo", "a"))
    given_names = names(("Q1", "oslo"), ("Q2", "大阪"), ("Q3", "a oslo"), ("Q4", "Oslo"), ("Q5", "<eos> a"))
    catalog = Catalog.build(given_names, names(("P", "a")), form)
    assert catalog.entities.table["name"].to_pylist() == ["oslo", "a oslo", "Oslo"]
    assert reasons(catalog, kept=False) == [
        ("not writable by the tokenizer", "<eos> a", "Q5", "token <eos>"),
        ("not writable by the tokenizer", "大阪", "Q2", "token <unk>"),
    ]
    # lower case is the tokenizer's own normalisation, but two names are one to it
    assert reasons(catalog, kept=True) == [("same tokens as another name", "Oslo", "Q4", "oslo")]
    assert catalog.entities.rows_of_tokens(form.name_ids(["OSLO"])[0]) == [0, 2]
    assert catalog.entities.name_of(form.name_ids(["Oslo"])[0]) == "oslo"
    assert catalog.entities.link(["Oslo", "oslo", "OSLO"]) == ["Q4", "Q1", None]
    with pytest.raises(InputError, match="at least one entity"):
        Catalog.build(names(("Q2", "大阪"), ("Q3", "大阪")), names(("P", "a")), form)
    with pytest.raises(InputError, match="at least one relation"):
        Catalog.build(names(("Q1", "oslo")), names(("P", " ")), form)


def test_a_name_dropped_is_reported_for_each_of_its_uris() -> None:
    source = names(("Q1", "oslo"), ("Q2", "大阪"), ("Q3", "b"), ("Q4", "大阪"))
    catalog = Catalog.build(source, None, SequenceFormat(word_level("oslo")))
    assert [(row["name"], row["uri"]) for row in catalog.dropped.to_pylist()] == [
        ("大阪", "Q2"),
        ("大阪", "Q4"),
        ("b", "Q3"),
    ]


def test_odd_names_are_kept_and_noted(tiny_llama: Path) -> None:
    source = names(
        ("Q1", "New\nYork"), ("Q2", "be\x07ll"), ("Q3", "c\u0085d"), ("Q4", "a  b"), ("Q5", "a b"), ("Q5", "a b")
    )
    catalog = Catalog.build(source, None, SequenceFormat(load_tokenizer(tiny_llama)))
    assert catalog.entities.table["name"].to_pylist() == ["New York", "be\x07ll", "c\u0085d", "a b"]
    assert reasons(catalog, kept=True) == [
        ("control character", "be\x07ll", "Q2", None),
        ("control character", "c\u0085d", "Q3", None),
        ("duplicate", "a b", "Q5", None),
        ("white space normalised", "New York", "Q1", "New\nYork"),
        ("white space normalised", "a b", "Q4", "a  b"),
    ]


def test_names_that_decode_to_other_text_are_noted() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    # no unknown token: what is not in the vocabulary is left out without a word
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, " ": 2, "<eos>": 3}, []))
    backend.decoder = decoders.Fuse()
    form = SequenceFormat(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))
    catalog = Catalog.build(names(("Q1", "a"), ("Q2", "aé"), ("Q3", "é"), ("Q4", "b")), None, form)
    assert catalog.entities.table["name"].to_pylist() == ["a", "aé", "b"]
    assert reasons(catalog, kept=True) == [
        ("does not round-trip", "aé", "Q2", "a"),
        ("same tokens as another name", "aé", "Q2", "a"),
    ]
    assert reasons(catalog, kept=False) == [("not writable by the tokenizer", "é", "Q3", "no tokens")]


def test_names_inside_json(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    context = NameContext.named(tokenizer, "json")
    source = names(("Q1", 'the "big" one'), ("Q2", "a\\b"), ("Q3", "Paris"), ("Q4", "a [r] b"))
    catalog = Catalog.build(source, RELATIONS, context)
    assert catalog.dropped.num_rows == 0
    # this tokenizer's own "[r]" takes the space before it
    assert reasons(catalog, kept=True) == [("does not round-trip", "a [r] b", "Q4", "a[r] b")]
    for name in source["name"].to_pylist()[:3]:
        ids = context.encode([name])[0]
        assert ids is not None
        assert catalog.entities.name_of(ids) == name
        assert json.loads(tokenizer.decode([*context.before_ids, *ids]) + '"') == name
    with pytest.raises(InputError, match="context 'json'"):
        catalog.constraint(SequenceFormat(tokenizer), 400)


def test_a_catalogue_of_another_tokenizer_is_refused(tiny_llama: Path) -> None:
    form = SequenceFormat(load_tokenizer(tiny_llama))
    catalog = Catalog.build(ENTITIES, RELATIONS, form)
    other = load_tokenizer(tiny_llama)
    other.add_tokens(["Oslo"])
    with pytest.raises(InputError, match="model's tokenizer"):
        catalog.constraint(SequenceFormat(other), 400)
    with pytest.raises(InputError, match="with relations"):
        Catalog.build(ENTITIES, None, form).constraint(form, 400)


def test_a_constraint_takes_its_options(tiny_llama: Path) -> None:
    from obverse._core import Matcher

    form = SequenceFormat(load_tokenizer(tiny_llama))
    catalog = Catalog.build(ENTITIES, RELATIONS, form)
    once = form.answer_ids([Triple("Paris", "capital", "New York City")])
    twice = [*once[:-1], *once]
    for options, allowed in (({}, True), ({"unique": True}, False), ({"max_triplets": 1}, False)):
        matcher = Matcher(catalog.constraint(form, 400, **options))
        assert matcher.replay(np.array(once, np.int32))
        assert matcher.replay(np.array(twice, np.int32)) is allowed


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
    constraint = catalog.constraint(form, 400)
    assert read_facts(ids, constraint, catalog) == triples
    assert read_facts(ids[:-1], constraint, catalog) == triples
    assert read_facts(ids[:-2], constraint, catalog) == triples[:2]
    # cut inside "New York City" behind "New York": a name, but not a finished one
    city = form.name_ids(["New York City"])[0]
    place = next(i for i in range(len(ids)) if ids[i : i + len(city)] == city)
    assert read_facts(ids[: place + len(city) - 1], constraint, catalog) == []


def test_entities_alone_serve_a_form_without_relations(tiny_llama: Path) -> None:
    from obverse._core import Matcher

    form = TemplateFormat(load_tokenizer(tiny_llama), Template("<{subject}>", separator=";"))
    catalog = Catalog.build(ENTITIES, None, form)
    assert catalog.fingerprint == form.fingerprint
    matcher = Matcher(catalog.constraint(form, 400))
    ids: list[int] = []
    rng = np.random.default_rng(0)
    while not matcher.is_complete and len(ids) < 200:
        ids.append(int(rng.choice(matcher.allowed())))
        assert matcher.accept(ids[-1])
    written = form.tokenizer.decode(ids[:-1])
    assert matcher.is_complete
    known = set(catalog.entities.table["name"].to_pylist())
    assert {part.strip("<>") for part in written.split(";")} <= {*known, ""}


odd_text = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
some_names = st.lists(
    st.tuples(
        st.sampled_from(["Q1", "Q2", "Q3"]), odd_text | st.sampled_from([" a  b", "a b", "[s] x", "<eos>", "a", "ab"])
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_names, st.sampled_from(["marked", "json"]))
def test_every_name_is_in_the_catalogue_or_in_the_report(
    tiny_llama: Path, tmp_path: Path, pairs: list[tuple[str, str]], place: str
) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    context = NameContext.named(tokenizer, place)
    source = names(*pairs, ("Q0", "Oslo"))
    catalog = Catalog.build(source, None, context)
    catalog.save(tmp_path / "c")
    opened = Catalog.open(tmp_path / "c")
    opened.verify()
    index = opened.entities
    kept = {(row["name"], uri) for row in index.table.to_pylist() for uri in row["uris"]}
    dropped = [(row["name"], row["uri"]) for row in opened.dropped.to_pylist()]
    clean = ["\x00".join(text.split()).replace("\x00", " ") if text.strip() else "" for _, text in pairs]
    for (uri, text), short in zip(pairs, clean, strict=True):
        candidates = {name for name, _ in kept | set(dropped) if name == short or name.split() == text.split()}
        assert any((name, uri) in kept or (name, uri) in dropped for name in candidates), (uri, text)
    assert not kept & set(dropped)
    table_names = index.table["name"].to_pylist()
    assert len(set(table_names)) == len(table_names)
    for row, (name, ids) in enumerate(zip(table_names, context.encode(table_names), strict=True)):
        assert ids is not None
        assert index.tokens_at(row) == ids
        assert name in [index.name_at(other) for other in index.rows_of_tokens(ids)]
        assert index.rows_of([name]) == [row]
        assert tokenizer.eos_token_id not in ids


@given(st.lists(st.text(max_size=12), unique=True, max_size=30), st.integers(0, 5))
def test_the_hash_index_finds_names_and_only_them(texts: list[str], start: int) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    texts = list(dict.fromkeys(texts))
    whole = pa.chunked_array([pa.array(texts, pa.string())])
    assert np.array_equal(hash_names(whole.slice(start)), hash_names(whole)[start:])
    index = NameIndex(None, pa.table({"name": whole}))  # type: ignore[arg-type]
    assert index.rows_of([*texts, "no such name here"]) == [*range(len(texts)), None]


def test_names_of_one_hash_are_told_apart() -> None:
    table = pa.table({"name": ["a", "b", "c"], "uris": [["A"], ["B"], ["C"]]})
    # all hashes equal to b's: the look-up must compare
    same = HashIndex(np.full(3, hash_names(table["name"])[1], np.uint32), np.array([0, 1, 2], np.uint32))
    index = NameIndex(None, table, lambda: same)  # type: ignore[arg-type]
    assert index.link(["b", "a"]) == ["B", None]


def test_damage_is_named_and_never_a_crash(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.catalog"
    Catalog.build(ENTITIES, RELATIONS, SequenceFormat(load_tokenizer(tiny_llama))).save(path)
    whole = path.read_bytes()
    bad = tmp_path / "bad.catalog"
    for size in [0, 3, 8, 64, len(whole) // 2, len(whole) - 1]:
        bad.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"bad\.catalog"):
            Catalog.open(bad).verify()
    told: list[str] = []
    for place in range(0, len(whole), 41):
        flipped = bytearray(whole)
        flipped[place] ^= 0x20
        if bytes(flipped) == whole:
            continue
        bad.write_bytes(flipped)
        try:
            Catalog.open(bad).verify()
        except InputError as error:
            told.append(str(error))
        else:
            # only the padding between sections may change unseen
            original = SectionFile.open(path)
            changed = SectionFile.open(bad)
            assert all(np.array_equal(original.section(n), changed.section(n)) for n in original.names())
    assert len(told) > 20
    assert all("bad.catalog" in message for message in told)


def test_what_is_no_catalogue_is_said_plainly(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "catalog.json").write_text("{}")
    with pytest.raises(InputError, match="earlier version: build it again"):
        Catalog.open(old)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder: expected a catalogue file$"):
        Catalog.open(tmp_path / "folder")
    with pytest.raises(InputError, match="existing catalogue file"):
        Catalog.open(tmp_path / "none")
    (tmp_path / "names.txt").write_text("Oslo\n" * 100)
    with pytest.raises(InputError, match=r"names\.txt"):
        Catalog.open(tmp_path / "names.txt")
    SectionFile.write(tmp_path / "other", "x", {"low": np.zeros(3, np.uint8)})
    with pytest.raises(InputError, match="with a card"):
        Catalog.open(tmp_path / "other")
    card = np.frombuffer(json.dumps({"format": 99}).encode(), np.uint8)
    SectionFile.write(tmp_path / "newer", "x", {"card": card})
    with pytest.raises(InputError, match="catalogue format 2; build it again"):
        Catalog.open(tmp_path / "newer")


def test_tokens_are_kept_for_the_next_time(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from obverse.engine.decode import token_cache

    calls: list[int] = []
    real = token_cache.tokenise_names

    def counted(*args: Any) -> Any:
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(token_cache, "tokenise_names", counted)
    cache = tmp_path / "cache"
    form = SequenceFormat(load_tokenizer(tiny_llama))
    built = [Catalog.build(RICH, RELATIONS, form, cache=cache) for _ in range(3)]
    assert len(calls) == 2
    assert len(list(cache.iterdir())) == 2
    assert (cache.stat().st_mode & 0o777) == 0o700
    assert all(catalog.entities.table == built[0].entities.table for catalog in built)
    assert built[2].entities.tokens_at(2) == built[0].entities.tokens_at(2)
    # another context, another list in another order: other tokens
    Catalog.build(RICH, None, NameContext.named(form.tokenizer, "json"), cache=cache)
    Catalog.build(RICH.take([1, 0, 2, 3]), None, form, cache=cache)
    assert len(calls) == 4
    for path in cache.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    again = Catalog.build(RICH, RELATIONS, form, cache=cache)
    assert len(calls) == 6
    assert again.entities.tokens_at(2) == built[0].entities.tokens_at(2)


def test_lists_with_the_same_letters_are_told_apart(tiny_llama: Path, tmp_path: Path) -> None:
    form = SequenceFormat(load_tokenizer(tiny_llama))
    for texts in (["ab", "c"], ["a", "bc"]):
        catalog = Catalog.build(pa.table({"name": texts}), None, form, cache=tmp_path)
        assert [catalog.entities.tokens_at(row) for row in range(2)] == form.name_ids(texts)


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from obverse.engine.decode.token_cache import default_cache

    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "obverse" / "tokens"
    monkeypatch.delitem(os.environ, "XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "obverse" / "tokens"


def test_progress_counts_rows_of_both_tables(tiny_llama: Path, tmp_path: Path) -> None:
    form = SequenceFormat(load_tokenizer(tiny_llama))
    for cache in (None, tmp_path, tmp_path):
        told: list[int] = []
        Catalog.build(ENTITIES, RELATIONS, form, cache=cache, on_progress=told.append)
        assert sum(told) == ENTITIES.num_rows + RELATIONS.num_rows
