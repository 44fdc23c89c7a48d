from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from obverse.engine.errors import InputError
from obverse.engine.records.schemas import WEIGHTS
from obverse.engine.weigh import (
    WeighSettings,
    diagnostics,
    expected_calibration_error,
    weigh_rows,
)


def _table(weights: list[float], clipped: list[str | None] | None = None) -> pa.Table:
    size = len(weights)
    columns = [
        pa.array(range(100, 100 + size), pa.int64()),
        pa.nulls(size, pa.float32()),
        pa.nulls(size, pa.float32()),
        pa.array(weights, pa.float32()),
        pa.array(clipped or [None] * size, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=WEIGHTS)


def test_weigh_diagnostics_by_hand() -> None:
    report = diagnostics(_table([3.0, 1.0, 0.0, 4.0], ["high", None, "low", "high"]), pa.array(["a", "b", None, "a"]))
    assert report["num_rows"] == 4
    assert report["effective_sample_size"] == pytest.approx(64 / 26)
    assert report["effective_share"] == pytest.approx(16 / 26)
    assert report["max_weight"] == 4.0
    assert (report["clipped_low_share"], report["clipped_high_share"]) == (0.25, 0.5)
    assert report["quantiles"]["0.5"] == 2.0
    assert report["histogram"]["zeros"] == 1
    assert sum(report["histogram"]["counts"]) == 3
    assert len(report["histogram"]["edges"]) == len(report["histogram"]["counts"]) + 1
    assert report["groups"] == {
        "(none)": {"rows": 1, "share_of_rows": 0.25, "share_of_weight": 0.0},
        "a": {"rows": 2, "share_of_rows": 0.5, "share_of_weight": 0.875},
        "b": {"rows": 1, "share_of_rows": 0.25, "share_of_weight": 0.125},
    }
    assert report["highest"][0] == {"id": 103, "weight": 4.0}
    assert report["lowest"][0] == {"id": 102, "weight": 0.0}
    assert json.loads(json.dumps(report)) == report


def test_weigh_diagnostics_show_twenty_rows_ties_by_id() -> None:
    report = diagnostics(_table([1.0] * 50))
    assert [row["id"] for row in report["highest"]] == list(range(100, 120))
    assert [row["id"] for row in report["lowest"]] == list(range(100, 120))
    assert report["warnings"] == []
    assert report["effective_share"] == pytest.approx(1.0)
    assert sum(report["histogram"]["counts"]) == 50


def test_weigh_diagnostics_warn_when_few_rows_carry_all() -> None:
    weights = [1e-3] * 99 + [100.0]
    (warning,) = diagnostics(_table(weights))["warnings"]
    assert "The 100 rows count as 1 (1.0%)" in warning
    assert "weight_clip" in warning
    assert diagnostics(_table([1.0] * 89 + [2.0] * 11))["warnings"] == []


def test_weigh_diagnostics_warn_when_a_group_loses_its_mass() -> None:
    weights = [0.1] * 30 + [1.3] * 70
    groups = pa.array(["negative"] * 30 + ["positive"] * 70)
    (warning,) = diagnostics(_table(weights), groups)["warnings"]
    assert "Group 'negative' is 30.0% of the rows but 3.2% of the weight" in warning
    assert diagnostics(_table([0.5] * 30 + [1.2] * 70), groups)["warnings"] == []


def test_weigh_diagnostics_warn_when_most_rows_are_clipped() -> None:
    clipped: list[str | None] = ["high"] * 6 + [None] * 4
    (warning,) = diagnostics(_table([1.0] * 10, clipped))["warnings"]
    assert "60% of the rows are clipped at the upper bound" in warning


def test_weigh_diagnostics_edge_tables() -> None:
    assert diagnostics(_table([]))["warnings"] == ["There are no rows to weigh."]
    assert diagnostics(_table([0.0, 0.0]))["warnings"] == ["Every weight is 0: nothing would be learned."]
    with pytest.raises(InputError, match=r"row 101, field 'weight': expected a finite weight >= 0, saw -1\.0"):
        diagnostics(_table([1.0, -1.0]))
    with pytest.raises(InputError, match="expected 2 groups, one a row, saw 1"):
        diagnostics(_table([1.0, 1.0]), pa.array(["a"]))
    with pytest.raises(InputError, match="column 'weight'"):
        diagnostics(_table([1.0]).drop_columns(["weight"]))


def test_weigh_bad_checkers_are_seen_end_to_end() -> None:
    """A diversity checker that is sure against a few rows: published weights explode, and the report says so."""
    rng = np.random.default_rng(0)
    log_q = np.full(5000, np.log(0.5)) + 0.1 * rng.standard_normal(5000)
    log_d = np.where(np.arange(5000) < 10, -11.0, np.log(0.9))
    published = weigh_rows(range(5000), log_q, log_d, WeighSettings(weight_clip=None))
    report = diagnostics(published)
    assert report["effective_share"] < 0.005
    assert report["warnings"]
    assert {row["id"] for row in report["highest"][:10]} == set(range(10))
    clipped = diagnostics(weigh_rows(range(5000), log_q, log_d, WeighSettings()))
    assert clipped["effective_share"] > 0.5
    assert clipped["warnings"] == []


def test_weigh_calibration_error_by_hand() -> None:
    """Two bins hold rows: 0.6 (2 rows, both wrong) and 0.9 (2 rows, one right): 0.5 * 0.6 + 0.5 * 0.4."""
    probabilities = [[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.9, 0.1]]
    result = expected_calibration_error(probabilities, [1, 1, 1, 1], bins=10)
    assert result.error == pytest.approx(0.5)
    assert result.rows == [2, 2]
    assert result.accuracy == [0.0, 0.5]
    assert result.confidence == pytest.approx([0.6, 0.9])


def test_weigh_calibration_error_of_a_calibrated_checker_goes_to_zero() -> None:
    rng = np.random.default_rng(1)
    p = 0.5 + 0.5 * rng.random(200_000)
    labels = (rng.random(200_000) > p).astype(int)
    probabilities = np.stack([p, 1 - p], axis=1)
    assert expected_calibration_error(probabilities, labels).error < 0.005
    assert expected_calibration_error(probabilities, 1 - labels).error > 0.4


def test_weigh_calibration_refuses_what_is_not_a_probability() -> None:
    with pytest.raises(InputError, match="row 1, field 'probabilities': expected probabilities that sum to 1"):
        expected_calibration_error([[0.5, 0.5], [0.5, 0.2]], [0, 0])
    with pytest.raises(InputError, match="row 0, field 'labels': expected a class from 0 to 1, saw 2"):
        expected_calibration_error([[0.5, 0.5]], [2])
    with pytest.raises(InputError, match="N > 0"):
        expected_calibration_error(np.zeros((0, 2)), np.zeros(0, dtype=int))
