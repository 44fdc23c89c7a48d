"""Requests whose state is on the host: a `Matcher` each, and masks written into vLLM's logits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from obverse.engine.decode.device import to_device
from obverse.engine.decode.processor import mask_disallowed

if TYPE_CHECKING:
    from torch import Tensor

    from obverse._core import Matcher

__all__ = ["HostRequest", "end_rows", "mask_rows"]

_log = logging.getLogger(__name__)


class HostRequest:
    """One request: its matcher, and how many of its tokens that has seen."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self.seen = 0
        self.newest = -1
        self.lost = False
        """Whether a token came that was not allowed: from then on the request may only end."""

    def follow(self, tokens: Sequence[int], first: int = 0) -> None:
        """Go on to ``tokens``, which are those from number ``first`` on.

        Raises RuntimeError where vLLM has not filled in its newest token.
        """
        end = first + len(tokens)
        if end < self.seen or (first < self.seen and tokens[self.seen - first - 1] != self.newest):
            self.matcher.reset()  # vLLM took tokens back
            self.seen, self.lost = 0, False
        if self.seen < first:
            raise RuntimeError(f"tokens {self.seen} to {first} of a constrained request are missing")
        for token in tokens[self.seen - first :]:
            if token < 0:
                raise RuntimeError(
                    "vLLM has not filled in a request's newest token; pass the processor in "
                    "LLM(logits_processors=[...]), which makes it do so"
                )
            self._accept(int(token))

    def after(self, drafts: Sequence[int]) -> HostRequest:
        """The request once ``drafts`` are in, as another one."""
        other = HostRequest(self.matcher.fork())
        other.seen, other.lost = self.seen, self.lost
        for token in drafts:
            if not (other.lost or other.matcher.accept(token)):
                other.lost = True  # the draft will be rejected
        return other

    def _accept(self, token: int) -> None:
        self.seen, self.newest = self.seen + 1, token
        if self.lost or self.matcher.is_complete:
            return
        if not self.matcher.accept(token):
            self.lost = True
            _log.warning("token %d is outside a request's constraint: the request may only end now", token)


def mask_rows(logits: Tensor, rows: Sequence[int], requests: Sequence[HostRequest], *, eos: int) -> None:
    """Set what ``requests`` may not go on with to -inf in ``rows`` (ascending) of ``logits``, in place."""
    lost = [row for row, request in zip(rows, requests, strict=True) if request.lost]
    kept = [(row, request.matcher) for row, request in zip(rows, requests, strict=True) if not request.lost]
    if kept and _in_place(logits):
        _mask_runs(logits, kept)
    elif kept:
        places = to_device(np.array([row for row, _ in kept]), logits.device)
        masked = mask_disallowed([matcher for _, matcher in kept], logits[places])
        logits.index_copy_(0, places, masked)
    end_rows(logits, lost, eos)


def end_rows(logits: Tensor, rows: Sequence[int], eos: int) -> None:
    """Leave ``rows`` nothing but end-of-sequence."""
    for row in rows:
        value = logits[row, eos].clone()
        logits[row] = float("-inf")
        logits[row, eos] = value


def _in_place(logits: Tensor) -> bool:
    import torch

    return logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.is_contiguous()


def _mask_runs(logits: Tensor, kept: Sequence[tuple[int, Matcher]]) -> None:
    """One native call for every run of neighbouring rows."""
    from obverse._core import mask_logits

    array = logits.numpy()
    first = 0
    for i in range(1, len(kept) + 1):
        if i == len(kept) or kept[i][0] != kept[i - 1][0] + 1:
            run = [matcher for _, matcher in kept[first:i]]
            mask_logits(run, array[kept[first][0] : kept[i - 1][0] + 1])
            first = i
