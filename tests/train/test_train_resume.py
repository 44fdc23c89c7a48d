"""A training killed with SIGKILL, at a chosen moment and at random ones, ends with the very same weights."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SCRIPT = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from obverse.engine.train.settings import TrainSettings
from obverse.engine.train.trainer import train_model

rows, model, out, kill_after = pq.read_table(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
seen = 0

def progress(count):
    global seen
    seen += count
    if kill_after and seen >= kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

settings = TrainSettings(model=model, epochs=3, batch_size=4, learning_rate=3e-3)
train_model(rows, settings, task="extraction", method="imp", seed=7, out=out, selection=rows.slice(0, 8),
            on_progress=progress, checkpoint_seconds=0.0)
"""


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def start(rows: Path, model: Path, out: Path, kill_after: int = 0) -> subprocess.Popen[bytes]:
    # One thread: with more, how sums are split among them is up to the scheduler of a loaded machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(rows), str(model), str(out), str(kill_after)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    STARTED.append(process)
    return process


def test_killed_and_resumed_is_as_never_killed(tiny_llama: Path, rows: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_llama.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.2}))  # so that draws matter
    table = rows(32).append_column("sample_weight", pa.array([0.5 + i % 4 for i in range(32)], pa.float32()))
    pq.write_table(table, tmp_path / "rows.parquet")

    whole = start(tmp_path / "rows.parquet", model, tmp_path / "whole")
    killed = start(tmp_path / "rows.parquet", model, tmp_path / "killed", kill_after=52)  # inside epoch 2
    assert killed.wait(240) == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoint" / "state.pt").exists()
    assert not (tmp_path / "killed" / "training.json").exists()
    assert whole.wait(240) == 0

    random_kill = start(tmp_path / "rows.parquet", model, tmp_path / "killed")
    before = (tmp_path / "killed" / "checkpoint" / "state.pt").stat().st_mtime_ns
    deadline = time.monotonic() + 60
    while random_kill.poll() is None and time.monotonic() < deadline:
        state = tmp_path / "killed" / "checkpoint" / "state.pt"
        if state.exists() and state.stat().st_mtime_ns != before:
            time.sleep(random.random() * 0.05)
            random_kill.kill()
            break
        time.sleep(0.002)
    random_kill.wait(60)
    assert start(tmp_path / "rows.parquet", model, tmp_path / "killed").wait(240) == 0

    facts = json.loads((tmp_path / "killed" / "training.json").read_text())
    other = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert facts["resumed"] >= 1
    assert other["resumed"] == 0
    assert facts["selection_loss"] == other["selection_loss"]
    assert facts["loss"] == other["loss"]
    assert facts["tokens"] == other["tokens"]
    found = (tmp_path / "killed" / "model.safetensors").read_bytes()
    assert found == (tmp_path / "whole" / "model.safetensors").read_bytes()
