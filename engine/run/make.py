"""The stages that make the data: graph, real rows, sample, generate, check."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.errors import InputError, RunError
from obverse.engine.records.files import ROWS, read_rows, read_table
from obverse.engine.records.keys import derive_seed
from obverse.engine.records.linearise import triples_of
from obverse.engine.records.schemas import CHECKS, TARGETS, TEXTS, require_columns
from obverse.engine.records.shards import write_json
from obverse.engine.run.context import Context, seeded_order

if TYPE_CHECKING:
    from obverse.engine.generate.throughput import Throughput

__all__ = ["run_check", "run_data", "run_generate", "run_graph", "run_sample"]

REAL_IDS = 1 << 40  # real rows are numbered from here, so that no id means two rows


def run_graph(context: Context) -> dict[str, Any]:
    """Load the knowledge graph and keep the run's own copy of it."""
    from obverse.engine.graph.load import load_graph

    source = context.recipe.sample.graph
    with context.progress.task("graph", None, "edges") as advance:
        graph = load_graph(source, on_progress=advance)
    graph.save(context.home / "tables")
    context.__dict__.pop("graph", None)
    return {"rows": graph.entities.num_rows, "source": str(source), **graph.stats()}


def run_data(context: Context) -> dict[str, Any]:
    """Split the real rows into checker, selection and test; no row is in two."""
    recipe, data = context.recipe, context.recipe.data
    if data.real is None:
        raise RunError("the recipe has no data.real")
    columns: dict[str, Any] = {"task": recipe.task, "text": data.text, "label": data.label}
    real = read_rows(data.real, first_id=REAL_IDS, **columns)
    order = seeded_order(real["id"].to_pylist(), context.seed("split"))
    splits = {"checker": real.take(order[: data.checker_rows])}
    rest = order[data.checker_rows :]
    if data.selection is None:
        splits["selection"] = real.take(rest[: data.selection_rows])
        rest = rest[data.selection_rows :]
    else:
        splits["selection"] = read_rows(data.selection, first_id=REAL_IDS * 2, **columns).slice(0, data.selection_rows)
    test = real.take(rest) if data.test is None else read_rows(data.test, first_id=REAL_IDS * 3, **columns)
    splits["test"] = test.slice(0, data.test_rows)
    if splits["test"].num_rows == 0:
        wanted = data.checker_rows + data.selection_rows
        raise InputError(f"more than {wanted} rows, so that some are left to test on", file=data.real, seen=len(order))
    _refuse_shared_texts(splits, context)
    for name, rows in splits.items():
        context.shards("data", ROWS, name).write(0, rows)
    labels = sorted({label for rows in splits.values() for label in rows["label"].to_pylist() if label is not None})
    counts = {name: rows.num_rows for name, rows in splits.items()}
    return {"rows": sum(counts.values()), "splits": counts, "labels": labels}


def _refuse_shared_texts(splits: dict[str, pa.Table], context: Context) -> None:
    """Take what the test set has out of the other splits: the same text or triplet set must never train and test."""
    tested = {key for row in splits["test"].to_pylist() for key in _row_keys(row)}
    for name in ("checker", "selection"):
        free = [tested.isdisjoint(_row_keys(row)) for row in splits[name].to_pylist()]
        if not all(free):
            context.progress.say(f"  data       {free.count(False)} {name} rows repeat a test row; left out")
            splits[name] = splits[name].filter(pa.array(free, pa.bool_()))


def _row_keys(row: dict[str, Any]) -> list[Any]:
    """What must not be shared between splits: the text, and the set of triplets if there is one."""
    triples = frozenset(triples_of(row["triplets"] or []))
    return [row["text"], *([triples] if triples else [])]


def run_sample(context: Context) -> dict[str, Any]:
    """Draw the targets: triplet sets from the graph, labels in even shares, or the user's own."""
    recipe = context.recipe
    shards = context.shards("sample", TARGETS)
    given = recipe.given.sample or recipe.given.generate
    tables = _given_targets(context, given) if given else None
    total = sum(table.num_rows for table in tables) if tables else recipe.sample.samples
    done = shards.num_rows()
    if tables is None:
        draw = _draw_labels(context, done) if recipe.task == "classification" else _draw_sets(context, done)
    else:
        draw = iter(tables[len(shards.done()) :])
    with context.progress.task("sample", total, "sets", done) as advance:
        for index, table in enumerate(draw, start=len(shards.done())):
            shards.write(index, table)
            context.spent()
            advance(table.num_rows)
    facts: dict[str, Any] = {"rows": shards.num_rows()}
    return facts | (_coverage(context) if recipe.task == "extraction" else _label_counts(context))


def _draw_sets(context: Context, done: int) -> Iterator[pa.Table]:
    from obverse.engine.graph.sampling import TargetSampler

    recipe = context.recipe
    if done >= recipe.sample.samples:
        return
    sampler = TargetSampler(context.graph, recipe.sample, context.seed("sample"))
    sampler.seek(done)
    for start in range(done, recipe.sample.samples, recipe.shard_rows):
        yield sampler.draw(min(recipe.shard_rows, recipe.sample.samples - start))


