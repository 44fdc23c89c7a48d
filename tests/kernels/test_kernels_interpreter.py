"""Triton's interpreter runs the kernels on the CPU; it must be switched on before Triton is first imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from obverse.kernels.launch import triton_installed, triton_interprets

CHECKS = Path(__file__).with_name("test_kernels_weighted_ce.py")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not triton_installed(), reason="Triton is not installed")
def test_kernels_triton_interpreter_passes_every_check() -> None:
    if triton_interprets():
        pytest.skip("this process interprets already: the checks run in it")
    command = [sys.executable, "-m", "pytest", str(CHECKS), "-q", "-k", "interpreter", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    ran = done.stdout.strip().splitlines()[-1]
    assert int(ran.split(" passed")[0].split()[-1]) >= 30, f"too few checks ran: {ran}"
