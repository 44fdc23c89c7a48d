from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.errors import InputError
from obverse.engine.graph.builder import GraphBuilder, first_occurrences
from obverse.engine.graph.graph import ENTITIES, RELATIONS, KnowledgeGraph, is_saved_graph
from obverse.engine.graph.load import load_graph
from obverse.engine.graph.names import clean_alias_lists, clean_name, without_parentheses


def small_graph() -> KnowledgeGraph:
    builder = GraphBuilder("small")
    capital, part = builder.relation("r:capital", "capital"), builder.relation("r:part", "part of")
    france = builder.entity(
        "e:fr", "France", "country", ["République française", None, "France", "bad [x]", "Fr  ance"]
    )
    paris = builder.entity("e:paris", "Paris", "city", ["Парис", "Парис"])
    europe = builder.entity("e:eu", "Europe")
    builder.entity("e:alone", "Alone", "city")
    assert builder.entity("e:paris", "another name") == paris
    builder.edge(france, capital, paris)
    builder.edge(france, part, europe)
    builder.edge(france, capital, paris)
    builder.edge(paris, part, france)
    return builder.build()


def test_builder_keeps_first_names_and_counts_repeats() -> None:
    graph = small_graph()
    assert graph.entities.to_pylist() == [
        {"uri": "e:fr", "name": "France", "aliases": ["République française"], "type": "country"},
        {"uri": "e:paris", "name": "Paris", "aliases": ["Парис"], "type": "city"},
        {"uri": "e:eu", "name": "Europe", "aliases": [], "type": None},
        {"uri": "e:alone", "name": "Alone", "aliases": [], "type": "city"},
    ]
    assert (graph.heads.tolist(), graph.predicates.tolist(), graph.tails.tolist()) == ([0, 0, 1], [0, 1, 1], [1, 2, 0])
    assert graph.notes == {"repeated edges": 1}


def test_stats() -> None:
    assert small_graph().stats() == {
        "name": "small",
        "num_entities": 4,
        "num_relations": 2,
        "num_edges": 3,
        "num_aliases": 2,
        "isolated_entities": 1,
        "largest_degree": 3,
        "entities_per_type": {"city": 2, "country": 1, "None": 1},
        "edges_per_relation": {"capital": 1, "part of": 2},
        "notes": {"repeated edges": 1},
    }


def test_save_and_load_give_the_same_graph_and_the_same_bytes(tmp_path: Path) -> None:
    graph = small_graph()
    graph.save(tmp_path / "a")
    assert is_saved_graph(tmp_path / "a")
    again = load_graph(tmp_path / "a")
    assert again.name == "small"
    assert again.entities.equals(graph.entities)
    assert again.relations.equals(graph.relations)
    assert again.notes == graph.notes
    for name in ("heads", "predicates", "tails"):
        assert np.array_equal(getattr(again, name), getattr(graph, name))
        assert getattr(again, name).dtype == np.int32
    again.save(tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["edges.parquet", "entities.parquet", "graph.json", "relations.parquet"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_a_folder_without_its_manifest_is_no_graph(tmp_path: Path) -> None:
    small_graph().save(tmp_path)
    (tmp_path / "graph.json").unlink()
    assert not is_saved_graph(tmp_path)
    with pytest.raises(InputError, match=r"graph\.json: expected a folder written by"):
        KnowledgeGraph.load(tmp_path)


def test_load_notices_files_that_disagree_with_the_manifest(tmp_path: Path) -> None:
    small_graph().save(tmp_path)
    edges = pq.read_table(tmp_path / "edges.parquet")
    pq.write_table(edges.slice(0, 2), tmp_path / "edges.parquet")
    with pytest.raises(InputError, match=r"edges\.parquet: expected 3 rows.*saw 2"):
        KnowledgeGraph.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"version": 2}, "expected obverse.graph version 1"), ({"format": "x"}, "saw 'x version 1'")],
)
def test_load_notices_another_format(tmp_path: Path, change: dict[str, object], message: str) -> None:
    small_graph().save(tmp_path)
    manifest = json.loads((tmp_path / "graph.json").read_text())
    (tmp_path / "graph.json").write_text(json.dumps(manifest | change))
    with pytest.raises(InputError, match=message):
        KnowledgeGraph.load(tmp_path)


@pytest.mark.parametrize(
    ("heads", "predicates", "tails", "message"),
    [
        ([0, 2], [0, 0], [1, 1], r"row 1, field 'heads': expected an index in 0\.\.1, saw 2"),
        ([0, 1], [0, -1], [1, 0], r"row 1, field 'predicates': expected an index in 0\.\.0, saw -1"),
        ([0, 1], [0, 0], [1], r"field 'tails': expected 2 values, saw 1"),
    ],
)
def test_edges_must_point_at_rows(heads: list[int], predicates: list[int], tails: list[int], message: str) -> None:
    entities = pa.table([["a", "b"], ["A", "B"], [[], []], [None, None]], schema=ENTITIES)
    relations = pa.table([["r"], ["R"]], schema=RELATIONS)
    with pytest.raises(InputError, match=message):
        KnowledgeGraph("x", entities, relations, np.array(heads), np.array(predicates), np.array(tails))


def test_with_relations_keeps_rows_and_drops_edges() -> None:
    graph = small_graph()
    part = graph.with_relations(["part of"])
    assert part.num_entities == 4
    assert part.edges_per_relation() == {"capital": 0, "part of": 2}
    assert graph.with_relations({"r:capital"}).edges_per_relation() == {"capital": 1, "part of": 0}
    with pytest.raises(InputError, match="'nothing'"):
        graph.with_relations(["nothing", "part of"])


def test_load_graph_says_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing there"):
        load_graph(tmp_path / "none.tsv")
    (tmp_path / "graph.csv").write_text("a,b,c\n")
    with pytest.raises(InputError, match=r"ending in one of .*\.parquet.*\.nt\.bz2"):
        load_graph(tmp_path / "graph.csv")
    with pytest.raises(InputError, match=r"graph\.json"):
        load_graph(tmp_path)


def test_clean_name_and_parentheses() -> None:
    assert clean_name(" a\t b\u00a0c\u200b \n") == "a b c"
    assert clean_name("São  Tomé") == "São Tomé"
    assert without_parentheses("Modern Greek (1453-)") == "Modern Greek"
    assert without_parentheses("Zürich (Kreis 7) / Witikon") == "Zürich / Witikon"
    assert without_parentheses("ADK (Complexe") == "ADK"
    assert without_parentheses("(x)") == "(x)"


def test_aliases_are_cleaned_row_by_row() -> None:
    names = pa.array(["A", "B", "C", "D"])
    given = [["A", "a", "x[y]"], [], ["a\u200bb", " c", "d ", "e  f", "", None, "北京"], ["A", "D"]]
    cleaned = clean_alias_lists(names, pa.array(given, pa.list_(pa.string())))
    assert cleaned.to_pylist() == [["a"], [], ["北京"], ["A"]]


@settings(max_examples=60, deadline=None)
@given(edges=st.lists(st.tuples(*[st.integers(0, 2)] * 3), max_size=20))
def test_first_occurrences_keep_order(edges: list[tuple[int, int, int]]) -> None:
    heads, predicates, tails = np.array(edges, dtype=np.int32).reshape(-1, 3).T
    kept = [edges[position] for position in first_occurrences(heads, predicates, tails)]
    assert kept == list(dict.fromkeys(edges))


def test_a_save_that_breaks_off_leaves_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_graph().save(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        small_graph().save(tmp_path)
    assert not is_saved_graph(tmp_path)  # old tables must not pass for the new graph
