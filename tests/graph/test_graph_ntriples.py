from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import pytest

from obverse.engine.errors import InputError
from obverse.engine.graph.graph import KnowledgeGraph
from obverse.engine.graph.load import load_graph

LABEL = "<http://www.w3.org/2000/01/rdf-schema#label>"
ALIAS = "<http://www.w3.org/2004/02/skos/core#altLabel>"
TYPE = "<http://www.w3.org/1999/02/22-rdf-syntax-ns#type>"
FILE = rf"""# A comment, then an empty line.

<http://x.org/r/Berlin> {LABEL} "Berlino"@it .
<http://x.org/r/Berlin> {LABEL} "Berlin"@en .
<http://x.org/r/Berlin> {LABEL} "\u0411\u0435\u0440\u043B\u0438\u043D"@ru .
<http://x.org/r/Berlin> {ALIAS} "Spree-\"Athen\" \\ \U0001F43B"@en .
<http://x.org/r/Berlin> {TYPE} <http://x.org/o/PopulatedPlace> .
<http://x.org/o/PopulatedPlace> {LABEL} "populated place"@en .
<http://x.org/r/Berlin> <http://x.org/o/capitalOf> <http://x.org/r/Federal_Republic%20of_Germany> .
	<http://x.org/r/Berlin>	<http://x.org/o/mayor>	<http://x.org/r/Kai_Wegner>.# no space, tabs
<http://x.org/r/Berlin> <http://x.org/o/population> "3755251"^^<http://www.w3.org/2001/XMLSchema#integer> .
<http://x.org/r/Berlin> <http://x.org/o/motto> "" .
_:b0 <http://x.org/o/partOf> <http://x.org/r/Berlin> .
<http://x.org/r/Berlin> <http://x.org/o/partOf> _:b0.
_:b0 <http://x.org/o/height> "1" .
<http://x.org/r/S\u00E3o_Paulo> <http://x.org/o/twinned> <http://x.org/r/Berlin> .
<http://x.org/o/twinned> {LABEL} "twinned administrative body" .
<http://x.org/r/Kai_Wegner> {LABEL} "Kai" .
<http://x.org/r/Kai_Wegner> {LABEL} "Kai W."@de .
<http://x.org/r/Odd> {LABEL} "Odd [one]" .
<http://x.org/r/Odd> <http://x.org/o/twinned> <http://x.org/r/Berlin> .
<http://x.org/r/Berlin> <http://x.org/o/capitalOf> <http://x.org/r/Federal_Republic%20of_Germany> .
"""


def load(path: Path, text: str) -> KnowledgeGraph:
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode()))
    return load_graph(path)


@pytest.mark.parametrize("ending", [".nt", ".nt.gz", ".nt.bz2"])
def test_everything_that_counts(tmp_path: Path, ending: str) -> None:
    graph = load(tmp_path / f"x{ending}", FILE)
    assert graph.name == "x"
    assert graph.entities.to_pylist() == [
        {
            "uri": "http://x.org/r/Berlin",
            "name": "Berlin",
            "aliases": ["Berlino", "Берлин", 'Spree-"Athen" \\ 🐻'],
            "type": "populated place",
        },
        {
            "uri": "http://x.org/r/Federal_Republic%20of_Germany",
            "name": "Federal Republic of Germany",
            "aliases": [],
            "type": None,
        },
        {"uri": "http://x.org/r/Kai_Wegner", "name": "Kai", "aliases": ["Kai W."], "type": None},
        {"uri": "http://x.org/r/São_Paulo", "name": "São Paulo", "aliases": [], "type": None},
    ]
    assert graph.relations.to_pylist() == [
        {"uri": "http://x.org/o/capitalOf", "name": "capital of"},
        {"uri": "http://x.org/o/mayor", "name": "mayor"},
        {"uri": "http://x.org/o/twinned", "name": "twinned administrative body"},
    ]
    edges = zip(graph.heads.tolist(), graph.predicates.tolist(), graph.tails.tolist(), strict=True)
    assert list(edges) == [(0, 0, 1), (0, 1, 2), (3, 2, 0)]
    assert graph.notes == {
        "edges with square brackets in a name": 1,
        "literals": 2,
        "repeated edges": 1,
        "triples with blank nodes": 3,
    }


@pytest.mark.parametrize(
    ("line", "row_field", "expected"),
    [
        ("Berlin <http://p> <http://o> .", "row 2, field 'subject'", "an IRI in <> or a blank node, saw 'Berlin"),
        ('"s" <http://p> <http://o> .', "row 2, field 'subject'", "an IRI"),
        ("<http://s> _:p <http://o> .", "row 2, field 'predicate'", "an IRI in <>, saw '_:p"),
        ("<http://s> <http://p> .", "row 2, field 'object'", "an IRI in <> or a blank node or a literal, saw '.'"),
        ("<http://s> <http://p> <http://o o> .", "row 2, field 'object'", "saw '<http://o o> .'"),
        ("<http://s> <http://p> <http://o>", "row 2, field 'object'", "' .' and the line's end, saw ''"),
        ("<http://s> <http://p> <http://o> . <http://x>", "row 2, field 'object'", "the line's end, saw '. <http"),
        ('<http://s> <http://p> "open .', "row 2, field 'object'", "a literal"),
        (f'<http://s> {LABEL} "bad \\q" .', "row 2, field 'object'", r"an escape of N-Triples, saw '\\q'"),
        (f'<http://s> {LABEL} "\\uD800" .', "row 2, field 'object'", r"an escape of N-Triples, saw '\\uD800'"),
        ("<http://s\\u12> <http://p> <http://o> .", "row 2, field 'subject'", "an escape of N-Triples"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, row_field: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path / "x.nt", f"<http://a> <http://p> <http://b> .\n{line}\n")
    assert str(caught.value).startswith(f"{tmp_path / 'x.nt'}, {row_field}: expected ")
    assert expected in str(caught.value)


def test_a_file_of_literals_is_no_graph(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one triple between two IRIs"):
        load(tmp_path / "x.nt", f'<http://a> {LABEL} "A" .\n')


def test_progress_counts_every_line(tmp_path: Path) -> None:
    path = tmp_path / "x.nt"
    path.write_text("".join(f"<http://a/{i}> <http://p> <http://b/{i}> .\n" for i in range(20_500)))
    seen: list[int] = []
    graph = load_graph(path, on_progress=seen.append)
    assert seen == [10_000, 10_000, 500]
    assert graph.num_edges == 20_500
