"""``python -m benchmarks``: every benchmark module in turn, rows appended to OUT/NAME.csv."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

MODULES = ("losses", "generation", "decoding", "embedding", "neighbours", "dedup")


def main() -> int:
    """Run each module in a process of its own, so that none inherits another's threads or memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of result files")
    parser.add_argument("--quick", action="store_true", help="smallest sizes")
    parser.add_argument("modules", nargs="*", default=MODULES, help=f"of {', '.join(MODULES)}")
    options = parser.parse_args()
    worst = 0
    for name in options.modules:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--csv", str(options.out / f"{name}.csv")]
        worst = max(worst, subprocess.run(command + ["--quick"] * options.quick, check=False).returncode)
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
