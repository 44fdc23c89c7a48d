"""A run killed with SIGKILL at random moments ends as an undisturbed one: the same ids, once each, the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.compute as pc
import pytest

from obverse.engine.records.shards import Shards

KILLS = 20
SAMPLES = 60


def _recipe(folder: Path) -> Path:
    cities = [
        "Lyon",
        "Oslo",
        "Kraków",
        "Nagoya",
        "Perth",
        "Quito",
        "Tunis",
        "Turku",
        "Ghent",
        "Busan",
        "Cusco",
        "Izmir",
    ]
    lands = ["France", "Norway", "Poland", "Japan", "Australia", "Ecuador", "Tunisia", "Finland"]
    edges = [f"{city}\tcountry\t{lands[i % 8]}" for i, city in enumerate(cities)]
    edges += [f"{land}\tshares border with\t{lands[(i + 1) % 8]}" for i, land in enumerate(lands)]
    edges += [f"{land}\tcapital\t{cities[-1 - i]}" for i, land in enumerate(lands)]
    (folder / "triples.tsv").write_text("subject\tpredicate\tobject\n" + "\n".join(edges) + "\n")
    rows = []
    for i in range(24):
        names = (f"Town {i}", "country", lands[i % 8])
        roles = ("subject", "predicate", "object")
        triplet = {role: {"surfaceform": name, "uri": name} for role, name in zip(roles, names, strict=True)}
        rows.append({"text": f"Town {i} lies in {lands[i % 8]}.", "triplets": [triplet]})
    (folder / "real.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.toml").write_text(f"""
name = "kill"
task = "extraction"
seed = 11
shard_rows = 8
[data]
real = "real.jsonl"
checker_rows = 8
selection_rows = 4
synthetic_test_rows = 6
[sample]
graph = "{folder / "triples.tsv"}"
samples = {SAMPLES}
max_triplets = 2
[generate]
backend = "transformers"
sampling.max_tokens = 48
[check]
min_mention_recall = 0.0
near_duplicate = 1.0
leak_targets = false
drop_truncated = false
[train]
methods = ["ce", "imp"]
epochs = 1
[evaluate]
resamples = 50
""")
    return folder / "recipe.toml"


def _start(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "obverse.engine.cli", "run", str(recipe), "-o", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def _finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-2000:]


def _digests(out: Path) -> dict[str, str]:
    files = sorted([*out.rglob("*.parquet"), *out.rglob("*.safetensors")])
    kept = [path for path in files if "checkpoint" not in path.parts]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_runs_end_like_undisturbed_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, clean = _recipe(tmp_path), tmp_path / "clean"
    begun = time.perf_counter()
    _finish(_start(recipe, clean))
    whole = time.perf_counter() - begun
    expected = _digests(clean)
    assert sum(name.endswith(".parquet") for name in expected) > 20
    kills, rounds, landed = 0, 0, set()
    chance = random.Random(time.time_ns())
    while kills < KILLS:
        out = tmp_path / f"killed-{rounds}"
        rounds += 1
        while True:
            process = _start(recipe, out)
            try:
                process.wait(chance.uniform(0.2, whole * 0.6))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
                landed.add(_stage_in_flight(out))
            _, errors = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), errors.decode()[-2000:]
            if process.returncode == 0:
                break
        for stage in ("sample", "generate", "check"):
            ids = Shards(out / stage).table(["id"])["id"]
            assert len(ids) == SAMPLES
            assert pc.count_distinct(ids).as_py() == SAMPLES
        assert _digests(out) == expected
    with capsys.disabled():
        stages = ", ".join(sorted(landed))
        print(f"\n{kills} kills over {rounds} runs of {whole:.0f} s, in: {stages}; every table and model the same")


def _stage_in_flight(out: Path) -> str:
    started = {path.parent for path in out.glob("*/_started.json")}
    unfinished = sorted(folder.name for folder in started if not (folder / "_stage.json").exists())
    return unfinished[0] if unfinished else "between stages"


def test_a_finished_run_says_so_in_a_second(tmp_path: Path) -> None:
    recipe, out = _recipe(tmp_path), tmp_path / "run"
    command = [sys.executable, "-m", "obverse.engine.cli", "run", str(recipe), "-o", str(out), "--until", "data"]
    subprocess.run(command, check=True, capture_output=True)
    begun = time.perf_counter()
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    assert "nothing to do" in again.stderr
    assert seconds < 3, seconds  # a second on a quiet machine; the margin is for a busy one
