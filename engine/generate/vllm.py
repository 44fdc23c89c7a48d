"""vLLM, in process: `LLM.llm_engine` driven by ``add_request`` and ``step`` with a rolling window.

Handing vLLM all rows at once holds every row in memory and shows nothing until the end; handing it batches
leaves the engine half empty at each batch's end. A window of twice ``max_num_seqs`` costs neither.

On a GPU vLLM's own defaults stand. On a CPU (float32, eager) a row's tokens do not depend on its neighbours.
"""

from __future__ import annotations

import difflib
import gc
import inspect
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from obverse.engine.errors import BackendError, MissingPackageError, RecipeError
from obverse.engine.generate.process_state import ProcessState, quiet_stderr
from obverse.engine.generate.prompts import encode_prompt
from obverse.engine.generate.protocol import Completion, Request, failed, finish
from obverse.engine.generate.settings import GenerateSettings, is_local, model_source
from obverse.engine.generate.vllm_liveness import watch_process
from obverse.engine.generate.vllm_stats import SchedulerWatch, watch_scheduler

__all__ = ["VllmBackend"]

CPU_MAX_NUM_SEQS = 128
CPU_MAX_MODEL_LEN = 4096
CPU_BATCHED_TOKENS = 8192
COMPILED_FROM = 20_000  # rows
KV_BLOCK = 128  # tokens; vLLM's block on a CPU
SMALL_MODEL_BYTES = 64 << 20
SAMPLING_ARGUMENTS = (
    "n",
    "seed",
    "output_kind",
    "structured_outputs",
    "detokenize",
    "skip_clone",
)  # what generate.sampling.extra may not set


