"""Trie: the same content as a Python dictionary, and a file that is whole or refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obverse._core import SectionFile, Trie

Names = list[list[int]]


def trie_of(names: Names) -> Trie:
    offsets = np.cumsum([0, *map(len, names)], dtype=np.int64)
    return Trie.build(np.array([t for name in names for t in name], dtype=np.int32), offsets)


def content(trie: Trie) -> tuple[dict[tuple[int, ...], list[int]], int]:
    """Every sequence with its numbers, by a walk over all children; and how many nodes the walk met."""
    found: dict[tuple[int, ...], list[int]] = {}
    todo: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    num_nodes = 0
    while todo:
        node, prefix = todo.pop()
        num_nodes += 1
        ids = trie.sequence_ids(node).tolist()
        assert trie.is_terminal(node) == bool(ids)
        if ids:
            found[prefix] = ids
        tokens = trie.children(node).tolist()
        assert tokens == sorted(set(tokens))
        todo += [(trie.step(node, t), (*prefix, t)) for t in tokens]
    return found, num_nodes


def expected(names: Names) -> dict[tuple[int, ...], list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(tuple(name), []).append(i)
    return groups


names_lists = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=120)


@settings(max_examples=120, deadline=None)
@given(names=names_lists)
def test_native_trie_holds_exactly_its_sequences(names: Names) -> None:
    trie = trie_of(names)
    found, num_nodes = content(trie)
    assert found == expected(names)
    assert num_nodes == trie.num_nodes == 1 + len({tuple(n[:k]) for n in names for k in range(1, len(n) + 1)})
    assert trie.num_sequences == len(names)


def test_native_trie_large_tokens_and_missing_steps() -> None:
    trie = trie_of([[2**24 - 1, 7], [0]])
    assert trie.children(0).tolist() == [0, 2**24 - 1]
    assert trie.arrays()["high"].tolist() == [0, 0, 255, 0]
    assert trie.step(0, 5) == trie.step(0, -1) == trie.step(0, 2**40) == -1
    with pytest.raises(IndexError, match=r"node must be in \[0, 4\), got 4"):
        trie.children(4)
    with pytest.raises(IndexError, match=r"got -1"):
        trie.is_terminal(-1)


def test_native_trie_file_round_trip_and_outlives_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [rng.integers(0, 50, rng.integers(1, 7)).tolist() for _ in range(2000)]
    trie, path = trie_of(names), tmp_path / "names.trie"
    trie.save(path)
    assert trie.nbytes < path.stat().st_size < trie.nbytes + 128 + 9 * 128
    assert [p.name for p in tmp_path.iterdir()] == ["names.trie"], "no temporary file may stay"
    opened = Trie.open(str(path))
    path.unlink()  # the mapping keeps the content
    assert content(opened)[0] == expected(names)
    again = tmp_path / "again.trie"
    opened.save(again)
    trie.save(path)
    assert again.read_bytes() == path.read_bytes()


def told(path: Path) -> bool:
    """Whether damage shows; whatever a section holds, reading it is safe."""
    try:
        content(Trie.open(path))
    except AssertionError:
        return True
    except ValueError as error:
        return re.search(r"broken\.trie: (damaged|expected)", str(error)) is not None
    try:
        SectionFile.open(path).verify()
    except ValueError as error:
        return re.search(r"broken\.trie: damaged", str(error)) is not None
    return False


def test_native_trie_file_refuses_every_damage(tmp_path: Path) -> None:
    path = tmp_path / "names.trie"
    trie_of([[1, 2], [1], [3, 4, 5], [3, 4]]).save(path)
    whole = path.read_bytes()
    broken = tmp_path / "broken.trie"
    untold = 0
    for i in range(len(whole)):
        broken.write_bytes(whole[:i] + bytes([whole[i] ^ 0x41]) + whole[i + 1 :])
        untold += not told(broken)
    assert untold <= 9 * 63, "only the zeros between sections are nobody's"
    for size in range(0, len(whole), 5):
        broken.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"broken\.trie: (damaged|expected)"):
            Trie.open(broken)
    broken.write_bytes(whole + b"x")
    with pytest.raises(ValueError, match=rf"expected {len(whole)} bytes, got {len(whole) + 1}"):
        Trie.open(broken)


def test_native_trie_finds_names_in_a_text() -> None:
    rng = np.random.default_rng(3)
    names = [rng.integers(0, 9, rng.integers(1, 4)).tolist() for _ in range(60)]
    trie = trie_of(names)
    text = rng.integers(0, 10, 200).tolist()
    begins, ends, nodes = trie.find(np.array(text, np.int32))
    found = set(zip(begins.tolist(), ends.tolist(), strict=True))
    assert found == {(i, i + n) for n in (1, 2, 3) for i in range(201 - n) if text[i : i + n] in names}
    for begin, end, node in zip(begins, ends, nodes, strict=True):
        assert trie.walk(np.array(text[begin:end], np.int32)) == node
        assert names[int(trie.sequence_ids(int(node))[0])] == text[begin:end]
    assert trie.nodes_of_sequences().tolist() == [trie.walk(np.array(n, np.int32)) for n in names]
    for node in range(1, trie.num_nodes):
        assert trie.step(trie.parent(node), int(trie.arrays()["low"][node])) == node


def test_native_section_file_refuses_bad_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sections\['a'\] must be contiguous"):
        SectionFile.write(tmp_path / "f", "", {"a": np.zeros((4, 4), np.int32)[:, ::2]})
    with pytest.raises(ValueError, match=r"fingerprint must hold at most 63 bytes"):
        SectionFile.write(tmp_path / "f", "x" * 64, {})
    SectionFile.write(tmp_path / "f", "print", {"a": b"abc", "empty": b""})
    file = SectionFile.open(tmp_path / "f")
    assert (file.fingerprint, file.names(), file.path) == ("print", ["a", "empty"], str(tmp_path / "f"))
    assert file.section("a").tobytes() == b"abc"
    assert len(file.section("empty")) == 0
    section = file.section("a")
    with pytest.raises(ValueError, match="read-only"):
        section[0] = 1
    with pytest.raises(ValueError, match=r"expected a section 'trie\.low', got none"):
        Trie.from_sections(file, "trie")


def test_native_trie_system_errors_are_os_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Trie.open(tmp_path / "absent")
    assert caught.value.filename == str(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        Trie.open(tmp_path)
    with pytest.raises(FileNotFoundError):
        trie_of([[1]]).save(tmp_path / "no" / "folder")


def test_native_trie_refuses_bad_values() -> None:
    with pytest.raises(ValueError, match=r"at least one sequence"):
        trie_of([])
    with pytest.raises(ValueError, match=r"sequence 1 must hold at least one token"):
        trie_of([[1], []])
    with pytest.raises(ValueError, match=r"got -3 in sequence 0"):
        trie_of([[1, -3]])
    tokens = np.array([1, 2], dtype=np.int32)
    with pytest.raises(ValueError, match=r"offsets must never fall"):
        Trie.build(tokens, np.array([0, 2, 1, 2], dtype=np.int64))
    with pytest.raises(ValueError, match=r"offsets must end at the flat array's length 2, got 1"):
        Trie.build(tokens, np.array([0, 1], dtype=np.int64))
    with pytest.raises(ValueError, match=r"offsets\[0\] must be 0, got 1"):
        Trie.build(tokens, np.array([1, 2], dtype=np.int64))
    with pytest.raises(ValueError, match=r"offsets must be a 1-D numpy array of int64, got dtype int32"):
        Trie.build(tokens, np.array([0, 2], dtype=np.int32))
