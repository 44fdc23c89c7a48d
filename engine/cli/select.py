"""The verbs ``dedup`` and ``select``: rows without near-duplicates, and the best n of N."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from obverse.engine.cli.options import input_file, output_file, quiet

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from obverse.engine.diversity.groups import Duplicates
    from obverse.engine.diversity.selection import Selection

    Floats = npt.NDArray[np.float64]
    Ids = npt.NDArray[np.int64]

__all__ = ["dedup", "select"]

Verb = TypeVar("Verb", bound=Callable[..., Any])


@click.group()
def dedup() -> None:
    """Find near-duplicates among all rows, and say which rows stay.

    A row stays unless a row before it, by priority, that stays is within the threshold; so every row that goes has
    one that stays within the threshold, and chains of near-duplicates are not deleted whole. The output has one row a
    row: id, duplicate_group (the lowest row's id of its group), kept, duplicate_of (null where it stays), similarity.
    """


def _common(threshold: float, meaning: str) -> Callable[[Verb], Verb]:
    options = (
        click.option("-o", "--out", type=output_file, required=True, help="Parquet file to write."),
        click.option("--threshold", type=float, default=threshold, show_default=True, help=meaning),
        click.option("--scores", type=input_file, help="Table with `id` that has the column --quality, if not here."),
        click.option("--quality", metavar="COLUMN", help="Rows of higher values take priority. [default: file order]"),
        click.option("--kept-only", is_flag=True, help="Write only the rows that stay."),
        click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: all."),
        quiet(),
    )

    def decorate(function: Verb) -> Verb:
        decorated: Any = function
        for option in reversed(options):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


@dedup.command()
@click.argument("source", type=input_file, metavar="VECTORS")
@_common(0.95, "Cosine from which two rows are near-duplicates.")
def vectors(
    source: Path,
    out: Path,
    threshold: float,
    scores: Path | None,
    quality: str | None,
    kept_only: bool,
    threads: int,
    quiet: bool,
) -> None:
    """Compare VECTORS (.npy, Parquet or Arrow with id and vector, or a folder of them) by cosine, over all pairs."""
    from obverse.engine.diversity.duplicates import near_duplicates
    from obverse.engine.diversity.vectors import open_vectors
    from obverse.engine.records.progress import Progress

    rows = open_vectors(source, scratch=out.parent if out.parent.is_dir() else None)
    priorities = _column(scores, quality, rows.ids, None)
    with Progress(quiet=quiet).task("dedup", len(rows.ids), "rows") as advance:
        found = near_duplicates(rows.matrix, threshold, scores=priorities, threads=threads, on_progress=advance)
    _write_duplicates(out, rows.ids, found, kept_only)


@dedup.command()
@click.argument("source", type=input_file, metavar="TEXTS")
@_common(0.8, "Jaccard similarity of character n-grams from which two texts are near-duplicates.")
@click.option("--text", default="text", show_default=True, help="Column of the text.")
@click.option("--ngram", type=click.IntRange(1, 64), default=5, show_default=True, help="Characters of an n-gram.")
@click.option("--recall", type=float, default=0.99, show_default=True, help="Of pairs right at the threshold.")
@click.option("--as-written", is_flag=True, help="Compare texts as they are, not case-folded and evenly spaced.")
def texts(
    source: Path,
    out: Path,
    threshold: float,
    scores: Path | None,
    quality: str | None,
    kept_only: bool,
    threads: int,
    quiet: bool,
    text: str,
    ngram: int,
    recall: float,
    as_written: bool,
) -> None:
    """Compare TEXTS (a column `text`, and `id` if there is one) by MinHash, every match verified by true Jaccard."""
    import pyarrow as pa

    from obverse.engine.check.normalise import normalise
    from obverse.engine.diversity.text_duplicates import text_near_duplicates
    from obverse.engine.errors import InputError
    from obverse.engine.records.files import read_table
    from obverse.engine.records.progress import Progress

    table = read_table(source)
    if text not in table.column_names:
        raise InputError(f"a column '{text}'", file=source, field=text, seen=table.column_names)
    ids = _ids(table, source)
    column: Any = table[text]
    if column.null_count:
        row = int(column.is_null().to_numpy().argmax())
        raise InputError("a text", file=source, row=row, field=text, seen="null")
    if not as_written:
        parts = (column.slice(start, 65_536).to_pylist() for start in range(0, len(column), 65_536))
        column = pa.chunked_array([[normalise(str(one)) for one in part] for part in parts], pa.string())
    priorities = _column(scores, quality, ids, (table, source))
    with Progress(quiet=quiet).task("dedup", 2 * len(ids), "texts (twice)") as advance:
        found = text_near_duplicates(
            column, threshold, scores=priorities, ngram=ngram, recall=recall, threads=threads, on_progress=advance
        )
    _write_duplicates(out, ids, found, kept_only)


def _ids(table: pa.Table, file: Path) -> Ids:
    """The column ``id``, or row numbers; `InputError` where it isn't made of unique integers."""
    import numpy as np
    import pyarrow as pa

    from obverse.engine.errors import InputError

    if "id" not in table.column_names:
        return np.arange(table.num_rows)
    column = table["id"]
    if not pa.types.is_integer(column.type) or column.null_count:
        seen = str(column.type) if not column.null_count else "a null"
        raise InputError("integers without nulls", file=file, field="id", seen=seen)
    ids: Ids = column.to_numpy().astype(np.int64)
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if len(again):
        row = int(order[again[0] + 1])
        raise InputError("ids that are unique", file=file, row=row, field="id", seen=int(ids[row]))
    return ids


def _rows_of(ids: Ids, wanted: Ids, file: Path, field: str) -> Ids:
    """The row of each of ``wanted`` among ``ids``; `InputError` for one that isn't there."""
    import numpy as np

    from obverse.engine.errors import InputError

    order = np.argsort(ids, kind="stable")
    places = np.searchsorted(ids, wanted, sorter=order)
    rows = order[np.minimum(places, len(ids) - 1)] if len(ids) else np.zeros(len(wanted), np.int64)
    bad = ids[rows] != wanted if len(ids) else np.ones(len(wanted), bool)
    if bad.any():
        raise InputError("ids that the file has", file=file, field=field, seen=int(wanted[bad.argmax()]))
    return rows


def _column(file: Path | None, name: str | None, ids: Ids, own: tuple[pa.Table, Path] | None) -> Floats | None:
    """Values of one number a row, in the order of ``ids``: of ``file``, joined by id, or of the rows' own table."""
    import numpy as np
    import pyarrow as pa

    from obverse.engine.errors import InputError
    from obverse.engine.records.files import read_table

    if name is None:
        if file is not None:
            raise click.UsageError("--scores needs --quality, the column to take")
        return None
    if file is None and own is None:
        raise click.UsageError("--quality needs --scores, the table that has the column")
    table, source = (read_table(file), file) if file is not None else own or (None, Path())
    if table is None or name not in table.column_names:
        raise InputError(f"a column '{name}'", file=source, field=name, seen=table and table.column_names)
    column = table[name]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError("numbers", file=source, field=name, seen=str(column.type))
    values: Floats = column.to_numpy().astype(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        raise InputError("a finite number", file=source, row=row, field=name, seen=column[row].as_py())
    return values if file is None else values[_rows_of(_ids(table, source), ids, source, "id")]


def _write_duplicates(out: Path, ids: Ids, found: Duplicates, kept_only: bool) -> None:
    import numpy as np
    import pyarrow as pa

    from obverse.engine.records.shards import write_parquet

    table = pa.table(
        {
            "id": ids,
            "duplicate_group": ids[found.group],
            "kept": found.kept,
            "duplicate_of": pa.array(ids[np.maximum(found.duplicate_of, 0)], mask=found.kept),
            "similarity": pa.array(found.similarity, mask=found.kept),
        }
    )
    if kept_only:
        table = table.filter(table["kept"])
    write_parquet(out, table)
    click.echo(f"{out}: {table.num_rows:,} rows")
    click.echo(json.dumps(dict(found.facts), indent=1))


@click.command()
@click.argument("scores", type=input_file)
@click.option("-n", "--n", "count", type=click.IntRange(1), required=True, help="Rows to choose.")
@click.option("-o", "--out", type=output_file, required=True, help="Parquet file to write.")
@click.option(
    "--method",
    type=click.Choice(["facility", "k-center", "score"]),
    default="facility",
    show_default=True,
    help="Cover all rows, spread over them, or take the highest --quality without near-duplicates.",
)
@click.option("--quality", metavar="COLUMN", help="Of SCORES: how well a row covers (facility), or its score.")
@click.option("--weight", metavar="COLUMN", help="Of SCORES: how much a row counts when it is covered (facility).")
@click.option("--vectors", type=input_file, help="Of all rows: exact k-center, and near-duplicates over all pairs.")
@click.option("--threshold", type=float, default=0.95, show_default=True, help="Cosine of near-duplicates (score).")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: all.")
@quiet()
def select(
    scores: Path,
    count: int,
    out: Path,
    method: str,
    quality: str | None,
    weight: str | None,
    vectors: Path | None,
    threshold: float,
    threads: int,
    quiet: bool,
) -> None:
    """Choose rows of SCORES (of `obverse score`: id, neighbour_ids, neighbour_similarities).

    The output has id, rank and gain in the order of choice; its first m rows are the choice of m. Without --vectors,
    k-center runs on the neighbour graph, and near-duplicates are those that the neighbour lists name.
    """
    from obverse.engine.records.files import read_table
    from obverse.engine.records.progress import Progress

    _check_options(method, quality, weight, vectors)
    table = read_table(scores)
    ids = _ids(table, scores)
    given = (_column(None, quality, ids, (table, scores)), _column(None, weight, ids, (table, scores)))
    with Progress(quiet=quiet).task("select", min(count, len(ids)), "rows") as advance:
        chosen = _chosen(method, table, scores, ids, count, (given, vectors, threshold, threads), advance)
    _write_selection(out, ids, chosen, count)


def _check_options(method: str, quality: str | None, weight: str | None, vectors: Path | None) -> None:
    if method == "score" and quality is None:
        raise click.UsageError("--method score needs --quality, the column of the score")
    if method == "k-center" and quality is not None:
        raise click.UsageError("--quality has no meaning with --method k-center")
    if method != "facility" and weight is not None:
        raise click.UsageError(f"--weight has no meaning with --method {method}")
    if method == "facility" and vectors is not None:
        raise click.UsageError("--vectors has no meaning with --method facility, which works on the neighbour lists")


def _chosen(
    method: str,
    table: pa.Table,
    file: Path,
    ids: Ids,
    count: int,
    settings: tuple[tuple[Floats | None, Floats | None], Path | None, float, int],
    advance: Any,
) -> Selection:
    import numpy as np

    from obverse.engine.diversity import duplicates, selection
    from obverse.engine.diversity.vectors import open_vectors

    (quality, weight), vectors, threshold, threads = settings
    matrix: Any = None
    if vectors is not None:
        rows = open_vectors(vectors)
        matrix = rows.matrix
        places = _rows_of(rows.ids, ids, vectors, "id")
        if len(matrix) != len(ids) or (places != np.arange(len(ids))).any():
            matrix = matrix[places]
    if method == "k-center" and matrix is not None:
        return selection.k_center(matrix, count, threads=threads, on_progress=advance)
    if method == "score" and quality is not None:
        if matrix is not None:
            found = duplicates.near_duplicates(matrix, threshold, scores=quality, threads=threads)
        else:
            found = duplicates.listed_near_duplicates(*_lists(table, file, ids), threshold, scores=quality)
        return selection.top_by_score(quality, count, duplicates=found)
    lists = _lists(table, file, ids)
    if method == "k-center":
        return selection.graph_k_center(*lists, count, on_progress=advance)
    return selection.facility_location(*lists, count, weight=weight, quality=quality, on_progress=advance)


def _lists(table: pa.Table, file: Path, ids: Ids) -> tuple[Ids, npt.NDArray[np.float32]]:
    """Neighbour lists as rows ``[N, k]`` and similarities, -1 where a row's list is shorter than the longest."""
    import numpy as np
    import pyarrow.compute as pc

    from obverse.engine.errors import InputError
    from obverse.engine.records.schemas import require_columns

    require_columns(table, "neighbour_ids", "neighbour_similarities", what="scores")
    others, values = (table[name].combine_chunks() for name in ("neighbour_ids", "neighbour_similarities"))
    if others.null_count or values.null_count:
        raise InputError("neighbour lists without nulls", file=file, field="neighbour_ids", seen="a null")
    lengths = pc.list_value_length(others).to_numpy(zero_copy_only=False).astype(np.int64)
    if (lengths != pc.list_value_length(values).to_numpy(zero_copy_only=False)).any():
        raise InputError("as many neighbour_similarities as neighbour_ids", file=file, field="neighbour_similarities")
    width = max(int(lengths.max(initial=0)), 1)
    filled = np.arange(width) < lengths[:, None]
    indices = np.full((len(ids), width), -1, np.int64)
    similarities = np.zeros((len(ids), width), np.float32)
    flat = others.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    indices[filled] = _rows_of(ids, flat, file, "neighbour_ids")
    similarities[filled] = values.flatten().to_numpy(zero_copy_only=False)
    return indices, similarities


def _write_selection(out: Path, ids: Ids, chosen: Selection, count: int) -> None:
    import numpy as np
    import pyarrow as pa

    from obverse.engine.records.shards import write_parquet

    rank = np.arange(len(chosen.rows))
    write_parquet(out, pa.table({"id": ids[chosen.rows], "rank": rank, "gain": chosen.gains}))
    less = f" (fewer than the {count:,} asked for: there are no more)" if len(chosen.rows) < count else ""
    click.echo(f"{out}: {len(chosen.rows):,} rows{less}")
    click.echo(json.dumps({"method": chosen.method, "rows": len(ids), **chosen.facts}, indent=1))
