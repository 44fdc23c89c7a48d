from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.errors import InputError
from obverse.engine.evaluate import EvaluateSettings, evaluate
from obverse.engine.evaluate.bootstrap import group_sums, weight_blocks
from obverse.engine.evaluate.counts import count_triplets
from obverse.engine.records.linearise import parse
from obverse.engine.records.schemas import PREDICTIONS

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "wiki_cie_text.jsonl.gz"
FAST = EvaluateSettings(resamples=100)

Facts = Sequence[tuple[str, str, str]]


def triplet(s: str, p: str, o: str, *, uris: bool = False) -> dict[str, Any]:
    parts = zip(("subject", "predicate", "object"), (s, p, o), strict=True)
    return {name: {"uri": f"u:{value.lower()}" if uris else None, "surfaceform": value} for name, value in parts}


def predictions(rows: Sequence[tuple[Facts | None, Facts | None]], ids: Sequence[int] | None = None) -> pa.Table:
    def cell(facts: Facts | None) -> list[dict[str, Any]] | None:
        return None if facts is None else [triplet(*fact) for fact in facts]

    records = [
        {"id": ids[i] if ids else i, "text": "t", "gold": cell(gold), "predicted": cell(predicted)}
        for i, (gold, predicted) in enumerate(rows)
    ]
    return pa.Table.from_pylist(records, schema=PREDICTIONS)


def reference(rows: Sequence[tuple[Facts, Facts]]) -> dict[str, float]:
    """SynthIE's definition, set by set, without a matrix in sight."""

    def prf(c: int, p: int, g: int) -> tuple[float, float, float]:
        precision, recall = (c / p if p else 0.0), (c / g if g else 0.0)
        return precision, recall, 2 * precision * recall / (precision + recall) if precision and recall else 0.0

    sets = [(set(gold), set(predicted)) for gold, predicted in rows]
    sums = [
        sum(len(x) for x in part) for part in ([g & p for g, p in sets], [p for _, p in sets], [g for g, _ in sets])
    ]
    relations = sorted({t[1] for g, p in sets for t in g | p})
    per = []
    for r in relations:
        only = [({t for t in g if t[1] == r}, {t for t in p if t[1] == r}) for g, p in sets]
        per.append(prf(sum(len(g & p) for g, p in only), sum(len(p) for _, p in only), sum(len(g) for g, _ in only)))
    out = dict(zip(("micro_precision", "micro_recall", "micro_f1"), prf(*sums), strict=True))
    return out | {
        f"macro_{n}": float(np.mean([s[i] for s in per])) for i, n in enumerate(("precision", "recall", "f1"))
    }


def flat(result: dict[str, Any]) -> dict[str, float]:
    return {f"{m}_{p}": result[m][p]["value"] for m in ("micro", "macro") for p in ("precision", "recall", "f1")}


