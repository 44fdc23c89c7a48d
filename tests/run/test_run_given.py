"""A run may start from any stage's table: what a user brings takes the stage's place."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from obverse.engine.errors import InputError
from obverse.engine.recipe import load_recipe
from obverse.engine.records.progress import Progress
from obverse.engine.records.shards import Shards
from obverse.engine.run.driver import run_recipe

WORDS = ["warm", "dull", "sharp", "slow", "bright", "flat", "rich", "thin", "bold", "grim", "neat", "odd"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def rows(kind: str) -> str:
        lines = [
            {"text": f"A {kind} film that is {word} and {WORDS[i - 3]}.", "label": i % 2}
            for i, word in enumerate(WORDS)
        ]
        return "".join(json.dumps(line) + "\n" for line in lines)

    (tmp_path / "texts.jsonl").write_text(rows("made"))
    (tmp_path / "real.jsonl").write_text(rows("real"))
    (tmp_path / "recipe.toml").write_text(
        'name = "given"\ntask = "classification"\n[data]\nreal = "real.jsonl"\nchecker_rows = 4\nselection_rows = 2\n'
        '[given]\ngenerate = "texts.jsonl"\n[check]\nnear_duplicate = 1.0\n[score]\nneighbours = 3\n'
    )
    return tmp_path


def _run(folder: Path, out: str, until: str, **given: Path) -> Path:
    overrides = [f"given.{stage}={path}" for stage, path in given.items()]
    recipe, _ = load_recipe(folder / "recipe.toml", overrides)
    return run_recipe(recipe, folder / out, until=until, progress=Progress(quiet=True))


def test_every_later_table_can_be_brought(folder: Path) -> None:
    first = _run(folder, "first", "score")
    dropped = 5
    checks = Shards(first / "check").table().select(["id", "kept"])
    kept = pc.and_(checks["kept"], pc.not_equal(checks["id"], dropped))
    pq.write_table(pa.table({"id": checks["id"], "kept": kept}), folder / "checks.parquet")
    ids = [row for row in range(12) if row != dropped]
    vectors = pa.table({"id": ids, "vector": [[float(i), 1.0, 0.5 * i, 2.0] for i in ids]})
    pq.write_table(vectors, folder / "vectors.parquet")
    pq.write_table(pa.table({"id": ids, "weight": [float(i) for i in ids]}), folder / "weights.parquet")
    second = _run(
        folder,
        "second",
        "weigh",
        check=folder / "checks.parquet",
        embed=folder / "vectors.parquet",
        weigh=folder / "weights.parquet",
    )
    assert Shards(second / "embed").table()["vector"].type.list_size == 4
    assert Shards(second / "score").table()["id"].to_pylist() == ids
    assert Shards(second / "weigh").table()["weight"].to_pylist() == [float(i) for i in ids]
    scores = folder / "scores.parquet"
    pq.write_table(Shards(second / "score").table(), scores)
    third = _run(
        folder, "third", "score", check=folder / "checks.parquet", embed=folder / "vectors.parquet", score=scores
    )
    assert Shards(third / "score").table().equals(pq.read_table(scores))


def test_targets_can_be_brought_with_texts_joined_on_id(folder: Path) -> None:
    pq.write_table(pa.table({"id": [7, 3], "label": ["1", "0"]}), folder / "targets.parquet")
    texts = pa.table({"id": [3, 7], "text": ["A slow film, and a dull one.", "A bright film, and a bold one."]})
    pq.write_table(texts, folder / "only-texts.parquet")
    out = _run(folder, "run", "check", sample=folder / "targets.parquet", generate=folder / "only-texts.parquet")
    written = Shards(out / "generate").table()
    assert written["id"].to_pylist() == [7, 3]
    assert written["text"][0].as_py().startswith("A bright")
    assert Shards(out / "check").table()["kept"].to_pylist() == [True, True]


def test_a_table_without_its_columns_is_named(folder: Path) -> None:
    pq.write_table(pa.table({"id": [0, 1]}), folder / "bad.parquet")
    with pytest.raises(InputError, match="'kept'"):
        _run(folder, "run", "check", check=folder / "bad.parquet")
    with pytest.raises(InputError, match="'weight'"):
        _run(folder, "run2", "weigh", weigh=folder / "bad.parquet")
