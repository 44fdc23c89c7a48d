"""The exact engine's way to a device: the same answer as the core's, from a file in host memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from obverse.engine.diversity import exact, exact_device
from obverse.engine.diversity.engines import Job, choose, run_engine
from obverse.engine.errors import InputError


def _device() -> str:
    return "cuda" if exact_device.has_device() else "cpu"


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_device_gives_what_the_core_gives(kind: type, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((701, 40)).astype(kind)
    x[100:130] = x[7]
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    indices, similarities, counts = exact_device.self_join(mapped, 9, device=_device())
    expected = exact.self_join(mapped, 9, threads=1)
    assert np.array_equal(similarities, expected[1])
    assert np.array_equal(indices, expected[0])
    assert counts["compared"] == 671 * 670 // 2
    assert counts["precision"] in ("int8", "float16")


def test_a_bad_row_is_named_before_anything_is_copied() -> None:
    x = np.ones((30, 4), np.float32)
    x[11, 2] = np.nan
    with pytest.raises(InputError, match="row 11"):
        exact_device.self_join(x, 3, device=_device())


@pytest.mark.gpu
def test_a_large_set_goes_to_the_device() -> None:
    x = np.random.default_rng(0).standard_normal((210_000, 64)).astype(np.float16)
    job = Job(x, 10)
    assert choose("auto", job).reason.startswith("the device holds")
    outcome = run_engine("exact", job)
    assert outcome.parameters["device"] == "cuda"
    rows = np.arange(0, len(x), 1111)
    expected = exact.join(x[rows], x, 11)
    assert np.array_equal(outcome.similarities[rows], expected[1][:, 1:])
