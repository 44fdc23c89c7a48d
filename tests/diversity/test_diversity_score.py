from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.diversity import ScoreSettings, score_diversity, score_with_report
from obverse.engine.diversity import engines as engines_module
from obverse.engine.diversity import faiss as faiss_module
from obverse.engine.diversity.engines import Choice, choose
from obverse.engine.diversity.neighbours import nearest
from obverse.engine.errors import InputError, MissingPackageError
from obverse.engine.records.schemas import SCORES

faiss = pytest.importorskip("faiss")
Matrix = npt.NDArray[Any]


def table(values: Matrix, ids: Matrix | None = None, kind: pa.DataType | None = None) -> pa.Table:
    kind = kind or pa.float32()
    flat = pa.array(np.asarray(values).astype(kind.to_pandas_dtype()).reshape(-1), kind)
    column = pa.FixedSizeListArray.from_arrays(flat, np.asarray(values).shape[1])
    return pa.table({"id": np.arange(len(values)) if ids is None else ids, "vector": column})


def clustered(rows: int, dim: int = 32, seed: int = 0) -> Matrix:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(rows // 50, 2), dim))
    return centres[generator.integers(0, len(centres), rows)] + 0.4 * generator.normal(size=(rows, dim))


def brute_force(values: Matrix, k: int) -> tuple[Matrix, Matrix]:
    """Neighbour rows and cosines in float64: by similarity, ties to the lower row, never the row itself."""
    exact = np.asarray(values, np.float64)
    exact = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    cosines = exact @ exact.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.lexsort((np.broadcast_to(np.arange(len(exact)), cosines.shape), -cosines), axis=1)[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_flat_equals_brute_force(kind: pa.DataType) -> None:
    values = clustered(700).astype(kind.to_pandas_dtype())
    ids = np.arange(700)[::-1] * 5 + 1000
    told: list[int] = []
    scores, report = score_with_report(
        table(values, ids, kind), ScoreSettings(neighbours=7), seed=3, on_progress=told.append
    )
    order, cosines = brute_force(values, 7)
    assert scores.schema == SCORES
    assert scores["id"].to_pylist() == ids.tolist()
    assert scores["neighbour_ids"].to_pylist() == ids[order].tolist()
    np.testing.assert_allclose(scores["neighbour_similarities"].to_pylist(), cosines, atol=1e-6)
    np.testing.assert_allclose(scores["mean_knn_distance"].to_pylist(), 1 - cosines.mean(axis=1), atol=1e-6)
    assert sum(told) == 700
    assert (report.index, report.recall, report.rows, report.neighbours) == ("flat", 1.0, 700, 7)
    assert report.p99_error is not None
    assert report.p99_error < 1e-6
    assert "flat_limit" in report.reason


@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("copies", [3, 12, 40])
def test_self_is_left_out_by_id_among_duplicates(index: Any, copies: int) -> None:
    values = np.repeat(clustered(100), copies, axis=0)
    shuffled = np.random.default_rng(1).permutation(len(values))
    values = values[shuffled]
    scores = score_diversity(table(values), ScoreSettings(neighbours=10, index=index), seed=0)
    for row, found in enumerate(scores["neighbour_ids"].to_pylist()):
        assert len(found) == len(set(found)) == 10
        assert row not in found
        twins = [other for other in np.flatnonzero(shuffled // copies == shuffled[row] // copies) if other != row]
        assert found[: len(twins)] == twins[:10]
    expected = np.zeros(len(values)) if copies > 10 else None
    if expected is not None:
        np.testing.assert_allclose(scores["mean_knn_distance"].to_pylist(), expected, atol=1e-6)


def test_duplicates_and_ties_equal_brute_force() -> None:
    # Few different directions: groups of equal vectors at equal similarities, ties everywhere.
    generator = np.random.default_rng(0)
    values = generator.integers(-1, 2, size=(300, 4)).astype(np.float32)
    values = values[np.abs(values).sum(axis=1) == 1]  # unit axes: every cosine is exactly -1, 0 or 1
    scores = score_diversity(table(values), ScoreSettings(neighbours=25), seed=0)
    order, cosines = brute_force(values, 25)
    assert scores["neighbour_ids"].to_pylist() == order.tolist()
    np.testing.assert_array_equal(scores["neighbour_similarities"].to_pylist(), cosines)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 6), st.sampled_from(["flat", "ivf", "hnsw"]))
def test_small_sets(data: Any, rows: int, k: int, index: Any) -> None:
    cells = st.sampled_from([-2.0, -1.0, 1.0, 3.0])
    values = np.array(data.draw(st.lists(st.tuples(cells, cells, cells), min_size=rows, max_size=rows)))
    scores, report = score_with_report(table(values), ScoreSettings(neighbours=k, index=index), seed=0)
    _, cosines = brute_force(values, min(k, rows - 1))
    found = scores["neighbour_ids"].to_pylist()
    for row, own in enumerate(found):
        assert len(own) == len(set(own)) == min(k, rows - 1)
        assert row not in own
    if index == "flat" and rows > 1:
        np.testing.assert_allclose(scores["neighbour_similarities"].to_pylist(), cosines, atol=1e-6)
    assert report.neighbours == min(k, rows - 1)
    assert scores["cluster"].null_count == 0


def test_one_row_and_none() -> None:
    one = score_diversity(table(np.ones((1, 3))), ScoreSettings(), seed=0)
    assert one.to_pylist() == [
        {"id": 0, "neighbour_ids": [], "neighbour_similarities": [], "mean_knn_distance": None, "cluster": 0}
    ]
    none, report = score_with_report(table(np.ones((0, 3))), ScoreSettings(), seed=0)
    assert none.num_rows == 0
    assert none.schema == SCORES
    assert (report.recall, report.clusters) == (None, 0)


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_engines_say_how_far_off_they_are(index: Any) -> None:
    values = clustered(3000, 24)
    scores, report = score_with_report(table(values), ScoreSettings(index=index, probes=2, recall_sample=3000), seed=1)
    _, cosines = brute_force(values, 10)
    got = np.array(scores["neighbour_similarities"].to_pylist())
    recall = (got >= cosines[:, -1:] - 1e-6).mean()
    error = np.quantile(np.abs(got.mean(axis=1) - cosines.mean(axis=1)), 0.99)
    assert report.recall == pytest.approx(recall, abs=1e-4)
    assert report.p99_error == pytest.approx(error, abs=1e-5)
    assert recall > 0.3
    assert report.reason == "asked for by name"
    if index == "ivf":
        assert recall < 1.0  # two lists can't hold everything
        assert report.parameters == {"lists": 76, "probes": 2}


def test_rows_for_which_an_index_finds_too_few_are_searched_exactly() -> None:
    values = clustered(400, 16)
    _, report = score_with_report(table(values), ScoreSettings(index="ivf", probes=1, neighbours=300), seed=1)
    scores = score_diversity(table(values), ScoreSettings(index="ivf", probes=1, neighbours=300), seed=1)
    assert report.completed_rows > 0
    assert {len(found) for found in scores["neighbour_ids"].to_pylist()} == {300}
    assert report.recall == 1.0


@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])
def test_same_bytes_for_any_threads_and_threads_are_given_back(index: Any) -> None:
    values = table(clustered(2500))
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        results = [
            score_diversity(values, ScoreSettings(index=index, threads=threads), seed=5) for threads in (1, 2, 3, 1)
        ]
        assert faiss.omp_get_max_threads() == 2
        with faiss_module.threads(1) as inside:
            assert inside == faiss.omp_get_max_threads() == 1
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)
    assert all(result.equals(results[0]) for result in results)


