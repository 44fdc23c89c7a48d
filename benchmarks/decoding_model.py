"""What share of a real decode step the constraint is: Hugging Face ``generate`` and vLLM, 64 rows, on this CPU.

The models have the shape of real ones and random weights (a step costs what it costs, whatever the weights say):
T5-base (encoder-decoder, 32,128 logits) and Qwen2-0.5B as a Llama (151,936 logits). vLLM runs the embedded demo model.
Runs with and without the constraint take turns; the processor's own time is clocked inside the constrained ones.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.catalog_names import CACHE, grown_names, relation_names
from benchmarks.catalog_vocabularies import Vocabulary, load_vocabulary, say
from benchmarks.decoding_triplets import RELATIONS, Grammar
from benchmarks.harness import OURS, Row

__all__ = ["host_share_rows", "vllm_share_rows"]

_ROWS = 64
_PROMPT = 16


class _Clocked:
    """A logits processor with a clock around it."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seconds, self.calls = inner, 0.0, 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        begun = time.perf_counter()
        result = self.inner(input_ids, scores)
        self.seconds += time.perf_counter() - begun
        self.calls += 1
        return result


def _t5_base(vocabulary: Vocabulary) -> tuple[Any, int]:
    from transformers import T5Config, T5ForConditionalGeneration

    # T5's own 32,100 pieces are padded to 32,128; the Llama pieces used here are 32,000 of them.
    config = T5Config(
        vocab_size=max(32_128, vocabulary.size), d_model=768, d_ff=3072, num_layers=12, num_heads=12, d_kv=64
    )
    return T5ForConditionalGeneration, config


def _half_billion(vocabulary: Vocabulary) -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM, config


_SHAPES = {"T5-base": ("llama2", _t5_base), "0.5B Llama": ("qwen", _half_billion)}


def host_share_rows(shape: str, names: int, steps: int, repeats: int) -> Iterator[Row]:
    """Milliseconds of a generate step with and without the constraint, and the constraint's own share of it."""
    import torch

    from obverse.engine.decode.processor import ConstrainedLogitsProcessor

    wanted, make = _SHAPES[shape]
    vocabulary = load_vocabulary(wanted)
    if vocabulary is None:
        return
    model_class, config = make(vocabulary)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32
    model = _random_model(model_class, config, dtype)
    grammar = Grammar.build(vocabulary, names, vocab_size=config.vocab_size)
    prompt = torch.randint(3, vocabulary.size, (_ROWS, _PROMPT))
    written = 1 if config.is_encoder_decoder else _PROMPT
    taken: dict[bool, list[float]] = {True: [], False: []}
    own: list[float] = []
    for turn in range(repeats + 1):
        for constrained in (False, True):
            processor = ConstrainedLogitsProcessor(grammar.constraint, prompt_length=written)
            clocked = _Clocked(processor)
            begun = time.perf_counter()
            output = _generate(model, prompt, steps, [clocked] if constrained else [])
            seconds = time.perf_counter() - begun
            if turn:  # the first warms up
                taken[constrained].append(seconds)
            if turn and constrained:
                own.append(clocked.seconds)
    _all_allowed(grammar.constraint, output[:, written:].numpy(), vocabulary.eos)
    place = f"{shape} shape, {_ROWS} rows, {names:,} names"
    yield from _share_rows("decode step, Hugging Face", place, taken, own, steps)


def _random_model(model_class: Any, config: Any, dtype: Any) -> Any:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = model_class(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None  # rows of one length, with and without the constraint
    model.generation_config.pad_token_id = model.generation_config.decoder_start_token_id = 0
    return model


def _generate(model: Any, prompt: Any, steps: int, processors: list[Any]) -> Any:
    import torch

    with torch.inference_mode():
        return model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=steps,
            min_new_tokens=None,
            do_sample=False,
            num_beams=1,
            logits_processor=processors,
        )


def _all_allowed(constraint: Any, rows: np.ndarray, eos: int) -> None:
    """Every row that was written under the constraint is what the constraint lets be written."""
    from obverse._core import Matcher

    for row in rows.astype(np.int32):
        ended = np.flatnonzero(row == eos)
        kept = row[: ended[0] + 1] if len(ended) else row
        if not Matcher(constraint).replay(np.ascontiguousarray(kept)):
            raise AssertionError("a row that the constraint does not allow was written under it")


