"""Constraints on a Hugging Face model's logits: a `LogitsProcessor`, and the same mask for our own loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import LongTensor, Tensor

    from obverse._core import Constraint, Matcher

__all__ = ["ConstrainedLogitsProcessor", "keep_only", "mask_disallowed"]


class ConstrainedLogitsProcessor:
    """Lets ``model.generate`` write nothing but linearised triplets of the catalogue's names.

    Works for greedy search, sampling and beam search, decoder-only and encoder-decoder: beam search reorders rows
    without saying how, so each row's state is found from its own tokens at every step, in one native call.
    Pass it in ``logits_processor=[...]`` (it has the call signature of `transformers.LogitsProcessor`).

    Args:
        constraint: from `Catalog.constraint`.
        prompt_length: columns of ``input_ids`` before the first generated token: the padded prompt's length, or
            1 (the start token) for an encoder-decoder model.
        eos_id: the end-of-sequence token; all that a row may write once it has ended, or left the constraint
            (a beam of probability zero).
    """

    def __init__(self, constraint: Constraint, *, prompt_length: int, eos_id: int) -> None:
        self.constraint, self.prompt_length, self.eos_id = constraint, prompt_length, eos_id

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        """``scores`` [B, V] with -inf at every token that row b of ``input_ids`` [B, T] may not go on with."""
        from obverse._core import allowed_batch

        generated = input_ids[:, self.prompt_length :].cpu().numpy().astype(np.int32)
        offsets = np.arange(len(generated) + 1, dtype=np.int64) * generated.shape[1]
        tokens, ends = allowed_batch(self.constraint, np.ascontiguousarray(generated).reshape(-1), offsets)
        return keep_only(scores, *self._at_least_eos(tokens, ends))

    def _at_least_eos(self, tokens: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts = np.diff(ends)
        if counts.all():
            return tokens, ends
        tokens = np.insert(tokens, ends[:-1][counts == 0], self.eos_id)
        return tokens, np.concatenate([[0], np.cumsum(np.maximum(counts, 1))])


def keep_only(scores: Tensor, tokens: np.ndarray, offsets: np.ndarray) -> Tensor:
    """``scores`` [B, V] with -inf everywhere but at ``tokens[offsets[b]:offsets[b + 1]]`` of each row b.

    Only the allowed values are read and written beside one fill: no mask of the scores' size is made.
    """
    import torch

    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    row_index = torch.from_numpy(rows).to(scores.device)
    column_index = torch.from_numpy(tokens.astype(np.int64)).to(scores.device)
    result = torch.full_like(scores, float("-inf"))
    result[row_index, column_index] = scores[row_index, column_index]
    return result


def mask_disallowed(constraint: Constraint, matchers: Sequence[Matcher], logits: Tensor) -> Tensor:
    """``logits`` [B, V] float32 with -inf at what matcher b may not accept; in place on a CPU."""
    from obverse._core import mask_logits

    if logits.device.type == "cpu":
        mask_logits(constraint, list(matchers), logits.numpy())
        return logits
    allowed = [matcher.allowed() for matcher in matchers]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in allowed])])
    return keep_only(logits, np.concatenate(allowed), offsets)
