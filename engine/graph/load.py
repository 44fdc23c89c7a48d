"""One door to every kind of graph: `load_graph` looks at the source's name and calls its loader."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from obverse.engine.errors import InputError
from obverse.engine.graph.geography import load_geography
from obverse.engine.graph.graph import KnowledgeGraph
from obverse.engine.graph.ntriples import load_ntriples
from obverse.engine.graph.tables import load_parquet, load_tsv
from obverse.engine.graph.wikidata import load_wikidata

__all__ = ["GEOGRAPHY", "load_graph"]

GEOGRAPHY = "geography"

_LOADERS = {".tsv": load_tsv, ".nt": load_ntriples, ".json": load_wikidata}
_ENDINGS = {f"{ending}{packed}": load for ending, load in _LOADERS.items() for packed in ("", ".gz", ".bz2")}


def load_graph(
    source: str | Path,
    *,
    relations: Collection[str] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> KnowledgeGraph:
    """The graph of a source, told by its name.

    Args:
        source: ``"geography"`` (the embedded default), a folder written by `KnowledgeGraph.save`, a ``.parquet`` file
            or a ``.tsv``, ``.nt`` or Wikidata ``.json`` file, these three plain or ending in ``.gz`` or ``.bz2``.
        relations: names or uris of the only relations to keep. For a Wikidata dump give property ids (``P31``): the
            others are then dropped while reading.
        on_progress: called with the rows (lines, items) newly read, where the source is a file.

    Raises `InputError` where the source is not there or not of these kinds, or for what its loader finds wrong.
    """
    if source == GEOGRAPHY:
        graph = load_geography()
    else:
        path = Path(source)
        if not path.exists():
            raise InputError(f"'{GEOGRAPHY}', a saved graph's folder or a file", file=path, seen="nothing there")
        if path.is_dir():
            graph = KnowledgeGraph.load(path)
        else:
            load = _loader(path)
            if load is load_wikidata:
                return load_wikidata(path, relations=relations, on_progress=on_progress)
            graph = load(path, on_progress=on_progress)
    return graph if relations is None else graph.with_relations(relations)


def _loader(path: Path) -> Callable[..., KnowledgeGraph]:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return load_parquet
    for ending, load in _ENDINGS.items():
        if name.endswith(ending):
            return load
    raise InputError(f"a file ending in one of {['.parquet', *_ENDINGS]}", file=path, seen=path.name)
