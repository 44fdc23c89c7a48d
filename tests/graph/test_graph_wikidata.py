from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from obverse.engine.errors import InputError
from obverse.engine.graph import wikidata
from obverse.engine.graph.graph import KnowledgeGraph
from obverse.engine.graph.load import load_graph


def item_value(target: str) -> dict[str, Any]:
    value = {"entity-type": "item", "numeric-id": int(target[1:]), "id": target}
    return {"value": value, "type": "wikibase-entityid"}


def statement(pid: str, datavalue: dict[str, Any] | None, rank: str = "normal") -> dict[str, Any]:
    kinds = {"wikibase-entityid": "wikibase-item", "string": "external-id", "time": "time", "quantity": "quantity"}
    snak: dict[str, Any] = {"snaktype": "somevalue" if datavalue is None else "value", "property": pid}
    if datavalue is not None:
        snak |= {"hash": "0" * 40, "datavalue": datavalue, "datatype": kinds[datavalue["type"]]}
    return {"mainsnak": snak, "type": "statement", "id": f"{pid}$0", "rank": rank, "references": []}


def item(
    qid: str,
    title: str | None,
    claims: list[dict[str, Any]],
    *,
    label: str | None = None,
    aliases: tuple[str, ...] = (),
) -> dict[str, Any]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for claim in claims:
        grouped.setdefault(claim["mainsnak"]["property"], []).append(claim)
    sitelinks = {"dewiki": {"site": "dewiki", "title": "Titel", "badges": []}}
    if title is not None:
        sitelinks["enwiki"] = {"site": "enwiki", "title": title, "badges": []}
    return {
        "type": "item",
        "id": qid,
        "labels": {"en": {"language": "en", "value": label}} if label else [],
        "descriptions": {"en": {"language": "en", "value": 'said by "enwiki" users'}},
        "aliases": {"en": [{"language": "en", "value": alias} for alias in aliases]} if aliases else [],
        "claims": grouped or [],
        "sitelinks": sitelinks,
        "pageid": 123,
        "ns": 0,
        "title": qid,
        "lastrevid": 1,
        "modified": "2024-01-01T00:00:00Z",
    }


def property_entity(pid: str, label: str) -> dict[str, Any]:
    labels = {"en": {"language": "en", "value": label}, "de": {"language": "de", "value": "x"}}
    return {"type": "property", "datatype": "wikibase-item", "id": pid, "labels": labels, "claims": {}}


def to(pid: str, target: str, rank: str = "normal") -> dict[str, Any]:
    return statement(pid, item_value(target), rank)


TIME = {"value": {"time": "+1962-05-05T00:00:00Z", "precision": 11}, "type": "time"}
ENTITIES = [
    item(
        "Q142",
        "France",
        [
            to("P36", "Q209086", "normal"),  # a former capital: ranked below
            to("P36", "Q90", "preferred"),
            to("P36", "Q46", "preferred"),  # only the first preferred counts
            to("P31", "Q3624078"),
            to("P31", "Q6256"),
            to("P30", "Q46"),
            to("P47", "Q39", "deprecated"),
            to("P47", "Q31"),
            to("P47", "Q31"),
            to("P1343", "Q999"),
            statement("P571", TIME),
            statement("P37", None),
            statement("P227", {"value": "4018145-5", "type": "string"}),
        ],
        label="France",
        aliases=("République française", "La France [x]", "FR"),
    ),
    item("Q90", "Paris", [to("P1376", "Q142"), to("P31", "Q515")], label="City of Paris"),
    item("Q46", "Europe", []),
    item("Q31", "Belgium", [to("P31", "Q6256"), to("P47", "Q142")]),
    item("Q999", None, [to("P30", "Q46")], label="without an English title"),
    item("Q6256", "Country", []),
    item("Q111", "Paris (disambiguation)", [to("P31", "Q4167410"), to("P30", "Q46")]),
    item("Q112", "List of cities", [to("P31", "Q13406463"), to("P30", "Q46")]),
    item("Q113", "Category:France", [to("P31", "Q4167836"), to("P30", "Q46")]),
    item("Q114", "Template:X", [to("P31", "Q17442446"), to("P30", "Q46")]),
    # Linked to a disambiguation page by another property: that is an ordinary item.
    item("Q39", "Switzerland", [to("P1889", "Q4167410"), to("P47", "Q142"), to("P31", "Q6256")]),
    property_entity("P36", "capital"),
    property_entity("P47", "shares border with"),
    property_entity("P31", "instance of"),
    property_entity("P1376", "capital of"),
]


def dump(entities: list[dict[str, Any]], *, compact: bool = True) -> str:
    separators = (",", ":") if compact else (", ", ": ")
    lines = ",\n".join(json.dumps(entity, separators=separators) for entity in entities)
    return f"[\n{lines}\n]\n"