def _share_rows(op: str, place: str, taken: dict[bool, list[float]], own: list[float], steps: int) -> Iterator[Row]:
    middle = {kind: float(np.median(values)) / steps * 1e3 for kind, values in taken.items()}
    constraint = float(np.median(own)) / steps * 1e3
    yield Row("decoding", op, "no constraint", place, "time", middle[False], "ms")
    yield Row("decoding", op, OURS, place, "time", middle[True], "ms")
    yield Row("decoding", op, OURS, place, "constraint's own time", constraint, "ms")
    yield Row("decoding", op, OURS, place, "constraint's own share", 100.0 * constraint / middle[True], "%")


def vllm_share_rows(names: int, repeats: int, steps: int = 96) -> Iterator[Row]:
    """The same for vLLM with the embedded demo model (a small one: its step is short, so the share is the greatest)."""
    if importlib.util.find_spec("vllm") is None:
        say("vllm is not installed, left out")
        return
    from obverse.engine.decode.vllm_processor import constraint_processors
    from obverse.engine.generate.settings import GenerateSettings
    from obverse.engine.generate.vllm import VllmBackend

    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as place:
        file = Path(place) / "names.catalog"
        catalog = _demo_catalogue(names)
        catalog.save(file)
        engine = {"logits_processors": constraint_processors({"names": file}), "max_num_seqs": _ROWS}
        backend = VllmBackend(GenerateSettings(backend="vllm", sampling={"temperature": 1.0}, engine=engine), 0)
        try:
            taken, own, rows = _vllm_runs(backend._llm, repeats, steps)
        finally:
            backend.close()
    vocabulary = load_vocabulary("demo")
    assert vocabulary is not None
    _all_allowed(_demo_constraint(catalog), np.array(rows), vocabulary.eos)
    place_text = f"demo model (V={vocabulary.size:,}), {_ROWS} rows, {names:,} names"
    yield from _share_rows("decode step, vLLM", place_text, taken, own, steps)


def _vllm_runs(llm: Any, repeats: int, steps: int) -> tuple[dict[bool, list[float]], list[float], list[list[int]]]:
    """Seconds of runs with and without the constraint, our processor's own, and the last constrained rows."""
    from vllm import SamplingParams

    chance = np.random.default_rng(0)
    prompts = [{"prompt_token_ids": row} for row in chance.integers(20, 4000, (_ROWS, _PROMPT)).tolist()]
    taken: dict[bool, list[float]] = {True: [], False: []}
    own: list[float] = []
    outputs: list[Any] = []
    for turn in range(repeats + 1):
        for constrained in (False, True):
            extra = {"obverse_catalog": "names"} if constrained else None
            params = SamplingParams(temperature=1.0, seed=1, max_tokens=steps, ignore_eos=True, extra_args=extra)
            with _clocked_rows() as clock:
                begun = time.perf_counter()
                outputs = llm.generate(prompts, params, use_tqdm=False)
                seconds = time.perf_counter() - begun
            if turn:  # the first warms up
                taken[constrained].append(seconds)
            if turn and constrained:
                own.append(clock[0])
    return taken, own, [list(output.outputs[0].token_ids) for output in outputs]


def _demo_catalogue(names: int) -> Any:
    import pyarrow as pa

    from obverse.engine.decode.catalog import Catalog

    entities, relations = (pa.table({"name": found}) for found in (grown_names(names)[0], relation_names(RELATIONS)[0]))
    return Catalog.build(entities, relations, _demo_format())


def _demo_format() -> Any:
    from obverse.engine.records.models import load_tokenizer, resolve_model
    from obverse.engine.records.sequence import SequenceFormat

    return SequenceFormat(load_tokenizer(resolve_model("auto", "extraction")))


def _demo_constraint(catalog: Any) -> Any:
    form = _demo_format()
    return catalog.constraint(form, len(form.tokenizer))


@contextlib.contextmanager
def _clocked_rows() -> Iterator[list[float]]:
    """Seconds spent in our vLLM processor, both of its calls, while this is open."""
    from obverse.engine.decode.vllm_v1 import RowRequests

    clock = [0.0]
    before = {name: getattr(RowRequests, name) for name in ("update_state", "apply")}

    def clocked(call: Any) -> Any:
        def timed(self: Any, given: Any) -> Any:
            begun = time.perf_counter()
            result = call(self, given)
            clock[0] += time.perf_counter() - begun
            return result

        return timed

    for name, call in before.items():
        setattr(RowRequests, name, clocked(call))
    try:
        yield clock
    finally:
        for name, call in before.items():
            setattr(RowRequests, name, call)
