"""Real vLLM and real transformers on a tiny random Llama made here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from obverse.engine.generate import GenerateSettings, generate, generate_shards, make_backend
from obverse.engine.generate.protocol import Backend
from obverse.engine.records.keys import derive_seed
from obverse.engine.records.schemas import TEXTS

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

ROWS = 40
Targets = Callable[..., pa.Table]


def settings_for(model: Path, backend: str, sampling: dict[str, Any] | None = None, **more: Any) -> GenerateSettings:
    values = {"prompt": "facts", "sampling": {"max_tokens": 48} | (sampling or {})} | more
    return GenerateSettings(model=str(model), backend=backend, **values)


def texts(table: pa.Table) -> list[tuple[Any, ...]]:
    columns = ("id", "text", "finish_reason", "num_prompt_tokens", "num_output_tokens", "seed")
    return list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))


def split(table: pa.Table, size: int) -> list[tuple[int, pa.Table]]:
    return [(k, table.slice(first, size)) for k, first in enumerate(range(0, table.num_rows, size))]


def joined(shards: Iterator[tuple[int, pa.Table]]) -> pa.Table:
    return pa.concat_tables([table for _, table in sorted(shards, key=lambda item: item[0])])


@pytest.fixture(scope="module")
def vllm_backend(tiny_model: Path) -> Iterator[Backend]:
    pytest.importorskip("vllm")
    backend = make_backend(settings_for(tiny_model, "vllm"), seed=5)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def sampled(vllm_backend: Backend, tiny_model: Path, make_targets: Targets) -> pa.Table:
    return generate(make_targets(range(ROWS)), settings_for(tiny_model, "vllm"), seed=5, backend=vllm_backend)


def test_texts_follow_the_schema_and_vary(sampled: pa.Table) -> None:
    assert sampled.schema.equals(TEXTS)
    rows = texts(sampled)
    assert [row[0] for row in rows] == list(range(ROWS))
    assert {row[2] for row in rows} == {"stop", "length"}  # both ends occur, or the tests below see too little
    assert len({row[1] for row in rows}) > ROWS * 0.9
    assert all(row[1] == row[1].strip() for row in rows)
    assert all(row[4] == 48 for row in rows if row[2] == "length")
    assert [row[5] for row in rows] == [derive_seed(5, "generate", i) for i in range(ROWS)]


def test_rows_are_the_same_in_any_shards_and_order(
    vllm_backend: Backend, sampled: pa.Table, tiny_model: Path, make_targets: Targets
) -> None:
    settings = settings_for(tiny_model, "vllm")
    targets = make_targets(range(ROWS))
    small = joined(generate_shards(split(targets, 7), settings, seed=5, backend=vllm_backend))
    assert small.equals(sampled)
    order = random.Random(1).sample(range(ROWS), ROWS)
    shuffled = generate(targets.take(order), settings, seed=5, backend=vllm_backend)
    assert texts(shuffled) == [texts(sampled)[i] for i in order]
    other = generate(targets, settings, seed=6, backend=vllm_backend)
    assert sum(a == b for a, b in zip(texts(other), texts(sampled), strict=True)) < ROWS / 4


def test_long_prompts_fail_alone_and_full_steps_do_not_split_a_prompt(
    vllm_backend: Backend, tiny_model: Path, make_targets: Targets
) -> None:
    settings = settings_for(
        tiny_model, "vllm", prompt="{{ triplets[0].subject }}", sampling={"max_tokens": 4}, output={"retry_on": []}
    )
    long, too_long = "x" * 440, "y" * 600
    # 30 prompts of 440 tokens are more than one step's 8,192: vLLM would split one, and crash on its seed.
    targets = pa.concat_tables(
        [
            make_targets(range(15), name=long),
            make_targets([100], name=too_long),
            make_targets(range(200, 215), name=long),
        ]
    )
    for backend in (vllm_backend, make_backend(settings.model_copy(update={"backend": "transformers"}), 5)):
        rows = texts(generate(targets, settings, seed=5, backend=backend))
        bad = [row for row in rows if row[1] is None]
        assert [(row[0], row[2]) for row in bad] == [(100, "error: the prompt has 605 tokens; the model takes 512")]
        assert all(row[2] in ("stop", "length") for row in rows if row[1] is not None)


def test_a_row_near_the_models_end_is_cut_there(vllm_backend: Backend, tiny_model: Path, make_targets: Targets) -> None:
    settings = settings_for(tiny_model, "vllm", prompt="{{ triplets[0].subject }}", sampling={"temperature": 0.0})
    targets = make_targets(range(10, 20), name="z" * 490)  # 494 tokens: room for 18
    rows = texts(generate(targets, settings, seed=5, backend=vllm_backend))
    assert all(row[4] <= 18 for row in rows)
    assert any(row[2:5] == ("length", 494, 18) for row in rows)
    local = make_backend(settings.model_copy(update={"backend": "transformers"}), 5)
    rows = texts(generate(targets, settings, seed=5, backend=local))
    assert any(row[2:5] == ("length", 494, 18) for row in rows)


def test_an_early_end_leaves_the_engine_usable(
    vllm_backend: Backend, sampled: pa.Table, tiny_model: Path, make_targets: Targets
) -> None:
    settings = settings_for(tiny_model, "vllm")
    targets = make_targets(range(ROWS))
    stream = generate_shards(split(targets, 2), settings, seed=5, backend=vllm_backend)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert generate(targets, settings, seed=5, backend=vllm_backend).equals(sampled)


def test_transformers_redoes_a_shard_to_the_byte_and_never_mixes_shards(
    tiny_model: Path, make_targets: Targets
) -> None:
    settings = settings_for(tiny_model, "transformers", concurrency=4)
    targets = make_targets(range(18))
    backend = make_backend(settings, seed=5)
    whole = dict(generate_shards(split(targets, 6), settings, seed=5, backend=backend))
    shard = targets.slice(6, 6)
    assert generate(shard, settings, seed=5, backend=backend).equals(whole[1])
    # The order of rows within a shard does not set the batches: ids do.
    backwards = generate(shard.take(list(range(5, -1, -1))), settings, seed=5, backend=backend)
    assert texts(backwards) == texts(whole[1])[::-1]
    assert backend.facts()["batch_invariant"] is False


def test_row_sampler_draws_the_distribution_from_each_rows_own_seed() -> None:
    from obverse.engine.generate.transformers import _RowSampler

    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probs.log().repeat(4000, 1)
    drawn = _RowSampler(range(4000), 1.0, 1.0)(torch.empty(0), logits).argmax(-1)
    share = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(share, probs, atol=0.03)  # three standard errors of the largest is 0.024
    alone = _RowSampler([17], 1.0, 1.0)(torch.empty(0), logits[:1]).argmax(-1)
    assert alone[0] == drawn[17]
    nucleus = _RowSampler(range(4000), 1.0, 0.8)(torch.empty(0), logits).argmax(-1)
    assert set(nucleus.tolist()) == {0, 1}
    share = torch.bincount(nucleus, minlength=4)[:2] / 4000
    assert torch.allclose(share, torch.tensor([0.625, 0.375]), atol=0.03)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("vocabulary", [5, 64, 300])
def test_nucleus_is_that_of_a_full_sort(top_p: float, vocabulary: int) -> None:
    from obverse.engine.generate.nucleus import keep_nucleus_

    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(-2, 1, 50).unsqueeze(1)  # from flat rows (beyond HEAD) to peaked ones
    logits = torch.randn(50, vocabulary, generator=generator) * scale
    kept = keep_nucleus_(logits.clone(), top_p).isfinite()
    for row, mask in zip(logits.double(), kept, strict=True):
        probs = row.softmax(-1)
        order = probs.argsort(descending=True)
        total, want = 0.0, set()
        for token in order.tolist():
            want.add(token)
            total += float(probs[token])
            if total >= top_p:
                break
        assert set(mask.nonzero().flatten().tolist()) == want
