from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from obverse.engine.diversity.mauve import divergence_frontier, frontier_area, mauve, quantise_jointly
from obverse.engine.errors import InputError

Wide = npt.NDArray[np.float64]


def fresh() -> np.random.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def divergence(p: Wide, r: Wide) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, r, strict=True) if a > 0)


def integrated(p: Wide, q: Wide, scale: float) -> float:
    """The area by Gauss-Legendre over the share of p in the mixture, with dx / dshare written out; p, q > 0."""
    nodes, heights = np.polynomial.legendre.leggauss(400)
    area = math.exp(-scale * divergence(q, p))  # from x = 0 to the frontier's first point, at height 1
    for node, height in zip((nodes + 1) / 2, heights / 2, strict=True):
        mixture = node * p + (1 - node) * q
        x, y = math.exp(-scale * divergence(q, mixture)), math.exp(-scale * divergence(p, mixture))
        slope = -scale * x * -float((q * (p - q) / mixture).sum())
        area += height * y * -slope
    return area


@pytest.mark.parametrize("scale", [1.0, 2.0, 5.0])
def test_two_histograms_without_a_common_bucket(scale: float) -> None:
    """x = (1 - l)^c and y = l^c, so the area is c B(c + 1, c) = 1 / binom(2 c, c)."""
    expected = 1 / math.comb(int(2 * scale), int(scale))
    assert frontier_area([1, 0, 0], [0, 0.25, 0.75], scale) == pytest.approx(expected, rel=1e-12)


def test_equal_histograms_have_an_area_of_one() -> None:
    p = fresh().dirichlet(np.ones(50))
    assert frontier_area(p, p) == pytest.approx(1.0, abs=1e-12)
    assert frontier_area([1.0], [1.0]) == 1.0


def test_area_against_another_quadrature() -> None:
    generator = fresh()
    for buckets in (2, 3, 40):
        for scale in (0.5, 5.0):
            p, q = generator.dirichlet(np.ones(buckets), 2) * 0.95 + 0.05 / buckets
            # Both rules are converged (Gauss-Legendre: bucket shares of 1% at least, far from its poles): rounding is
            # left, of divergences of a few units times the scale.
            assert frontier_area(p, q, scale) == pytest.approx(integrated(p, q, scale), abs=1e-11)
            assert frontier_area(p, q, scale) == pytest.approx(frontier_area(q, p, scale), abs=1e-11)


def test_the_frontier_falls_between_its_ends() -> None:
    generator = fresh()
    p, q = generator.dirichlet(np.full(30, 0.3), 2)
    p[:5] = 0
    x, y = divergence_frontier(p / p.sum(), q)
    assert (np.diff(x) >= -1e-14).all()  # rounding of divergences near 0
    assert (np.diff(y) <= 1e-14).all()
    assert (x >= 0).all()
    assert x[-1] == pytest.approx(1.0)
    assert y[0] == pytest.approx(1.0)


def blobs(generator: np.random.Generator, counts: list[int], dim: int = 16) -> npt.NDArray[Any]:
    """Rows so close to the axes, `counts[i]` to axis i, that no two seeds of k-means fall to one; of random lengths."""
    axes = np.repeat(np.arange(len(counts)), counts)
    x = np.eye(dim)[axes] + generator.normal(size=(len(axes), dim)) * 5e-5
    return (generator.permutation(x) * generator.uniform(0.5, 100, (len(axes), 1))).astype(np.float32)


def test_mauve_of_known_clusters() -> None:
    """Clusters that k-means can't miss make known histograms."""
    generator = fresh()
    of_real, of_synthetic = [400, 300, 200, 100, 0], [100, 100, 100, 100, 600]
    real, synthetic = blobs(generator, of_real), blobs(generator, of_synthetic)
    counts = quantise_jointly(real, synthetic, 5, seed=int(generator.integers(1000)))
    assert sorted(zip(*counts, strict=True)) == sorted(zip(of_real, of_synthetic, strict=True))
    expected = frontier_area(np.array(of_real) / 1000, np.array(of_synthetic) / 1000)
    got = mauve(real, synthetic, buckets=5)
    assert got == pytest.approx(expected, rel=1e-12)
    smooth = mauve(real, synthetic, buckets=5, smoothing=0.5)
    a, b = (np.array(one) + 0.5 for one in (of_real, of_synthetic))
    assert smooth == pytest.approx(frontier_area(a / a.sum(), b / b.sum()), rel=1e-12)
    assert smooth > got
    assert mauve(real, synthetic, buckets=5, scale=2.0) > got


def test_mauve_orders_sets_by_how_alike_they_are() -> None:
    generator = fresh()
    real = generator.normal(size=(3000, 8)) + 1
    same, near, far = (generator.normal(size=(3000, 8)) + shift for shift in (1, [1.6] + [1] * 7, [-1] * 8))
    values = [mauve(real, one, buckets=30, seed=3) for one in (real, same, near, far)]
    assert values[0] == pytest.approx(1.0, abs=1e-12)
    assert values[0] > values[1] > values[2] > values[3]
    # Two samples of 3,000 from one distribution over 30 buckets: KL to the mixture is near 30 / (8 n), times 5.
    assert values[1] > 0.95
    assert values[3] < 0.05


def test_mauve_is_the_same_again_and_read_in_blocks() -> None:
    generator = fresh()
    real, synthetic = (generator.normal(size=(rows, 5)).astype(np.float16) for rows in (9000, 4097))
    done: list[int] = []
    first = mauve(real, synthetic, buckets=20, seed=5, on_progress=done.append)
    assert sum(done) == 13097
    assert mauve(real, synthetic, buckets=20, seed=5) == first
    counts = quantise_jointly(real, synthetic, 20, seed=5)
    assert [one.sum() for one in counts] == [9000, 4097]


def test_buckets_follow_the_size() -> None:
    generator = fresh()
    x, y = (generator.normal(size=(rows, 6)).astype(np.float32) for rows in (240, 100))
    assert len(quantise_jointly(x, y)[0]) == 10
    assert len(quantise_jointly(x[:3], y[:2])[0]) == 1
    # No more buckets than rows that differ.
    assert len(quantise_jointly(np.ones((50, 3), "f4"), np.ones((50, 3), "f4"), 7)[0]) == 1
    assert mauve(np.ones((50, 3), "f4"), np.ones((50, 3), "f4"), buckets=7) == 1.0


def test_bad_input_is_named() -> None:
    x = np.ones((40, 3), np.float32)
    bad = x.copy()
    bad[11] = np.nan
    for real, synthetic, words in (
        (x, x[:0], "synthetic"),
        (x, x[:, :2], "vector of 3 values"),
        (x, bad, "row 11"),
        (bad * 0, x, "row 0"),
    ):
        with pytest.raises(InputError, match=words):
            mauve(real, synthetic)
    with pytest.raises(InputError, match="field 'buckets'"):
        mauve(x, x, buckets=-1)
    with pytest.raises(InputError, match="field 'smoothing'"):
        mauve(x, x, smoothing=-0.5)
    with pytest.raises(InputError, match="field 'scale'"):
        mauve(x, x, scale=0.0)
    for p, q, name in (([0.5, 0.6], [1, 0], "p"), ([1, 0], [2, -1], "q"), ([1.0], [0.5, 0.5], "q"), ([], [], "p")):
        with pytest.raises(InputError, match=f"field '{name}'"):
            frontier_area(p, q)
