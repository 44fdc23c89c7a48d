"""CPU time a row, ours and the peers': each way in processes of its own, the same prompts, model and sampling.

``python -m benchmarks.generation_peers WAY MODEL PROMPTS.parquet FOLDER`` carries one way out and prints a JSON object
with the CPU seconds of its whole process tree; `marginal` runs it at two sizes and gives the milliseconds that one row
more costs: start-up falls out. WAY is one of `WAYS`. Ray and datatrove are read from a folder that they were installed
into (``pip install --target FOLDER --no-deps 'ray[data]' datatrove ...``; what is missing is named), behind our own
packages, so that all ways run the same vLLM and torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

WAYS = ("obverse", "bare vllm + Parquet", "Ray Data LLM", "datatrove, checkpoints")
MAX_TOKENS = 32
MOST_S = 420.0
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 128, "max_model_len": 512}
BATCHED = 8192


def marginal(way: str, model: Path, prompts: pa.Table, sizes: tuple[int, int], packages: Path | None) -> float:
    """Milliseconds of CPU that one row more costs: the best of two at each size, for noise only ever adds.

    Raises `RuntimeError` with the end of what the way said.
    """
    spent = [min(_spent(way, model, prompts.slice(0, size), packages) for _ in range(2)) for size in sizes]
    return 1e3 * (spent[1] - spent[0]) / (sizes[1] - sizes[0])


def _spent(way: str, model: Path, prompts: pa.Table, packages: Path | None) -> float:
    with tempfile.TemporaryDirectory(prefix="obverse-peers-") as name:
        folder = Path(name)
        pq.write_table(prompts, folder / "prompts.parquet")
        command = [sys.executable, "-m", "benchmarks.generation_peers", way, str(model)]
        command += [str(folder / "prompts.parquet"), str(folder)]
        said = _carried_out(command, _environment(packages, folder))
        found = json.loads(said.strip().splitlines()[-1])
        if found["rows"] != prompts.num_rows:
            raise RuntimeError(f"{found['rows']} of {prompts.num_rows} rows came out")
        return float(found["cpu_seconds"])


def _carried_out(command: list[str], environment: dict[str, str]) -> str:
    """What the command printed. However it ends, nothing that it started is left."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        out, err = process.communicate(timeout=MOST_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"more than {MOST_S:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own session: itself, its server, its workers
        process.wait()
    if process.returncode:
        raise RuntimeError(" ".join((err or out).split())[-300:])
    return out


def _environment(packages: Path | None, folder: Path) -> dict[str, str]:
    """One OpenMP thread, no telemetry, the peers' packages last."""
    places = [str(Path(__file__).resolve().parents[1]), sysconfig.get_paths()["purelib"]]
    if packages is not None:
        places += [str(packages), str(_named_vllm(folder / "named"))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }


def _named_vllm(folder: Path) -> Path:
    """The community's CPU build is named vllm-cpu, and vLLM's command asks for the version of 'vllm'."""
    import importlib.metadata

    version = f"{importlib.metadata.version('vllm-cpu')}+cpu"  # by the ending it knows that this is a CPU
    info = folder / f"vllm-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (info / "RECORD").write_text("vllm/__init__.py,,\n")
    return folder


class _Tree:
    """CPU seconds of this process and all below it, those that ended among them (looked at every 50 ms)."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        self._ended.set()
        self._thread.join()
        self._look()
        return sum(self._seen.values())

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self._look()

    def _look(self) -> None:
        import psutil

        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                times = process.cpu_times()
                self._seen[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue


def _settings(model: Path) -> Any:
    from obverse.engine.generate.settings import GenerateSettings

    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": MAX_TOKENS}
    engine = {name: value for name, value in ENGINE.items() if name != "dtype"}
    return GenerateSettings(backend="vllm", model=str(model), prompt="{{ label }}", sampling=sampling, engine=engine)


def _ours(model: Path, prompts: pa.Table, folder: Path) -> int:
    from obverse.engine.generate.stage import generate_into
    from obverse.engine.records.schemas import TARGETS, TEXTS
    from obverse.engine.records.shards import Shards

    nothing = pa.nulls(prompts.num_rows)
    columns = {"id": prompts["id"], "triplets": nothing, "label": prompts["prompt"], "attributes": nothing}
    targets = pa.table({**columns, "is_real": pa.repeat(False, prompts.num_rows)}).cast(TARGETS)
    shards = Shards(folder / "texts", TEXTS)
    generate_into(shards, [(0, targets)], _settings(model), seed=0)
    return shards.num_rows()


def _bare(model: Path, prompts: pa.Table, folder: Path) -> int:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    llm = LLM(str(model), enable_chunked_prefill=False, max_num_batched_tokens=BATCHED, **ENGINE)
    params = [
        SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS, seed=row_id) for row_id in prompts["id"].to_pylist()
    ]
    outputs = llm.generate(prompts["prompt"].to_pylist(), params, use_tqdm=False)
    texts = [output.outputs[0].text for output in outputs]
    pq.write_table(pa.table({"id": prompts["id"], "text": texts}), folder / "texts.parquet")
    llm.llm_engine.engine_core.shutdown()
    return len(texts)


def _ray(model: Path, prompts: pa.Table, folder: Path) -> int:
    del prompts
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = vLLMEngineProcessorConfig(
        model_source=str(model),
        engine_kwargs={**ENGINE, "enable_chunked_prefill": False, "max_num_batched_tokens": BATCHED},
        batch_size=32,
        concurrency=1,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
        placement_group_config={"bundles": [{"CPU": 1}]},
    )

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        params = {"temperature": 1.0, "max_tokens": MAX_TOKENS, "seed": row["id"]}
        return {"id": row["id"], "prompt": row["prompt"], "sampling_params": params}

    def keep(row: dict[str, Any]) -> dict[str, Any]:
        return {"id": row["id"], "text": row["generated_text"]}

    data = build_processor(config, preprocess=ask, postprocess=keep)(
        ray.data.read_parquet(str(folder / "prompts.parquet"))
    )
    data.write_parquet(str(folder / "texts"))
    ray.shutdown()
    return sum(pq.read_metadata(path).num_rows for path in (folder / "texts").glob("*.parquet"))


def _datatrove(model: Path, prompts: pa.Table, folder: Path) -> int:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import ParquetWriter

    lines = [json.dumps({"id": str(row["id"]), "text": row["prompt"]}) for row in prompts.to_pylist()]
    (folder / "prompts").mkdir()
    (folder / "prompts" / "00.jsonl").write_text("\n".join(lines) + "\n")

    async def roll(document: Any, generate: Any) -> Any:
        asked = {"prompt": document.text, "temperature": 1.0, "max_tokens": MAX_TOKENS, "seed": int(document.id)}
        return await generate(asked)

    options = {
        "dtype": "float32",
        "enforce-eager": True,
        "max-num-seqs": 128,
        "no-enable-chunked-prefill": True,
        "max-num-batched-tokens": BATCHED,
    }
    config = InferenceConfig(
        server_type="vllm",
        model_name_or_path=str(model),
        model_max_context=512,
        use_chat=False,
        model_kwargs=options,
        server_ready_delay_sec=1.0,
        max_concurrent_generations=256,
    )
    writer = ParquetWriter(str(folder / "texts"), output_filename="${rank}_chunk_${chunk_index}.parquet")
    runner = InferenceRunner(
        rollout_fn=roll,
        config=config,
        output_writer=writer,
        checkpoints_local_dir=str(folder / "checkpoints"),
        records_per_chunk=500,
    )
    LocalPipelineExecutor([JsonlReader(str(folder / "prompts")), runner], logging_dir=str(folder / "logs")).run()
    return sum(pq.read_metadata(path).num_rows for path in (folder / "texts").rglob("*.parquet"))


def main() -> int:
    """One way, in this process and those that it starts."""
    way, model, prompts, folder = sys.argv[1:]
    tree, begun = _Tree(), time.perf_counter()
    carry_out = dict(zip(WAYS, (_ours, _bare, _ray, _datatrove), strict=True))[way]
    rows = carry_out(Path(model), pq.read_table(prompts), Path(folder))
    seconds = time.perf_counter() - begun
    print(json.dumps({"rows": rows, "seconds": seconds, "cpu_seconds": tree.stop()}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
