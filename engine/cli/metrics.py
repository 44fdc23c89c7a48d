"""The verb ``metrics``: figures of a whole set, alone and beside a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obverse.engine.cli.options import input_file, output_file, quiet, seed
from obverse.engine.records.progress import Progress

if TYPE_CHECKING:
    from obverse.engine.diversity.set_metrics_full import DataSet

__all__ = ["metrics"]

_NAMES = ("vendi", "mean_cosine", "ngrams", "compression", "labels", "prdc", "mauve")


@click.command()
@click.option("--vectors", type=input_file, help="Vectors (id, vector): Parquet, Arrow, a folder of such, or .npy.")
@click.option("--texts", type=input_file, help="Rows with the column text.")
@click.option("--labels", type=input_file, help="Rows with the columns label or triplets.")
@click.option("--weights", type=input_file, help="Rows (id, weight); gives a weighted Vendi score.")
@click.option("--real-vectors", type=input_file, help="Vectors of a real set to compare with.")
@click.option("--real-texts", type=input_file, help="Texts of the real set.")
@click.option("--real-labels", type=input_file, help="Labels or triplets of the real set.")
@click.option("-o", "--out", type=output_file, required=True, help="JSON file to write.")
@click.option("-k", "--k", type=click.IntRange(1), default=5, show_default=True, help="Neighbours of PRDC's balls.")
@click.option("--buckets", type=click.IntRange(0), default=0, show_default=True, help="MAUVE's; 0: by size, to 500.")
@click.option("--skip", type=click.Choice(_NAMES), multiple=True, help="A figure to leave out; may be given again.")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: all.")
@seed()
@quiet()
def metrics(out: Path, k: int, buckets: int, seed: int, threads: int, quiet: bool, **options: Any) -> None:
    """Figures of a set as a whole: Vendi scores, mean cosine, distinct n-grams, self-BLEU, compression, coverage.

    With a real set beside it: the same of that set, precision, recall, density, coverage, and MAUVE. All but MAUVE are
    exact; vectors are mapped and texts streamed, so that millions of rows need no more memory than their words.
    """
    from obverse.engine.diversity.set_metrics_full import full_metrics
    from obverse.engine.records.shards import write_json

    scratch = out.absolute().parent
    data = _data_set(options["vectors"], options["texts"], options["labels"], options["weights"], scratch)
    real = _data_set(options["real_vectors"], options["real_texts"], options["real_labels"], None, scratch)
    if data is None:
        raise click.UsageError("give at least one of --vectors, --texts, --labels")
    task = Progress(quiet=quiet).task
    skip: tuple[str, ...] = options["skip"]
    result = full_metrics(data, real, k=k, buckets=buckets, skip=skip, seed=seed, threads=threads, task=task)
    write_json(out, result)
    click.echo(_table(result))
    click.echo(f"{out}: {sum(len(result[part]) for part in result if part != 'seconds')} figures")


def _data_set(
    vectors: Path | None, texts: Path | None, labels: Path | None, weights: Path | None, scratch: Path
) -> DataSet | None:
    from obverse.engine.diversity.set_metrics_full import DataSet
    from obverse.engine.diversity.vectors import open_vectors
    from obverse.engine.records.files import read_table

    if vectors is None and texts is None and labels is None:
        return None
    rows = open_vectors(vectors, scratch=scratch) if vectors is not None else None
    if weights is not None and rows is None:
        raise click.UsageError("--weights needs --vectors")
    return DataSet(
        vectors=rows.matrix if rows is not None else None,
        texts=_Texts(texts) if texts is not None else None,
        labels=read_table(labels) if labels is not None else None,
        weights=_weights(weights, rows.ids) if weights is not None and rows is not None else None,
    )


def _weights(path: Path, ids: Any) -> Any:
    """The weights of the rows ``ids``, in that order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from obverse.engine.errors import InputError
    from obverse.engine.records.files import read_table
    from obverse.engine.records.schemas import require_columns

    table = read_table(path)
    require_columns(table, "id", "weight", what="weights")
    places = pc.index_in(pa.array(ids), value_set=table["id"].combine_chunks().cast(pa.int64()))
    if places.null_count:
        missing = int(ids[places.is_null().to_numpy(zero_copy_only=False).argmax()])
        raise InputError("a weight for every vector", file=path, field="id", seen=f"none for id {missing}")
    return table["weight"].take(places).cast(pa.float64()).to_numpy()


class _Texts:
    """The texts of a file that are neither null nor empty, read anew at each pass; Parquet in batches."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[str]:
        for column in self._columns():
            yield from (text for text in column.to_pylist() if text)

    def _columns(self) -> Iterator[Any]:
        import pyarrow.parquet as pq

        from obverse.engine.errors import InputError
        from obverse.engine.records.files import read_table

        files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        for file in files or [self.path]:
            if file.suffix != ".parquet":
                table = read_table(file)
                names, batches = table.column_names, table.to_batches(max_chunksize=8192)
            else:
                opened = pq.ParquetFile(file, pre_buffer=False)
                names = opened.schema_arrow.names
                batches = opened.iter_batches(8192, columns=["text"]) if "text" in names else []
            if "text" not in names:
                raise InputError("a column 'text' in the texts table", file=file, field="text", seen=names)
            for batch in batches:
                yield batch.column("text")


def _table(result: dict[str, dict[str, float]]) -> str:
    """Figures as lines: name, of the set, of the real one; then those of both."""
    alone, real, both = (result.get(part, {}) for part in ("set", "real", "comparison"))
    names = list(dict.fromkeys([*alone, *real]))
    width = max(len(name) for name in [*names, *both, ""])
    lines = [f"{'':<{width}}  {'set':>12}" + (f"  {'real':>12}" if real else "")] if names else []
    for name in names:
        values = [part.get(name) for part in ((alone, real) if real else (alone,))]
        lines.append(f"{name:<{width}}" + "".join(f"  {_shown(value):>12}" for value in values))
    lines += [f"{name:<{width}}  {_shown(value):>12}" for name, value in both.items()]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.6g}"