def test_evaluate_extraction_hand_counted() -> None:
    rows: list[tuple[Facts, Facts]] = [
        ([("A", "r", "B"), ("A", "q", "C")], [("A", "r", "B"), ("A", "r", "B"), ("A", "r", "Z")]),  # 1 of 2, of 2 gold
        ([("D", "r", "E")], []),
        ([("F", "q", "G")], [("F", "q", "G"), ("F", "made up", "G")]),
    ]
    result = evaluate(predictions(rows), FAST, task="extraction", seed=7)
    assert (result["correct"], result["predicted"], result["gold"]) == (2, 4, 4)
    assert [result["micro"][p]["value"] for p in ("precision", "recall", "f1")] == [0.5, 0.5, 0.5]
    # r: 1/2, 1/2, 1/2; q: 1/1, 1/2, 2/3; made up: 0
    assert result["macro"]["relations"] == 3
    assert result["macro"]["precision"]["value"] == pytest.approx(1.5 / 3)
    assert result["macro"]["f1"]["value"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert result["macro_gold"]["relations"] == 2
    assert result["macro_gold"]["f1"]["value"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result["exact_match"]["value"] == 0.0
    assert [(r["triplets"], r["records"], r["gold"], r["predicted"], r["correct"]) for r in result["by_triplets"]] == [
        (1, 2, 2, 2, 1),
        (2, 1, 2, 2, 1),
    ]
    assert [(r["relation"], r["gold"], r["predicted"], r["correct"]) for r in result["per_relation"]] == [
        ("r", 2, 2, 1),
        ("q", 2, 1, 1),
        ("made up", 0, 1, 0),
    ]
    json.dumps(result, allow_nan=False)


names = st.sampled_from(["a", "b", "c"])
facts = st.lists(st.tuples(names, st.sampled_from(["r", "q", "s"]), names), max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(facts, facts), min_size=1, max_size=8))
def test_evaluate_extraction_equals_set_by_set_definition(rows: list[tuple[Facts, Facts]]) -> None:
    if not any(gold for gold, _ in rows):
        return
    result = evaluate(predictions(rows), EvaluateSettings(resamples=10), task="extraction", seed=0)
    expected = reference(rows)
    assert flat(result) == pytest.approx(expected, abs=1e-12)
    exact = np.mean([set(g) == set(p) for g, p in rows])
    assert result["exact_match"]["value"] == pytest.approx(exact)


def test_evaluate_extraction_bootstrap_is_the_definition_on_repeated_records() -> None:
    rng = np.random.default_rng(3)
    pool = [(s, r, o) for s in "ab" for r in "rqs" for o in "xyz"]
    rows = [
        ([pool[i] for i in rng.integers(0, 18, 3)], [pool[i] for i in rng.integers(0, 18, rng.integers(0, 4))])
        for _ in range(40)
    ]
    (weights,) = weight_blocks(40, 25, 11)
    assert (weights.sum(axis=0) == 40).all()
    repeated = [reference([rows[i] for i in np.repeat(np.arange(40), weights[:, b])]) for b in range(25)]
    drawn = [scores["micro_f1"] for scores in repeated]
    result = evaluate(predictions(rows), EvaluateSettings(resamples=25), task="extraction", seed=11)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert result["micro"]["f1"]["low"] == pytest.approx(low, abs=1e-12)
    assert result["micro"]["f1"]["high"] == pytest.approx(high, abs=1e-12)
    # and macro-F1: the same resamples, moved so that their mean is the value
    macro = np.array([scores["macro_f1"] for scores in repeated])
    low, high = np.quantile(macro - macro.mean() + reference(rows)["macro_f1"], [0.025, 0.975])
    assert result["macro"]["f1"]["low"] == pytest.approx(low, abs=1e-12)
    assert result["macro"]["f1"]["high"] == pytest.approx(high, abs=1e-12)


def test_evaluate_extraction_interval_agrees_with_theory() -> None:
    # One triplet per record, predicted rightly with probability 0.7: recall is a proportion with a known error.
    hits = np.random.default_rng(5).random(2000) < 0.7
    rows: list[tuple[Facts, Facts]] = [([("a", "r", "b")], [("a", "r", "b" if hit else "c")]) for hit in hits]
    recall = evaluate(predictions(rows), EvaluateSettings(), task="extraction", seed=1)["micro"]["recall"]
    error = np.sqrt(hits.mean() * (1 - hits.mean()) / 2000)
    assert recall["value"] == hits.mean()
    assert (recall["high"] - recall["low"]) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.1)


