"""A finished run is extended: what was written stays as it is, only the new targets are written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from obverse.engine.records.shards import Shards

pytest.importorskip("vllm")

RECIPE = """
name = "extend"
task = "extraction"
seed = 5
shard_rows = 16
[data]
real = "real.jsonl"
checker_rows = 4
selection_rows = 2
[generate]
backend = "vllm"
sampling.max_tokens = 40
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extend")
    rows = []
    for i in range(12):
        names = zip(("subject", "predicate", "object"), (f"Town {i}", "country", "France"), strict=True)
        triplet = {role: {"surfaceform": name, "uri": name} for role, name in names}
        rows.append({"text": f"Town {i} lies in France.", "triplets": [triplet]})
    (folder / "real.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"


def command(recipe: Path, out: Path, samples: int) -> list[str]:
    size = ["--set", f"sample.samples={samples}"]
    return [
        sys.executable,
        "-m",
        "obverse.engine.cli",
        "run",
        str(recipe),
        "-o",
        str(out),
        *size,
        "--until",
        "generate",
    ]


def run(recipe: Path, out: Path, samples: int) -> str:
    done = subprocess.run(command(recipe, out, samples), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def texts(out: Path) -> pa.Table:
    return Shards(out / "generate").table()


def test_extended_and_terminated_and_gone_on_with(recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "whole", 90)
    out = tmp_path / "out"
    run(recipe, out, 40)
    first = texts(out)
    # SIGTERM, as a cluster sends it, while the new rows are written.
    process = subprocess.Popen(
        command(recipe, out, 90), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    )
    until = time.monotonic() + 120
    while not list((out / "generate").glob("_journal/*.journal")) and time.monotonic() < until:
        if process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert process.returncode in (143, 0), told  # 0: it was done before the signal came
    if process.returncode:
        assert "stopped; run the same command again to go on" in told
        told = run(recipe, out, 90)
    assert "rows were written before" in told
    found = texts(out)
    assert found.equals(texts(tmp_path / "whole"))
    assert found.slice(0, 40).equals(first)
