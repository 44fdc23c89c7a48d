r"""Graphs from N-Triples (W3C RDF 1.1 N-Triples): .nt, .nt.gz, .nt.bz2.

What counts: ``rdfs:label`` is the name (English first, then untagged, then the first given), its other languages and
``skos:altLabel`` are aliases, ``rdf:type`` is the type (by the class's name), and every other triple between two IRIs
is an edge. Literals of other properties and triples with blank nodes are skipped and counted. An IRI without a label
is named by its local part: ``.../resource/New_York`` gives "New York", ``.../ontology/birthPlace`` "birth place".
"""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from obverse.engine.errors import InputError
from obverse.engine.graph.builder import GraphBuilder
from obverse.engine.graph.graph import KnowledgeGraph
from obverse.engine.graph.lines import decode_line, graph_name, read_lines
from obverse.engine.graph.names import clean_name, has_brackets

__all__ = ["load_ntriples"]

_SPECIAL = (
    "http://www.w3.org/2000/01/rdf-schema#label",
    "http://www.w3.org/2004/02/skos/core#altLabel",
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#type",
)

_IRI = re.compile(r'<([^\x00-\x20<>"{}|^`]*)>[ \t]*')
_BLANK = re.compile(r"_:[^\s<\"]*[^\s<\".][ \t]*")
_LITERAL = re.compile(r'"((?:[^"\\\n\r]|\\.)*)"(?:@([A-Za-z]+(?:-[A-Za-z0-9]+)*)|\^\^<[^\x00-\x20<>"{}|^`]*>)?[ \t]*')
_END = re.compile(r"\.[ \t]*(?:#.*)?")
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_ESCAPED = {"t": "\t", "b": "\b", "n": "\n", "r": "\r", "f": "\f", '"': '"', "'": "'", "\\": "\\"}
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_STEP = 10_000  # lines between two calls of on_progress


def load_ntriples(path: Path, *, on_progress: Callable[[int], None] | None = None) -> KnowledgeGraph:
    """The graph of an N-Triples file (see the module's text); entities are the IRIs that have an edge.

    Raises `InputError` for a line that is no triple, with its row and the part that is wrong, and for a file without
    a single edge. Entities and relations whose name has square brackets are left out with their edges and noted.
    """
    reader = _Reader(path)
    row = 0
    for row, line in read_lines(path):
        reader.read(line, row)
        if on_progress and row % _STEP == 0:
            on_progress(_STEP)
    if on_progress and row % _STEP:
        on_progress(row % _STEP)
    return reader.graph()