class VllmBackend:
    """A vLLM engine in this process (its core in another, on a GPU, as vLLM itself chooses)."""

    def __init__(self, settings: GenerateSettings, seed: int, rows: int | None = None) -> None:
        """``rows``: how many the whole run has, where it is known."""
        self._settings = settings
        self._long = rows is not None and rows >= COMPILED_FROM
        self._llm: Any = None
        self._scheduler_watch: SchedulerWatch | None = None
        self._cpu = self._owns_process_group = False
        self._state = ProcessState()
        try:
            with quiet_stderr():
                self._start(seed)
        except BaseException:
            self.close()
            raise

    def stream(self, requests: Iterator[Request]) -> Iterator[Completion]:
        """Answer requests as they finish; see `protocol.Backend`."""
        engine = self._llm.llm_engine
        live: dict[str, Request] = {}
        more = True
        try:
            while live or more:
                while more and len(live) < self._window:
                    request = next(requests, None)
                    if request is None:
                        more = False
                    elif (refused := self._admit(request)) is not None:
                        yield refused
                    else:
                        live[str(request.id)] = request
                if live:
                    for output in self._step(engine):
                        yield _completion(live.pop(output.request_id), output)
        finally:
            if live and self._llm is not None:
                engine.abort_request(list(live))

    def facts(self) -> dict[str, Any]:
        """See `protocol.Backend`."""
        import torch
        import vllm
        from vllm.platforms import current_platform

        config = self._llm.llm_engine.vllm_config
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        invariant = (self._cpu and dtype == "float32") or os.environ.get("VLLM_BATCH_INVARIANT") == "1"
        return {
            "backend": "vllm",
            "version": vllm.__version__,
            "torch": torch.__version__,
            "model": self._settings.model,
            "dtype": dtype,
            "device": "cpu" if self._cpu else current_platform.get_device_name(),
            "batch_invariant": invariant,
            "compiled": not config.model_config.enforce_eager,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_model_len": self._max_model_len,
            "window": self._window,
            "threads": torch.get_num_threads() if self._cpu else None,
        }

    def stats(self) -> dict[str, float]:
        """The scheduler's figures at this moment, under the names of `generate.throughput`.

        Empty where ``disable_log_stats`` was asked for.
        """
        return self._scheduler_watch.figures() if self._scheduler_watch is not None else {}

    def close(self) -> None:
        """See `protocol.Backend`."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()
        if self._owns_process_group:
            from vllm.distributed import cleanup_dist_env_and_memory

            self._owns_process_group = False
            cleanup_dist_env_and_memory()
        self._state.restore()

    def _start(self, seed: int) -> None:
        environment = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
        if is_local(self._settings):
            environment["HF_HUB_OFFLINE"] = "1"
        source = model_source(self._settings)
        self._state.set_default(environment)
        try:
            import torch
            from vllm import LLM
            from vllm.engine.arg_utils import EngineArgs
            from vllm.platforms import current_platform
        except ImportError as error:
            if (error.name or "").split(".")[0] == "vllm":
                raise MissingPackageError("vllm", needed_for="generate.backend = 'vllm'", extra="gpu") from error
            raise BackendError(f"vLLM is installed but can't be imported: {error}") from error
        from vllm.distributed.parallel_state import model_parallel_is_initialized

        self._cpu = bool(current_platform.is_cpu())
        if model_parallel_is_initialized():
            # Engines in one process share vLLM's process groups: closing either would break the other.
            raise BackendError("another vLLM engine is open in this process; close it first")
        # vLLM's CPU sampler sorts the whole vocabulary of every row for top_p; ours gives the same nucleus.
        sampling = self._settings.sampling
        self._own_nucleus = self._cpu and sampling.top_p < 1.0 and not sampling.extra and not self._in_other_process()
        self._owns_process_group = not torch.distributed.is_initialized()
        arguments = self._arguments(source, seed, EngineArgs)
        try:
            self._llm = LLM(**arguments)
        except Exception as error:
            raise BackendError(f"vLLM could not load {self._settings.model!r}: {error}") from error
        watch_process(self._llm.llm_engine)
        self._state.note_changes()
        self._scheduler_watch = watch_scheduler(self._llm.llm_engine)
        scheduler = self._llm.llm_engine.vllm_config.scheduler_config
        self._max_model_len = int(self._llm.llm_engine.model_config.max_model_len)
        self._window = self._settings.concurrency or 2 * int(scheduler.max_num_seqs)
        self._tokenizer = self._llm.get_tokenizer()
        self._prepare_sampling()

    def _in_other_process(self) -> bool:
        user = self._settings.engine
        elsewhere = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0") == "1"
        return elsewhere or "logits_processors" in user or int(user.get("tensor_parallel_size", 1)) > 1

    def _arguments(self, source: str, seed: int, engine_args: Any) -> dict[str, Any]:
        """vLLM's engine arguments: ours below the user's; a name vLLM doesn't know raises `RecipeError`."""
        known = set(engine_args.__dataclass_fields__)
        for name in self._settings.engine:
            if name not in known or name in ("model", "seed"):
                near = difflib.get_close_matches(name, known - {"model", "seed"}, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise RecipeError(f"generate.engine: vLLM takes no engine argument '{name}' here{hint}")
        arguments: dict[str, Any] = {"use_tqdm_on_load": False, "disable_log_stats": False}
        if self._settings.output.structured is not None:
            # The one engine that kept to a schema in every row (see `generate.structured`); blanks between JSON's
            # parts say nothing, and a model may write them without end.
            arguments["structured_outputs_config"] = {"backend": "guidance", "disable_any_whitespace": True}
        if self._cpu:
            self._state.set_default({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
            self._state.set_threads(_threads(source))
            arguments |= self._cpu_arguments(source)
            if self._own_nucleus:
                arguments["logits_processors"] = [_nucleus_processor(self._settings.sampling.top_p)]
        return arguments | self._settings.engine | {"model": source, "seed": seed}

    def _cpu_arguments(self, source: str) -> dict[str, Any]:
        from transformers import AutoConfig

        user = self._settings.engine
        try:
            config = AutoConfig.from_pretrained(
                source,
                revision=user.get("revision"),
                trust_remote_code=bool(user.get("trust_remote_code", False)),
            )
        except Exception as error:
            raise BackendError(f"the model {self._settings.model!r} can't be read: {error}") from error
        config = config.get_text_config()
        longest = int(user.get("max_model_len") or 0)
        if longest <= 0:
            longest = min(int(getattr(config, "max_position_embeddings", CPU_MAX_MODEL_LEN)), CPU_MAX_MODEL_LEN)
        rows = int(user.get("max_num_seqs") or CPU_MAX_NUM_SEQS)
        arguments: dict[str, Any] = {
            "dtype": "float32",
            # A compiled start costs more seconds than a short run takes. The whole run's length decides, never what is
            # left of it: a compiled model's logits may differ in their last bits.
            "enforce_eager": not self._long,
            "max_num_seqs": rows,
            "max_model_len": longest,
            # A seeded request whose prompt is split over two steps crashes vLLM's CPU sampler (0.32: "CPU
            # Generator does not use offset"), so prompts are never split.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, longest),
        }
        if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            arguments["kv_cache_memory_bytes"] = _kv_bytes(config, rows, longest)
        return arguments

    def _prepare_sampling(self) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling, structured = self._settings.sampling, self._settings.output.structured
        options: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": 1.0 if self._own_nucleus else sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop": sampling.stop or None,
            "structured_outputs": None if structured is None else StructuredOutputsParams(**structured),
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }
        self._make_params = partial(SamplingParams, **options, **self._more_sampling())
        config = self._llm.llm_engine.vllm_config
        try:  # what no row could be drawn with is known before the first
            self._make_params(seed=0).verify(
                config.model_config, config.speculative_config, config.structured_outputs_config, self._tokenizer
            )
        except Exception as error:
            raise RecipeError(f"generate.sampling or generate.output.structured: vLLM refuses it: {error}") from error

    def _more_sampling(self) -> dict[str, Any]:
        """The user's own sampling parameters; a name that vLLM doesn't know, or is set elsewhere, raises."""
        from vllm import SamplingParams

        ours = {*SAMPLING_ARGUMENTS, *type(self._settings.sampling).model_fields}
        known = {name for name in inspect.signature(SamplingParams).parameters if not name.startswith("_")} - ours
        for name in self._settings.sampling.extra:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise RecipeError(f"generate.sampling.extra: vLLM takes no sampling parameter '{name}' here{hint}")
        return self._settings.sampling.extra

    def _admit(self, request: Request) -> Completion | None:
        """Queue a request, or say why it can't be done."""
        settings = self._settings
        try:
            ids = encode_prompt(self._tokenizer, request.prompt, chat=request.chat, system=settings.system)
        except Exception as error:  # a tokenizer's or a chat template's, about this text
            return failed(request, f"the prompt can't be encoded: {type(error).__name__}: {error}")
        if len(ids) >= self._max_model_len:
            message = f"the prompt has {len(ids)} tokens; the model takes {self._max_model_len}"
            return failed(request, message, len(ids))
        params = self._make_params(seed=request.seed)
        try:
            self._llm.llm_engine.add_request(str(request.id), {"prompt_token_ids": ids}, params)
        except Exception as error:
            if not _is_refusal(error):
                raise BackendError(f"vLLM's engine failed: {type(error).__name__}: {error}") from error
            return failed(request, f"refused: {error}", len(ids))
        return None

    def _step(self, engine: Any) -> list[Any]:
        try:
            return [output for output in engine.step() if output.finished]
        except Exception as error:
            raise BackendError(f"vLLM's engine failed: {type(error).__name__}: {error}") from error


def _is_refusal(error: Exception) -> bool:
    """Whether vLLM speaks of the request, not of itself; its own error for that has been no ValueError since 0.32."""
    named = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ValueError | TypeError) or "VLLMClientError" in named


def _completion(request: Request, output: Any) -> Completion:
    best = output.outputs[0]
    return finish(request, best.text, best.finish_reason, len(output.prompt_token_ids or ()), len(best.token_ids))


def _nucleus_processor(top_p: float) -> type:
    """A vLLM logits processor (the V1 runner's interface, the one that CPUs use) with one ``top_p`` for all rows."""
    from vllm.v1.sample.logits_processor import LogitsProcessor

    from obverse.engine.generate.nucleus import keep_nucleus_

    class NucleusProcessor(LogitsProcessor):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            del vllm_config, device, is_pin_memory

        def is_argmax_invariant(self) -> bool:
            return True  # so vLLM applies it after temperature, and never to greedy rows

        def update_state(self, batch_update: Any) -> None:
            del batch_update  # no state: every row has the same top_p

        def apply(self, logits: Any) -> Any:
            return keep_nucleus_(logits, top_p)

    return NucleusProcessor


def _threads(source: str) -> int:
    """OpenMP threads for this model: the user's OMP_NUM_THREADS, else all cores, but one for a small model.

    The layers of a model of a few million parameters are too short to share: a second thread brings 1.6
    times on an idle machine, and costs three to ten times where another program holds the core, because
    each spins at the other's barriers.
    """
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    if 0 < _weight_bytes(source) < SMALL_MODEL_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _weight_bytes(source: str) -> int:
    """Bytes of a local model's weights; 0 where the model is not a folder here."""
    return sum(path.stat().st_size for path in Path(source).glob("*.safetensors"))


def _kv_bytes(config: Any, rows: int, longest: int) -> int:
    """Memory for the keys and values of ``rows`` sequences of up to 1,024 tokens (and one of the longest).

    Left to itself, vLLM takes nearly all of the machine's memory and refuses to start where it can't.
    """
    import psutil

    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token: int = 2 * 4 * config.num_hidden_layers * heads * width
    blocks_each = -(-min(longest, 1024) // KV_BLOCK)
    least = (-(-longest // KV_BLOCK) + 2) * KV_BLOCK * token
    wanted = (rows * blocks_each + 2) * KV_BLOCK * token
    return max(least, min(wanted, int(psutil.virtual_memory().available) // 2))
