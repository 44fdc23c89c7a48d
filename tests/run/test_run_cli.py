"""The command line: every verb's help is whole, and mistakes are answered in one plain line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from obverse.engine.cli.main import _VERBS


def _obverse(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "obverse.engine.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_root_help_names_every_verb() -> None:
    result = _obverse("--help")
    assert result.returncode == 0
    for verb in _VERBS:
        assert f"  {verb} " in result.stdout


@pytest.mark.parametrize("verb", sorted(_VERBS))
def test_each_verb_has_help_for_every_option(verb: str) -> None:
    result = _obverse(verb, "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage: obverse" in result.stdout
    assert len(result.stdout.splitlines()) > 5


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["smaple"], 2, ["No such command 'smaple'", "Did you mean 'sample'?"]),
        (["run", "nothing.toml"], 1, ["error: nothing.toml: there is no such recipe file"]),
        (["sample", "-o", "x.parquet", "--samples", "0"], 2, ["--samples", "greater than or equal to 1"]),
        (["sample", "-o", "x.parquet", "--graph", "nothing.tsv"], 1, ["error:", "nothing.tsv"]),
        (["generate", "nothing.parquet", "-o", "x"], 2, ["nothing.parquet", "does not exist"]),
        (["weigh", "rows.csv", "-o", "x.parquet"], 1, ["error:", "log_quality"]),
        (["train", "rows.csv", "-o", "x", "--task", "classification", "--method", "imp"], 2, ["--weights"]),
    ],
)
def test_mistakes_are_answered_plainly(tmp_path: Path, arguments: list[str], code: int, parts: list[str]) -> None:
    (tmp_path / "rows.csv").write_text("id,text,label\n1,good,1\n2,bad,0\n")
    result = _obverse(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def test_doctor_tells_what_is_here() -> None:
    result = _obverse("doctor")
    assert "python" in result.stdout
    assert "vllm" in result.stdout
    assert "demo model" in result.stdout
