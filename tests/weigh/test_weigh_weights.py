from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from obverse.engine.errors import InputError
from obverse.engine.records.schemas import WEIGHTS
from obverse.engine.weigh import WeighSettings, effective_sample_size, importance_weights, weigh_rows

PUBLISHED = WeighSettings(weight_clip=None, normalise=False, centre=False)
log_probs = st.lists(st.floats(-60, 0), min_size=1, max_size=40)


def test_weigh_published_imp_is_q_over_d() -> None:
    q, d = np.array([0.9, 0.3, 0.05]), np.array([0.3, 0.6, 0.5])
    for gamma in (0.0, 0.5, 1.0, 2.0):
        settings = WeighSettings(weight_clip=None, normalise=False, centre=False, gamma=gamma)
        weights, marks = importance_weights(np.log(q), np.log(d), settings)
        assert weights.tolist() == pytest.approx(((q / d) ** gamma).tolist(), rel=1e-12)
        assert marks == [None, None, None]


def test_weigh_centred_ratios_do_not_depend_on_a_common_factor() -> None:
    rng = np.random.default_rng()
    log_q, log_d = rng.normal(-3.0, 1.0, 1001), rng.normal(-0.2, 0.1, 1001)
    weights, marks = importance_weights(log_q, log_d, WeighSettings())
    shifted, marks_shifted = importance_weights(log_q + 2.5, log_d, WeighSettings())
    np.testing.assert_allclose(weights, shifted, rtol=1e-9)
    assert marks == marks_shifted
    # A quality checker that is less sure everywhere: without centring nearly all rows sit at the lower bound.
    assert sum(mark == "low" for mark in marks) < 100
    _, raw = importance_weights(log_q, log_d, WeighSettings(centre=False))
    assert sum(mark == "low" for mark in raw) > 600


def test_weigh_schemes_by_hand() -> None:
    log_q, log_d = np.log([0.5, 0.25]), np.log([0.125, 0.5])
    expected = {"imp": [4.0, 0.5], "quality": [0.5, 0.25], "diversity": [8.0, 2.0], "uniform": [1.0, 1.0]}
    for scheme, weights in expected.items():
        settings = WeighSettings(scheme=scheme, weight_clip=None, normalise=False, centre=False)
        assert importance_weights(log_q, log_d, settings)[0].tolist() == pytest.approx(weights), scheme


def test_weigh_clip_and_mean_by_hand() -> None:
    """Ratios 100, 1 and 1/100 under a clip of (1/4, 4): 4, 1, 1/4, whose mean is 7/4."""
    log_q = np.log([1.0, 0.5, 0.01])
    log_d = np.log([0.01, 0.5, 1.0])
    weights, marks = importance_weights(log_q, log_d, WeighSettings(weight_clip=(0.25, 4.0), centre=False))
    assert weights.tolist() == pytest.approx([4 / 1.75, 1 / 1.75, 0.25 / 1.75])
    assert marks == ["high", None, "low"]


def test_weigh_stays_finite_where_probabilities_underflow() -> None:
    log_q, log_d = np.array([-1.0, -800.0, -2000.0]), np.array([-900.0, -1.0, -1990.0])
    weights, marks = importance_weights(log_q, log_d, WeighSettings(centre=False))
    assert marks == ["high", "low", "low"]
    assert np.isfinite(weights).all()
    assert weights.mean() == pytest.approx(1.0)
    unclipped, _ = importance_weights(log_q, log_d, WeighSettings(weight_clip=None))
    assert unclipped.tolist() == pytest.approx([3.0, 0.0, 0.0])
    with pytest.raises(InputError, match=r"row 0, field 'weight'.*exp\(899\)"):
        importance_weights(log_q, log_d, PUBLISHED)


