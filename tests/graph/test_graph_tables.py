from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.errors import InputError
from obverse.engine.graph import tables
from obverse.engine.graph.graph import KnowledgeGraph
from obverse.engine.graph.load import load_graph

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

Triples = list[tuple[str, str, str]]


def named(graph: KnowledgeGraph, column: str = "name") -> Triples:
    entities, relations = graph.entities[column].to_pylist(), graph.relations[column].to_pylist()
    rows = zip(graph.heads.tolist(), graph.predicates.tolist(), graph.tails.tolist(), strict=True)
    return [(entities[head], relations[predicate], entities[tail]) for head, predicate, tail in rows]


def write(path: Path, text: str) -> Path:
    data = text.encode()
    path.write_bytes({".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)(data))
    return path


THREE = "Paris\tcapital of\tFrance\nFrance\tpart of\tEurope\n"
SIX = "Q90\tParis\tP1376\tcapital of\tQ142\tFrance\nQ142\tFrance\tP361\tpart of\tQ46\tEurope\n"
EXPECTED = [("Paris", "capital of", "France"), ("France", "part of", "Europe")]
EXPECTED_URIS = [("Q90", "P1376", "Q142"), ("Q142", "P361", "Q46")]


@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz", ".tsv.bz2"])
def test_three_columns_are_names(tmp_path: Path, ending: str) -> None:
    graph = load_graph(write(tmp_path / f"towns{ending}", THREE))
    assert graph.name == "towns"
    assert named(graph) == named(graph, "uri") == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        SIX,
        SIX.replace("\n", "\r\n"),
        "\ufeff" + SIX + "\n\n",
        "subject_uri\tsubject_label\tpredicate_uri\tpredicate_label\tobject_uri\tobject_label\n" + SIX,
        "Head ID\tHead\tRelation ID\tRelation\tTail ID\tTail name\n" + SIX,
        # A header may put the columns in any order.
        "object\ts\tp\tobject_id\tsubject_id\tp_id\n"
        "France\tParis\tcapital of\tQ142\tQ90\tP1376\nEurope\tFrance\tpart of\tQ46\tQ142\tP361\n",
    ],
)
def test_six_columns_are_uris_and_names(tmp_path: Path, text: str) -> None:
    graph = load_graph(write(tmp_path / "g.tsv", text))
    assert named(graph) == EXPECTED
    assert named(graph, "uri") == EXPECTED_URIS


def test_a_first_row_with_one_other_word_is_an_edge(tmp_path: Path) -> None:
    graph = load_graph(write(tmp_path / "g.tsv", "subject\trelation\tParis\n"))
    assert named(graph) == [("subject", "relation", "Paris")]


def test_names_are_cleaned_and_quotes_mean_nothing(tmp_path: Path) -> None:
    text = ' "New  York"\tpart of\t USA\n\'s\tpart of\t USA\nX [y]\tpart of\tUSA\n'
    graph = load_graph(write(tmp_path / "g.tsv", text))
    assert named(graph) == [('"New York"', "part of", "USA"), ("'s", "part of", "USA")]
    assert graph.notes == {"edges with square brackets in a name": 1}


