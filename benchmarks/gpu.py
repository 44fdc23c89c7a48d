"""``make gpu``: every GPU test, then every GPU benchmark, in one go, with rows and logs under OUT.

It uses the Python it is started with and needs no virtual environment: a lent machine brings its own torch and Triton.
Without a CUDA device it says so and runs nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

BUDGET_S = 8 * 60
BENCHMARKS = {"losses": (), "masking": (), "neighbours": (), "generation": ("--only", "gpu")}


def _run(name: str, command: list[str], out: Path, deadline: float) -> int:
    left = max(deadline - time.monotonic(), 1.0)
    print(f"== {name}: {' '.join(command)}", flush=True)
    with (out / f"gpu-{name}.log").open("w", encoding="utf-8") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=left, check=False).returncode
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped: the budget of {BUDGET_S} s was spent\n")
            code = 124
    print((out / f"gpu-{name}.log").read_text(encoding="utf-8")[-3000:], flush=True)
    return code


def main() -> int:
    """Run the tests, then the benchmarks; the exit status is the worst of theirs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and logs")
    out = parser.parse_args().out
    try:
        import torch
    except ImportError:
        print("no torch here: nothing was run")
        return 1
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was run")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + BUDGET_S
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "tests/kernels",
        "tests/losses",
        "tests/diversity",
    ]
    codes = [_run("tests", pytest, out, deadline)]
    for name, options in BENCHMARKS.items():
        command = [sys.executable, "-m", f"benchmarks.{name}", "--csv", str(out / f"gpu-{name}.csv"), *options]
        codes.append(_run(name, command, out, deadline))
    return max(codes)


if __name__ == "__main__":
    raise SystemExit(main())
