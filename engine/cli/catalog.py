"""The verb ``catalog``: names compiled into one file that constrained decoding and linking open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obverse.engine.cli.options import input_file, output_file, quiet

if TYPE_CHECKING:
    import pyarrow as pa

    from obverse.engine.decode.catalog import Catalog, NameIndex

__all__ = ["catalog"]


@click.group()
def catalog() -> None:
    """Compile names into a token trie that constrained decoding walks, and that links names to what they mean."""


@catalog.command()
@click.argument("names", type=input_file)
@click.option(
    "--tokenizer",
    required=True,
    help="The decoding model's: its folder, a tokenizer.json, a SentencePiece .model, or a Hugging Face id.",
)
@click.option("-o", "--out", type=output_file, required=True, help="Catalogue file to write.")
@click.option("--relations", type=input_file, help="Relation names, a file of the same kinds. Without: entities only.")
@click.option(
    "--context",
    default="marked",
    show_default=True,
    help="What stands before a name: 'marked' (a marker and a space), 'json' (inside a JSON string), or a text.",
)
@click.option("--underscores", is_flag=True, help="Names in the files have _ for spaces (Wikipedia titles, SynthIE).")
@click.option("--cache", type=output_file, help="Folder that keeps token ids. [default: ~/.cache/obverse/tokens]")
@click.option("--no-cache", is_flag=True, help="Tokenise anew and keep nothing.")
@quiet()
def build(
    names: Path,
    tokenizer: str,
    out: Path,
    relations: Path | None,
    context: str,
    underscores: bool,
    cache: Path | None,
    no_cache: bool,
    quiet: bool,
) -> None:
    """Compile NAMES into one file.

    \b
    .txt                   a name a line
    .tsv .csv              a header line; columns name, uri, aliases, types; several aliases or types as a|b
                           (.tsv: no quoting)
    .jsonl .parquet        the same columns; aliases and types are lists of strings
    (.gz of the text kinds is read, too; `type` serves for `types`; without `uri` a name is its own)

    Building again with the same tokenizer and names takes the token ids from the cache: --cache DIR, by default
    obverse/tokens in $XDG_CACHE_HOME or ~/.cache. The cache may be deleted at any time.

    \b
    obverse catalog build names.tsv --relations relations.txt --tokenizer my-model -o names.catalog
    """
    import time

    from obverse.engine.decode.catalog import Catalog
    from obverse.engine.decode.token_cache import default_cache
    from obverse.engine.records.context import NameContext
    from obverse.engine.records.names import read_names
    from obverse.engine.records.progress import Progress
    from obverse.engine.records.tokenizers import find_tokenizer

    if cache is not None and no_cache:
        raise click.UsageError("--cache and --no-cache exclude each other")
    begun = time.perf_counter()
    place = NameContext.named(find_tokenizer(tokenizer), context)
    entities = read_names(names, underscores=underscores)
    related = None if relations is None else read_names(relations, underscores=underscores)
    counts = [_num_names(table) for table in (entities, related) if table is not None]
    with Progress(quiet=quiet).task("tokenise", sum(counts), "names") as advance:
        result = Catalog.build(
            entities,
            related,
            place,
            cache=None if no_cache else cache or default_cache(),
            tokenizer_name=tokenizer,
            on_progress=advance,
        )
    result.save(out)
    told = " and ".join(f"{count:,} {what}" for count, what in zip(counts, ("names", "relation names"), strict=False))
    click.echo(f"{out}: {told} in {time.perf_counter() - begun:.1f} s")
    _show(result)
    if result.report.num_rows:
        click.echo(f"what was dropped or noted, name by name: obverse catalog report {out}", err=True)


def _num_names(table: pa.Table) -> int:
    import pyarrow.compute as pc

    aliases = pc.sum(pc.list_value_length(table["aliases"])).as_py() if "aliases" in table.column_names else 0
    return int(table.num_rows + (aliases or 0))


@catalog.command()
@click.argument("file", type=click.Path(path_type=Path))
def info(file: Path) -> None:
    """Print what the catalogue FILE holds, as JSON."""
    from obverse.engine.decode.catalog import Catalog

    _show(Catalog.open(file))


def _show(opened: Catalog) -> None:
    card = {name: opened.card[name] for name in ("obverse", "built", "tokenizer", "context")}
    click.echo(json.dumps({**opened.stats(), **card, "kinds": opened.card["kinds"]}, indent=1, ensure_ascii=False))


@catalog.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Read all of the catalogue FILE and compare its checksums. Exits with 1 where it is damaged."""
    from obverse.engine.decode.catalog import Catalog

    Catalog.open(file).verify()
    click.echo(f"{file}: whole")


