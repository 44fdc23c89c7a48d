"""Write the figures of README and docs from what was measured: the demo's metrics.json and the newest benchmark rows.

``python -m benchmarks.render [--metrics runs/geography/metrics.json]``. Nothing between the markers is typed by hand.
README shows the rows of `HEADLINES`, and what the demo reached (kept as it stands where there is no such run);
docs/decoding.md, docs/losses.md and docs/diversity.md all of their benchmarks' newest runs.
"""

from __future__ import annotations

import argparse
import csv
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SAID = "Beside named peers, in one process on one machine (above 1: we are faster):"


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


# What README shows of each benchmark: (benchmark, part of the operation, part of the shape, part of the metric).
HEADLINES = (
    ("decoding", "compile, ids given", "grown, gpt2 V=50,257", "time"),
    ("decoding", "64-row mask", "grown, gpt2 V=50,257", "mean a row"),
    ("decoding", "Hugging Face step", "1,000,000", "p50"),
    ("decoding", "open, warm cache", "6,000,000", "open"),
    ("decoding", "size", "6,000,000", "file a name"),
    ("decoding", "validity", "", "valid"),
    ("generation", "", "", "rate"),
    ("losses", "imp ce fwd+bwd, cold heap", "[4096,32128]", "time"),
    ("losses", "dimp ce fwd+bwd, warm heap", "[4096,32128]", "time"),
    ("losses", "dimp ce fwd+bwd, in place, cold heap", "[4096,32128]", "time"),
    ("losses", "dimp linear ce fwd+bwd", "[2048", "time"),
    ("losses", "dimp linear ce fwd+bwd", "[2048", "that over all logits"),
    ("neighbours", "exact self-join", "65,536", "time, first call"),
    ("neighbours", "approximate self-join", "1,000,000", "time, first call"),
    ("neighbours", "approximate self-join", "1,000,000", "recall"),
    ("embedding", "20 tokens", "", "time"),
)
SHOWN = {
    "decoding": ("decoding",),
    "losses": ("losses",),
    "diversity": ("neighbours", "embedding", "dedup"),
    "throughput": ("generation", "faults"),
}
LEFT_OUT = (" against ", ", cold caches", " and going on", "clone of", "hand-chunked", ", chunks of", "torch.mm")

# Rows of one benchmark that may stand in one table; this one takes an hour and is measured part by part.
TOGETHER = {"neighbours": timedelta(hours=5)}

Rows = list[dict[str, str]]


def _newest(folder: Path) -> Rows:
    """The last row of every measurement; of a benchmark, none from hours (`TOGETHER`) before its last."""
    newest: dict[tuple[str, ...], dict[str, str]] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                newest[(row["bench"], row["op"], row["shape"], row["provider"], row["metric"])] = row
    last: dict[str, datetime] = {}
    for row in newest.values():
        when = datetime.fromisoformat(row["date"])
        last[row["bench"]] = max(last.get(row["bench"], when), when)
    return [row for row in newest.values() if _age(row, last) < TOGETHER.get(row["bench"], timedelta(hours=2.5))]


def _age(row: dict[str, str], last: dict[str, datetime]) -> timedelta:
    return last[row["bench"]] - datetime.fromisoformat(row["date"])


def _table(rows: Rows) -> list[str]:
    lines = ["| what | shape | provider | value | ratio to the best peer |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = f"{float(row['peer_ratio']):,.2f}" if row["peer_ratio"] else ""
        value = f"{float(row['value']):,.4g} {row['unit']}"
        what = f"{row['bench']}: {row['op']}, {row['metric']}"
        lines.append(f"| {what} | {row['shape']} | {row['provider']} | {value} | {ratio} |")
    return [*lines, "", f"Measured on: {'; '.join(sorted({row['hardware'] for row in rows}))}."]


def _headline(row: dict[str, str]) -> bool:
    if any(word in row["provider"] + row["op"] for word in LEFT_OUT):
        return False
    return any(
        row["bench"] == bench and row["op"].startswith(op) and shape in row["shape"] and metric in row["metric"]
        for bench, op, shape, metric in HEADLINES
    )


def _write(path: Path, lines: list[str]) -> None:
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}", encoding="utf-8")


def _kept(path: Path) -> list[str]:
    """What stands between the markers before the benchmarks' table."""
    text = path.read_text(encoding="utf-8").partition(BEGIN)[2].partition(SAID)[0]
    return text.strip("\n").splitlines()


def main() -> int:
    """Replace what stands between the markers in README.md and the docs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render")
    parser.add_argument("--metrics", type=Path, default=ROOT / "runs/geography/metrics.json")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    options = parser.parse_args()
    rows = _newest(options.results)
    headlines = ["", SAID, "", *_table([row for row in rows if _headline(row)])]
    readme = ROOT / "README.md"
    if options.metrics.exists():
        demo = _demo(json.loads(options.metrics.read_text(encoding="utf-8")))
    else:
        demo = _kept(readme)
    _write(readme, demo + headlines)
    for name, benches in SHOWN.items():
        shown = [row for row in rows if row["bench"] in benches and " against " not in row["provider"]]
        _write(ROOT / f"docs/{name}.md", ["", "## Measured", "", SAID, "", *_table(shown)])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
