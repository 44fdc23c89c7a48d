"""One teacher-forced pass: examples to a padded batch, a batch to the logits of its answers' tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from obverse.engine.records.sequence import Example, SequenceFormat

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["IGNORE", "SequenceBatch", "answer_logits", "answer_token_log_probs", "can_gather", "collate", "pad_rows"]

IGNORE = -100


@dataclass(frozen=True)
class SequenceBatch:
    """B examples, padded on the right.

    Attributes:
        input_ids: [B, T] int64. Decoder-only: prompt and answer but its last token. Encoder-decoder: the prompt.
        attention_mask: [B, T] int64, 1 at real tokens.
        decoder_input_ids: [B, A] int64, the answer shifted right; None for decoder-only models.
        positions: [B, A] int64, the place in T whose logits predict each answer token; decoder-only models.
        targets: [B, A] int64, the answer's tokens, `IGNORE` beyond its end.
        num_tokens: real tokens in the batch, prompt and answer.
    """

    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor | None
    positions: Tensor | None
    targets: Tensor
    num_tokens: int


def pad_rows(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ragged ids as a [B, T] int64 tensor filled up with ``value``, and its mask (1 at real tokens)."""
    import torch

    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max(initial=1))
    columns = np.arange(width)[None, :]
    mask = columns >= width - lengths[:, None] if left else columns < lengths[:, None]
    ids = np.full(mask.shape, value, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]) if len(rows) else []
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def collate(
    examples: Sequence[Example], form: SequenceFormat, *, device: torch.device, decoder_start: int | None = None
) -> SequenceBatch:
    """Pad ``examples``; ``decoder_start`` is the first token an encoder-decoder model's decoder reads."""
    answers = [example.input_ids[example.num_prompt_tokens :] for example in examples]
    targets, _ = pad_rows(answers, IGNORE)
    decoder_input_ids = positions = None
    if form.architecture == "encoder_decoder":
        if decoder_start is None:
            raise ValueError("an encoder-decoder batch needs decoder_start")
        read = [example.input_ids[: example.num_prompt_tokens] for example in examples]
        shifted, _ = pad_rows([[decoder_start, *answer[:-1]] for answer in answers], form.pad_id)
        decoder_input_ids = shifted.to(device)
    else:
        read = [example.input_ids[:-1] for example in examples]
        starts = np.array([example.num_prompt_tokens - 1 for example in examples])
        last = np.array([len(row) - 1 for row in read])
        # Places beyond an answer's end point at its last token: read, then ignored by their target.
        places = np.minimum(starts[:, None] + np.arange(targets.shape[1])[None, :], last[:, None])
        positions = _tensor(places, device)
    input_ids, mask = pad_rows(read, form.pad_id)
    return SequenceBatch(
        input_ids.to(device),
        mask.to(device),
        decoder_input_ids,
        positions,
        targets.to(device),
        sum(len(example.input_ids) for example in examples),
    )


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)


def answer_logits(model: Any, batch: SequenceBatch, *, gather: bool) -> Tensor:
    """Logits [B, A, V] of the answers' tokens.

    With ``gather`` (see `can_gather`) the output layer sees the answers' places only: with a prompt half as long
    as the sequence that saves half of the layer that, in a small model, costs most.
    """
    if batch.decoder_input_ids is not None:
        output = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_input_ids=batch.decoder_input_ids,
            use_cache=False,
        )
        result: Tensor = output.logits
        return result
    assert batch.positions is not None
    if gather:
        hidden = model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        result = model.get_output_embeddings()(_take(hidden, batch.positions))
    else:
        whole = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        result = _take(whole.logits, batch.positions)
    return result


def _take(values: Tensor, positions: Tensor) -> Tensor:
    """``values`` [B, T, D] at ``positions`` [B, A] as [B, A, D]."""
    rows, width, depth = values.shape
    import torch

    offsets = torch.arange(rows, device=values.device)[:, None] * width
    picked = values.reshape(rows * width, depth).index_select(0, (positions + offsets).reshape(-1))
    return picked.reshape(*positions.shape, depth)


def can_gather(model: Any, batch: SequenceBatch) -> bool:
    """Whether the output layer alone, on the base model's hidden states, gives this model's logits.

    Some architectures scale or cap their logits behind it, so both ways are run on one row and compared.
    """
    import torch

    if batch.positions is None:
        return False
    one = SequenceBatch(batch.input_ids[:1], batch.attention_mask[:1], None, batch.positions[:1], batch.targets[:1], 0)
    try:
        with torch.no_grad():
            whole = answer_logits(model, one, gather=False)
            gathered = answer_logits(model, one, gather=True)
    except (AttributeError, TypeError):
        return False
    return whole.shape == gathered.shape and torch.allclose(whole.float(), gathered.float(), rtol=1e-3, atol=1e-3)


def answer_token_log_probs(model: Any, batch: SequenceBatch, *, gather: bool) -> Tensor:
    """Mean log-probability per answer token, [B] float32, each token's log-softmax taken in float32."""
    import torch

    logits = answer_logits(model, batch, gather=gather)
    counted = batch.targets != IGNORE
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="none"
    ).reshape(batch.targets.shape)
    return -(loss.sum(1) / counted.sum(1).clamp(min=1))