def test_evaluate_extraction_group_sums_match_a_dense_product() -> None:
    rows: list[tuple[Facts, Facts]] = [
        ([("a", "r", "b"), ("a", "r", "c"), ("a", "q", "b")], [("a", "r", "b"), ("a", "s", "b")]),
        ([("a", "q", "b")], [("a", "q", "b"), ("c", "q", "b")]),
    ]
    counts = count_triplets(predictions(rows), linked=False)
    weights = np.array([[2, 0, 1], [0, 2, 1]], np.int32)
    dense = np.zeros((3, len(counts.relations), 2), np.int64)
    for g, start in enumerate(counts.by_relation.starts):
        stop = [*counts.by_relation.starts, len(counts.by_relation.record)][g + 1]
        for e in range(start, stop):
            dense[:, g, counts.by_relation.record[e]] += counts.by_relation.counts[e]
    np.testing.assert_array_equal(group_sums(weights, counts.by_relation), dense @ weights)
    assert counts.relations == ["q", "r", "s"]
    np.testing.assert_array_equal(dense[:, 1].sum(axis=1), [1, 1, 2])


def test_evaluate_extraction_depends_on_neither_order_nor_chunks() -> None:
    rows: list[tuple[Facts, Facts]] = [
        ([("a", "r", str(i))], [("a", "r", str(i if i % 3 else 0)), ("a", "q", "b")]) for i in range(50)
    ]
    table = predictions(rows, ids=[i * 7 + 3 for i in range(50)])
    order = np.random.default_rng(0).permutation(50)
    shuffled = pa.concat_tables([table.take(pa.array(order[:20])), table.take(pa.array(order[20:]))])
    first, second = (evaluate(t, FAST, task="extraction", seed=2) for t in (table, shuffled))
    assert json.dumps(first) == json.dumps(second)
    assert evaluate(table, FAST, task="extraction", seed=3)["micro"]["f1"] != first["micro"]["f1"]


def test_evaluate_extraction_blocks_of_resamples_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(weight_blocks(30, 20, 4)), axis=1)
    monkeypatch.setattr("obverse.engine.evaluate.bootstrap._BLOCK_NUMBERS", 90)
    blocks = list(weight_blocks(30, 20, 4))
    assert [b.shape[1] for b in blocks] == [3] * 6 + [2]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), whole)


def test_evaluate_extraction_linked_matches_by_uri() -> None:
    gold = [triplet("Paris", "capital of", "France", uris=True)]
    alias = [triplet("Paris", "capital of", "France", uris=True)]
    alias[0]["object"]["surfaceform"] = "French Republic"  # the same uri by another name
    unlinked = [triplet("Paris", "capital of", "France", uris=True)]
    unlinked[0]["object"]["uri"] = None
    rows = [{"id": 1, "gold": gold, "predicted": alias}, {"id": 2, "gold": gold, "predicted": unlinked}]
    table = pa.Table.from_pylist(rows, schema=PREDICTIONS)
    by_uri = evaluate(table, EvaluateSettings(resamples=10, linked=True), task="extraction", seed=0)
    by_name = evaluate(table, EvaluateSettings(resamples=10), task="extraction", seed=0)
    assert (by_uri["correct"], by_uri["predicted"], by_uri["matching"]) == (1, 2, "uri")
    assert by_uri["per_relation"][0]["relation"] == "capital of"
    assert by_uri["per_relation"][0]["uri"] == "u:capital of"
    assert by_name["correct"] == 1
    with pytest.raises(InputError, match=r"gold.subject.uri.*expected a uri of every subject.*id 0"):
        evaluate(predictions([([("a", "r", "b")], [])]), EvaluateSettings(linked=True), task="extraction", seed=0)


def test_evaluate_extraction_null_prediction_is_an_empty_set() -> None:
    gold: Facts = [("a", "r", "b")]
    with_null = evaluate(predictions([(gold, None), (gold, gold)]), FAST, task="extraction", seed=0)
    with_empty = evaluate(predictions([(gold, []), (gold, gold)]), FAST, task="extraction", seed=0)
    assert with_null == with_empty


