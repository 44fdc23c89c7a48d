"""Constraints on a Hugging Face model's logits: a `LogitsProcessor`, and the same for our own loop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import LongTensor, Tensor

    from obverse._core import Constraint, Matcher, Subset

__all__ = ["ConstrainedLogitsProcessor", "choose_allowed", "keep_only", "mask_disallowed"]


class ConstrainedLogitsProcessor:
    """Lets ``model.generate`` write nothing but what a constraint allows.

    Works for greedy search, sampling and beam search, decoder-only and encoder-decoder: beam search reorders rows
    without saying how, so a row's state is found from its own tokens (it goes on from the row of the last step that it
    begins with), in one native call a step. Pass it in ``logits_processor=[...]`` (it has the call signature of
    `transformers.LogitsProcessor`), before processors that cut the distribution (top-k, top-p).

    On a CPU the result is a tensor of the processor's own, of which only the allowed entries are written: a step
    costs what is allowed, whatever the vocabulary. Two such tensors take turns; one that somebody else still holds
    (``output_scores=True``) or has changed in place is left to them and replaced.

    Args:
        constraint: from `Catalog.constraint`.
        prompt_length: columns of ``input_ids`` before the first generated token: the padded prompt's length, or 1
            (the start token) for an encoder-decoder model. None: the width of a generation's first call. A call begins
            a generation unless it is one token wider than the last one and begins with the same prompts.
        subsets: only these entities may be written: a `Subset` or None for each prompt of the batch (its beams and
            samples lie together).
    """

    def __init__(
        self,
        constraint: Constraint,
        *,
        prompt_length: int | None = None,
        subsets: Sequence[Subset | None] | None = None,
    ) -> None:
        from obverse._core import RowStates

        self.constraint, self.prompt_length = constraint, prompt_length
        self._states = RowStates(constraint)
        if subsets is not None:
            self._states.restrict_to(list(subsets))
        self._prompts: np.ndarray | None = None
        self._width = -1
        self._buffers: list[Tensor | None] = [None, None]
        self._versions = [0, 0]
        self._turn = 0

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        """``scores`` [B, V] with -inf at every token that row b of ``input_ids`` [B, T] may not go on with.

        A row that has ended, or left the constraint (a beam of probability zero), keeps the end-of-sequence token.
        """
        import torch

        ids = input_ids.detach().cpu().numpy()
        generated = ids[:, self._start(ids) :]
        if scores.device.type != "cpu" or scores.dtype != torch.float32:
            return keep_only(scores, *self._states.allowed(generated))
        source = scores.detach().contiguous().numpy()
        out, fresh = self._take(scores)
        self._states.step(generated, source, out.numpy(), self._turn, not fresh)
        self._versions[self._turn] = out._version
        self._turn = 1 - self._turn
        return out

    def _start(self, ids: np.ndarray) -> int:
        """Columns of ``ids`` that are the prompt's."""
        if self.prompt_length is not None:
            return self.prompt_length
        prompts = self._prompts
        goes_on = (
            prompts is not None
            and ids.shape[1] == self._width + 1
            and len(prompts) == len(ids)
            and np.array_equal(ids[:, : prompts.shape[1]], prompts)
        )
        if not goes_on:
            self._prompts = prompts = ids.copy()
        self._width = ids.shape[1]
        assert prompts is not None
        return int(prompts.shape[1])

    def _take(self, scores: Tensor) -> tuple[Tensor, bool]:
        """The buffer whose turn it is, and whether it is a new one."""
        import torch

        held = self._buffers[self._turn]
        # Three names for it: the list's, `held`, and the call's own argument. A view counts as one more.
        alone = held is not None and sys.getrefcount(held) <= 3
        if held is not None and alone and held.shape == scores.shape and held._version == self._versions[self._turn]:
            return held, False
        with torch.inference_mode(False):  # tensors made in inference mode have no version to compare
            fresh = torch.empty(scores.shape, dtype=torch.float32)
        self._buffers[self._turn] = fresh
        return fresh, True


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


def mask_disallowed(matchers: Sequence[Matcher], logits: Tensor) -> Tensor:
    """``logits`` [B, V] with -inf at what matcher b may not accept; in place for float32 on a CPU."""
    import torch

    from obverse._core import allowed_batch, mask_logits

    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        mask_logits(matchers, logits.numpy())
        return logits
    tokens, offsets = _at_least_eos(matchers, *allowed_batch(matchers))
    return keep_only(logits, tokens, offsets)


def choose_allowed(matchers: Sequence[Matcher], logits: Tensor) -> np.ndarray:
    """The likeliest token that matcher b may accept, int32 [B]; its end-of-sequence token once it has ended.

    On a CPU nothing but the allowed entries of ``logits`` [B, V] is read.
    """
    from obverse._core import argmax_allowed

    if logits.device.type == "cpu":
        return argmax_allowed(matchers, logits.float().numpy())
    return mask_disallowed(matchers, logits).argmax(-1).int().cpu().numpy()


def _at_least_eos(
    matchers: Sequence[Matcher], tokens: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The lists with the end-of-sequence token where a list is empty."""
    counts = np.diff(offsets)
    if counts.all():
        return tokens, offsets
    ended = np.flatnonzero(counts == 0)
    tokens = np.insert(tokens, offsets[ended], [matchers[int(i)].eos for i in ended])
    return tokens, np.concatenate([[0], np.cumsum(np.maximum(counts, 1))])