def _draw_labels(context: Context, done: int) -> Iterator[pa.Table]:
    recipe = context.recipe
    labels = context.facts("data")["labels"]
    if not labels:
        raise InputError("real rows with labels to draw from", file=recipe.data.real, field=recipe.data.label)
    for start in range(done, recipe.sample.samples, recipe.shard_rows):
        ids = range(start, min(start + recipe.shard_rows, recipe.sample.samples))
        # Every run of len(labels) ids has each label once, in an order of its own: even shares at any length.
        drawn = [_label_of(i, labels, context.seed("sample")) for i in ids]
        yield _targets(list(ids), label=drawn)


def _label_of(row_id: int, labels: list[str], seed: int) -> str:
    block, place = divmod(row_id, len(labels))
    order = sorted(range(len(labels)), key=lambda k: derive_seed(seed, f"labels-{block}", k))
    return labels[order[place]]


def _targets(ids: list[int], *, triplets: Any = None, label: Any = None) -> pa.Table:
    nothing = [None] * len(ids)
    columns = [ids, triplets or nothing, label or nothing, nothing, [False] * len(ids)]
    return pa.table(
        [pa.array(values, kind.type) for values, kind in zip(columns, TARGETS, strict=True)], schema=TARGETS
    )


def _given_targets(context: Context, path: Path) -> list[pa.Table]:
    recipe = context.recipe
    if path == recipe.given.generate:
        rows = read_rows(path, task=recipe.task, text=recipe.data.text, label=recipe.data.label)
    else:
        rows = read_table(path)
        require_columns(rows, "id", "triplets" if recipe.task == "extraction" else "label", what="given sample")
    columns = {name: rows[name].to_pylist() for name in ("triplets", "label") if name in rows.column_names}
    table = _targets(rows["id"].to_pylist(), **columns)
    return [table.slice(start, recipe.shard_rows) for start in range(0, table.num_rows, recipe.shard_rows)]


def _coverage(context: Context) -> dict[str, Any]:
    from obverse.engine.graph.sampling import gini, relation_coverage

    targets = context.shards("sample").table(["triplets"])
    drawn = relation_coverage(targets)
    in_graph = context.graph.stats()["edges_per_relation"]
    sizes = collections.Counter(pc.list_value_length(targets["triplets"]).to_pylist())
    return {
        "graph_relations": in_graph,
        "drawn_relations": drawn,
        "set_sizes": {str(size): sizes[size] for size in sorted(sizes)},
        "gini_graph": gini(list(in_graph.values())),
        "gini_drawn": gini([drawn.get(name, 0) for name in in_graph]),
    }


def _label_counts(context: Context) -> dict[str, Any]:
    counts = collections.Counter(context.shards("sample").table(["label"])["label"].to_pylist())
    return {"labels": {label: counts[label] for label in sorted(counts, key=str)}}


def run_generate(context: Context) -> dict[str, Any]:
    """Write a text for every target, or take the user's."""
    from obverse.engine.generate.throughput import Throughput

    recipe, recorder = context.recipe, context.recorder or Throughput()
    sources, shards = context.shards("sample", TARGETS), context.shards("generate", TEXTS)
    finished = set(shards.done())
    todo = [index for index in sources.done() if index not in finished]
    facts: dict[str, Any] = {}
    total = context.facts("sample").get("rows") or sources.num_rows()
    done = shards.num_rows()
    with context.progress.task("generate", total, "rows", done, figures=recorder.line) as advance:
        if recipe.given.generate is not None:
            for index, table in _given_texts(context, todo, recipe.given.generate):
                shards.write(index, table)
                context.spent()
        else:
            facts = _write_texts(context, todo, recorder, advance)
    return facts | _generated(context)


def _write_texts(context: Context, todo: list[int], recorder: Throughput, advance: Any) -> dict[str, Any]:
    from obverse.engine.generate.backends import model_key
    from obverse.engine.generate.folder import MARKER, earlier_texts
    from obverse.engine.generate.stage import generate_into

    sources, recipe = context.shards("sample", TARGETS), context.recipe
    same = {"model": model_key(recipe.generate), "seed": context.seed("generate")}
    write_json(context.home / MARKER, same)
    report = generate_into(
        context.shards("generate", TEXTS),
        ((index, sources.read(index)) for index in todo),
        recipe.generate,
        seed=context.seed("generate"),
        # A run that was extended, or whose targets changed, finds what it wrote before.
        earlier=earlier_texts([context.folder / "earlier"], same),
        on_progress=advance,
        on_shard=lambda _: context.spent(),
        throughput=recorder,
        rows=context.num_targets(),
        say=context.progress.say,
    )
    facts = {"throughput": [list(sample) for sample in recorder.samples], **_speed(recorder.summary())}
    facts["retried"], facts["rejected"] = report.retried, dict(report.rejected)
    if report.kept:
        context.progress.say(f"  generate   {report.kept:,} rows were written before")
    return facts


