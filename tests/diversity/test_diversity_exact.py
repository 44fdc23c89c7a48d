"""The exact joins against the cosine's definition written out in numpy: same bits, whatever the input."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from obverse import _core
from obverse.engine.diversity import exact
from obverse.engine.diversity.exact_sides import prepare
from obverse.engine.errors import InputError

Matrix = npt.NDArray[Any]
KERNELS = ("auto", "avx2", "portable")
KINDS = ("iso", "clustered", "duplicates", "near", "grid", "equal")


def fresh() -> np.random.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def _lane_sums(lanes: Matrix) -> Matrix:
    for width in (8, 4, 2, 1):
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return lanes[..., 0]


def cosines(x: Matrix, y: Matrix) -> npt.NDArray[np.float32]:
    """By the definition in csrc/include/obverse/quantised.hpp: sixteen lanes in float64, rounded once."""
    wide = -(-x.shape[1] // 16) * 16
    one, other = np.zeros((len(x), wide)), np.zeros((len(y), wide))
    one[:, : x.shape[1]], other[:, : y.shape[1]] = x, y
    norms = []
    for rows in (one, other):
        lanes = np.zeros((len(rows), 16))
        for c in range(0, wide, 16):
            lanes += rows[:, c : c + 16] ** 2
        norms.append(np.sqrt(_lane_sums(lanes)))
    out = np.empty((len(x), len(y)), np.float32)
    step = max(1, 2_000_000 // (16 * max(len(y), 1)))
    for low in range(0, len(x), step):
        lanes = np.zeros((len(one[low : low + step]), len(y), 16))
        for c in range(0, wide, 16):
            lanes += one[low : low + step, None, c : c + 16] * other[None, :, c : c + 16]
        out[low : low + step] = _lane_sums(lanes) / (norms[0][low : low + step, None] * norms[1][None])
    return out


def nearest(values: npt.NDArray[np.float32], k: int, own: bool) -> tuple[Matrix, Matrix]:
    values = values.copy()
    if own:
        np.fill_diagonal(values, -np.inf)
    order = np.argsort(-values, axis=1, kind="stable")[:, : min(k, values.shape[1] - own)]
    return order, np.take_along_axis(values, order, axis=1)


def rows_of(kind: str, n: int, d: int, dtype: Any, rng: np.random.Generator) -> Matrix:
    few = max(1, n // 7)
    if kind == "clustered":
        x = rng.standard_normal((few, d))[rng.integers(0, few, n)]
        x = x + rng.standard_normal((n, d)) * 10.0 ** -rng.uniform(0, 5)
    elif kind == "duplicates":
        x = rng.standard_normal((few, d))[rng.integers(0, few, n)]
    elif kind == "near":  # cosines that differ by 1e-7, many equal when rounded
        x = rng.standard_normal((1, d)) + rng.standard_normal((n, d)) * 3e-4
    elif kind == "grid":
        x = rng.integers(-1, 2, (n, d)).astype(np.float64)
    elif kind == "equal":
        x = np.repeat(rng.standard_normal((1, d)), n, axis=0)
    else:
        x = rng.standard_normal((n, d))
    if kind not in ("duplicates", "equal"):  # norms from tiny to huge
        x = x * np.exp(np.clip(rng.normal(0, 1 if dtype == np.float16 else 15, (n, 1)), -60, 60))
    x = x.astype(dtype)
    x[~np.isfinite(x).all(axis=1) | (x == 0).all(axis=1)] = 1
    return x


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_self_joins_are_the_definition_to_the_bit(kind: str, kernel: Any) -> None:
    rng = fresh()
    for n in (2, 9, int(rng.integers(400, 600))):
        d, k = int(rng.choice([1, 2, 15, 64, 65, 130])), int(rng.choice([1, 10, 33, 2000]))
        dtype = rng.choice([np.float16, np.float32])
        x = rows_of(kind, n, d, dtype, rng)
        indices, similarities, proved = exact.self_join(x, k, kernel=kernel, threads=int(rng.integers(1, 4)))
        expected, values = nearest(cosines(x, x), k, True)
        np.testing.assert_array_equal(similarities, values)
        np.testing.assert_array_equal(indices, expected)
        distinct = len(np.unique(x.view(np.uint16 if dtype == np.float16 else np.uint32), axis=0))
        assert proved.distinct_rows == distinct
        assert proved.pairs in (distinct * (distinct - 1) // 2, 0 if distinct == 1 else -1)


@pytest.mark.parametrize("kind", KINDS)
def test_joins_are_the_definition_to_the_bit(kind: str) -> None:
    rng = fresh()
    for n, m in ((1, 700), (300, 1), (150, int(rng.integers(900, 1300)))):
        d, k = int(rng.choice([1, 3, 64, 100])), int(rng.choice([1, 10, 1500]))
        dtype = rng.choice([np.float16, np.float32])
        x, y = rows_of(kind, n, d, dtype, rng), rows_of(kind, m, d, dtype, rng)
        shared = rng.integers(0, n, m // 2)
        y[: len(shared)] = x[shared]
        indices, similarities, _ = exact.join(x, y, k, kernel=rng.choice(KERNELS), threads=int(rng.integers(1, 4)))
        expected, values = nearest(cosines(x, y), k, False)
        np.testing.assert_array_equal(similarities, values)
        np.testing.assert_array_equal(indices, expected)


def test_bands_and_tiles_meet_every_pair() -> None:
    # More rows than a band of 4096, so that edges of bands, parts and tiles are crossed.
    rng = fresh()
    n = 4096 + int(rng.integers(1, 1500))
    x = rows_of("clustered", n, 24, np.float32, rng)
    indices, similarities, proved = exact.self_join(x, 5)
    some = rng.choice(n, 200, replace=False)
    values = cosines(x[some], x)
    values[np.arange(len(some)), some] = -np.inf
    order = np.argsort(-values, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(indices[some], order)
    np.testing.assert_array_equal(similarities[some], np.take_along_axis(values, order, axis=1))
    assert proved.pairs == proved.distinct_rows * (proved.distinct_rows - 1) // 2


def test_order_of_work_threads_kernels_and_seeds_change_nothing() -> None:
    rng = fresh()
    x = rows_of("clustered", 5000, 40, np.float16, rng)
    first = exact.self_join(x, 7, threads=1)[:2]
    random_seeds = rng.integers(-5, 5100, (5000, 3))
    true_seeds = first[0]
    for how in ({"threads": 3}, {"kernel": "portable"}, {"seeds": random_seeds}, {"seeds": true_seeds, "threads": 2}):
        again = exact.self_join(x, 7, **how)[:2]
        for a, b in zip(first, again, strict=True):
            assert a.tobytes() == b.tobytes(), how
    # Bands in another order.
    side = prepare(x, threads=1, isa=2)[0]
    work = _core.TopKJoin(
        side.arrays, None, side.quantised.scale, side.distinct, np.empty(0, np.int32), 7, 1, 2
    )  # fmt: skip
    work.seed_by_trees(1, 0, 5)
    work.start()
    for band in reversed(range(work.steps)):
        work.step(band)
    np.testing.assert_array_equal(work.indices, first[0])


def test_a_bound_without_its_error_term_is_caught() -> None:
    # The test's own test: with the proved error left out, pairs are lost. 1500 rows whose cosines lie within 1e-3.
    rng = fresh()
    x = rows_of("near", 1500, 64, np.float32, rng)
    side = prepare(x, threads=1, isa=2)[0]
    values = cosines(x, x)[np.triu_indices(1500, 1)]
    threshold = float(np.median(values))
    counted = []
    for error in (side.quantised.error, np.zeros_like(side.quantised.error)):
        arrays = (x, side.quantised.norms, side.quantised.q, error)
        nobody = np.empty(0, np.int32)
        work = _core.ThresholdJoin(
            arrays, None, side.quantised.scale, side.distinct, nobody, threshold, 10**7, 1, 2
        )  # fmt: skip
        work.step(0)
        counted.append(work.total)
    truth = int((values >= np.float32(threshold)).sum())
    assert counted[0] == truth
    assert counted[1] < truth


def test_many_equal_rows_stay_cheap() -> None:
    rng = fresh()
    x = rng.standard_normal((50_000, 16)).astype(np.float32)
    equal = rng.choice(50_000, 20_000, replace=False)
    x[equal] = x[equal[0]]
    indices, similarities, proved = exact.self_join(x, 10)
    assert proved.distinct_rows == 30_001
    assert proved.evaluated < 100 * 30_001
    low = np.sort(equal)[:11]
    for row in rng.choice(equal, 50):
        np.testing.assert_array_equal(indices[row], low[low != row][:10])
        assert (similarities[row] == 1).all()
    others = rng.choice(np.setdiff1d(np.arange(50_000), equal), 50, replace=False)
    values = cosines(x[others], x)
    values[np.arange(50), others] = -np.inf
    np.testing.assert_array_equal(indices[others], np.argsort(-values, axis=1, kind="stable")[:, :10])


def test_ties_between_groups_of_equal_rows_go_by_row() -> None:
    # Few distinct vectors on a grid: groups of two or three rows, many at the same cosine of another.
    rng = fresh()
    for _ in range(30):
        x = rng.integers(-1, 2, (int(rng.integers(40, 160)), 4)).astype(np.float32)
        x[(x == 0).all(axis=1)] = 1
        k = int(rng.integers(3, 12))
        indices, similarities, _ = exact.self_join(x, k, threads=1)
        expected, values = nearest(cosines(x, x), k, True)
        np.testing.assert_array_equal(similarities, values)
        np.testing.assert_array_equal(indices, expected)


def test_sizes_without_neighbours() -> None:
    for n, k, shape in ((0, 3, (0, 0)), (1, 3, (1, 0)), (2, 5, (2, 1)), (4, 0, (4, 0))):
        indices, similarities, _ = exact.self_join(np.ones((n, 3), np.float32), k)
        assert indices.shape == similarities.shape == shape
    assert exact.join(np.ones((0, 3), np.float32), np.ones((4, 3), np.float32), 2)[0].shape == (0, 2)
    assert exact.join(np.ones((4, 3), np.float32), np.ones((0, 3), np.float32), 2)[0].shape == (4, 0)


def test_a_memory_map_is_read_as_it_lies(tmp_path: Any) -> None:
    rng = fresh()
    x = rng.standard_normal((500, 20)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for a, b in zip(exact.self_join(x, 4)[:2], exact.self_join(mapped, 4)[:2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_rows_are_named() -> None:
    x = np.ones((50, 4), np.float32)
    for value in (np.nan, np.inf, -np.inf):
        bad = x.copy()
        bad[17, 2] = value
        with pytest.raises(InputError, match=r"row 17, field 'x'.*finite"):
            exact.self_join(bad, 3)
        with pytest.raises(InputError, match=r"row 17, field 'y'.*finite"):
            exact.join(x, bad, 3)
    bad = x.copy()
    bad[9] = 0
    with pytest.raises(InputError, match=r"row 9.*not all of them zero.*saw 0\.0"):
        exact.self_join(bad, 3)
    for wrong in (x.astype(np.float64), x[0], x[:, ::2], x.astype(">f4"), [[1.0]]):
        with pytest.raises(InputError, match="field 'x'"):
            exact.self_join(wrong, 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"field 'y'.*the same dtype"):
        exact.join(x, x.astype(np.float16), 3)
    with pytest.raises(InputError, match="field 'k'"):
        exact.self_join(x, -1)
    with pytest.raises(InputError, match="field 'kernel'"):
        exact.self_join(x, 1, kernel="neon")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="field 'seeds'"):
        exact.self_join(x, 1, seeds=np.zeros((3, 3), np.int64))


def test_progress_adds_up_to_all_rows() -> None:
    rng = fresh()
    told: list[int] = []
    exact.self_join(rng.standard_normal((9000, 8)).astype(np.float32), 3, on_progress=told.append)
    assert sum(told) == 9000
    assert len(told) > 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_are_ranked_by_the_definition(kernel: Any) -> None:
    rng = fresh()
    for d, dtype in ((1, np.float16), (17, np.float32), (384, np.float16)):
        x = rows_of(str(rng.choice(KINDS)), 200, d, dtype, rng)
        given = rng.integers(-3, 205, (200, 30))
        indices, similarities = exact.rank_candidates(x, given, 12, kernel=kernel, threads=2)
        values = cosines(x, x)
        for row in range(200):
            own = np.unique(given[row])
            own = own[(own >= 0) & (own < 200) & (own != row)]
            order = own[np.lexsort((own, -values[row, own]))][:12]
            np.testing.assert_array_equal(indices[row, : len(order)], order)
            np.testing.assert_array_equal(similarities[row, : len(order)], values[row, order])
            assert (indices[row, len(order) :] == -1).all()
            assert np.isneginf(similarities[row, len(order) :]).all()


def _pairs(values: npt.NDArray[np.float32], threshold: float, own: bool) -> tuple[Matrix, Matrix, Matrix]:
    above = values >= np.float32(threshold)
    i, j = np.nonzero(np.triu(above, 1) if own else above)
    return i, j, values[i, j]


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_above_are_all_pairs_above(kind: str) -> None:
    rng = fresh()
    for n, m in ((2, 1), (int(rng.integers(200, 350)), int(rng.integers(300, 1100)))):
        d, dtype = int(rng.choice([1, 5, 64, 130])), rng.choice([np.float16, np.float32])
        x, y = rows_of(kind, n, d, dtype, rng), rows_of(kind, m, d, dtype, rng)
        shared = rng.integers(0, n, m // 2)
        y[: len(shared)] = x[shared]
        values, across = cosines(x, x), cosines(x, y)
        # A threshold that is some pair's own cosine: the edge belongs to the pairs.
        for threshold in (-1.0, 0.9, 1.0, float(values[0, -1]) if abs(values[0, -1]) <= 1 else 0.5):
            how: dict[str, Any] = {"kernel": rng.choice(KERNELS), "threads": int(rng.integers(1, 4))}
            for found, expected in (
                (exact.pairs_above(x, threshold, **how), _pairs(values, threshold, True)),
                (exact.pairs_above(x, y, threshold, **how), _pairs(across, threshold, False)),
            ):
                for a, b in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(a, b)


def test_too_many_pairs_name_the_fullest_row() -> None:
    rng = fresh()
    x = rng.standard_normal((300, 20)).astype(np.float32)
    x[100:140] = x[7] + rng.standard_normal((40, 20)).astype(np.float32) * 1e-3
    assert len(exact.pairs_above(x, 0.99, max_pairs=820).i) == 820
    with pytest.raises(InputError, match=r"row \d+, field 'x'.*at most 819 pairs.*in 40\).*raise the threshold"):
        exact.pairs_above(x, 0.99, max_pairs=819)
    x[100:140] = x[7]  # equal rows count too
    with pytest.raises(InputError, match=r"row 7, .*in 40\)"):
        exact.pairs_above(x, 0.99, max_pairs=819)
    for wrong in (1.5, float("nan"), None):
        with pytest.raises(InputError, match="field 'threshold'"):
            exact.pairs_above(x, x, wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_balls_are_counted(kind: str) -> None:
    rng = fresh()
    for n, m in ((1, 1), (int(rng.integers(150, 300)), int(rng.integers(200, 1100)))):
        d, dtype = int(rng.choice([1, 5, 64, 130])), rng.choice([np.float16, np.float32])
        x, y = rows_of(kind, n, d, dtype, rng), rows_of(kind, m, d, dtype, rng)
        shared = rng.integers(0, n, m // 2)
        y[: len(shared)] = x[shared]
        values = cosines(x, y)
        on_edge = values[np.arange(n), rng.integers(0, m, n)], values[rng.integers(0, n, m), np.arange(m)]
        anywhere = [rng.uniform(-1.1, 1.1, size).astype(np.float32) for size in (n, m)]
        for radius_x, radius_y in (on_edge, anywhere, (on_edge[0], anywhere[1])):
            how: dict[str, Any] = {"kernel": rng.choice(KERNELS), "threads": int(rng.integers(1, 4))}
            inside_y, inside_x, reached_x = exact.ball_counts(x, y, radius_x, radius_y, **how)
            np.testing.assert_array_equal(inside_y, (values >= radius_x[:, None]).sum(axis=0))
            np.testing.assert_array_equal(inside_x, (values >= radius_x[:, None]).sum(axis=1))
            np.testing.assert_array_equal(reached_x, (values >= radius_y[None]).sum(axis=1))
    with pytest.raises(InputError, match=f"field 'radius_x'.*one a row \\({n}\\)"):
        exact.ball_counts(x, y, np.ones(n + 1, np.float32), np.ones(m, np.float32))
    radius = np.ones(m, np.float32)
    radius[3] = np.nan
    with pytest.raises(InputError, match="row 3, field 'radius_y'"):
        exact.ball_counts(x, y, np.ones(n, np.float32), radius)