def load(path: Path, text: str, **options: Any) -> KnowledgeGraph:
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode()))
    return load_graph(path, **options)


def named(graph: KnowledgeGraph) -> set[tuple[str, str, str]]:
    entities, relations = graph.entities["name"].to_pylist(), graph.relations["name"].to_pylist()
    rows = zip(graph.heads.tolist(), graph.predicates.tolist(), graph.tails.tolist(), strict=True)
    edges = [(entities[head], relations[predicate], entities[tail]) for head, predicate, tail in rows]
    assert len(edges) == len(set(edges))
    return set(edges)


EXPECTED = {
    ("France", "capital", "Paris"),
    ("France", "instance of", "Country"),
    ("France", "P30", "Europe"),
    ("France", "shares border with", "Belgium"),
    ("Paris", "capital of", "France"),
    ("Belgium", "instance of", "Country"),
    ("Belgium", "shares border with", "France"),
    ("Switzerland", "shares border with", "France"),
    ("Switzerland", "instance of", "Country"),
}


@pytest.mark.parametrize("ending", [".json", ".json.gz", ".json.bz2"])
@pytest.mark.parametrize("compact", [True, False])
def test_rules_of_synthie(tmp_path: Path, ending: str, compact: bool) -> None:
    graph = load(tmp_path / f"dump{ending}", dump(ENTITIES, compact=compact))
    assert named(graph) == EXPECTED
    assert graph.entities["uri"].to_pylist() == ["Q142", "Q90", "Q46", "Q31", "Q6256", "Q39"]
    france, paris, europe = graph.entities.slice(0, 3).to_pylist()
    assert france == {
        "uri": "Q142",
        "name": "France",
        "aliases": ["République française", "FR"],
        "type": "Q3624078",  # the first class; it has no title in this dump
    }
    assert paris == {"uri": "Q90", "name": "Paris", "aliases": ["City of Paris"], "type": "Q515"}
    assert europe["type"] is None
    assert graph.entities["type"].to_pylist()[3] == "Country"
    assert graph.notes == {
        "disambiguation, list, category and internal items": 4,
        "edges to items that don't count": 4,  # Q3624078, Q999, Q515, Q4167410
        "items without an English Wikipedia title": 1,
        "literals": 2,
        "repeated edges": 1,
    }


def test_a_whitelist_drops_other_relations_while_reading(tmp_path: Path) -> None:
    graph = load(tmp_path / "d.json", dump(ENTITIES), relations=["P47", "P36", "P9999"])
    assert named(graph) == {edge for edge in EXPECTED if edge[1] in ("capital", "shares border with")}
    assert graph.relations["uri"].to_pylist() == ["P36", "P47"]
    assert graph.entities["type"].to_pylist()[3] == "Country"
    with pytest.raises(InputError, match="a property id such as P31, saw 'capital'"):
        load_graph(tmp_path / "d.json", relations=["capital"])


def test_item_ids_without_a_number_beside_them(tmp_path: Path) -> None:
    entities = json.loads(dump(ENTITIES))
    for entity in entities:
        for statements in (entity["claims"] or {}).values():
            for claim in statements:
                value = claim["mainsnak"].get("datavalue", {}).get("value")
                if isinstance(value, dict):
                    value.pop("numeric-id", None)
                    value.pop("entity-type", None)
    assert named(load(tmp_path / "d.json", dump(entities))) == EXPECTED


def test_many_items_pass_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikidata, "_CHUNK", 2)
    graph = load(tmp_path / "d.json", dump(ENTITIES))
    assert named(graph) == EXPECTED
    assert graph.entities["aliases"].to_pylist()[0] == ["République française", "FR"]


def test_progress_counts_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikidata, "_STEP", 6)
    seen: list[int] = []
    load(tmp_path / "d.json", dump(ENTITIES), on_progress=seen.append)
    assert seen == [6, 6, 5]


def broken(change: dict[str, Any]) -> str:
    return dump([ENTITIES[2], ENTITIES[1] | change])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (dump(ENTITIES)[:400], r"row 2, field 'line': expected one JSON object a line"),
        ("[\n" + '{"type":"item","enwiki",}' + "\n]", r"row 2, field 'line': expected a JSON object"),
        ("x", "row 1, field 'line'"),
        (broken({"id": "X1"}), "row 3, field 'id': expected an item id such as Q42, saw 'X1'"),
        (broken({"claims": {"P31": [{"rank": "normal"}]}}), "row 3, field 'Q90'.*saw \"no 'mainsnak'\""),
        (broken({"claims": {"P31": [7]}}), "row 3, field 'Q90'"),
        (dump([ENTITIES[0], ENTITIES[0], ENTITIES[1]]), "expected each item once, saw 'Q142 twice'"),
        ("[\n]\n", "at least one edge"),
        (dump([ENTITIES[2]]), "at least one edge"),
    ],
)
def test_bad_dumps_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path / "d.json", text)