def _speed(summary: dict[str, Any]) -> dict[str, Any]:
    """What the report shows of a recorder's summary (counts come from the table: a resumed run has it whole).

    ``speed`` is of the process that wrote last, and goes into run.json.
    """
    rates = ("rows_per_second", "prompt_tokens_per_second", "output_tokens_per_second")
    wanted = (*rates, "engine", "price", "dollars_per_million_rows")
    return {
        "backend": summary["backend"],
        "start_seconds": summary["start_seconds"],
        "tokens_per_s": summary["output_tokens_per_second"],
        "speed": {name: summary[name] for name in wanted if summary.get(name)},
    }


def _given_texts(context: Context, todo: list[int], path: Path) -> Iterator[tuple[int, pa.Table]]:
    """The user's texts in the shards of the targets, joined on id."""
    recipe, sources = context.recipe, context.shards("sample", TARGETS)
    table = read_table(path)
    if recipe.given.sample is None:
        rows = read_rows(path, task=recipe.task, text=recipe.data.text, label=recipe.data.label)
    else:
        require_columns(table, "id", recipe.data.text, what="given generate")
        rows = table.rename_columns(["text" if name == recipe.data.text else name for name in table.column_names])
    for index in todo:
        ids = sources.read(index)["id"].combine_chunks()
        found = pc.index_in(ids, value_set=rows["id"].combine_chunks())
        columns: list[Any] = []
        for kind in TEXTS:
            if kind.name == "id":
                columns.append(ids)
            elif kind.name == "finish_reason":
                columns.append(pa.array(["given"] * len(ids)))
            elif kind.name in rows.column_names:
                columns.append(rows[kind.name].take(found).combine_chunks().cast(kind.type))
            else:
                columns.append(pa.nulls(len(ids), kind.type))
        yield index, pa.table(columns, schema=TEXTS)


def _generated(context: Context) -> dict[str, Any]:
    table = context.shards("generate").table(["finish_reason", "num_output_tokens", "num_prompt_tokens"])
    reasons = collections.Counter(str(reason).split(":")[0] for reason in table["finish_reason"].to_pylist())
    return {
        "rows": table.num_rows,
        "finish_reasons": dict(reasons),
        "output_tokens": pc.sum(table["num_output_tokens"]).as_py() or 0,
        "prompt_tokens": pc.sum(table["num_prompt_tokens"]).as_py() or 0,
    }


def run_check(context: Context) -> dict[str, Any]:
    """Check every text against its target, the texts before it and the held-out rows."""
    from obverse.engine.check.checker import Checker

    recipe, shards = context.recipe, context.shards("check", CHECKS)
    targets, texts = context.shards("sample"), context.shards("generate")
    if recipe.given.check is not None:
        return _given_checks(context, recipe.given.check)
    held_out = pa.concat_tables([context.rows(part) for part in ("selection", "test")])
    checker = Checker(recipe.check, held_out=held_out, aliases=_aliases(context))
    finished = shards.done()
    with context.progress.task("check", texts.num_rows(), "rows", shards.num_rows()) as advance:
        for index in texts.done():
            if index in finished:
                checker.replay(targets.read(index), texts.read(index), shards.read(index))
                continue
            table = checker.check(targets.read(index), texts.read(index))
            shards.write(index, table)
            context.spent()
            advance(table.num_rows)
    return _checked(context)


def _given_checks(context: Context, path: Path) -> dict[str, Any]:
    table = read_table(path)
    require_columns(table, "id", "kept", what="given check")
    for kind in CHECKS:
        if kind.name not in table.column_names:
            table = table.append_column(kind, pa.nulls(table.num_rows, kind.type))
    context.shards("check", CHECKS).write(0, table)
    return _checked(context)


def _aliases(context: Context) -> dict[str, list[str]] | None:
    """Aliases of the entities that the targets name (the whole catalogue's would not fit at scale)."""
    if context.recipe.task != "extraction":
        return None
    used: set[str] = set()
    for table in context.shards("sample").tables():
        triplets = pc.list_flatten(table["triplets"])
        for role in ("subject", "object"):
            used.update(pc.struct_field(triplets, [role, "uri"]).to_pylist())
    entities = context.graph.entities
    wanted = entities.filter(pc.is_in(entities["uri"], value_set=pa.array(sorted(uri for uri in used if uri))))
    return dict(zip(wanted["uri"].to_pylist(), wanted["aliases"].to_pylist(), strict=True))


def _checked(context: Context) -> dict[str, Any]:
    table = context.shards("check").table()
    kept = pc.sum(table["kept"]).as_py() or 0
    if kept == 0:
        first = collections.Counter(str(reason) for reason in table["reason"].to_pylist()).most_common(3)
        raise RunError(f"no text passed the checks; most common reasons: {json.dumps(dict(first))}")
    kinds = collections.Counter(str(r).split(":")[0] for r in table["reason"].to_pylist() if r is not None)
    recall = np.array([value for value in table["mention_recall"].to_pylist() if value is not None], dtype=float)
    return {
        "rows": table.num_rows,
        "kept": kept,
        "dropped": dict(kinds.most_common()),
        "mention_recall": np.histogram(recall, bins=21, range=(0.0, 1.0))[0].tolist(),
    }