def test_clusters_find_separate_groups_and_are_numbered_by_size() -> None:
    generator = np.random.default_rng(0)
    centres = np.eye(3, 8) * 5
    truth = np.array([2] * 90 + [0] * 60 + [1] * 30)
    values = centres[truth] + 0.1 * generator.normal(size=(180, 8))
    scores, report = score_with_report(table(values), ScoreSettings(clusters=3), seed=7)
    assert scores["cluster"].to_pylist() == [0] * 90 + [1] * 60 + [2] * 30
    assert report.clusters == 3
    assert score_with_report(table(np.ones((9, 2))), ScoreSettings(clusters=4), seed=0)[1].clusters == 1
    auto = score_with_report(table(values), ScoreSettings(), seed=7)[1]
    assert 1 <= auto.clusters <= 7  # sqrt(180) / 2 = 6.7


def test_faiss_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    score_diversity(table(clustered(60)), ScoreSettings(clusters=30), seed=0)
    score_diversity(table(clustered(500)), ScoreSettings(index="ivf"), seed=0)
    assert capfd.readouterr() == ("", "")


def test_choice() -> None:
    assert choose(ScoreSettings(), 200_000).index == "flat"
    above = choose(ScoreSettings(), 200_001)
    assert (above.index, above.parameters) == ("ivf", {"lists": 1789, "probes": 32})
    assert "above flat_limit (200,000)" in above.reason
    assert choose(ScoreSettings(index="hnsw"), 5).index == "hnsw"
    assert choose(ScoreSettings(flat_limit=0), 50).parameters == {"lists": 1, "probes": 1}
    assert len(ScoreSettings.model_fields) <= 10


def test_another_engine_slots_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that never names the row itself, leaves gaps and has no order still gives exact answers."""
    values = clustered(300).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)

    def engine(base: Matrix, k: int, on_rows: Any) -> Matrix:
        found = brute_force(base, k)[0][:, ::-1].copy()
        found[::7, 0] = -1
        on_rows(len(base))
        return found

    monkeypatch.setattr(engines_module.faiss, "search_flat", engine)
    for all_rows in (values, np.repeat(values, 2, axis=0)):
        got = nearest(all_rows, 10, Choice("flat", "", {}), seed=0)
        order, cosines = brute_force(all_rows, 10)
        np.testing.assert_allclose(got.similarities, cosines, atol=1e-6)
        np.testing.assert_array_equal(got.indices, order)


def test_bad_vectors_and_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    good = np.ones((3, 2))
    for bad in ([0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]):
        values = good.copy()
        values[1] = bad
        with pytest.raises(InputError, match="id 11"):
            score_diversity(table(values, np.array([10, 11, 12])), ScoreSettings(), seed=0)
    with pytest.raises(InputError, match=r"unique.*4"):
        score_diversity(table(good, np.array([4, 4, 5])), ScoreSettings(), seed=0)
    with pytest.raises(InputError, match="'vector'"):
        score_diversity(pa.table({"id": [1], "vector": [[1.0]]}), ScoreSettings(), seed=0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPackageError, match="obverse"):
        score_diversity(table(good), ScoreSettings(), seed=0)
