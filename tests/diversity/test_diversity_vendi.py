from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from obverse.engine.diversity.vendi import mean_cosine, spectrum, spectrum_score, vendi_score, vendi_scores
from obverse.engine.errors import InputError

ORDERS = (0.1, 0.5, 1.0, 2.0, 3.5, math.inf)
Wide = npt.NDArray[np.float64]


def fresh() -> np.random.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def unit(x: npt.NDArray[Any]) -> Wide:
    wide = x.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def kernel_spectrum(x: npt.NDArray[Any], weights: Wide | None = None) -> Wide:
    """By the dense N x N kernel; of its eigenvalues only min(N, d) can be other than 0."""
    p = np.full(len(x), 1 / len(x)) if weights is None else weights / weights.sum()
    kernel = unit(x) @ unit(x).T * np.sqrt(np.outer(p, p))
    return np.linalg.eigvalsh(kernel)[::-1][: min(x.shape)]


def plain_score(values: Wide, q: float) -> float:
    if q == 1:
        return math.exp(-sum(v * math.log(v) for v in values))
    return 1 / max(values) if math.isinf(q) else sum(v**q for v in values) ** (1 / (1 - q))


def moved(rows: int, dim: int) -> float:
    """How far an eigenvalue may be from the truth.

    Columns of a block of b unit rows have sums of squares of at most b, so the grid's unit is at most
    2^ceil((log2 b - 52) / 2); rounding moves a row by sqrt(d) / 2 units, and by Weyl an eigenvalue of the mean of
    outer products by twice that; as much again for the trace that it is divided by. The dense kernel's own rounding
    (N d 2^-53) is far less.
    """
    grid = 2.0 ** math.ceil((math.log2(min(rows, 1024)) - 52) / 2)
    return 2 * math.sqrt(dim) * grid + rows * dim * 2.0**-52


def score_tolerance(values: Wide, q: float, change: float) -> float:
    """Relative change of a score for eigenvalues moved by `change`, by its derivative (doubled for the curvature)."""
    if q == 1:
        slope = np.abs(np.log(values)) + 1
    elif math.isinf(q):
        slope = np.array([1 / values.max()])
    else:
        slope = q / abs(1 - q) * values ** (q - 1) / (values**q).sum()
    return 2 * float(slope.sum()) * change


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("rows", "dim", "dtype"),
    [(1, 3, "f4"), (2, 2, "f2"), (5, 70, "f4"), (70, 5, "f2"), (1023, 17, "f4"), (1025, 33, "f2"), (1300, 8, "f4")],
)
def test_vendi_against_the_dense_kernel(rows: int, dim: int, dtype: str, weighted: bool) -> None:
    generator = fresh()
    x = (generator.normal(size=(rows, dim)) + 0.3).astype(dtype)
    weights = generator.random(rows) + 0.01 if weighted else None
    expected = kernel_spectrum(x, weights)
    got = spectrum(x, weights=weights)
    change = moved(rows, dim)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= change
    assert abs(got.sum() - 1) <= 1e-12
    scores = vendi_scores(x, ORDERS, weights=weights)
    assert list(scores) == list(ORDERS)
    for q in ORDERS:
        tolerance = score_tolerance(expected, q, change)
        assert tolerance < 0.05 or q < 1, "a tolerance that lets anything through"
        assert scores[q] == pytest.approx(plain_score(expected, q), rel=tolerance)
        assert vendi_score(x, q, weights=weights) == scores[q]


def test_vendi_equals_the_package() -> None:
    # Recorded from vendi-score 0.0.3 (score_K on the dense float64 kernel), numpy 2.4.6, on the rows below. At q = 0.5
    # the package counts eigenvalues that are rounding (1e-17, 33 of them, 3e-9 each by their roots): so 1e-7.
    generator = np.random.default_rng(20261121)
    generator.normal(size=(60, 12))
    x = (generator.normal(size=(45, 12)) * 0.8 + 0.7).astype(np.float32)
    few = generator.normal(size=(9, 30)).astype(np.float32)
    orders = (0.5, 1.0, 2.0, math.inf)
    plain = (8.925067784733585, 6.375929291955158, 3.7425453131755666, 2.056149679757528)
    weighted = (8.749830034313844, 6.25431241739607, 3.746563356257832, 2.068905804643083)
    by_few = (8.03402481451013, 7.283481834519299, 6.236988810055368, 3.5842326863138836)
    assert list(vendi_scores(x, orders).values()) == pytest.approx(plain, rel=1e-7)
    assert list(vendi_scores(x, orders, weights=np.arange(1, 46)).values()) == pytest.approx(weighted, rel=1e-7)
    assert list(vendi_scores(few, orders).values()) == pytest.approx(by_few, rel=1e-7)
    assert vendi_score(few, 0.1) == pytest.approx(8.787529998825114, rel=1e-7)


