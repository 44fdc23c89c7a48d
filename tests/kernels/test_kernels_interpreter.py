"""Triton's interpreter runs the kernels on the CPU; it must be switched on before Triton is first imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from obverse.kernels.launch import triton_installed, triton_interprets

CHECKS = {
    "test_kernels_weighted_ce.py": 30,
    "test_kernels_triton.py": 80,
    "test_kernels_total.py": 29,
    "test_kernels_linear.py": 14,
    "test_kernels_neighbours.py": 11,
}
"""Files, and how many checks each must at least have run."""
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not triton_installed(), reason="Triton is not installed")
@pytest.mark.parametrize("name", CHECKS)
def test_kernels_triton_interpreter_passes_every_check(name: str) -> None:
    if triton_interprets():
        pytest.skip("this process interprets already: the checks run in it")
    file = str(Path(__file__).with_name(name))
    command = [sys.executable, "-m", "pytest", file, "-q", "-k", "interpreter", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    ran = done.stdout.strip().splitlines()[-1]
    assert int(ran.split(" passed")[0].split()[-1]) >= CHECKS[name], f"too few checks ran: {ran}"
