from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from obverse.engine.embed.cache import VectorCache, text_keys
from obverse.engine.errors import InputError, RunError

IDENTITY = {"model": "m", "dtype": "float32"}


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    return np.random.default_rng(seed)


def opened(folder: Path, dim: int = 4, dtype: str = "float16") -> VectorCache:
    return VectorCache(folder, IDENTITY, dim, dtype)


def file_of(folder: Path, number: int = 0) -> Path:
    return next(folder.glob(f"*/vectors-{number:03d}.bin"))


def test_what_was_added_is_found_now_and_later(tmp_path: Path, rng: np.random.Generator) -> None:
    texts = [f"text {n} é" for n in range(300)]
    keys, values = text_keys(texts), rng.standard_normal((300, 4)).astype(np.float16)
    with opened(tmp_path) as cache:
        for start in range(0, 200, 4):  # 50 records: more than are kept apart
            cache.add(keys[start : start + 4], values[start : start + 4])
        found, got = cache.find(keys)
        assert found.tolist() == [True] * 200 + [False] * 100
        np.testing.assert_array_equal(got[:200], values[:200])
        assert not got[200:].any()
    order = rng.permutation(300)
    with opened(tmp_path) as cache:
        assert len(cache) == 200
        found, got = cache.find(keys[order])
        np.testing.assert_array_equal(found, order < 200)
        np.testing.assert_array_equal(got[found], values[order][found])
    with VectorCache(tmp_path, IDENTITY | {"dtype": "int8"}, 4, "float16") as other:
        assert len(other) == 0


def test_keys_that_share_half_their_bits_are_never_mixed_up(tmp_path: Path) -> None:
    keys = np.array([[7, 1], [7, 2], [8, 1]], np.uint64)
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    with opened(tmp_path) as cache:
        cache.add(keys[:1], values[:1])
        cache.add(keys[1:], values[1:])
        found, got = cache.find(np.array([[7, 1], [7, 2], [7, 3], [1, 8]], np.uint64))
    assert found.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(got[:2], values[:2])


def test_a_tail_cut_anywhere_loses_that_record_only(tmp_path: Path, rng: np.random.Generator) -> None:
    keys, values = text_keys([str(n) for n in range(9)]), rng.standard_normal((9, 4)).astype(np.float16)
    sizes = [0]
    with opened(tmp_path) as cache:
        for part in (slice(0, 3), slice(3, 5), slice(5, 9)):
            cache.add(keys[part], values[part])
            sizes.append(file_of(tmp_path).stat().st_size)
    whole = file_of(tmp_path).read_bytes()
    for size in range(len(whole)):
        file_of(tmp_path).write_bytes(whole[:size])
        kept = [0, 3, 5][np.searchsorted(sizes[1:], size, side="right")]
        with opened(tmp_path) as cache:
            assert cache.find(keys)[0].sum() == kept, size
            if size % 7 == 0:
                cache.add(keys[kept:], values[kept:])
        if size % 7 == 0:
            with opened(tmp_path) as cache:
                np.testing.assert_array_equal(cache.find(keys)[1], values)


def test_a_flipped_bit_never_gives_a_wrong_vector(tmp_path: Path, rng: np.random.Generator) -> None:
    keys, values = text_keys([str(n) for n in range(9)]), rng.standard_normal((9, 4)).astype(np.float16)
    with opened(tmp_path) as cache:
        cache.add(keys[:5], values[:5])
        cache.add(keys[5:], values[5:])
    whole = bytearray(file_of(tmp_path).read_bytes())
    lost = 0
    for place in range(0, len(whole), 3):
        flipped = whole.copy()
        flipped[place] ^= 1 << int(rng.integers(8))
        file_of(tmp_path).write_bytes(flipped)
        try:
            with opened(tmp_path) as cache:
                found, got = cache.find(keys)
        except RunError:
            continue
        np.testing.assert_array_equal(got[found], values[found])
        lost += not found.all()
    assert lost > len(whole) // 6  # nearly every flip is noticed (eight bytes of a header are padding)


def test_processes_write_side_by_side(tmp_path: Path) -> None:
    code = """
import sys, numpy as np
from obverse.engine.embed.cache import VectorCache, text_keys
worker = int(sys.argv[2])
with VectorCache(__import__("pathlib").Path(sys.argv[1]), {"model": "m", "dtype": "float32"}, 4, "float16") as cache:
    for n in range(20):
        keys = text_keys([f"{worker} {n} {i}" for i in range(5)])
        cache.add(keys, np.full((5, 4), worker * 100 + n, np.float16))
"""
    workers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)]) for n in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    with opened(tmp_path) as cache:
        for worker in range(3):
            for n in range(20):
                found, got = cache.find(text_keys([f"{worker} {n} {i}" for i in range(5)]))
                assert found.all()
                assert (got == worker * 100 + n).all()


def test_two_at_once_have_files_of_their_own(tmp_path: Path) -> None:
    keys, values = text_keys(["a", "b"]), np.ones((2, 4), np.float16)
    with opened(tmp_path) as one, opened(tmp_path) as two:
        one.add(keys[:1], values[:1])
        two.add(keys[1:], values[1:])
        assert file_of(tmp_path, 0).stat().st_size == file_of(tmp_path, 1).stat().st_size > 0
    with opened(tmp_path) as cache:
        assert cache.find(keys)[0].all()


def test_misuse_is_told_plainly(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        with pytest.raises(InputError, match="float16 vectors"):
            cache.add(text_keys(["a"]), np.ones((1, 4), np.float32))
        with pytest.raises(InputError, match=r"\(1, 4\)"):
            cache.add(text_keys(["a"]), np.ones((1, 5), np.float16))
        cache.add(text_keys([]), np.ones((0, 4), np.float16))
        assert not len(cache)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cache folder"):
        opened(tmp_path / "file")