@catalog.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def find(file: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Say what each NAME links to in FILE, which tokens it has, and what else has them.

    Exits with 1 where a name is in neither kind.
    """
    from obverse.engine.decode.catalog import Catalog

    opened = Catalog.open(file)
    missing = False
    for name in names:
        found = [
            {"kind": kind, **_describe(index, row)}
            for kind, index in (("entity", opened.entities), ("relation", opened.relations))
            if index is not None
            for row in index.rows_of([name])
            if row is not None
        ]
        missing = missing or not found
        if as_json:
            click.echo(json.dumps({"name": name, "found": found}, ensure_ascii=False))
        else:
            _print_found(name, found, opened)
    if missing:
        raise click.exceptions.Exit(1)


def _describe(index: NameIndex, row: int) -> dict[str, Any]:
    import numpy as np

    tokens = index.tokens_at(row)
    node = index.trie.walk(np.array(tokens, np.int32))
    return {
        "entities": [entity._asdict() for entity in index.entities_at(row)],
        "tokens": tokens,
        "same_tokens": [index.name_at(other) for other in index.rows_of_node(node) if other != row],
        "continues": len(index.trie.children(node)) > 0,
    }


def _print_found(name: str, found: list[dict[str, Any]], opened: Catalog) -> None:
    if not found:
        import pyarrow.compute as pc

        noted = opened.report.filter(pc.equal(opened.report["name"], name)).to_pylist()
        why = f" ({noted[0]['reason']}: {noted[0]['detail'] or noted[0]['uri']})" if noted else ""
        click.echo(f"{name}: not in the catalogue{why}")
    for place in found:
        more = ", other names go on from it" if place["continues"] else ""
        click.echo(f"{name}: {place['kind']}, tokens {' '.join(map(str, place['tokens']))}{more}")
        for entity in place["entities"]:
            types = f"  [{', '.join(entity['types'])}]" if entity["types"] else ""
            click.echo(f"  {entity['uri']}  {entity['name']}{types}")
        for other in place["same_tokens"]:
            click.echo(f"  same tokens: {other}")


@catalog.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=output_file, help="File to write (.tsv or .jsonl); else TSV is printed.")
@click.option("--dropped", is_flag=True, help="Only names that are not in the catalogue.")
def report(file: Path, out: Path | None, dropped: bool) -> None:
    """List the names that FILE lacks, or keeps with a note: kind, name, uri, reason, detail, kept.

    In TSV, tabs, line ends and backslashes inside a field are written \\t, \\n, \\r and \\\\.
    """
    from obverse.engine.decode.catalog import Catalog

    if out is not None and out.suffix not in (".tsv", ".jsonl"):
        raise click.UsageError(f"-o: a file .tsv or .jsonl, saw '{out.name}'")
    opened = Catalog.open(file)
    table = opened.dropped if dropped else opened.report
    if out is None:
        for line in _lines(table, "tsv"):
            click.echo(line)
        return
    with out.open("w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(f"{line}\n" for line in _lines(table, out.suffix[1:]))
    click.echo(f"{out}: {table.num_rows:,} rows")


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _lines(table: pa.Table, kind: str) -> Any:
    if kind == "tsv":
        yield "\t".join(table.column_names)
    for batch in table.to_batches(max_chunksize=8192):
        for row in batch.to_pylist():
            if kind == "tsv":
                values = ("" if value is None else str(value) for value in row.values())
                yield "\t".join(value.translate(_ESCAPES) for value in values)
            else:
                yield json.dumps(row, ensure_ascii=False)
