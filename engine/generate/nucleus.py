"""Nucleus (top-p) filtering without sorting the vocabulary (Holtzman et al., 2020, arXiv 1904.09751).

The nucleus of a trained model's distribution is a handful of tokens, so the largest ``HEAD`` probabilities
nearly always hold it; only rows where they don't are sorted whole. Sorting every row was a third of the
run time of a small model on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["keep_nucleus_"]

HEAD = 64


def keep_nucleus_(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Set to -inf, in place, what lies outside each row's nucleus; returns ``logits`` (float [rows, vocabulary]).

    The nucleus is the shortest prefix of the tokens in falling order of probability that holds at least
    ``top_p``, and every token as likely as its last. Each row's outcome depends on that row alone.
    """
    if top_p >= 1.0:
        return logits
    probs = logits.softmax(dim=-1)
    floor, inside = _last_kept(probs.topk(min(HEAD, probs.shape[-1]), dim=-1).values, top_p)
    outside = (~inside).nonzero().flatten()
    if len(outside) and probs.shape[-1] > HEAD:
        ordered = probs[outside].sort(dim=-1, descending=True).values
        floor[outside] = _last_kept(ordered, top_p)[0]
    return logits.masked_fill_(probs < floor.unsqueeze(-1), float("-inf"))


def _last_kept(ordered: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row of falling probabilities: the last one that the nucleus keeps, and whether the nucleus ends here."""
    total = ordered.cumsum(dim=-1)
    # A token is kept while those before it hold less than top_p; the first always is.
    kept = ((total - ordered) < top_p).sum(dim=-1).clamp_(min=1)
    floor = ordered.gather(-1, (kept - 1).unsqueeze(-1)).squeeze(-1)
    return floor, total[:, -1] >= top_p
