from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from obverse.engine.errors import InputError
from obverse.engine.evaluate import METRICS, EvaluateSettings, compare, evaluate
from obverse.engine.records.schemas import PREDICTIONS

FAST = EvaluateSettings(resamples=400)


def fact(obj: str, relation: str = "r") -> dict[str, dict[str, str | None]]:
    names = {"subject": "a", "predicate": relation, "object": obj}
    return {part: {"uri": None, "surfaceform": name} for part, name in names.items()}


def table(right: np.ndarray) -> pa.Table:
    rows = [
        {"id": i, "gold": [fact("b", f"r{i % 4}")], "predicted": [fact("b" if hit else "c", f"r{i % 4}")]}
        for i, hit in enumerate(right)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def test_evaluate_compare_with_itself_is_no_difference() -> None:
    a = table(np.arange(60) % 3 > 0)
    for row in compare(a, a, FAST, task="extraction", seed=0, metrics=METRICS["extraction"]):
        assert (row["difference"], row["low"], row["high"], row["p_value"]) == (0, 0, 0, 1)


def test_evaluate_compare_is_paired_and_signed() -> None:
    rng = np.random.default_rng(0)
    worse = rng.random(400) < 0.6
    better = worse | (rng.random(400) < 0.1)  # never wrong where the other is right
    rows = {r["metric"]: r for r in compare(table(better), table(worse), FAST, task="extraction", seed=3)}
    assert list(rows) == ["micro_f1", "macro_f1"]
    row = rows["micro_f1"]
    assert row["difference"] == pytest.approx(better.mean() - worse.mean())
    assert 0 < row["low"] < row["difference"] < row["high"]
    # only the pairing makes it this narrow: the difference is a proportion of its own
    share = better.mean() - worse.mean()
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 400), rel=0.25)
    assert row["p_value"] == pytest.approx(2 / 401)
    other = {r["metric"]: r for r in compare(table(worse), table(better), FAST, task="extraction", seed=3)}
    assert other["micro_f1"]["difference"] == -row["difference"]
    assert other["macro_f1"]["low"] == pytest.approx(-rows["macro_f1"]["high"])


def test_evaluate_compare_p_values_are_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(7)
    settings = EvaluateSettings(resamples=200)
    found = []
    for seed in range(60):
        a, b = (table(rng.random(150) < 0.5) for _ in range(2))
        found.append(compare(a, b, settings, task="extraction", seed=seed, metrics=["micro_f1"])[0]["p_value"])
    assert np.mean(np.array(found) < 0.2) == pytest.approx(0.2, abs=0.15)
    assert 0.35 < np.mean(found) < 0.65


def test_evaluate_compare_values_are_those_of_evaluate() -> None:
    rng = np.random.default_rng(2)
    a, b = (table(rng.random(90) < p) for p in (0.7, 0.5))
    result = evaluate(a, FAST, task="extraction", seed=0)
    rows = {r["metric"]: r for r in compare(a, b, FAST, task="extraction", seed=0, metrics=METRICS["extraction"])}
    assert rows["macro_f1"]["value_a"] == result["macro"]["f1"]["value"]
    assert rows["micro_recall"]["value_a"] == result["micro"]["recall"]["value"]
    assert rows["exact_match"]["value_a"] == result["exact_match"]["value"]


def test_evaluate_compare_labels() -> None:
    gold = ["p", "n"] * 50
    ids = pa.array(range(100), pa.int64())
    a = pa.table({"id": ids, "gold_label": gold, "predicted_label": gold})
    b = pa.table({"id": ids, "gold_label": gold, "predicted_label": ["p"] * 100})
    shuffled = b.take(pa.array(np.random.default_rng(0).permutation(100)))
    rows = {r["metric"]: r for r in compare(a, shuffled, FAST, task="classification", seed=0)}
    assert rows["accuracy"]["difference"] == 0.5
    assert rows["macro_f1"]["difference"] == pytest.approx(1 - 1 / 3)
    assert 0.35 < rows["accuracy"]["low"] < 0.5 < rows["accuracy"]["high"] < 0.65


def test_evaluate_compare_needs_the_same_records() -> None:
    a = table(np.ones(5, bool))
    with pytest.raises(InputError, match=r"the same ids.*1 ids in one table only, such as 4 in the first"):
        compare(a, a.slice(0, 4), FAST, task="extraction", seed=0)
    rows = a.to_pylist()
    rows[2]["gold"] = [fact("other")]
    with pytest.raises(InputError, match=r"the same gold.*such as id 2"):
        compare(a, pa.Table.from_pylist(rows, schema=PREDICTIONS), FAST, task="extraction", seed=0)
    with pytest.raises(InputError, match=r"one of micro_precision.*saw 'f1'"):
        compare(a, a, FAST, task="extraction", seed=0, metrics=["f1"])
