from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from obverse.engine.diversity.prdc import prdc
from obverse.engine.errors import InputError


def fresh() -> np.random.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def cosines(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    one, other = x.astype(np.float64), y.astype(np.float64)
    one = one / np.linalg.norm(one, axis=1, keepdims=True)
    other = other / np.linalg.norm(other, axis=1, keepdims=True)
    return (one @ other.T).astype(np.float32)


def dense(real: npt.NDArray[Any], synthetic: npt.NDArray[Any], k: int) -> dict[str, float]:
    """By whole matrices and the definitions: inside is strictly nearer than the k-th other row."""
    radii = []
    for rows in (real, synthetic):
        own = cosines(rows, rows)
        np.fill_diagonal(own, -np.inf)
        radii.append(np.sort(own, axis=1)[:, -k])
    near = cosines(real, synthetic)
    in_real, in_synthetic = near > radii[0][:, None], near > radii[1][None, :]
    return {
        "precision": in_real.any(axis=0).mean(),
        "recall": in_synthetic.any(axis=1).mean(),
        "density": in_real.sum() / (k * len(synthetic)),
        "coverage": in_real.any(axis=1).mean(),
    }


@pytest.mark.parametrize(("real", "synthetic", "dim", "k"), [(2, 3, 1, 1), (60, 45, 12, 5), (130, 301, 40, 3)])
@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_prdc_against_whole_matrices(real: int, synthetic: int, dim: int, k: int, dtype: str) -> None:
    generator = fresh()
    # Coarse values: many cosines are equal, and rows repeat, within a set and across.
    for scale in (1.0, 1000.0):
        x = np.rint(generator.normal(size=(real, dim)) * scale + 0.7 * scale).astype(dtype)
        y = np.rint(generator.normal(size=(synthetic, dim)) * scale * 0.8 + 0.7 * scale).astype(dtype)
        x[(x == 0).all(axis=1)] = 1
        y[(y == 0).all(axis=1)] = 1
        for threads in (1, 2):
            assert prdc(x, y, k, threads=threads) == pytest.approx(dense(x, y, k), rel=1e-14)


def test_prdc_equals_the_package() -> None:
    # Recorded from prdc 0.2 (scikit-learn 1.9.1) on unit rows in float64.
    generator = np.random.default_rng(20261121)
    real = (generator.normal(size=(60, 12)) + 0.6).astype(np.float32)
    synthetic = (generator.normal(size=(45, 12)) * 0.8 + 0.7).astype(np.float32)
    names = ("precision", "recall", "density", "coverage")
    for k, values in (
        (1, (0.7777777777777778, 0.35, 1.6444444444444444, 0.45)),
        (3, (0.9111111111111111, 0.55, 1.3629629629629627, 0.8333333333333334)),
        (5, (0.9555555555555556, 0.6666666666666666, 1.4622222222222223, 0.8833333333333333)),
    ):
        assert prdc(real, synthetic, k) == pytest.approx(dict(zip(names, values, strict=True)), rel=1e-14)


def test_what_lies_on_the_edge_is_outside() -> None:
    """As in the package: of rows that all are there twice, no ball of k = 1 holds anything, the row itself neither."""
    x = np.repeat(np.eye(4, dtype=np.float32), 2, axis=0)
    nothing = {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}
    assert prdc(x, x, 1) == nothing
    # With k = 2 the ball reaches to a row at a right angle, and holds both copies.
    assert prdc(x, x, 2) == {"precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 1.0}


def test_far_sets_have_nothing_in_common() -> None:
    generator = fresh()
    x = generator.normal(size=(50, 6)) * 0.01 + np.array([1, 0, 0, 0, 0, 0])
    assert prdc(x.astype(np.float32), -x.astype(np.float32), 3) == dense(x, -x, 3)
    assert set(prdc(x.astype(np.float32), -x.astype(np.float32), 3).values()) == {0.0}


def test_prdc_does_not_see_lengths() -> None:
    generator = fresh()
    x, y = (generator.normal(size=(rows, 9)).astype(np.float32) for rows in (80, 70))
    scaled = (y * np.exp2(generator.integers(-30, 30, (70, 1)))).astype(np.float32)
    assert prdc(x, y) == prdc(x * np.float32(0.125), scaled)


def test_prdc_tells_of_every_row() -> None:
    generator = fresh()
    done: list[int] = []
    prdc(
        generator.normal(size=(30, 4)).astype("f4"),
        generator.normal(size=(20, 4)).astype("f4"),
        on_progress=done.append,
    )
    assert sum(done) == 80


def test_bad_input_is_named() -> None:
    x = np.eye(6, dtype=np.float32)
    for k, sets, name in ((0, (x, x), "real"), (6, (x, np.vstack([x, x])), "real"), (3, (x, x[:3]), "synthetic")):
        with pytest.raises(InputError, match=f"less than the {name} rows .*saw {k}"):
            prdc(*sets, k)
