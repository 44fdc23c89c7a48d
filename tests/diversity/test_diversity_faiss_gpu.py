"""The faiss engine on GPUs: candidates ranked again must be the exact ones, or measured to be near them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from obverse.engine.diversity import exact, faiss, faiss_gpu, faiss_join
from obverse.engine.errors import InputError

pytestmark = pytest.mark.gpu
Matrix = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    pytest.importorskip("faiss")
    if not faiss.num_gpus():
        pytest.skip("FAISS sees no GPU")


def vectors(rows: int, dim: int = 96) -> Matrix:
    generator = np.random.default_rng()
    centres = generator.normal(size=(rows // 40, dim))
    found = centres[generator.integers(0, len(centres), rows)] + 0.5 * generator.normal(size=(rows, dim))
    return found.astype(np.float16)


@pytest.mark.parametrize("kind", ["flat", "ivf", "cagra"])
def test_self_join_against_the_exact_engine(kind: str) -> None:
    x = vectors(20_000)
    run = {"kind": kind, "recall": 0.99, "threads": 0, "seed": 0, "on_progress": lambda _: None}
    if kind == "cagra" and not hasattr(faiss.load(), "GpuIndexCagra"):
        with pytest.raises(InputError, match="cuVS"):
            faiss_join.self_join(x, 10, **run)
        return
    indices, cosines, facts = faiss_join.self_join(x, 10, **run)
    truth = exact.self_join(x, 10)
    assert facts["gpus"] == faiss.num_gpus()
    assert (cosines >= truth[1][:, -1:]).mean() >= (0.9999 if kind == "flat" else 0.95)
    same = (cosines == truth[1]).all(axis=1)
    np.testing.assert_array_equal(indices[same], truth[0][same])


def test_progress_counts_every_row() -> None:
    told: list[int] = []
    faiss_gpu.candidates(vectors(40_000), 19, "auto", faiss.num_gpus(), 0, told.append)
    assert sum(told) == 40_000
