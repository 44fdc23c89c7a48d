"""Engines opened and closed: what changes with their options, and what they leave behind. Real vLLM, real models."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from obverse.engine.errors import BackendError, RecipeError
from obverse.engine.generate import GenerateSettings, Throughput, generate, make_backend

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Targets = Callable[..., pa.Table]
ROWS = 32


def settings_for(model: Path, backend: str, sampling: dict[str, Any] | None = None, **more: Any) -> GenerateSettings:
    values = {"prompt": "facts", "sampling": {"max_tokens": 40} | (sampling or {})} | more
    return GenerateSettings(model=str(model), backend=backend, **values)


def state() -> list[Any]:
    import numpy as np

    return [
        dict(os.environ),
        torch.set_num_threads,
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    ]


def tensor_bytes() -> int:
    gc.collect()
    tensors = (o for o in gc.get_objects() if isinstance(o, torch.Tensor))
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.fixture(scope="module")
def sampled(tiny_model: Path, make_targets: Targets) -> pa.Table:
    """Rows of an engine with all defaults, opened and closed here; the process must be as it was."""
    pytest.importorskip("vllm")
    before, bytes_before, recorder = state(), tensor_bytes(), Throughput()
    settings = settings_for(tiny_model, "vllm", engine={"kv_cache_memory_bytes": 64 << 20})
    table = generate(make_targets(range(ROWS)), settings, seed=5, throughput=recorder)
    assert state() == before
    assert tensor_bytes() - bytes_before < 8 << 20  # the 64 MiB of keys and values are gone
    assert recorder.backend["batch_invariant"] is True
    assert recorder.backend["dtype"] == "float32"
    assert recorder.summary()["output_tokens"] == recorder.samples[-1].output_tokens > 0
    assert recorder.rows == ROWS
    return table


def test_rows_do_not_depend_on_window_batch_engine_seed_or_whose_top_p(
    sampled: pa.Table, tiny_model: Path, make_targets: Targets
) -> None:
    # A processor list of the user's own switches ours off, so this is vLLM's own nucleus.
    engine = {"max_num_seqs": 5, "logits_processors": []}
    settings = settings_for(tiny_model, "vllm", concurrency=3, engine=engine)
    backend = make_backend(settings, seed=9)
    try:
        facts = backend.facts()
        assert (facts["window"], facts["max_num_seqs"]) == (3, 5)
        again = generate(make_targets(range(ROWS)), settings, seed=5, backend=backend)
        with pytest.raises(BackendError, match="another vLLM engine is open"):
            make_backend(settings, seed=9)
        # The refusal left the open engine whole.
        assert generate(make_targets(range(4)), settings, seed=5, backend=backend).equals(again.slice(0, 4))
    finally:
        backend.close()
    assert again.equals(sampled)


@pytest.mark.slow
def test_rows_do_not_depend_on_threads(
    sampled: pa.Table, tiny_model: Path, make_targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Slow where other programs hold the cores: OpenMP's threads spin at each barrier.
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    recorder = Throughput()
    settings = settings_for(tiny_model, "vllm")
    two = generate(make_targets(range(6)), settings, seed=5, throughput=recorder)
    assert recorder.backend["threads"] == 2
    assert two.equals(sampled.slice(0, 6))


def test_greedy_rows_agree_between_vllm_and_transformers(
    sampled: pa.Table, tiny_model: Path, make_targets: Targets
) -> None:
    targets = make_targets(range(ROWS))
    first, second = (
        generate(targets, settings_for(tiny_model, name, sampling={"temperature": 0.0}), seed=5)
        for name in ("vllm", "transformers")
    )
    assert first.equals(second)
    assert not first.equals(sampled)
    assert len(set(first.column("text").to_pylist())) > ROWS / 2


@pytest.mark.parametrize(
    ("backend", "name", "hint"),
    [
        ("vllm", "max_num_seq", "max_num_seqs"),
        ("vllm", "seed", "no engine argument"),
        ("transformers", "dtyp", "dtype"),
        ("transformers", "banana", "attn_implementation"),
    ],
)
def test_unknown_engine_arguments_raise(tiny_model: Path, backend: str, name: str, hint: str) -> None:
    pytest.importorskip(backend)
    with pytest.raises(RecipeError, match=f"'{name}'.*{hint}|{hint}.*'{name}'"):
        make_backend(settings_for(tiny_model, backend, engine={name: 1}), seed=0)


@pytest.mark.parametrize("backend", ["vllm", "transformers"])
def test_a_folder_that_is_no_model_is_a_backend_error(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    environment = dict(os.environ)
    with pytest.raises(BackendError, match=str(tmp_path)):
        make_backend(settings_for(tmp_path, backend), seed=0)
    assert dict(os.environ) == environment


def test_an_engine_that_could_not_start_leaves_room_for_the_next(
    sampled: pa.Table, tiny_model: Path, make_targets: Targets
) -> None:
    before = state()
    with pytest.raises(BackendError, match="could not load"):
        make_backend(settings_for(tiny_model, "vllm", engine={"kv_cache_memory_bytes": 1024}), seed=5)
    assert state() == before
    again = generate(make_targets(range(4)), settings_for(tiny_model, "vllm"), seed=5)
    assert again.equals(sampled.slice(0, 4))