@given(log_probs, st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_weigh_tempering_reaches_the_share_and_no_more(values: list[float], share: float, seed: int) -> None:
    log_q = np.array(values)
    log_d = -60 * np.random.default_rng(seed).random(len(values))
    plain, _ = importance_weights(log_q, log_d, WeighSettings(weight_clip=None))
    settings = WeighSettings(weight_clip=None, min_effective_share=share)
    tempered, _ = importance_weights(log_q, log_d, settings)
    effective = effective_sample_size(tempered) / len(values)
    assert effective >= share - 1e-6
    if effective_sample_size(plain) >= share * len(values):
        assert tempered.tolist() == plain.tolist()
    else:
        assert effective == pytest.approx(share, abs=1e-3), "flattened further than asked"
    # Order is kept: tempering never makes a worse row better.
    order = np.argsort(plain, kind="stable")
    assert (np.diff(tempered[order]) >= -1e-9 * tempered.max()).all()


@given(log_probs, st.integers(0, 2**31))
def test_weigh_mean_is_one_and_order_of_rows_does_not_matter(values: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_q, log_d = np.array(values), -5 * rng.random(len(values))
    weights, marks = importance_weights(log_q, log_d, WeighSettings(centre=False))
    assert weights.mean() == pytest.approx(1.0)
    assert weights.max() / weights.min() <= 100.0001
    turn = rng.permutation(len(values))
    again, marks_again = importance_weights(log_q[turn], log_d[turn], WeighSettings(centre=False))
    assert again == pytest.approx(weights[turn], rel=1e-12)
    assert marks_again == [marks[i] for i in turn]


@given(st.floats(0.1, 1e6), st.lists(st.floats(0, 1e3), min_size=1, max_size=30))
def test_weigh_effective_sample_size(scale: float, values: list[float]) -> None:
    weights = np.array(values)
    size = effective_sample_size(weights)
    assert size == 0.0 if weights.max() == 0 else 1 - 1e-9 <= size <= len(values) + 1e-9
    assert effective_sample_size(scale * weights) == pytest.approx(size, rel=1e-6)
    assert effective_sample_size(np.ones(7)) == 7.0
    assert effective_sample_size([0, 5, 0]) == 1.0
    assert effective_sample_size([3.0, 1.0]) == pytest.approx(16 / 10)


def test_weigh_rows_make_the_table() -> None:
    ids = pa.chunked_array([[10, 20], [30]])
    log_q = pa.chunked_array([pa.array([0.0, -1.0, -2.0], pa.float32())])
    table = weigh_rows(ids, log_q, [-5.0, -1.0, -2.0], WeighSettings())
    assert table.schema.equals(WEIGHTS)
    assert table.column("id").to_pylist() == [10, 20, 30]
    assert table.column("clipped").to_pylist() == ["high", None, None]
    assert table.column("weight").to_pylist() == pytest.approx([30 / 12, 3 / 12, 3 / 12])
    assert table.column("log_quality").to_pylist() == [0.0, -1.0, -2.0]


def test_weigh_rows_leave_out_what_the_scheme_does_not_use() -> None:
    table = weigh_rows([1, 2], [-1.0, -2.0], None, WeighSettings(scheme="quality"))
    assert table.column("log_diversity").to_pylist() == [None, None]
    gaps = pa.array([None, -1.0], pa.float32())
    table = weigh_rows([1, 2], [-1.0, -2.0], gaps, WeighSettings(scheme="quality"))
    assert table.column("log_diversity").to_pylist() == [None, -1.0]
    uniform = weigh_rows([1, 2], None, None, WeighSettings(scheme="uniform"))
    assert uniform.column("weight").to_pylist() == [1.0, 1.0]
    assert weigh_rows([], [], [], WeighSettings()).num_rows == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), None])
@pytest.mark.parametrize("field", ["log_quality", "log_diversity"])
def test_weigh_rows_name_the_row_that_is_not_finite(bad: float | None, field: str) -> None:
    values = {"log_quality": pa.array([-1.0, -1.0, -1.0]), "log_diversity": pa.array([-1.0, -1.0, -1.0])}
    values[field] = pa.array([-1.0, bad, -1.0], pa.float32())
    with pytest.raises(InputError, match=f"row 502, field '{field}': expected a finite log-probability") as caught:
        weigh_rows([501, 502, 503], values["log_quality"], values["log_diversity"], WeighSettings())
    assert caught.value.row == 502


def test_weigh_rows_refuse_what_does_not_fit() -> None:
    settings = WeighSettings()
    with pytest.raises(InputError, match="row 7, field 'id': expected each id once"):
        weigh_rows([7, 7], [-1.0, -1.0], [-1.0, -1.0], settings)
    with pytest.raises(InputError, match="expected 3 values, one an id, saw 2"):
        weigh_rows([1, 2, 3], [-1.0, -1.0], [-1.0, -1.0], settings)
    with pytest.raises(InputError, match=r"as many log_quality as log_diversity, saw \[1, 2\]"):
        weigh_rows([1, 2], [-1.0, -1.0], [-1.0], settings)
    with pytest.raises(InputError, match="scheme 'imp' needs them"):
        weigh_rows([1, 2], [-1.0, -1.0], None, settings)


def test_weigh_settings_are_checked() -> None:
    assert WeighSettings(weight_clip=False).weight_clip is None  # type: ignore[arg-type]
    assert WeighSettings(weight_clip=[0.2, 5]).weight_clip == (0.2, 5.0)  # type: ignore[arg-type]
    assert WeighSettings().log_clip() == pytest.approx((-math.log(10), math.log(10)))
    for bad in ({"weight_clip": (5, 0.2)}, {"weight_clip": (0, 1)}, {"gamma": -1}, {"scheme": "dimp"}, {"clip": 1}):
        with pytest.raises(ValidationError):
            WeighSettings(**bad)  # type: ignore[arg-type]
    assert len(WeighSettings.model_fields) <= 10
    assert all(field.description for field in WeighSettings.model_fields.values())
