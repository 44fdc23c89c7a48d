from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from obverse.engine.errors import InputError
from obverse.engine.evaluate import EvaluateSettings, evaluate

FAST = EvaluateSettings(resamples=200)


def labels(gold: list[str | None], predicted: list[str | None]) -> pa.Table:
    columns = {"id": pa.array(range(len(gold)), pa.int64())}
    strings = {"gold_label": pa.array(gold, pa.string()), "predicted_label": pa.array(predicted, pa.string())}
    return pa.table(columns | strings)


def test_evaluate_classification_hand_counted() -> None:
    gold = ["neg", "neg", "neg", "pos", "pos", "pos"]
    result = evaluate(labels(gold, ["neg", "neg", "pos", "pos", None, "odd"]), FAST, task="classification", seed=0)
    assert result["accuracy"]["value"] == 0.5
    by_label = {row["label"]: row for row in result["per_class"]}
    assert list(by_label) == ["neg", "odd", "pos"]
    assert [by_label["neg"][p]["value"] for p in ("precision", "recall", "f1")] == pytest.approx([1, 2 / 3, 0.8])
    assert [by_label["pos"][p]["value"] for p in ("precision", "recall", "f1")] == pytest.approx([1 / 2, 1 / 3, 0.4])
    assert (by_label["odd"]["gold"], by_label["odd"]["predicted"], by_label["odd"]["f1"]["value"]) == (0, 1, 0.0)
    assert result["macro"]["f1"]["value"] == pytest.approx((0.8 + 0.0 + 0.4) / 3)
    assert result["confusion"] == {
        "labels": ["neg", "odd", "pos"],
        "counts": [[2, 0, 1], [0, 0, 0], [0, 1, 1]],
        "unlabelled": [0, 0, 1],
    }
    json.dumps(result, allow_nan=False)


def test_evaluate_classification_interval_agrees_with_theory() -> None:
    rng = np.random.default_rng(1)
    gold = rng.choice(["a", "b"], 1500)
    predicted = np.where(rng.random(1500) < 0.8, gold, np.where(gold == "a", "b", "a"))
    result = evaluate(labels(gold.tolist(), predicted.tolist()), EvaluateSettings(), task="classification", seed=2)
    value = result["accuracy"]["value"]
    assert value == (gold == predicted).mean()
    width = 2 * 1.96 * np.sqrt(value * (1 - value) / 1500)
    assert result["accuracy"]["high"] - result["accuracy"]["low"] == pytest.approx(width, rel=0.1)
    wide = evaluate(
        labels(gold.tolist(), predicted.tolist()), EvaluateSettings(confidence=0.99), task="classification", seed=2
    )
    assert wide["accuracy"]["low"] < result["accuracy"]["low"]
    # macro-F1 of balanced classes is close to accuracy, and so is its interval
    assert result["macro"]["f1"]["low"] == pytest.approx(result["accuracy"]["low"], abs=0.005)


def test_evaluate_classification_does_not_depend_on_order() -> None:
    table = labels(["a", "b", "c", "a"] * 10, ["a", "b", "b", "c"] * 10)
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(40)))
    first, second = (evaluate(t, FAST, task="classification", seed=0) for t in (table, shuffled))
    assert json.dumps(first) == json.dumps(second)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (labels([], []), "at least one row"),
        (labels(["a", None], ["a", "a"]), "a gold label.*null at id 1"),
        (labels(["a", "b"], [None, None]), "null in every row"),
        (pa.table({"id": [1], "gold_label": ["a"]}), "a column 'predicted_label'"),
    ],
)
def test_evaluate_classification_says_what_is_wrong(table: pa.Table, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(table, FAST, task="classification", seed=0)


def test_evaluate_rejects_an_unknown_task() -> None:
    with pytest.raises(InputError, match="'extraction' or 'classification', saw 'ner'"):
        evaluate(labels(["a"], ["a"]), FAST, task="ner", seed=0)  # type: ignore[arg-type]