class _Reader:
    """Everything a file says, by IRI; memory grows with the number of IRIs and labels, edges are 24 bytes each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._builder = GraphBuilder(graph_name(path))
        self._iris: dict[str, int] = {}
        self._label, self._alias, self._type = (self._iris.setdefault(iri, i) for i, iri in enumerate(_SPECIAL))
        self._edges = array("q")  # three IRI numbers an edge
        self._labels: dict[int, tuple[int, str]] = {}
        self._aliases: dict[int, list[str]] = defaultdict(list)
        self._types: dict[int, int] = {}

    def read(self, line: bytes, row: int) -> None:
        text = decode_line(line, self._path, row).strip(" \t")
        if not text or text.startswith("#"):
            return
        subject, place = self._resource(text, 0, row, "subject")
        match = _IRI.match(text, place)
        if not match:
            self._fail("an IRI in <>", row, "predicate", text[place:])
        predicate = self._intern(match[1], row, "predicate")
        target: int | None = None
        literal = _LITERAL.match(text, match.end())
        if literal:
            place = literal.end()
        else:
            target, place = self._resource(text, match.end(), row, "object")
        if not _END.fullmatch(text, place):
            self._fail("' .' and the line's end", row, "object", text[place:])
        if literal and subject is not None:
            self._literal(subject, predicate, literal, row)
        elif subject is None or target is None:
            self._builder.note("triples with blank nodes")
        elif predicate == self._type:
            self._types.setdefault(subject, target)
        else:
            self._edges.extend((subject, predicate, target))

    def _literal(self, subject: int, predicate: int, literal: re.Match[str], row: int) -> None:
        if predicate not in (self._label, self._alias):
            self._builder.note("literals")
            return
        text = clean_name(self._unescape(literal[1], row, "object"))
        if predicate == self._label and text:
            language = (literal[2] or "").lower()
            rank = 0 if language == "en" or language.startswith("en-") else 2 if language else 1
            known = self._labels.get(subject)
            if known is None or rank < known[0]:
                self._labels[subject] = (rank, text)
        self._aliases[subject].append(text)

    def _resource(self, text: str, place: int, row: int, field: str) -> tuple[int | None, int]:
        """The number of the IRI at ``place`` (None for a blank node) and the place after it."""
        match = _IRI.match(text, place)
        if match:
            return self._intern(match[1], row, field), match.end()
        blank = _BLANK.match(text, place)
        if not blank:
            wanted = "an IRI in <> or a blank node" + (" or a literal" if field == "object" else "")
            self._fail(wanted, row, field, text[place:])
        return None, blank.end()

    def _intern(self, iri: str, row: int, field: str) -> int:
        if "\\" in iri:
            iri = self._unescape(iri, row, field)
        return self._iris.setdefault(iri, len(self._iris))

    def _unescape(self, text: str, row: int, field: str) -> str:
        def value(match: re.Match[str]) -> str:
            code = int(match[1] or match[2] or "110000", 16)
            if match[3] in _ESCAPED:
                return _ESCAPED[match[3]]
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                self._fail("an escape of N-Triples", row, field, match[0])
            return chr(code)

        return _ESCAPE.sub(value, text) if "\\" in text else text

    def _fail(self, expected: str, row: int, field: str, seen: str) -> NoReturn:
        raise InputError(expected, file=self._path, row=row, field=field, seen=seen)

    def graph(self) -> KnowledgeGraph:
        if not self._edges:
            raise InputError("at least one triple between two IRIs", file=self._path, seen="none")
        edges = np.array(self._edges, dtype=np.int64).reshape(-1, 3)
        iris = list(self._iris)
        heads, predicates, tails = edges.T
        entity, relation = np.full(len(iris), -1), np.full(len(iris), -1)
        for number in _by_appearance(edges[:, ::2].ravel()):
            name = self._name(number, iris)
            if not has_brackets(name):
                kind = self._types.get(number)
                type_name = None if kind is None else self._name(kind, iris)
                aliases = self._aliases.get(number, ())
                entity[number] = self._builder.entity(iris[number], name, type_name, aliases)
        for number in _by_appearance(predicates):
            name = self._name(number, iris)
            if not has_brackets(name):
                relation[number] = self._builder.relation(iris[number], name)
        rows = np.stack([entity[heads], relation[predicates], entity[tails]])
        usable = (rows >= 0).all(axis=0)
        self._builder.note("edges with square brackets in a name", int((~usable).sum()))
        self._builder.add_edges(*rows[:, usable])
        return self._builder.build()

    def _name(self, number: int, iris: list[str]) -> str:
        known = self._labels.get(number)
        return known[1] if known else _local_name(iris[number])


def _by_appearance(numbers: npt.NDArray[np.int64]) -> list[int]:
    """Distinct numbers, first come first."""
    first = np.sort(np.unique(numbers, return_index=True)[1])
    found: list[int] = numbers[first].tolist()
    return found


def _local_name(iri: str) -> str:
    """The part after the last ``#`` or ``/``, readable: percent codes, underscores and a lower-case word's humps."""
    local = re.split(r"[#/]", iri.rstrip("#/"))[-1]
    plain = unquote(local).replace("_", " ")
    if plain[:1].islower():
        plain = _HUMP.sub(" ", plain).lower()
    return clean_name(plain) or iri
