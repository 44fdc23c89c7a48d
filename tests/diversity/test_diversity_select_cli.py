"""The verbs dedup and select: files in, files out, plain errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from obverse.engine.cli.select import dedup, select
from obverse.engine.diversity.duplicates import near_duplicates
from obverse.engine.diversity.selection import facility_location, graph_k_center, k_center
from obverse.engine.errors import InputError


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    return np.random.default_rng(seed)


def run(command: Any, *arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.output[result.output.index("{") :]))


def fails(command: Any, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(one) for one in arguments])
    assert result.exit_code != 0
    assert result.exception is not None
    return result.output if isinstance(result.exception, SystemExit) else str(result.exception)


def vectors_file(folder: Path, x: Any, ids: Any) -> Path:
    path = folder / "vectors.parquet"
    values = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    pq.write_table(pa.table({"id": ids, "vector": values}), path)
    return path


def test_diversity_dedup_vectors_writes_ids(tmp_path: Path, rng: Any) -> None:
    x = rng.standard_normal((60, 8)).astype(np.float32)
    x[30:45] = x[:15] + 0.01 * rng.standard_normal((15, 8)).astype(np.float32)
    ids = rng.permutation(1000)[:60]
    quality = rng.random(60)
    mixed = rng.permutation(60)
    pq.write_table(pa.table({"id": ids[mixed], "merit": quality[mixed]}), tmp_path / "merit.parquet")
    out = tmp_path / "kept.parquet"
    source = vectors_file(tmp_path, x, ids)
    facts = run(
        dedup, "vectors", source, "-o", out, "--threshold", 0.9, "--scores", tmp_path / "merit.parquet",
        "--quality", "merit", "-q",
    )  # fmt: skip
    expected = near_duplicates(x, 0.9, scores=quality)
    table = pq.read_table(out)
    assert table["id"].to_pylist() == ids.tolist()
    assert table["kept"].to_pylist() == expected.kept.tolist()
    assert table["duplicate_group"].to_pylist() == ids[expected.group].tolist()
    assert table["duplicate_of"].to_pylist() == [
        None if of < 0 else int(ids[of]) for of in expected.duplicate_of.tolist()
    ]
    assert facts["rows"] == 60
    assert facts["kept"] == expected.kept.sum() < 60
    run(dedup, "vectors", source, "-o", out, "--threshold", 0.9, "--kept-only", "-q")
    assert pq.read_table(out).num_rows == near_duplicates(x, 0.9).kept.sum()


def test_diversity_dedup_texts_normalises_unless_told_not_to(tmp_path: Path) -> None:
    source, out = tmp_path / "texts.jsonl", tmp_path / "kept.parquet"
    rows = [{"id": 5, "text": "The Same  Text"}, {"id": 3, "text": "the same text"}, {"id": 9, "text": "another one"}]
    source.write_text("\n".join(map(json.dumps, rows)))
    facts = run(dedup, "texts", source, "-o", out, "-q")
    assert pq.read_table(out)["kept"].to_pylist() == [True, False, True]
    assert pq.read_table(out)["duplicate_of"].to_pylist() == [None, 5, None]
    assert facts["expected_recall"] >= 0.99
    assert run(dedup, "texts", source, "-o", out, "-q", "--as-written")["kept"] == 3


def scores_file(folder: Path, rng: Any, rows: int) -> tuple[Path, Any, Any, Any, Any]:
    ids = rng.permutation(10 * rows)[:rows]
    indices = np.array([rng.permutation(np.delete(np.arange(rows), row))[:4] for row in range(rows)])
    similarities = rng.random((rows, 4)).astype(np.float32)
    merit = rng.random(rows)
    table = {
        "id": ids,
        "neighbour_ids": list(ids[indices]),
        "neighbour_similarities": list(similarities),
        "merit": merit,
        "name": ["x"] * rows,
    }
    path = folder / "scores.parquet"
    pq.write_table(pa.table(table), path)
    return path, ids, indices, similarities, merit


def test_diversity_select_writes_the_order_of_choice(tmp_path: Path, rng: Any) -> None:
    scores, ids, indices, similarities, merit = scores_file(tmp_path, rng, 50)
    out = tmp_path / "selected.parquet"
    x = rng.standard_normal((50, 5)).astype(np.float32)
    mixed = rng.permutation(50)
    vectors = vectors_file(tmp_path, x[mixed], ids[mixed])
    cases = (
        ((), facility_location(indices, similarities, 7)),
        (
            ("--quality", "merit", "--weight", "merit"),
            facility_location(indices, similarities, 7, quality=merit, weight=merit),
        ),
        (("--method", "k-center"), graph_k_center(indices, similarities, 7)),
        (("--method", "k-center", "--vectors", vectors), k_center(x, 7)),
    )
    for options, expected in cases:
        facts = run(select, scores, "-n", 7, "-o", out, "-q", *options)
        table = pq.read_table(out)
        assert table["id"].to_pylist() == ids[expected.rows].tolist()
        assert table["rank"].to_pylist() == list(range(7))
        assert table["gain"].to_pylist() == expected.gains.tolist()
        assert facts["method"] == expected.method
    for extra in ((), ("--vectors", vectors)):
        run(select, scores, "-n", 50, "-o", out, "-q", "--method", "score", "--quality", "merit", *extra)
        gains = pq.read_table(out)["gain"].to_pylist()
        assert gains == sorted(gains, reverse=True)


def test_diversity_select_refuses_what_it_cannot_use(tmp_path: Path, rng: Any) -> None:
    scores, ids, *_ = scores_file(tmp_path, rng, 20)
    out = tmp_path / "selected.parquet"
    base = (scores, "-n", 5, "-o", out, "-q")
    assert "--quality" in fails(select, *base, "--method", "score")
    assert "--weight" in fails(select, *base, "--method", "k-center", "--weight", "merit")
    assert "no meaning" in fails(select, *base, "--vectors", scores)
    assert "a column 'absent'" in fails(select, *base, "--quality", "absent")
    assert "field 'name': expected numbers" in fails(select, *base, "--quality", "name")
    table = pq.read_table(scores)
    twice = table["id"].to_numpy().copy()
    twice[7] = twice[2]
    pq.write_table(table.set_column(0, "id", pa.array(twice)), scores)
    assert "row 7, field 'id'" in fails(select, *base)
    strange = [[int(ids[1]), 10**9]] + [[]] * 19
    pq.write_table(
        pa.table({"id": ids, "neighbour_ids": strange, "neighbour_similarities": [[0.5, 0.5]] + [[]] * 19}), scores
    )
    with pytest.raises(InputError, match=r"field 'neighbour_ids'.*1000000000"):
        CliRunner().invoke(select, [str(one) for one in base], catch_exceptions=False)
    assert not out.exists()
