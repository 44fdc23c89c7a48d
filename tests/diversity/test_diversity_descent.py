"""The approximate graph against float64 brute force: recall, the score's error, equal rows, clusters, small sets."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest

from obverse import _core
from obverse.engine.diversity import descent
from obverse.engine.diversity.quantise import quantise
from obverse.engine.errors import InputError

Floats = npt.NDArray[np.floating]


@pytest.fixture
def rng() -> np.random.Generator:
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def brute(x: Floats, rows: npt.NDArray[np.int64], k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k nearest of some rows by float64 cosine rounded to float32, equal ones by row number."""
    y = x.astype(np.float64)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    sims = (y[rows] @ y.T).astype(np.float32)
    sims[np.arange(len(rows)), rows] = -np.inf
    order = np.argsort(-sims, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(sims, order, 1)


def recall_and_error(
    x: Floats, found: npt.NDArray[np.int64], values: Floats, rows: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Share of the true neighbours found (as near as the k-th counts), and the p99 error of the mean cosine."""
    k = found.shape[1]
    _, best = brute(x, rows, k)
    # Cosines here come from another order of sums: equal to a few roundings of float32.
    recall = float(np.mean(values[rows] >= best[:, -1:] - 2e-6))
    error = np.abs(values[rows].mean(1, dtype=np.float64) - best.mean(1, dtype=np.float64))
    return recall, float(np.quantile(error, 0.99))


def clusters(rng: np.random.Generator, n: int, d: int, count: int, spread: float) -> npt.NDArray[np.float32]:
    """Unit centres, and rows at a noise of norm `spread` from them, in 16 directions of each centre's own."""
    centres = rng.standard_normal((count, d)) / np.sqrt(d)
    axes = rng.standard_normal((count, 16, d)) / np.sqrt(d)
    of = rng.integers(count, size=n)
    noise = np.einsum("ni,nid->nd", rng.standard_normal((n, 16)) * (spread / 4), axes[of])
    return (centres[of] + noise).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_recall_and_score_error(rng: np.random.Generator, dtype: npt.DTypeLike) -> None:
    x = clusters(rng, 12_000, int(rng.integers(65, 200)), 300, 0.5).astype(dtype)
    x *= rng.choice([0.25, 1, 8], (len(x), 1)).astype(dtype)  # lengths must not matter
    found, values, facts = descent.self_join(x, 10, recall=0.99, seed=int(rng.integers(1 << 32)))
    rows = rng.choice(len(x), 1000, replace=False)
    recall, error = recall_and_error(x, found, values, rows)
    print(f"recall {recall:.4f}, p99 error {error:.5f}, {facts}")
    assert recall >= 0.99
    assert error <= 0.01
    assert found.dtype == np.int64
    assert values.dtype == np.float32
    assert found.shape == values.shape == (len(x), 10)
    everything = np.arange(len(x))
    assert (found != everything[:, None]).all()
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all()
    assert (np.diff(values, axis=1) <= 0).all()
    # The values are the cosines of the rows named, whatever the recall.
    y = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    truth = np.einsum("nd,nkd->nk", y[rows], y[found[rows]])
    assert np.abs(values[rows] - truth).max() <= 2.0**-24 * 1.01  # one rounding to float32 of a number up to 1


def test_islands(rng: np.random.Generator) -> None:
    """Clusters far apart, where searches of a graph from outside end in the wrong one."""
    x = clusters(rng, 10_000, 64, 250, 0.1)
    found, values, _ = descent.self_join(x, 10, seed=int(rng.integers(1 << 32)))
    rows = rng.choice(len(x), 1000, replace=False)
    recall, error = recall_and_error(x, found, values, rows)
    _, best = brute(x, rows, 10)
    worst = np.abs(values[rows].mean(1) - best.mean(1)).max()
    print(f"recall {recall:.4f}, p99 error {error:.5f}, worst {worst:.5f}")
    assert recall >= 0.97
    assert error <= 0.01
    assert worst <= 0.1


def test_thousands_of_equal_rows(rng: np.random.Generator) -> None:
    x = clusters(rng, 14_000, 64, 100, 0.5)
    equal = np.sort(rng.choice(len(x), 6000, replace=False))
    x[equal] = x[equal[0]]
    began = time.process_time()
    found, values, facts = descent.self_join(x, 10, seed=int(rng.integers(1 << 32)))
    took = time.process_time() - began
    assert facts.distinct <= 8_001
    # The ten lowest others of the same kind, for each.
    expected = np.array([equal[equal != row][:10] for row in equal])
    assert (found[equal] == expected).all()
    assert np.abs(values[equal] - 1).max() <= 2.0**-24 * 1.01
    rest = np.setdiff1d(np.arange(len(x)), equal)
    recall, _ = recall_and_error(x, found, values, rng.choice(rest, 800, replace=False))
    print(f"recall of the others {recall:.4f}, {took:.1f} CPU-s, {facts.evaluated / len(x):.0f} evaluated a row")
    assert recall >= 0.99
    assert facts.evaluated < 8000 * 4000  # of 14,000 rows, 8,001 of them distinct; equal ones alone would be 18M


def test_same_on_any_threads_and_instruction_set(rng: np.random.Generator) -> None:
    x = clusters(rng, 5000, 100, 50, 0.7)
    seed = int(rng.integers(1 << 32))
    quantised = quantise(x, seed=seed)
    one = descent.self_join(x, 10, threads=1, seed=seed)
    two = descent.self_join(x, 10, threads=2, seed=seed, quantised=quantised)
    assert (one[0] == two[0]).all()
    assert (one[1] == two[1]).all()
    assert one[2].updates == two[2].updates
    settings = {
        "degree": 16,
        "leaf": 128,
        "fanout": 2,
        "carvings": 2,
        "settled": 0.0,
        "reverse": 16,
        "rounds": 2,
        "delta": 0.0,
        "seed": seed,
    }

    def graph(isa: int) -> npt.NDArray[np.int32]:
        work = _core.Descent(quantised.q, isa=isa, **settings)  # type: ignore[arg-type]
        while work.step()[0] != "done":
            pass
        return work.candidates(16)

    portable = graph(0)
    for isa in range(1, _core.best_vector_isa() + 1):
        assert (graph(isa) == portable).all()


def test_small_sets_are_exact(rng: np.random.Generator) -> None:
    for n in (1, 2, 3, 9, 30, 200):
        d = int(rng.integers(1, 80))
        x = rng.standard_normal((n, d)).astype(np.float32)
        k = int(rng.integers(1, 12)) if n < 200 else 1000
        found, values, facts = descent.self_join(x, k)
        assert found.shape == values.shape == (n, k)
        assert facts.rounds == 0
        there = min(k, n - 1)
        assert (found[:, there:] == -1).all()
        assert np.isneginf(values[:, there:]).all()
        assert (found[:, :there] >= 0).all()
        assert (found != np.arange(n)[:, None]).all()
        if there == n - 1:  # all others: no approximation can leave one out
            assert all(set(row[:there]) == set(range(n)) - {i} for i, row in enumerate(found.tolist()))
            _, best = brute(x, np.arange(n), there)
            assert np.abs(values[:, :there] - best).max(initial=0) <= 2e-6
    found, values, _ = descent.self_join(np.empty((0, 5), np.float32), 3)
    assert found.shape == values.shape == (0, 3)


def test_candidates_as_seeds(rng: np.random.Generator) -> None:
    x = clusters(rng, 8000, 96, 100, 0.5)
    found = descent.candidates(quantise(x), 20, recall=0.9, seed=1)
    assert found.dtype == np.int32
    assert found.shape == (8000, 20)
    assert (found != np.arange(8000)[:, None]).all()
    assert found.max() < 8000
    for row in found:
        real = row[row >= 0]
        assert len(set(real.tolist())) == len(real)
        assert (row[len(real) :] == -1).all()
    rows = rng.choice(8000, 500, replace=False)
    best, _ = brute(x, rows, 10)
    recall = np.mean([len(set(a) & set(b)) for a, b in zip(found[rows].tolist(), best.tolist(), strict=True)]) / 10
    print(f"recall of the ten nearest among 20 seeds {recall:.4f}")
    assert recall >= 0.9


def test_more_recall_is_more_work_and_finds_more(rng: np.random.Generator) -> None:
    x = rng.standard_normal((6000, 48)).astype(np.float32)  # no structure: the hardest for its size
    rows = rng.choice(len(x), 1500, replace=False)
    recalls, work = [], []
    for asked in (0.9, 0.99, 0.999):
        found, values, facts = descent.self_join(x, 10, recall=asked, seed=3)
        recalls.append(recall_and_error(x, found, values, rows)[0])
        work.append(facts.evaluated)
    print(recalls, work)
    assert recalls == sorted(recalls)
    assert work == sorted(work)
    assert recalls[-1] - recalls[0] > 0.01


def test_progress(rng: np.random.Generator) -> None:
    told: list[tuple[str, float]] = []
    x = clusters(rng, 3000, 64, 30, 0.5)
    _, _, facts = descent.self_join(x, 5, on_progress=lambda part, share: told.append((part, share)))
    assert all(0 < share <= 1 for _, share in told)
    whole = [part for part, share in told if share == 1]
    assert len(whole) == len(facts.updates)
    assert whole[0].startswith("carving 1 of")
    assert whole[-1].startswith("round")


def test_interrupt_between_steps(rng: np.random.Generator) -> None:
    def stop(part: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descent.self_join(clusters(rng, 3000, 64, 30, 0.5), 5, on_progress=stop)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_refusals(rng: np.random.Generator, wrong: float) -> None:
    x = rng.standard_normal((50, 8)).astype(np.float32)
    with pytest.raises(InputError, match=r"recall.*between 0 and 1, saw 1\.0"):
        descent.self_join(x, 5, recall=1.0)
    with pytest.raises(InputError, match=r"field 'k'.*saw 1000"):
        descent.self_join(rng.standard_normal((1001, 8)).astype(np.float32), 1000)
    with pytest.raises(InputError, match=r"field 'k'.*saw -1"):
        descent.self_join(x, -1)
    x[17, 3] = wrong
    with pytest.raises(InputError, match="row 17"):
        descent.self_join(x, 5)
    x[17] = 0
    with pytest.raises(InputError, match="row 17"):
        descent.self_join(x, 5)
    with pytest.raises(ValueError, match="multiple of 64"):
        _core.Descent(
            np.zeros((2, 65), np.int8),
            degree=16,
            leaf=128,
            fanout=2,
            carvings=2,
            settled=0.0,
            reverse=16,
            rounds=2,
            delta=0.0,
            seed=0,
        )
