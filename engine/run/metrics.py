"""What a finished run shows: metrics.json, gathered from the stages' facts and tables."""

from __future__ import annotations

import collections
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.records.linearise import triples_of
from obverse.engine.records.shards import read_json
from obverse.engine.run.context import REAL, Context

__all__ = ["collect_metrics"]

Variant = tuple[str, str, bool]

_FACTS = ("graph", "data", "sample", "generate", "check", "score", "weigh", "train", "evaluate")


def collect_metrics(context: Context, variants: list[Variant]) -> dict[str, Any]:
    """Everything the report shows, as one JSON-ready mapping; ``variants`` are what was decoded."""
    manifest = read_json(context.folder / "run.json")
    stages = {name: dict(record) for name, record in manifest["stages"].items()}
    facts = {name: context.facts(name) for name in _FACTS}
    evaluated = facts.pop("evaluate")
    facts["weigh"] = _weights(facts["weigh"])
    facts["score"] = {**facts["score"], "index": _index(facts["score"].get("index", {}))}
    return {
        "run": {
            "name": context.recipe.report.title or context.recipe.name,
            **{key: manifest[key] for key in ("task", "seed", "started", "seconds", "hardware", "packages")},
            "obverse": manifest["packages"].get("obverse", ""),
        },
        "stages": stages,
        **facts,
        "train": {name: _training(record) for name, record in facts["train"].get("methods", {}).items()},
        "evaluate": evaluated.get("evaluate", {}),
        "chosen": _chosen(facts["train"].get("methods", {})),
        "comparisons": evaluated.get("comparisons", []),
        "samples": _gallery(context, variants),
    }


def _weights(facts: dict[str, Any]) -> dict[str, Any]:
    """The weigh stage's diagnostics under the names that the report reads."""
    histogram = facts.get("histogram", {})
    return {
        **facts,
        "ess": facts.get("effective_sample_size"),
        "ess_share": facts.get("effective_share"),
        "clipped_low": facts.get("clipped_low_share"),
        "clipped_high": facts.get("clipped_high_share"),
        "histogram": {**histogram, "edges": [10**edge for edge in histogram.get("edges", [])]},
        "mass_by_group": {name: group["share_of_weight"] for name, group in facts.get("groups", {}).items()},
    }


def _index(facts: dict[str, Any]) -> dict[str, Any]:
    names = ("engine", "reason", "parameters", "recall", "score_error", "certificate", "duplicates", "seconds")
    return {name: facts[name] for name in names if facts.get(name) is not None}


def _chosen(methods: dict[str, Any]) -> str | None:
    """The method whose kept epoch has the lowest loss on the selection split: never chosen on a test set."""
    losses = {name: min(record["selection_loss"]) for name, record in methods.items() if record.get("selection_loss")}
    return min(losses, key=lambda name: losses[name]) if losses else None


def _training(record: dict[str, Any]) -> dict[str, Any]:
    steps = record.get("steps", 0) / max(record.get("epochs", 1), 1)
    selection = [
        {"step": round((epoch + 1) * steps), "selection_loss": loss}
        for epoch, loss in enumerate(record.get("selection_loss") or [])
    ]
    return {
        **record,
        "loss": [[point["step"], point["loss"]] for point in record.get("loss", [])],
        "tokens_per_s": record.get("tokens_per_second"),
        "selection": selection,
    }


def _gallery(context: Context, variants: list[Variant]) -> dict[str, list[dict[str, Any]]]:
    """Rows worth reading: the most and least weighted, the dropped by reason, and extractions right and wrong."""
    count = context.recipe.report.examples
    rows = {row["id"]: row for row in context.kept(["text", "triplets", "label"]).to_pylist()}
    weights = context.shards("weigh").table().sort_by([("weight", "descending"), ("id", "ascending")]).to_pylist()
    weights = [row for row in weights if row["id"] in rows]

    def weighed(row: dict[str, Any]) -> dict[str, Any]:
        return _item(rows[row["id"]], f"weight {row['weight']:.2f}")

    return {
        "good": [weighed(row) for row in weights[:count]],
        "bad": [weighed(row) for row in weights[: -count - 1 : -1]],
        "dropped": _dropped(context, count),
        "extractions": _extractions(context, variants, count),
    }


def _item(row: dict[str, Any], note: str) -> dict[str, Any]:
    triples = [list(triple) for triple in triples_of(row.get("triplets") or [])]
    return {
        "id": row["id"],
        "text": row.get("text") or "",
        "triplets": triples,
        "label": row.get("label"),
        "note": note,
    }


def _dropped(context: Context, count: int) -> list[dict[str, Any]]:
    """Dropped rows, the reasons in turn so that each kind is seen."""
    checks = context.shards("check").table()
    by_kind: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for check in checks.filter(pc.invert(checks["kept"])).select(["id", "reason"]).to_pylist():
        kind = str(check["reason"]).split(":")[0]
        if len(by_kind[kind]) < count:
            by_kind[kind].append(check)
    chosen: list[dict[str, Any]] = []
    for place in range(count):
        chosen += [items[place] for items in by_kind.values() if place < len(items)]
    chosen = chosen[:count]
    wanted = pa.array([check["id"] for check in chosen], pa.int64())
    found: dict[int, dict[str, Any]] = {}
    for stage, columns in (("sample", ["id", "triplets", "label"]), ("generate", ["id", "text"])):
        table = context.shards(stage).table(columns)
        for row in table.filter(pc.is_in(table["id"], value_set=wanted)).to_pylist():
            found.setdefault(row["id"], {}).update(row)
    return [_item(found[check["id"]], str(check["reason"])) for check in chosen]


def _extractions(context: Context, variants: list[Variant], count: int) -> list[dict[str, Any]]:
    if context.recipe.task != "extraction":
        return []
    variant = next((name for name, method, constrained in variants if constrained and method != "ce"), variants[0][0])
    rows = context.shards("decode", part=f"{REAL}/{variant}").table().slice(0, count).to_pylist()
    items = []
    for row in rows:
        gold, predicted = set(triples_of(row["gold"])), set(triples_of(row["predicted"] or []))
        note = f"{variant}: {len(gold & predicted)} of {len(gold)} found, {len(predicted - gold)} wrong"
        item = _item({"id": row["id"], "text": row["text"], "triplets": row["gold"]}, note)
        item["predicted"] = [list(triple) for triple in sorted(predicted)]
        items.append(item)
    return items
