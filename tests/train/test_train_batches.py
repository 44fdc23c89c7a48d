from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from obverse.engine.train.batches import epoch_batches, sorted_batches

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=400).map(np.array)


@given(lengths, st.integers(1, 17), st.integers(0, 3))
def test_every_row_once_in_the_fewest_steps(lengths: np.ndarray, size: int, epoch: int) -> None:
    batches = epoch_batches(lengths, size, seed=1, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert max(map(len, batches)) <= size
    assert np.array_equal(np.concatenate(sorted_batches(lengths, size)), np.argsort(-lengths, kind="stable"))


def test_order_depends_on_seed_and_epoch_only() -> None:
    lengths = np.random.default_rng(0).integers(10, 100, 2000)

    def flat(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_batches(lengths, 16, seed=seed, epoch=epoch)).tolist()

    np.random.seed(5)  # the global generator has no part in it
    assert flat(3, 1) == flat(3, 1)
    assert flat(3, 1) != flat(3, 2)
    assert flat(3, 1) != flat(4, 1)


def test_rows_of_like_length_go_together() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, 4000)
    padded = sum(len(b) * lengths[b].max() for b in epoch_batches(lengths, 32, seed=0, epoch=0))
    assert padded < 1.1 * lengths.sum()
    starts = [int(lengths[b].mean()) for b in epoch_batches(lengths, 32, seed=0, epoch=0)]
    assert starts != sorted(starts)