def test_the_first_name_of_a_uri_counts(tmp_path: Path) -> None:
    text = "a\tAnn\tp\tknows\tb\tBob\nb\tRobert\tp\tis friend of\ta\tAnna\n"
    graph = load_graph(write(tmp_path / "g.tsv", text))
    assert named(graph) == [("Ann", "knows", "Bob"), ("Bob", "knows", "Ann")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n", r"g\.tsv, row 1: expected 3 or 6 tab-separated columns, saw 'a\\tb'"),
        ("a\tb\tc\na\tb\tc\td\n", r"g\.tsv, row 2: expected 3 tab-separated columns, saw 'a\\tb\\tc\\td'"),
        ("a\tb\tc\na\t \tc\n", r"g\.tsv, row 2, field 'predicate name': expected a value, saw ' '"),
        ("subject\tpredicate\tobject\na\tb\tc\n\tb\tc\n", r"row 3, field 'subject name'"),
        ("a\tb\tc\n\na\tb\tc\n", r"row 2: expected an edge"),
        ("s\tp\ts\na\tb\tc\n", r"row 1: expected a header that names each of the columns once"),
        ("", r"g\.tsv: expected at least one row"),
        ("subject\tpredicate\tobject\n", r"g\.tsv: expected at least one row"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_graph(write(tmp_path / "g.tsv", text))


def test_bytes_that_are_not_text_and_cut_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "g.tsv").write_bytes(b"a\tb\tc\na\tb\xff\tc\n")
    with pytest.raises(InputError, match=r"g\.tsv, row 2: expected UTF-8 text, saw b'a\\tb\\xff"):
        load_graph(tmp_path / "g.tsv")
    for ending, pack in ((".gz", gzip.compress), (".bz2", bz2.compress)):
        path = tmp_path / f"cut.tsv{ending}"
        path.write_bytes(pack(THREE.encode() * 5000)[:-20])
        with pytest.raises(InputError, match=rf"row \d+: expected a whole {ending[1:]} archive"):
            load_graph(path)
        path.write_bytes(b"plain text")
        with pytest.raises(InputError, match=rf"row 1: expected a whole {ending[1:]} archive"):
            load_graph(path)


name_strategy = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="[]"), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(triples=st.lists(st.tuples(name_strategy, name_strategy, name_strategy), min_size=1, max_size=30))
def test_tsv_and_parquet_agree_on_any_names(tmp_path_factory: pytest.TempPathFactory, triples: Triples) -> None:
    folder = tmp_path_factory.mktemp("g")
    header = "subject\tpredicate\tobject\n"
    tsv = load_graph(write(folder / "g.tsv", header + "".join("\t".join(t) + "\n" for t in triples)))
    columns = dict(zip(("subject", "predicate", "object"), map(list, zip(*triples, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "g.parquet", row_group_size=7)
    parquet = load_graph(folder / "g.parquet")
    assert named(tsv) == named(parquet) == list(dict.fromkeys(triples))
    assert tsv.notes == parquet.notes


def test_parquet_with_uris_and_labels(tmp_path: Path) -> None:
    columns: dict[str, object] = {"weight": [1.0, 2.0]}
    for position, role in enumerate(("subject", "predicate", "object")):
        columns[f"{role}_uri"] = [triple[position] for triple in EXPECTED_URIS]
        columns[f"{role}_label"] = pa.array([triple[position] for triple in EXPECTED]).dictionary_encode()
    pq.write_table(pa.table(columns), tmp_path / "g.parquet")
    progress: list[int] = []
    graph = load_graph(tmp_path / "g.parquet", relations=["P361"], on_progress=progress.append)
    assert named(graph) == EXPECTED[1:]
    assert named(graph, "uri") == EXPECTED_URIS[1:]
    assert progress == [2]


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "g.parquet"
    for columns, message in (
        ({"subject": ["a"], "object": ["b"]}, "expected columns subject, predicate, object"),
        ({"subject": ["a"], "predicate": [1], "object": ["b"]}, "field 'predicate': expected strings, saw 'int64'"),
        ({"subject": ["a", None], "predicate": ["p", "p"], "object": ["b", "b"]}, "row 2, field 'subject name'"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(InputError, match=message):
            load_graph(path)
    path.write_bytes(b"not parquet at all")
    with pytest.raises(InputError, match="expected a Parquet file"):
        load_graph(path)


@pytest.mark.skipif(not DATA.is_dir(), reason="shared data is not here")
def test_fb15k237() -> None:
    progress: list[int] = []
    graph = load_graph(DATA / "fb15k237_train.tsv.gz", on_progress=progress.append)
    assert (graph.num_entities, graph.num_relations, graph.num_edges) == (14_505, 237, 272_115)
    assert sum(progress) == 272_115
    assert graph.edges_per_relation()["location location contains"] == 5201
    assert named(graph)[0] == (
        "Dominican Republic",
        "location country form of government",
        "Republic",
    )


def test_batches_change_neither_order_nor_row_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"n{i * 7 % 11}\tr{i % 3}\tn{i * 5 % 13}\n" for i in range(40)]
    whole = load_graph(write(tmp_path / "g.tsv", "".join(rows)))
    monkeypatch.setattr(tables, "_BATCH", 4)
    progress: list[int] = []
    parts = load_graph(tmp_path / "g.tsv", on_progress=progress.append)
    assert progress == [4] * 10
    assert parts.entities.equals(whole.entities)
    assert named(parts) == named(whole)
    for bad in (3, 4, 5, 21):
        text = "".join([*rows[: bad - 1], "x\t\ty\n", *rows[bad:]])
        with pytest.raises(InputError, match=f"row {bad}, field 'predicate name'"):
            load_graph(write(tmp_path / "bad.tsv", text))
        with pytest.raises(InputError, match=f"row {bad + 1}, field 'predicate name'"):
            load_graph(write(tmp_path / "bad.tsv", "s\tp\to\n" + text))
