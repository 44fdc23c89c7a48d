"""log p(target | text) of any rows under a model that `train_model` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from obverse.engine.records.models import (
    context_length,
    load_classifier,
    load_sequence_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    read_card,
    sequence_format,
)
from obverse.engine.train.batches import sorted_batches
from obverse.engine.train.examples import encode_rows
from obverse.engine.train.learner import autocast
from obverse.engine.train.objective import make_objective

__all__ = ["log_probs"]


def log_probs(model_dir: Path, rows: pa.Table, *, batch_size: int = 64) -> np.ndarray:
    """log p(target | text) of each row, [N] float32; for triplet sets the mean over the answer's tokens, in nats.

    Matrix products run in bfloat16 where the hardware has it; log-softmax and sums in float32. A text too long
    for the model is cut at its end.

    Args:
        model_dir: a folder that `train_model` wrote.
        rows: id, text, and triplets or label, as the model's task wants.
        batch_size: rows a forward pass.

    Raises:
        InputError: the folder is not such a model, or the rows lack a column or hold a null or unknown label.
    """
    import torch

    card = read_card(model_dir)
    tokenizer, device = load_tokenizer(model_dir), pick_device()
    extraction = card["task"] == "extraction"
    model = (load_sequence_model if extraction else load_classifier)(model_dir).to(device)
    form = sequence_format(tokenizer, model.config, card["form"]) if extraction else None
    limit = context_length(model.config)
    examples = encode_rows(
        rows,
        task=card["task"],
        tokenizer=tokenizer,
        form=form,
        labels=card["labels"],
        max_length=limit if extraction else card["settings"]["max_length"],
        cut_text=True,
    )
    objective = make_objective(examples, form=form, tokenizer=tokenizer, method="ce", model=model, device=device)
    result = np.zeros(len(examples), dtype=np.float32)
    with torch.inference_mode(), autocast(device, pick_dtype("auto", device)):
        for batch in sorted_batches(examples.lengths, batch_size):
            result[batch] = objective.log_probs(model, batch).cpu().numpy()
    return result
