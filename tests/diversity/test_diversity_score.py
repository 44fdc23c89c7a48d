from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.diversity import ScoreSettings, score_diversity, score_with_report
from obverse.engine.diversity import faiss as faiss_module
from obverse.engine.diversity.clusters import cluster
from obverse.engine.errors import InputError, MissingPackageError
from obverse.engine.records.schemas import SCORES

faiss = pytest.importorskip("faiss")
Matrix = npt.NDArray[Any]
LOOSE = {"recall": 0.01, "max_score_error": 2.0}


def by_faiss(index: str, **settings: Any) -> ScoreSettings:
    return ScoreSettings(engine="faiss", faiss_index=index, **settings)


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
def test_scores_equal_brute_force(kind: pa.DataType) -> None:
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
    assert (report.engine, report.recall, report.rows, report.neighbours) == ("exact", None, 700, 7)
    assert (report.score_error, report.duplicates) == (None, None)
    assert "700 rows" in report.reason
    assert report.peak_memory > 2**24
    for name in ("novelty", "label_mean_knn_distance", "duplicate_group", "duplicate_kept"):
        assert scores[name].null_count == 700


@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("copies", [3, 12, 40])
def test_self_is_left_out_by_id_among_duplicates(index: Any, copies: int) -> None:
    values = np.repeat(clustered(100), copies, axis=0)
    shuffled = np.random.default_rng(1).permutation(len(values))
    values = values[shuffled]
    scores = score_diversity(table(values), by_faiss(index, **LOOSE), seed=0)
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


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 6), st.sampled_from(["exact", "flat", "ivf", "rabitq", "hnsw"]))
def test_small_sets(data: Any, rows: int, k: int, index: Any) -> None:
    cells = st.sampled_from([-2.0, -1.0, 1.0, 3.0])
    values = np.array(data.draw(st.lists(st.tuples(cells, cells, cells), min_size=rows, max_size=rows)))
    settings = ScoreSettings(neighbours=k) if index == "exact" else by_faiss(index, neighbours=k, **LOOSE)
    scores, report = score_with_report(table(values), settings, seed=0)
    _, cosines = brute_force(values, min(k, rows - 1))
    found = scores["neighbour_ids"].to_pylist()
    for row, own in enumerate(found):
        assert len(own) == len(set(own)) == min(k, rows - 1)
        assert row not in own
    if index in ("exact", "flat") and rows > 1:
        np.testing.assert_allclose(scores["neighbour_similarities"].to_pylist(), cosines, atol=1e-6)
    assert report.neighbours == min(k, rows - 1)
    assert scores["cluster"].null_count == 0


def test_one_row_and_none() -> None:
    one = score_diversity(table(np.ones((1, 3))), ScoreSettings(), seed=0)
    (row,) = one.to_pylist()
    filled = {"id": 0, "neighbour_ids": [], "neighbour_similarities": [], "cluster": 0}
    assert {name: row[name] for name in filled} == filled
    assert {name for name, value in row.items() if value is None} == set(SCORES.names) - set(filled)
    none, report = score_with_report(table(np.ones((0, 3))), ScoreSettings(), seed=0)
    assert none.num_rows == 0
    assert none.schema == SCORES
    assert (report.recall, report.clusters) == (None, 0)


