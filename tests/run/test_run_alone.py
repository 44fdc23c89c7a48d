"""Every stage alone, on files, through the command line: what one verb writes the next one reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

LANDS = ["France", "Norway", "Poland", "Japan", "Ecuador", "Tunisia"]
CITIES = ["Lyon", "Oslo", "Radom", "Nara", "Quito", "Sousse", "Nice", "Bergen", "Lublin", "Kobe", "Cuenca", "Bizerte"]


def _obverse(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "obverse.engine.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stderr[-3000:]}"
    return done.stdout


def _rows(folder: Path) -> None:
    """Texts joined with their targets, as a user would: in pyarrow."""
    targets, texts = pq.read_table(folder / "targets.parquet"), pq.read_table(folder / "texts")
    assert targets["id"].equals(texts["id"])
    rows = texts.select(["id", "text"]).append_column("triplets", targets["triplets"])
    pq.write_table(rows.filter(pc.greater(pc.utf8_length(rows["text"]), 0)), folder / "rows.parquet")


@pytest.mark.slow
def test_each_verb_works_on_the_files_of_the_one_before(tmp_path: Path) -> None:
    edges = [f"{city}\tcountry\t{LANDS[i % 6]}" for i, city in enumerate(CITIES)]
    (tmp_path / "graph.tsv").write_text("subject\tpredicate\tobject\n" + "\n".join(edges) + "\n")
    _obverse(
        tmp_path, "sample", "--graph", "graph.tsv", "--samples", "24", "--max-triplets", "2", "-o", "targets.parquet"
    )
    written = ("--backend", "transformers", "--max-tokens", "40", "--shard-rows", "8")
    _obverse(tmp_path, "generate", "targets.parquet", "-o", "texts", *written)
    assert "24 rows" in _obverse(tmp_path, "generate", "targets.parquet", "-o", "texts", *written)
    loose = ("--min-mention-recall", "0", "--no-drop-truncated")
    said = _obverse(
        tmp_path, "check", "targets.parquet", "texts", "-o", "checks.parquet", "--graph", "graph.tsv", *loose
    )
    assert "kept" in said
    _rows(tmp_path)
    _obverse(tmp_path, "embed", "rows.parquet", "-o", "vectors.parquet")
    figures = _obverse(tmp_path, "score", "vectors.parquet", "-o", "scores.parquet", "--neighbours", "3")
    assert json.loads(figures[figures.index("{") :])["metrics"]["vendi"] > 1
    rows = pq.read_table(tmp_path / "rows.parquet")
    count = rows.num_rows
    scored = pa.table(
        {"id": rows["id"], "log_quality": [-0.1 * i for i in range(count)], "log_diversity": [-1.0] * count}
    )
    pq.write_table(scored, tmp_path / "scored.parquet")
    _obverse(tmp_path, "weigh", "scored.parquet", "-o", "weights.parquet")
    learning = ("--epochs", "1", "--method", "imp", "--weights", "weights.parquet")
    _obverse(tmp_path, "train", "rows.parquet", "-o", "model", *learning)
    _obverse(tmp_path, "decode", "model", "rows.parquet", "-o", "found.parquet", "--graph", "graph.tsv")
    predicted = pq.read_table(tmp_path / "found.parquet")["predicted"].to_pylist()
    names = {t[role]["surfaceform"] for triplets in predicted for t in triplets for role in ("subject", "object")}
    assert names <= {*CITIES, *LANDS}
    result = json.loads(_obverse(tmp_path, "evaluate", "found.parquet", "--resamples", "50"))
    assert result["records"] == count
    (tmp_path / "names.txt").write_text("\n".join([*CITIES, *LANDS]))
    (tmp_path / "relations.txt").write_text("country\n")
    built = ("names.txt", "--relations", "relations.txt", "--tokenizer", "model", "-o", "catalog")
    assert "18 names" in _obverse(tmp_path, "catalog", "build", *built)
    assert json.loads(_obverse(tmp_path, "catalog", "info", "catalog"))["entities"] == 18
