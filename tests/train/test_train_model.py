from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from obverse.engine.errors import InputError, RunError
from obverse.engine.records.linearise import triples_of
from obverse.engine.records.models import load_tokenizer, resolve_model
from obverse.engine.records.sequence import SequenceFormat, order_by_mention
from obverse.engine.train.likelihood import log_probs
from obverse.engine.train.settings import TrainSettings
from obverse.engine.train.trainer import train_model

Rows = Callable[[int], pa.Table]


def triplet(subject: str, predicate: str, object_: str) -> dict[str, dict[str, str]]:
    names = {"subject": subject, "predicate": predicate, "object": object_}
    return {role: {"uri": f"u:{name}", "surfaceform": name} for role, name in names.items()}


def settings_for(model: Path, **changes: Any) -> TrainSettings:
    given = {"model": str(model), "epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "dtype": "float32"}
    return TrainSettings(**(given | changes))


def run(rows: pa.Table, settings: TrainSettings, out: Path, method: str = "ce", **more: Any) -> dict[str, Any]:
    return train_model(rows, settings, task="extraction", method=method, seed=0, out=out, **more)


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def mean_log_prob(folder: Path, row: dict[str, Any]) -> float:
    """log p of the answer per token, the long way: one row, all logits, float64."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    tokenizer = load_tokenizer(folder)
    triples = order_by_mention(triples_of(row["triplets"]), row["text"])
    prompt = tokenizer(row["text"] + " [facts]")["input_ids"]
    answer = SequenceFormat(tokenizer).answer_ids(triples)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[torch.arange(len(answer)), answer].mean())


def test_learns_and_writes_a_folder_that_transformers_loads(tiny_llama: Path, rows: Rows, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    table, seen = rows(48), []
    facts = run(table, settings_for(tiny_llama, epochs=12), tmp_path / "out", on_progress=seen.append)
    curve = [point["loss"] for point in facts["loss"]]
    assert curve[0] > 5.5  # about log 370
    assert curve[-1] < 2.5
    assert sum(seen) == 12 * 48
    assert facts["rows"] == 48
    assert facts["steps"] == 72
    assert facts["tokens_per_second"] > 0
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == facts
    assert not (tmp_path / "out" / "checkpoint").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "out"))
    card = json.loads((tmp_path / "out" / "obverse.json").read_text())
    assert (card["task"], card["form"], card["method"]) == ("extraction", "fully_expanded", "ce")


def test_same_seed_same_bytes_and_a_finished_training_is_not_repeated(
    tiny_llama: Path, rows: Rows, tmp_path: Path
) -> None:
    import torch

    settings = settings_for(tiny_llama, epochs=1)
    first = run(rows(24), settings, tmp_path / "a")
    torch.manual_seed(99)
    run(rows(24), settings, tmp_path / "b")
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    stamp = (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns
    assert run(rows(24), settings, tmp_path / "a") == first
    assert (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns == stamp
    run(rows(23), settings, tmp_path / "a")  # other data: a new training
    assert weights_of(tmp_path / "a") != weights_of(tmp_path / "b")


def test_log_probs_are_those_of_the_long_way(tiny_llama: Path, rows: Rows, tmp_path: Path) -> None:
    table = rows(21)
    run(table, settings_for(tiny_llama), tmp_path / "out")
    expected = [mean_log_prob(tmp_path / "out", row) for row in table.to_pylist()]
    for batch_size in (1, 8, 64):
        found = log_probs(tmp_path / "out", table, batch_size=batch_size)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)  # bfloat16 products, where there are any


def test_weights_of_one_are_plain_and_of_zero_are_no_row(tiny_llama: Path, rows: Rows, tmp_path: Path) -> None:
    table = rows(16)
    settings = settings_for(tiny_llama, epochs=1, batch_size=16)
    ones = table.append_column("sample_weight", pa.array([1.0] * 16, pa.float32()))
    run(table, settings, tmp_path / "ce")
    run(ones, settings, tmp_path / "ones", "imp")
    assert weights_of(tmp_path / "ce") == weights_of(tmp_path / "ones")

    # What stands in rows of weight zero changes nothing; with weight one it does.
    def trained(word: str, weight: float) -> bytes:
        texts = table["text"].to_pylist()[:8] + [word] * 8
        mixed = table.set_column(1, "text", pa.array(texts))
        mixed = mixed.append_column("sample_weight", pa.array([1.0] * 8 + [weight] * 8, pa.float32()))
        run(mixed, settings, tmp_path / f"{word}{weight}", "imp")
        return weights_of(tmp_path / f"{word}{weight}")

    assert trained("xyz", 0.0) == trained("zzx", 0.0)
    assert trained("xyz", 1.0) != trained("zzx", 1.0)


def test_dimp_weighs_by_quality_over_the_models_own_probability(tiny_llama: Path, rows: Rows, tmp_path: Path) -> None:
    table = rows(16)
    settings = settings_for(tiny_llama, epochs=1, batch_size=16, warmup_ratio=0.0, learning_rate=1e-4)

    # An untrained model gives each token about 1/370. Quality e^-6.2 makes every weight about 1, e^-7.2 about 1/e.
    def first_loss(log_quality: float) -> float:
        weighed = table.append_column("log_quality", pa.array([log_quality] * 16, pa.float32()))
        return run(weighed, settings, tmp_path / str(log_quality), "dimp")["loss"][0]["loss"]

    plain = run(table, settings, tmp_path / "ce")["loss"][0]["loss"]
    at_model = first_loss(-plain)
    assert at_model == pytest.approx(plain, rel=0.05)
    assert first_loss(-plain - 1.0) == pytest.approx(at_model / np.e, rel=1e-3)
    assert first_loss(-plain - 50.0) == pytest.approx(0.1 * plain, rel=1e-3)  # the clip


def test_selection_keeps_the_best_epoch(tiny_llama: Path, rows: Rows, tmp_path: Path) -> None:
    table = rows(16)
    strange = [[triplet("qxq zvz", "jwj", "vkv")]] * 16  # ever less likely, once the structure is learnt
    opposite = table.set_column(2, "triplets", pa.array(strange, table.schema.field("triplets").type))
    settings = settings_for(tiny_llama, epochs=8, batch_size=2, learning_rate=1e-2)
    facts = run(table, settings, tmp_path / "out", selection=opposite)
    best = int(np.argmin(facts["selection_loss"]))
    assert facts["best_epoch"] == best < 7
    kept = -log_probs(tmp_path / "out", opposite).mean()
    assert kept == pytest.approx(facts["selection_loss"][best], rel=0.02)


def test_long_rows_are_left_out_and_counted(tiny_llama: Path, rows: Rows, tmp_path: Path) -> None:
    table = rows(9)
    texts = table["text"].to_pylist()
    texts[4] = texts[4] * 20
    table = table.set_column(1, "text", pa.array(texts))
    seen: list[int] = []
    facts = run(table, settings_for(tiny_llama, max_length=100), tmp_path / "out", on_progress=seen.append)
    assert (facts["rows"], facts["rows_too_long"], sum(seen)) == (8, 1, 18)
    assert np.isfinite(log_probs(tmp_path / "out", table)).all()  # there its text is cut
    with pytest.raises(InputError, match="at most 8 tokens"):
        run(table, settings_for(tiny_llama, max_length=8), tmp_path / "none")


def test_mistakes_are_named(tiny_llama: Path, rows: Rows, tmp_path: Path) -> None:
    table, settings = rows(8), settings_for(tiny_llama)
    with pytest.raises(InputError, match="sample_weight"):
        run(table, settings, tmp_path / "x", "imp")
    nan = table.append_column("log_quality", pa.array([0.0, float("nan")] * 4, pa.float32()))
    with pytest.raises(InputError, match="row 1, field 'log_quality'"):
        run(nan, settings, tmp_path / "x", "dimp")
    with pytest.raises(InputError, match="row 2, field 'text'"):
        run(table.set_column(1, "text", pa.array(["a", "b", None, "c"] * 2)), settings, tmp_path / "x")
    with pytest.raises(InputError, match="one of ce, imp, dimp"):
        run(table, settings, tmp_path / "x", "sgd")
    with pytest.raises(InputError, match="obverse train"):
        log_probs(tiny_llama, table)
    with pytest.raises(RunError, match="learning_rate"):
        run(table, settings_for(tiny_llama, learning_rate=1e20, epochs=30), tmp_path / "x")


def test_models_are_resolved(tmp_path: Path, tiny_llama: Path) -> None:
    assert resolve_model(str(tiny_llama), "extraction") == tiny_llama
    assert resolve_model("Qwen/Qwen3-8B", "extraction") == "Qwen/Qwen3-8B"
    assert (Path(resolve_model("auto", "classification")) / "model.safetensors").exists()
    with pytest.raises(InputError, match=r"config\.json"):
        resolve_model(str(tmp_path), "extraction")
    for wrong in ("no-such-model", "./gone/model", "/gone"):
        with pytest.raises(InputError, match="Hugging Face id"):
            resolve_model(wrong, "extraction")


def test_subject_collapsed_form(tiny_llama: Path, rows: Rows, tmp_path: Path) -> None:
    run(rows(8), settings_for(tiny_llama, form="subject_collapsed", epochs=1), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "obverse.json").read_text())["form"] == "subject_collapsed"
    assert np.isfinite(log_probs(tmp_path / "out", rows(8))).all()


def test_an_encoder_decoder_model_learns_too(rows: Rows, tiny_t5: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    facts = run(rows(30), settings_for(tiny_t5, epochs=8), tmp_path / "out")
    assert facts["loss"][-1]["loss"] < 0.6 * facts["loss"][0]["loss"]
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    found = log_probs(tmp_path / "out", rows(30))
    alone = [log_probs(tmp_path / "out", rows(30).slice(i, 1))[0] for i in range(3)]
    np.testing.assert_allclose(found[:3], alone, atol=0.02)