@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])
def test_same_bytes_for_any_threads_and_threads_are_given_back(index: Any) -> None:
    values = table(clustered(2500))
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        results = [
            score_diversity(values, by_faiss(index, threads=threads, **LOOSE), seed=5) for threads in (1, 2, 3, 1)
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


def test_clusters_of_more_rows_than_a_block() -> None:
    truth = np.arange(33_000) % 3 == 0
    values = np.where(truth[:, None], [[1.0, 0.1]], [[0.1, 1.0]]).astype(np.float16)
    assert cluster(values, 2, 5, 0).tolist() == truth.astype(int).tolist()


def test_faiss_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    score_diversity(table(clustered(60)), ScoreSettings(clusters=30), seed=0)
    score_diversity(table(clustered(500)), by_faiss("ivf"), seed=0)
    assert capfd.readouterr() == ("", "")


def test_density_is_minus_ln_of_the_local_outlier_factor() -> None:
    values = clustered(300, 8)
    values[7] *= -1  # an outlier
    scores = score_diversity(table(values), ScoreSettings(neighbours=5), seed=0)
    order, cosines = brute_force(values.astype(np.float32), 5)
    expected = []
    distances = 1 - cosines
    reached = [[max(distances[row, i], distances[o, -1]) for i, o in enumerate(order[row])] for row in range(300)]
    density = [1 / np.mean(row) for row in reached]
    for row in range(300):
        expected.append(-np.log(np.mean([density[o] for o in order[row]]) / density[row]))
    # A distance is off by half an ulp of its cosine, 2^-25; a density by that over the least distance, twice in all.
    error = 2 * 2**-25 / np.min(reached) + np.abs(expected) * 2**-24
    assert (np.abs(scores["local_density"].to_numpy() - expected) <= error + 1e-9).all()
    assert int(np.argmin(scores["local_density"].to_numpy())) == 7
    equal = score_diversity(table(np.ones((20, 3))), ScoreSettings(), seed=0)
    np.testing.assert_allclose(equal["local_density"].to_pylist(), 0, atol=1e-12)


def test_novelty_is_the_distance_to_the_nearest_real_row() -> None:
    values, real = clustered(200, seed=1), clustered(90, seed=2)
    scores = score_diversity(table(values), ScoreSettings(), seed=0, real=table(real))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (values, real)]
    np.testing.assert_allclose(scores["novelty"].to_pylist(), 1 - (unit[0] @ unit[1].T).max(axis=1), atol=1e-6)


def test_label_distance_is_over_neighbours_of_the_same_label() -> None:
    values = clustered(240)
    names = np.random.default_rng(0).choice(["a", "b", "c"], 240).tolist()
    names[5], names[6], names[8] = "alone", None, None
    ids = np.arange(240) * 3 + 7
    shuffled = np.random.default_rng(1).permutation(240)
    labels = pa.table({"id": ids[shuffled], "label": [names[i] for i in shuffled]})
    scores = score_diversity(table(values, ids), ScoreSettings(neighbours=4), seed=0, labels=labels)
    got = scores["label_mean_knn_distance"].to_pylist()
    assert got[5] is None
    assert got[6] is got[8] is None
    for name in "abc":
        rows = [row for row, own in enumerate(names) if own == name]
        expected = 1 - brute_force(values[rows], 4)[1].mean(axis=1)
        np.testing.assert_allclose([got[row] for row in rows], expected, atol=1e-6)
    with pytest.raises(InputError, match="none for id 7"):
        score_diversity(
            table(values, ids), ScoreSettings(), seed=0, labels=labels.filter(pc.not_equal(labels["id"], 7))
        )


def test_duplicates_are_grouped_and_chains_kept() -> None:
    angles = np.array([0.0, 90.0, 2.0, 4.0, 180.0, 90.5, 270.0])  # 0-2-4 is a chain, 90-90.5 a pair
    values = np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1)
    ids = np.arange(7) + 100
    scores, report = score_with_report(
        table(values, ids), ScoreSettings(duplicates=float(np.cos(np.radians(3)))), seed=0
    )
    assert scores["duplicate_group"].to_pylist() == [100, 101, 100, 100, 104, 101, 106]
    assert scores["duplicate_kept"].to_pylist() == [True, True, False, True, True, False, True]
    assert report.duplicates is not None
    assert (report.duplicates["kept"], report.duplicates["groups"], report.duplicates["pairs"]) == (5, 2, 3)
    assert report.as_json()["duplicates"]["threshold"] == pytest.approx(0.99863, abs=1e-5)


def test_batches_are_the_table() -> None:
    from obverse.engine.diversity.score import score_rows
    from obverse.engine.diversity.vectors import open_vectors

    scores, _ = score_rows(open_vectors(table(clustered(101), np.arange(101)[::-1])), ScoreSettings(), seed=0)
    parts = list(scores.batches(25))
    assert [part.num_rows for part in parts] == [25, 25, 25, 25, 1]
    assert pa.concat_tables(parts).equals(scores.table())
    assert scores.table().equals(score_diversity(table(clustered(101), np.arange(101)[::-1]), ScoreSettings(), seed=0))


def test_settings_are_few() -> None:
    assert len(ScoreSettings.model_fields) <= 10


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
        score_diversity(pa.table({"id": [1], "vector": ["1.0"]}), ScoreSettings(), seed=0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPackageError, match="obverse"):
        score_diversity(table(good), ScoreSettings(), seed=0)
