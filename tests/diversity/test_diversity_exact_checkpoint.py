"""A killed exact join goes on from its checkpoint, to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from obverse.engine.diversity import exact
from obverse.engine.diversity.exact_checkpoint import JoinCheckpoint, content_key
from obverse.engine.errors import InputError

# Saves after every band, and dies by SIGKILL while told of the third.
CHILD = """
import os, signal, sys
from functools import partial
import numpy as np
from obverse.engine.diversity import exact
exact.JoinCheckpoint = partial(exact.JoinCheckpoint, every_s=-1e9)
told = []
def on_progress(rows):
    told.append(rows)
    if len(told) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
exact.self_join(np.load(sys.argv[1]), 6, checkpoint=sys.argv[2], on_progress=on_progress)
"""


def fresh() -> np.random.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def test_a_killed_join_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    x = fresh().standard_normal((18_000, 20)).astype(np.float32)
    x[5000:5100] = x[0]
    np.save(tmp_path / "x.npy", x)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "x.npy"), str(tmp_path / "state")], check=False, timeout=300
    )
    assert child.returncode == -signal.SIGKILL
    saved = JoinCheckpoint(tmp_path / "state", content_key(x, join="self", k=6)).load()
    assert saved is not None
    assert 1 <= saved.done.sum() < len(saved.done)
    told: list[int] = []
    again = exact.self_join(x, 6, checkpoint=tmp_path / "state", on_progress=told.append)
    whole = exact.self_join(x, 6)
    assert len(told) == len(saved.done) - saved.done.sum()
    for a, b in zip(again[:2], whole[:2], strict=True):
        assert a.tobytes() == b.tobytes()
    assert again[2].pairs == whole[2].pairs
    # A third call finds all done.
    assert exact.self_join(x, 6, checkpoint=tmp_path / "state")[0].tobytes() == whole[0].tobytes()


def test_an_interrupt_leaves_a_checkpoint(tmp_path: Path) -> None:
    x = fresh().standard_normal((9000, 8)).astype(np.float32)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exact.self_join(x, 3, checkpoint=tmp_path, on_progress=stop)
    saved = JoinCheckpoint(tmp_path, content_key(x, join="self", k=3)).load()
    assert saved is not None
    assert saved.done.sum() == 1
    assert exact.self_join(x, 3, checkpoint=tmp_path)[0].tobytes() == exact.self_join(x, 3)[0].tobytes()


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    x = fresh().standard_normal((200, 8)).astype(np.float32)
    exact.self_join(x, 3, checkpoint=tmp_path)
    other = x.copy()
    other[150, 3] = np.nextafter(other[150, 3], np.float32(9))
    for rows, k in ((other, 3), (x, 4), (x[:199], 3)):
        with pytest.raises(InputError, match=r"exact_join\.npz.*a checkpoint of these vectors"):
            exact.self_join(rows, k, checkpoint=tmp_path)
    with pytest.raises(InputError, match="a checkpoint of these vectors"):
        exact.join(x, x, 3, checkpoint=tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    x = fresh().standard_normal((200, 8)).astype(np.float32)
    exact.self_join(x, 3, checkpoint=tmp_path)
    path = tmp_path / "exact_join.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"exact_join\.npz.*delete it to begin anew"):
        exact.self_join(x, 3, checkpoint=tmp_path)
