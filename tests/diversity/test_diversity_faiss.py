"""`FaissIndex` alone, and the self-join by FAISS against float64 brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from obverse.engine.diversity import faiss_index, faiss_join
from obverse.engine.diversity.faiss_index import FaissIndex, choose_kind, ivf_lists
from obverse.engine.errors import InputError

faiss = pytest.importorskip("faiss")
Matrix = npt.NDArray[Any]


def clustered(rows: int, dim: int = 24) -> Matrix:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(rows // 40, 2), dim))
    values = centres[generator.integers(0, len(centres), rows)] + 0.4 * generator.normal(size=(rows, dim))
    return (values * generator.uniform(0.1, 8, (rows, 1))).astype(np.float16)


def unit(values: Matrix) -> Matrix:
    wide = values.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def brute_force(values: Matrix, k: int, queries: Matrix | None = None) -> tuple[Matrix, Matrix]:
    cosines = (unit(values if queries is None else queries) @ unit(values).T).astype(np.float32)
    if queries is None:
        np.fill_diagonal(cosines, -np.inf)
    order = np.lexsort((np.broadcast_to(np.arange(len(values)), cosines.shape), -cosines), axis=1)[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


def recall(found: Matrix, truth: Matrix) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)]))


@pytest.mark.parametrize("kind", ["flat", "ivf", "rabitq", "hnsw"])
@pytest.mark.parametrize("mapped", [True, False])
def test_build_save_open_search(tmp_path: Path, kind: Any, mapped: bool) -> None:
    values, queries = clustered(1600), clustered(50)
    told: list[int] = []
    index = FaissIndex.build(values, kind=kind, recall=0.95, on_progress=told.append)
    assert (len(index), index.dim, index.kind, sum(told)) == (1600, 24, kind, 1600)
    index.save(tmp_path / "x.faiss")
    assert [path.name for path in tmp_path.iterdir()] == ["x.faiss"]
    opened = FaissIndex.open(str(tmp_path / "x.faiss"), mapped=mapped)
    assert (opened.kind, opened.parameters, len(opened)) == (kind, index.parameters, 1600)
    indices, cosines = opened.search(queries, 12)
    np.testing.assert_array_equal(indices, index.search(queries, 12, threads=1)[0])
    # The cosines are of codes: float32, float16, 1 bit, float32.
    true = (unit(queries)[:, None] * unit(values)[indices]).sum(axis=2)
    true[indices < 0] = -np.inf  # the lists visited may hold fewer than 12
    np.testing.assert_allclose(cosines, true, atol={"flat": 1e-6, "hnsw": 1e-6, "ivf": 1e-3, "rabitq": 0.5}[kind])
    # Built for 0.95 on rows of the set itself (rabitq among 4 k + 8 of them).
    wide = opened.search(values[:500], 48 if kind == "rabitq" else 11)[0]
    assert recall(wide, brute_force(values, 10)[0][:500]) >= 0.9


@pytest.mark.parametrize("kind", ["flat", "ivf", "rabitq", "hnsw"])
def test_added_rows_are_found_under_their_numbers(tmp_path: Path, kind: Any) -> None:
    values = clustered(2000)
    index = FaissIndex.build(values[:1500], kind=kind, recall=0.999)
    index.add(values[1500:])
    assert len(index) == 2000
    got = index.search(values, 30)[0]
    assert (got == np.arange(2000)[:, None]).any(axis=1).mean() > 0.97
    index.save(tmp_path / "x.faiss")
    mapped = FaissIndex.open(tmp_path / "x.faiss")
    with pytest.raises(InputError, match="mapped=False"):
        mapped.add(values[:10])
    loaded = FaissIndex.open(tmp_path / "x.faiss", mapped=False)
    loaded.add(values[:10])
    assert len(loaded) == 2010


@pytest.mark.parametrize("kind", ["flat", "ivf", "rabitq", "hnsw"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_file_cut_short_is_named(tmp_path: Path, kind: Any, share: float) -> None:
    FaissIndex.build(clustered(400), kind=kind).save(tmp_path / "x.faiss")
    data = (tmp_path / "x.faiss").read_bytes()
    (tmp_path / "x.faiss").write_bytes(data[: int(share * len(data))])
    for mapped in (True, False):
        with pytest.raises(InputError, match=r"x\.faiss"):
            FaissIndex.open(tmp_path / "x.faiss", mapped=mapped)


def test_bad_input(tmp_path: Path) -> None:
    index = FaissIndex.build(clustered(50))
    with pytest.raises(InputError, match="rows of 24 values"):
        index.search(clustered(5, 23), 3)
    with pytest.raises(InputError, match="rows of 24 values"):
        index.add(clustered(5, 23))
    with pytest.raises(InputError, match="at least one"):
        FaissIndex.build(clustered(50)[:0])
    with pytest.raises(InputError, match="one of flat"):
        FaissIndex.build(clustered(50), kind="tree")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="existing"):
        FaissIndex.open(tmp_path / "none.faiss")
    faiss.write_index(faiss.IndexFlatL2(4), str(tmp_path / "l2.faiss"))
    with pytest.raises(InputError, match="IndexFlatL2"):
        FaissIndex.open(tmp_path / "l2.faiss")
    few = FaissIndex.build(clustered(3), kind="flat").search(clustered(2), 5)
    assert (few[0][:, 3:] == -1).all()
    assert (few[1][:, 3:] == -np.inf).all()


def test_kinds_are_chosen_by_rows_recall_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_kind(60_000, 384, 0.99)[0] == "flat"
    assert choose_kind(1_000_000, 384, 1.0)[0] == "flat"
    memory = type("Memory", (), {"available": 8 << 30})
    monkeypatch.setattr(faiss_index.psutil, "virtual_memory", lambda: memory)
    assert choose_kind(1_000_000, 384, 0.99)[0] == "ivf"
    kind, reason = choose_kind(10_000_000, 384, 0.99)
    assert (kind, "7.2 GiB" in reason) == ("rabitq", True)
    assert ivf_lists(1_000_000) == 4000
    assert ivf_lists(30) == 1


@pytest.mark.parametrize("kind", ["flat", "ivf", "rabitq", "hnsw"])
@pytest.mark.parametrize("copies", [1, 3])
def test_self_join_equals_brute_force_where_the_index_finds_all(kind: str, copies: int) -> None:
    values = np.repeat(clustered(600), copies, axis=0)
    values = values[np.random.default_rng().permutation(len(values))]
    told: list[int] = []
    indices, cosines, facts = faiss_join.self_join(
        values, 10, kind=kind, recall=1.0, threads=0, seed=0, on_progress=told.append
    )
    order, true = brute_force(values, 10)
    assert facts["distinct"] == 600
    # A row of the lists is either the exact one, bit for bit, or one the index missed something of.
    same = (cosines == true).all(axis=1)
    # All that an index misses is what a sample of 256 rows did not show: 5% unseen has a chance of 2e-6.
    assert same.mean() > {"flat": 0.9999, "ivf": 0.95, "rabitq": 0.9, "hnsw": 0.9}[kind]
    np.testing.assert_array_equal(indices[same], order[same])
    assert (np.take_along_axis(unit(values) @ unit(values).T, indices, axis=1).astype(np.float32) == cosines).all()


def test_flat_search_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = clustered(1000)
    run = {"kind": "flat", "recall": 1.0, "threads": 1, "seed": 0, "on_progress": lambda _: None}
    whole = faiss_join.self_join(values, 10, **run)
    monkeypatch.setattr(faiss_join, "_KEPT", 4 * 24 * 8 * 37)  # 37 rows a part: the last has one
    monkeypatch.setattr(faiss_join, "_BLOCK", 16)
    parts = faiss_join.self_join(values, 10, **run)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_rows_for_which_an_index_finds_too_few_are_searched_exactly() -> None:
    values = clustered(900)
    run = {"recall": 0.01, "threads": 0, "seed": 0, "on_progress": lambda _: None}
    indices, cosines, facts = faiss_join.self_join(values, 200, kind="ivf", **run)
    assert (facts["probes"], facts["lists"]) < (23, 23)
    assert int(facts["completed_rows"]) > 0
    assert (indices >= 0).all()
    order, true = brute_force(values, 200)
    whole = (cosines == true).all(axis=1)
    assert whole.sum() >= int(facts["completed_rows"])
    np.testing.assert_array_equal(indices[whole], order[whole])


def test_ties_between_groups_of_equal_rows_go_by_row() -> None:
    values = np.random.default_rng().integers(-1, 2, size=(900, 4)).astype(np.float32)
    values = values[np.abs(values).sum(axis=1) == 1]  # unit axes: every cosine is exactly -1, 0 or 1
    run = {"kind": "flat", "recall": 1.0, "threads": 0, "seed": 0, "on_progress": lambda _: None}
    indices, cosines, _ = faiss_join.self_join(values, 25, **run)
    order, true = brute_force(values, 25)
    np.testing.assert_array_equal(cosines, true)
    np.testing.assert_array_equal(indices, order)