def test_what_is_rounding_does_not_count() -> None:
    """Of three directions in ten thousand rows, three count at every order, however small: q = 0.01 too."""
    generator = fresh()
    directions = np.linalg.qr(generator.normal(size=(50, 3)))[0].T.astype(np.float32)
    x = directions[np.arange(9999) % 3]
    for q in (0.0, 0.01, 0.1, 1.0, 2.0, math.inf):
        assert vendi_score(x, q) == pytest.approx(3.0, rel=1e-5)
    assert np.count_nonzero(spectrum(x)) == 3
    assert np.count_nonzero(spectrum(x[:40])) == 3  # by the N x N route
    weights = np.where(np.arange(9999) % 3 == 2, 0.0, 1.0)
    assert vendi_score(x, 0.0, weights=weights) == pytest.approx(2.0, rel=1e-5)


def test_weights_of_all_sizes() -> None:
    """One row with nearly all the weight, others next to nothing: blocks have grids of their own."""
    generator = fresh()
    x = generator.normal(size=(1400, 6)).astype(np.float32)
    weights = np.full(1400, 1e-9)
    weights[700] = 1.0
    expected = kernel_spectrum(x[np.r_[700, 0:700, 701:1400]], weights[np.r_[700, 0:700, 701:1400]])
    got = spectrum(x, weights=weights)
    # The block of the large weight has a grid for sums of 1; its share of the small eigenvalues is off by that.
    assert np.abs(got - expected).max() <= 4 * math.sqrt(6) * 2.0**-26
    assert vendi_score(x, weights=weights * 1e300) == vendi_score(x, weights=weights)


def test_sums_over_a_block_are_exact() -> None:
    """Rows of one block in any order give the same bytes, as do lengths that differ by powers of two."""
    generator = fresh()
    for rows, dim in ((1000, 40), (30, 64)):
        x = generator.normal(size=(rows, dim)).astype(np.float32)
        first = spectrum(x)
        scaled = x * np.exp2(generator.integers(-60, 60, (rows, 1))).astype(np.float32)
        assert spectrum(scaled).tobytes() == first.tobytes()
        if rows > dim:
            assert spectrum(x[generator.permutation(rows)]).tobytes() == first.tobytes()


def test_the_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    generator = fresh()
    np.save(tmp_path / "x.npy", generator.normal(size=(3000, 256)).astype(np.float16))
    program = (
        "import sys, numpy as np\n"
        "from obverse.engine.diversity.vendi import spectrum, mean_cosine\n"
        "x = np.load(sys.argv[1], mmap_mode='r')\n"
        "print(spectrum(x).tobytes().hex(), spectrum(x[:200]).tobytes().hex(), mean_cosine(x).hex())\n"
    )
    answers = []
    for threads in ("1", "2", "3"):
        counts = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        command = [sys.executable, "-c", program, str(tmp_path / "x.npy")]
        answers.append(subprocess.run(command, env=os.environ | counts, capture_output=True, check=True).stdout)
    assert answers[0] == answers[1] == answers[2]


def test_float16_maps_are_read_as_they_lie(tmp_path: Path) -> None:
    x = fresh().normal(size=(2500, 12)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert spectrum(mapped).tobytes() == spectrum(x).tobytes()
    assert mean_cosine(mapped) == mean_cosine(x)


def test_mean_cosine_against_the_kernel() -> None:
    generator = fresh()
    for rows, dim in ((2, 3), (1025, 7), (60, 90)):
        x = (generator.normal(size=(rows, dim)) * 10.0 ** generator.integers(-3, 3, (rows, 1))).astype(np.float32)
        kernel = unit(x) @ unit(x).T
        expected = (kernel.sum() - np.trace(kernel)) / (rows * (rows - 1))
        # Sums of N unit rows, each to 2^-52: |S|^2 <= N^2, over N (N - 1).
        assert mean_cosine(x) == pytest.approx(expected, abs=4 * rows * 2.0**-52)


def test_spectrum_score_by_hand() -> None:
    assert spectrum_score([0.5, 0.5, 0.0], 0.0) == 2.0
    assert spectrum_score([0.25] * 4, 3.0) == pytest.approx(4.0, rel=1e-15)
    assert spectrum_score([0.75, 0.25], math.inf) == pytest.approx(4 / 3, rel=1e-15)
    assert spectrum_score([1.0], 1) == 1.0


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_bad_input_is_named(dtype: str) -> None:
    x = np.ones((2000, 3), dtype)
    for value, words in ((np.nan, "finite"), (np.inf, "finite"), (0.0, "zeros")):
        bad = x.copy()
        bad[1500] = value
        for function in (spectrum, mean_cosine):
            with pytest.raises(InputError, match=rf"row 1500.*{words}"):
                function(bad)
    with pytest.raises(InputError, match="at least one vector"):
        spectrum(x[:0])
    with pytest.raises(InputError, match="at least two rows"):
        mean_cosine(x[:1])
    with pytest.raises(InputError, match="matrix"):
        spectrum(x[0])
    with pytest.raises(InputError, match="order of 0 or more"):
        vendi_score(x, -1.0)
    for weights, words in (
        (np.ones(3), "one weight a row"),
        (np.full(2000, -1.0), "row 0.*0 or more"),
        (np.where(np.arange(2000) == 7, np.nan, 1.0), "row 7"),
        (np.zeros(2000), "sum above 0"),
    ):
        with pytest.raises(InputError, match=words):
            spectrum(x, weights=weights)
