from __future__ import annotations

import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obverse.engine.diversity.coverage import label_coverage, label_metrics, relations
from obverse.engine.errors import InputError
from obverse.engine.records.schemas import TRIPLETS


def test_by_hand() -> None:
    labels = pa.array(["a", "a", "b", None, "c"])
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert label_coverage(labels) == pytest.approx(
        {
            "count": 3.0,
            "entropy": entropy,
            "effective": math.exp(entropy),
            "normalised_entropy": entropy / math.log(3),
        }
    )
    known = label_coverage(labels, known=["a", "b", "c", "d", "e"])
    assert known["coverage"] == 3 / 5
    assert known["normalised_entropy"] == pytest.approx(entropy / math.log(5))
    assert label_coverage(pa.array(["one", "one"])) == {"count": 1.0, "entropy": 0.0, "effective": 1.0}
    assert label_coverage(pa.array([None], pa.string())) == {}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.randoms())
def test_bounds_and_order(labels: list[int], shuffle: object) -> None:
    found = label_coverage(pa.array(labels))
    kinds = len(set(labels))
    assert found["count"] == kinds
    assert 1 <= found["effective"] <= kinds * (1 + 1e-12)
    assert label_coverage(pa.chunked_array([sorted(labels), []], type=pa.int64())) == found


def _triplet(predicate: str) -> dict[str, dict[str, str]]:
    return {role: {"uri": "u", "surfaceform": predicate} for role in ("subject", "predicate", "object")}


def test_relations_are_those_of_every_triplet() -> None:
    column = pa.chunked_array(
        [pa.array([[_triplet("r"), _triplet("s")], None], TRIPLETS), pa.array([[], [_triplet("r")]], TRIPLETS)]
    )
    assert relations(column).to_pylist() == ["r", "s", "r"]
    assert relations(column.chunk(0).slice(1)).to_pylist() == []
    assert relations(pa.chunked_array([], TRIPLETS)).to_pylist() == []
    table = pa.table({"triplets": column, "label": ["x", "x", None, "y"]})
    found = label_metrics(table)
    assert found["relation_count"] == 2
    assert found["label_effective"] == pytest.approx(math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))))
    assert label_metrics(table.drop_columns("label"), known=["r", "s", "t", "u"])["relation_coverage"] == 0.5
    assert label_metrics(pa.table({"id": [1]})) == {}


def test_a_strange_label_is_named() -> None:
    with pytest.raises(InputError, match="one of the known labels, saw 'z'"):
        label_coverage(pa.array(["a", "z"]), known=["a", "b"])
