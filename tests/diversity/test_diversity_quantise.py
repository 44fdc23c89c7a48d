"""The int8 rows: their bound holds for every pair, and is not idle."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from obverse import _core
from obverse.engine.diversity.quantise import checked_rows, quantise, quantise_with, row_basis


def fresh() -> np.random.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def rows_of(d: int, dtype: Any, rng: np.random.Generator) -> npt.NDArray[Any]:
    # Uneven axes, as embeddings have, and norms from tiny to huge.
    x = rng.standard_normal((300, d)) * rng.gamma(0.5, 1.0, d)
    x *= np.exp(np.clip(rng.normal(0, 1 if dtype == np.float16 else 20, (300, 1)), -60, 60))
    x = x.astype(dtype)
    x[~np.isfinite(x).all(axis=1) | (x == 0).all(axis=1)] = 1
    return x


@pytest.mark.parametrize("isa", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_error_bounds_every_pair(dtype: Any, isa: int) -> None:
    rng = fresh()
    for d in (1, 2, 7, 63, 64, 65, 200, 1000 if isa == 2 else 130):
        x = rows_of(d, dtype, rng)
        found = quantise(x, isa=isa, threads=2)
        assert found.q.shape == (300, -(-d // 64) * 64)
        assert abs(found.q.astype(np.int32)).max() <= 127
        unit = x.astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        estimate = found.scale**2 * (found.q.astype(np.float64) @ found.q.astype(np.float64).T)
        allowed = found.error[:, None].astype(np.float64) + found.error[None]
        assert (np.abs(unit @ unit.T - estimate) <= allowed).all()
        assert d > 64 or d < 2 or found.error.mean() < 0.03
        np.testing.assert_allclose(found.norms, np.linalg.norm(x.astype(np.float64), axis=1), rtol=1e-14)


def test_the_error_is_not_much_more_than_it_must_be() -> None:
    # In two dimensions rows lie along their quantisation error often enough for a pair to come near its bound.
    rng = fresh()
    x = rng.standard_normal((2000, 2)).astype(np.float32)
    found = quantise(x)
    unit = x.astype(np.float64) / found.norms[:, None]
    estimate = found.scale**2 * (found.q.astype(np.float64) @ found.q.astype(np.float64).T)
    ratio = np.abs(unit @ unit.T - estimate) / (found.error[:, None].astype(np.float64) + found.error[None])
    assert 0.8 < ratio.max() <= 1


def test_rows_far_from_the_sample_keep_their_bound() -> None:
    # Axes and scale of other rows: values are clipped, and the error says so.
    rng = fresh()
    x = (rng.standard_normal((500, 4)) @ rng.standard_normal((4, 100))).astype(np.float32)
    other = np.zeros((100, 100), np.float32)
    np.fill_diagonal(other, 1)
    norms = checked_rows(other)
    found = quantise_with(other, row_basis((x, checked_rows(x))), norms)
    estimate = found.scale**2 * (found.q.astype(np.float64) @ found.q.astype(np.float64).T)
    allowed = found.error[:, None].astype(np.float64) + found.error[None]
    assert (np.abs(np.eye(100) - estimate) <= allowed).all()


def test_the_first_values_carry_most() -> None:
    rng = fresh()
    x = (rng.standard_normal((3000, 40)) @ rng.standard_normal((40, 384))).astype(np.float32)
    found = quantise(x)
    energy = (found.q.astype(np.int64) ** 2).sum(axis=0)
    assert energy[:64].sum() > 0.99 * energy.sum()


def test_quantising_into_given_memory_and_on_threads_gives_the_same() -> None:
    rng = fresh()
    x = rng.standard_normal((777, 90)).astype(np.float16)
    one = quantise(x, threads=1)
    out = np.full((777, 128), 99, np.int8)
    two = quantise_with(x, one.basis, one.norms, threads=3, out=out)
    assert two.q is out or two.q.ctypes.data == out.ctypes.data
    np.testing.assert_array_equal(one.q, out)
    np.testing.assert_array_equal(one.error, two.error)


def test_the_core_refuses_what_does_not_fit() -> None:
    x = np.ones((4, 10), np.float32)
    with pytest.raises(ValueError, match=r"x must be a C-contiguous 2-D numpy array of float16 or float32"):
        _core.vector_norms(x.astype(np.float64))
    with pytest.raises(ValueError, match=r"norms must have one entry a row, 4, got 3"):
        _core.quantise_rows(x, np.ones(3), np.zeros((10, 64), np.float32), 0.01, 0.0)
    with pytest.raises(ValueError, match=r"matrix must be C-contiguous of shape \(10, a multiple of 64\)"):
        _core.quantise_rows(x, np.ones(4), np.zeros((10, 60), np.float32), 0.01, 0.0)
    bad = x.copy()
    bad[2] = np.nan
    with pytest.raises(ValueError, match=r"row 2"):
        _core.rank_candidates(bad, np.zeros((4, 1), np.int32), 1)