def test_evaluate_extraction_limits_the_relation_table() -> None:
    rows: list[tuple[Facts, Facts]] = [([("a", f"r{i}", "b")] * 1, []) for i in range(5)]
    result = evaluate(predictions(rows), EvaluateSettings(resamples=10, relation_rows=2), task="extraction", seed=0)
    assert len(result["per_relation"]) == 2
    assert result["relations_left_out"] == 3


GOLD: Facts = [("a", "r", "b")]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (PREDICTIONS.empty_table(), "at least one row"),
        (predictions([(GOLD, GOLD)]).drop_columns("gold"), "a column 'gold' in the predictions table"),
        (predictions([(GOLD, GOLD), (None, GOLD)]), "null at id 1"),
        (predictions([([], GOLD)]), "at least one gold triplet"),
        (predictions([(GOLD, None)]), "null in every row"),
        (predictions([(GOLD, GOLD), (GOLD, [])], ids=[4, 4]), "each id once.*saw 4"),
        (pa.table({"id": [1], "gold": ["x"], "predicted": ["y"]}), "lists of triplets"),
    ],
)
def test_evaluate_extraction_says_what_is_wrong(table: pa.Table, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(table, FAST, task="extraction", seed=0)


def test_evaluate_extraction_names_the_null_surface_form() -> None:
    broken = [triplet("a", "r", "b")]
    broken[0]["object"]["surfaceform"] = None
    rows = [{"id": 5, "gold": [triplet("a", "r", "b")], "predicted": []}]
    rows.append({"id": 9, "gold": [triplet("a", "r", "b")], "predicted": broken})
    with pytest.raises(InputError, match=r"predicted.object.surfaceform.*null at id 9"):
        evaluate(pa.Table.from_pylist(rows, schema=PREDICTIONS), FAST, task="extraction", seed=0)


def test_evaluate_catalogue_share_is_passed_through() -> None:
    table = predictions([(GOLD, GOLD)])
    assert evaluate(table, FAST, task="extraction", seed=0, catalogue_share=0.25)["catalogue_share"] == 0.25
    assert "catalogue_share" not in evaluate(table, FAST, task="extraction", seed=0)
    with pytest.raises(InputError, match="between 0 and 1"):
        evaluate(table, FAST, task="extraction", seed=0, catalogue_share=25)


def wiki_cie() -> pa.Table:
    def cell(s: str, p: str, o: str) -> dict[str, Any]:
        return triplet(s.replace(" ", "_"), p.replace("_", " "), o.replace(" ", "_"))

    records = []
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            parts = ("subject", "predicate", "object")
            gold = [cell(*(t[part]["surfaceform"] for part in parts)) for t in row["triplets"]]
            predicted = [cell(*t) for t in parse(row["gpt4_output"].split("##")[0])]
            records.append({"id": row["id"], "text": row["text"], "gold": gold, "predicted": predicted})
    return pa.Table.from_pylist(records, schema=PREDICTIONS)


@pytest.mark.skipif(not DATA.exists(), reason="shared/data/wiki_cie_text.jsonl.gz is not here")
def test_evaluate_wiki_cie_reference_values() -> None:
    result = evaluate(wiki_cie(), EvaluateSettings(), task="extraction", seed=0)
    assert [result[k] for k in ("records", "correct", "predicted", "gold")] == [499, 752, 1635, 1704]

    def percents(mean: str) -> list[float]:
        return [round(100 * result[mean][part]["value"], 4) for part in ("precision", "recall", "f1")]

    assert percents("micro") == [45.9939, 44.1315, 45.0434]
    assert (result["macro"]["relations"], percents("macro")) == (660, [19.3742, 16.9409, 17.0875])
    assert (result["macro_gold"]["relations"], percents("macro_gold")) == (366, [34.9371, 30.5493, 30.8136])
    for mean in ("micro", "macro", "macro_gold"):  # an interval that leaves its own value out says nothing
        for part in ("precision", "recall", "f1"):
            score = result[mean][part]
            assert score["low"] < score["value"] < score["high"]
