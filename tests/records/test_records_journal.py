"""The journal: what was appended and synced is read back, whatever happened to the file since."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse.engine.errors import InputError, RunError
from obverse.engine.records.journal import Journal
from obverse.engine.records.lock import locked

SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])


def batch(first: int, rows: int) -> pa.RecordBatch:
    # The magic of a frame inside a text must not be taken for a frame.
    return pa.record_batch(
        [list(range(first, first + rows)), [f"OBJF row {i}" for i in range(first, first + rows)]], schema=SCHEMA
    )


def written(folder: Path, sizes: list[int]) -> list[tuple[int, list[int]]]:
    """Frames of the sizes, in one segment."""
    journal = Journal(folder)
    frames, first = [], 0
    for number, size in enumerate(sizes):
        journal.append(number, batch(first, size))
        frames.append((number, list(range(first, first + size))))
        first += size
    journal.close()
    return frames


def read(folder: Path) -> list[tuple[int, list[int]]]:
    return [(entry.number, entry.batch["id"].to_pylist()) for entry in Journal(folder).replay(SCHEMA)]


def test_what_went_in_comes_out_over_several_processes(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    assert read(folder) == []
    first = written(folder, [3, 0, 5])
    again = Journal(folder)
    again.append(7, batch(100, 2))
    again.close()
    assert read(folder) == [*first, (7, [100, 101])]
    assert len(again.segments()) == 2  # a process never writes behind another's end
    assert again.torn_bytes == 0


def test_cut_at_any_byte_loses_the_last_frame_at_most(tmp_path: Path) -> None:
    frames = written(tmp_path / "whole", [2, 1, 3])
    [segment] = Journal(tmp_path / "whole").segments()
    data = segment.read_bytes()
    folder = tmp_path / "cut"
    folder.mkdir()
    ends = []
    for length in range(len(data) + 1):
        (folder / segment.name).write_bytes(data[:length])
        found = read(folder)
        assert found == frames[: len(found)]
        ends.append(len(found))
    assert ends == sorted(ends)
    assert (ends[0], ends[-1], ends[-2]) == (0, 3, 2)


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), seed=st.integers(0, 10**6))
def test_one_damaged_byte_loses_one_frame_at_most(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    frames = written(folder, sizes)
    [segment] = Journal(folder).segments()
    data = bytearray(segment.read_bytes())
    place = random.Random(seed).randrange(len(b"obverse journal 1\n"), len(data))
    data[place] ^= 1 << random.Random(seed + 1).randrange(8)
    segment.write_bytes(bytes(data))
    journal = Journal(folder)
    found = [(entry.number, entry.batch["id"].to_pylist()) for entry in journal.replay(SCHEMA)]
    assert len(found) == len(frames) - 1
    assert all(frame in frames for frame in found)
    assert journal.torn_bytes > 0


def test_released_numbers_leave_the_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(40):
        journal.append(number, batch(number * 10, 10))
        if number >= 3:
            journal.release(number - 3, segment_bytes=2000)
        assert sum(path.stat().st_size for path in journal.segments()) < 10_000
    held = {entry.number for entry in Journal(tmp_path).replay(SCHEMA)}
    assert {37, 38, 39} <= held
    for number in (37, 38, 39):
        journal.release(number, segment_bytes=2000)
    assert list(Journal(tmp_path).replay(SCHEMA)) == []
    journal.append(99, batch(0, 1))
    journal.close()
    assert read(tmp_path) == [(99, [0])]
    journal.clear()
    assert not tmp_path.exists()


def test_rows_of_another_schema_are_named(tmp_path: Path) -> None:
    written(tmp_path, [1])
    with pytest.raises(InputError, match=r"00000001\.journal.*expected rows of \['x'\]"):
        list(Journal(tmp_path).replay(pa.schema([("x", pa.int64())])))
    (tmp_path / "00000002.journal").write_bytes(b"something else")
    journal = Journal(tmp_path)
    assert len(list(journal.replay(SCHEMA))) == 1
    assert journal.torn_bytes == len(b"something else")


def test_two_in_one_folder_refuse_each_other(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "new"),
        pytest.raises(RunError, match=r"new is in use by another obverse process \(pid \d+\)"),
        locked(tmp_path / "new"),
    ):
        pass
    with locked(tmp_path / "new"):
        pass
