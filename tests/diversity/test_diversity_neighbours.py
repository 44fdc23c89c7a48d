"""`obverse.neighbours`: one result of several engines, and no approximate answer taken for an exact one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from obverse import neighbours
from obverse.engine.diversity import engines
from obverse.engine.diversity.engines import Job, Outcome, choose
from obverse.engine.diversity.estimate import Estimate, sample_rows
from obverse.engine.diversity.neighbours import ApproximationWarning, _missed, join, pairs_above, self_join
from obverse.engine.errors import InputError
from obverse.engine.records.keys import derive_seed

Matrix = npt.NDArray[Any]


def vectors(rows: int, dim: int = 16, dtype: Any = np.float16) -> Matrix:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(rows // 30, 2), dim))
    return (centres[generator.integers(0, len(centres), rows)] + 0.5 * generator.normal(size=(rows, dim))).astype(dtype)


def cosines(x: Matrix, y: Matrix) -> Matrix:
    wide = [values.astype(np.float64) for values in (x, y)]
    one, other = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in wide)
    return (one @ other.T).astype(np.float32)


def first(values: Matrix, k: int) -> tuple[Matrix, Matrix]:
    order = np.lexsort((np.broadcast_to(np.arange(values.shape[1]), values.shape), -values), axis=1)[:, :k]
    return order, np.take_along_axis(values, order, axis=1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("rows", "k"), [(1, 3), (2, 1), (2, 5), (37, 36), (37, 100), (500, 10)])
def test_exact_equals_brute_force(rows: int, k: int, dtype: Any) -> None:
    x = vectors(rows, dtype=dtype)
    told: list[int] = []
    said: list[str] = []
    got = self_join(x, k, on_progress=told.append, say=said.append)
    square = cosines(x, x)
    np.fill_diagonal(square, -np.inf)
    order, values = first(square, min(k, rows - 1))
    np.testing.assert_array_equal(got.indices, order)
    np.testing.assert_array_equal(got.similarities, values)
    assert (got.indices.dtype, got.similarities.dtype) == (np.int64, np.float32)
    assert (got.engine, got.is_exact, got.recall, got.score_error) == ("exact", True, None, None)
    assert rows == 1 or (sum(told) == rows and said == [f"exact: {got.reason}"])


def test_join_of_two_sets() -> None:
    x, y = vectors(60), vectors(90, dtype=np.float32)
    got = join(x, y, 7)
    order, values = first(cosines(x, y), 7)
    np.testing.assert_array_equal(got.indices, order)
    np.testing.assert_array_equal(got.similarities, values)
    assert join(x, y, 200).indices.shape == (60, 90)
    with pytest.raises(InputError, match="rows of 16 values"):
        join(x, vectors(5, 3))


def test_pairs_above_a_threshold() -> None:
    x, y = vectors(80), vectors(50, dtype=np.float32)
    near = cosines(x, x) >= np.float32(0.6)
    got = pairs_above(x, 0.6)
    np.testing.assert_array_equal(np.stack([got.i, got.j], axis=1), np.argwhere(np.triu(near, 1)))
    np.testing.assert_array_equal(got.similarities, cosines(x, x)[got.i, got.j])
    other = pairs_above(x, 0.1, y)
    np.testing.assert_array_equal(np.stack([other.i, other.j], axis=1), np.argwhere(cosines(x, y) >= np.float32(0.1)))
    with pytest.raises(InputError, match="at most 3 pairs"):
        pairs_above(x, -1.0, max_pairs=3)


def test_a_join_that_is_stopped_goes_on(tmp_path: Path) -> None:
    x = vectors(9000, 8)
    whole = self_join(x, 5)

    told: list[int] = []

    def stop(count: int) -> None:
        told.append(count)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        self_join(x, 5, checkpoint=tmp_path / "join", on_progress=stop)
    assert 0 < sum(told) < 9000
    assert [path.name for path in (tmp_path / "join").iterdir()] == ["exact_join.npz"]
    with pytest.raises(InputError, match="join"):
        self_join(x[1:], 5, checkpoint=tmp_path / "join")
    again: list[int] = []
    got = self_join(x, 5, checkpoint=str(tmp_path / "join"), on_progress=again.append)
    assert sum(again) == 9000
    assert len(again) < 3  # the first tells of what was done before
    np.testing.assert_array_equal(got.indices, whole.indices)
    np.testing.assert_array_equal(got.similarities, whole.similarities)
    assert got.certificate is not None
    assert got.certificate.pairs == 9000 * 8999 // 2


@pytest.mark.parametrize("index", ["flat", "ivf", "rabitq", "hnsw"])
def test_what_is_measured_is_what_is_true(index: str) -> None:
    x = vectors(1500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximationWarning)
        got = self_join(x, 10, engine="faiss", faiss_index=index, recall=0.5, sample=10_000)
    square = cosines(x, x)
    np.fill_diagonal(square, -np.inf)
    truth = first(square, 10)[1]
    recall = (got.similarities >= truth[:, -1:]).mean()
    errors = np.abs(got.similarities.mean(axis=1, dtype=np.float64) - truth.mean(axis=1, dtype=np.float64))
    assert got.recall is not None
    assert got.score_error is not None
    assert got.recall.value == got.recall.low == got.recall.high == pytest.approx(recall, abs=1e-12)
    assert got.recall.sample == 1500
    assert got.score_error.value == pytest.approx(np.sort(errors)[1484], abs=1e-12)
    assert (got.engine, got.reason, got.parameters["index"]) == ("faiss", "asked for by name", index)
    assert got.certificate is None
    part = self_join(x, 10, engine="faiss", faiss_index=index, recall=0.01, max_score_error=2, sample=400)
    assert part.recall is not None
    assert part.recall.sample == 400
    assert part.recall.low < part.recall.high
    rows = sample_rows(1500, 400, derive_seed(derive_seed(0, "neighbours"), "measure"))
    assert part.recall.value == pytest.approx((part.similarities >= truth[:, -1:])[rows].mean(), abs=1e-12)
    none = self_join(x, 10, engine="faiss", faiss_index=index, recall=0.99, sample=0)
    assert (none.recall, none.score_error) == (None, None)


def spoiled(share: float, by: float) -> Any:
    """An engine that loses the last neighbour of a share of the rows, or its place is `by` too low."""

    def run(job: Job) -> Outcome:
        outcome = engines.run_engine("exact", job)
        values = outcome.similarities.copy()
        bad = np.random.default_rng(0).random(len(values)) < share
        values[bad, -1] -= np.float32(by)
        return Outcome(outcome.indices, values, {"spoiled": True})

    return run


@pytest.mark.parametrize(
    ("share", "by", "named"), [(0.3, 1e-3, "a recall of 0.9"), (0.02, 0.5, "a p99 error of the score of 0.05")]
)
def test_an_answer_that_misses_what_was_asked_is_never_given_silently(
    monkeypatch: pytest.MonkeyPatch, share: float, by: float, named: str
) -> None:
    x = vectors(1200)
    monkeypatch.setattr(engines, "_descent", spoiled(share, by))
    with pytest.warns(ApproximationWarning, match=named):
        got = self_join(x, engine="descent")
    assert got.engine == "descent"
    monkeypatch.setattr(engines, "_ALWAYS_EXACT", 100)
    monkeypatch.setattr(engines, "predicted_seconds", lambda _job: 1e6)
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = self_join(x, say=said.append)
    assert (got.engine, got.recall, len(said)) == ("exact", None, 2)
    assert said[0].startswith("descent: ")
    assert "above 900 s" in got.reason
    assert f"but descent had {named}" in got.reason
    square = cosines(x, x)
    np.fill_diagonal(square, -np.inf)
    np.testing.assert_array_equal(got.similarities, first(square, 10)[1])
    monkeypatch.setattr(engines, "_descent", spoiled(0.0, 0.0))
    good = self_join(x)
    assert (good.engine, good.parameters) == ("descent", {"spoiled": True})
    assert good.recall is not None
    assert good.recall.value == 1.0


def test_what_is_asked_is_held_against_the_measured_value_and_not_its_interval() -> None:
    good = Estimate(0.0, 0.0, 0.02, 500)
    assert "a recall of 0.9890" in _missed((Estimate(0.989, 0.98, 0.995, 500), good), 0.99, 0.01)
    assert "error of the score of 0.0110" in _missed(
        (Estimate(0.995, 0.98, 1.0, 500), Estimate(0.011, 0.0, 0.02, 500)), 0.99, 0.01
    )
    assert not _missed((Estimate(0.99, 0.98, 0.995, 500), Estimate(0.01, 0.0, 0.02, 500)), 0.99, 0.01)


def test_choice_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    x = vectors(2000)
    assert choose("auto", Job(x, 10)).engine == "exact"
    assert choose("faiss", Job(x, 10)).reason == "asked for by name"
    with pytest.raises(InputError, match="one of auto, exact, faiss, descent"):
        self_join(x, engine="tree")  # type: ignore[arg-type]
    monkeypatch.setattr(engines, "_ALWAYS_EXACT", 1999)
    monkeypatch.setattr(engines, "_CALIBRATION", (300, 900))
    fits = choose("auto", Job(x, 10))
    assert fits.engine == "exact"
    assert "predicted from samples" in fits.reason
    monkeypatch.setattr(engines, "_EXACT_SECONDS", 0.0)
    assert choose("auto", Job(x, 10)).engine == "descent"
    monkeypatch.setattr(engines.faiss, "num_gpus", lambda: 2)
    gpu = choose("auto", Job(x, 10))
    assert gpu.engine == "faiss"
    assert gpu.reason.endswith("there is a GPU")


def test_seconds_are_predicted_as_a_line_and_a_square(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def timed(part: Matrix, _k: int, **_: Any) -> None:
        clock[0] += 2e-4 * len(part) + 3e-7 * len(part) ** 2

    monkeypatch.setattr(engines.exact, "self_join", timed)
    monkeypatch.setattr(engines.time, "perf_counter", lambda: clock[0])
    got = engines.predicted_seconds(Job(np.ones((100_000, 2), np.float32), 10))
    assert got == pytest.approx(2e-4 * 1e5 + 3e-7 * 1e10)


def test_bad_input() -> None:
    good = vectors(20, 4)
    for bad, value in ((3, np.nan), (7, np.inf), (11, 0.0)):
        x = good.copy()
        x[bad] = value
        with pytest.raises(InputError, match=f"row {bad}"):
            self_join(x)
        with pytest.raises(InputError, match=f"row {bad}"):
            join(good, x)
    for values, match in (
        (good.astype(np.float64), "float16 or float32.*float64"),
        (good[:, ::2], "C-contiguous"),
        (good[0], "2-D"),
        (good[:0], "at least one"),
        ([[1.0]], "2-D"),
    ):
        with pytest.raises(InputError, match=match):
            self_join(values)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"field 'k'.*at least 1, saw 0"):
        self_join(good, 0)


def test_public_names() -> None:
    import obverse

    assert obverse.neighbours is neighbours
    assert neighbours.__all__ == sorted(neighbours.__all__)
    assert all(hasattr(neighbours, name) for name in neighbours.__all__)
