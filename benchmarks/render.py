"""Write README's figures from what was measured: the demo's metrics.json and the newest rows of benchmarks/results.

``python -m benchmarks.render [--metrics runs/geography/metrics.json]``. Nothing between the markers is typed by hand.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def _score(entry: dict[str, Any]) -> str:
    value = entry["micro"]["f1"]
    return f"{100 * value['value']:.1f} ({100 * value['low']:.1f}–{100 * value['high']:.1f})"


def _demo(metrics: dict[str, Any]) -> list[str]:
    run, check = metrics["run"], metrics["check"]
    hardware = run["hardware"]
    minutes, seconds = divmod(round(run["seconds"]), 60)
    lines = [
        f"`make demo` on {hardware['cores']} cores ({hardware['cpu']}, {hardware['memory_gib']:.0f} GiB, no GPU), "
        f"{run['started'][:10]}: {check['rows']:,} texts, {check['kept']:,} kept, "
        f"{metrics['generate']['tokens_per_s']:,.0f} output tokens/s, {minutes} min {seconds:02d} s in all.",
        "",
        "| micro-F1 (95% interval) | " + " | ".join(_columns(metrics)) + " |",
        "|---|" + "---|" * len(_columns(metrics)),
    ]
    for name, results in metrics["evaluate"].items():
        records = next(iter(results.values()))["records"]
        about = {"real": "texts written one by one", "synthetic": "synthetic texts kept out of training"}.get(
            name, name
        )
        lines.append(f"| {records} {about} | " + " | ".join(_score(entry) for entry in results.values()) + " |")
    return [*lines, "", *_differences(metrics["comparisons"])]


def _differences(comparisons: list[dict[str, Any]]) -> list[str]:
    """What the paired bootstrap says, one sentence for what is clear and one for what is not."""
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for row in comparisons:
        gap, low, high = (100 * row[key] for key in ("difference", "low", "high"))
        names = f"{row['a'].upper().replace('/', ' ')} against {row['b'].upper().replace('/', ' ')} on {row['set']}"
        kinds[low > 0 or high < 0].append(
            f"{names.replace('CONSTRAINED', 'constrained').replace('FREE', 'free')} {gap:+.1f}"
        )
    said = {True: "Clear differences (paired bootstrap, 95%)", False: "No clear difference"}
    return [f"{said[clear]}: {', '.join(found)}.  " for clear, found in kinds.items() if found]


def _columns(metrics: dict[str, Any]) -> list[str]:
    results = next(iter(metrics["evaluate"].values()))
    return [f"{method.upper()}, {mode}" for method, _, mode in (key.partition("/") for key in results)]


def _rows(folder: Path) -> list[str]:
    newest: dict[tuple[str, ...], dict[str, str]] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                newest[(row["bench"], row["op"], row["shape"], row["provider"], row["metric"])] = row
    if not newest:
        return []
    lines = [
        "",
        "Beside named peers, in one process on one machine (`--quick` sizes or full; above 1: we are faster):",
        "",
        "| what | shape | provider | value | ratio to the best peer |",
        "|---|---|---|---|---|",
    ]
    for row in newest.values():
        ratio = f"{float(row['peer_ratio']):.2f}" if row["peer_ratio"] else ""
        value = f"{float(row['value']):,.4g} {row['unit']}"
        lines.append(
            f"| {row['bench']}: {row['op']}, {row['metric']} | {row['shape']} | {row['provider']} | {value} | {ratio} |"
        )
    machines = sorted({row["hardware"] for row in newest.values()})
    return [*lines, "", f"Measured on: {'; '.join(machines)}."]


def main() -> int:
    """Replace what stands between the markers in README.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render")
    parser.add_argument("--metrics", type=Path, default=ROOT / "runs/geography/metrics.json")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    options = parser.parse_args()
    lines = _demo(json.loads(options.metrics.read_text(encoding="utf-8"))) + _rows(options.results)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    readme.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
