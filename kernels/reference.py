"""The truth of every kernel: plain torch, in float64 if given float64, differentiable any number of times."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from obverse.kernels.weight_rule import WeightRule, clip_log_weight

__all__ = ["Normalisation", "Reduction", "RowLosses", "effective_sample_size", "reduce_rows", "row_losses"]

Normalisation = Literal["none", "batch", "self"]
Reduction = Literal["none", "sum", "mean"]


class RowLosses(NamedTuple):
    """One value a row, [N] each, float32 (float64 for float64 logits). Only ``loss`` carries gradients.

    A row whose target is ``ignore_index`` has 0 in every field.
    """

    loss: Tensor
    """The weighted loss."""
    weight: Tensor
    """The weight it carries, detached, before any normalisation over the batch."""
    log_prob: Tensor
    """log p(target), detached."""
    lse: Tensor
    """Log-sum-exp of the row's logits, detached."""
    clipped: Tensor
    """int8: -1 where the weight was raised to the lower bound, 1 where lowered to the upper, else 0."""
    counted: Tensor
    """bool: the row's target is not ``ignore_index``."""

    def effective_sample_size(self) -> Tensor:
        """`effective_sample_size` of the weights."""
        return effective_sample_size(self.weight)

    def clipped_share(self) -> Tensor:
        """Share of the counted rows whose weight was clipped, a scalar; 0 for no rows."""
        return (self.clipped != 0).sum() / self.counted.sum().clamp_min(1)


def effective_sample_size(weight: Tensor) -> Tensor:
    """Kish's (sum w)^2 / sum w^2, a scalar; 0 where every weight is 0. Scaling the weights changes nothing."""
    scaled = weight / weight.abs().amax().clamp_min(1e-37) if weight.numel() else weight
    return scaled.sum().square() / scaled.square().sum().clamp_min(1e-37)


def row_losses(
    logits: Tensor,
    target: Tensor,
    rule: WeightRule,
    *,
    sample_weight: Tensor | None = None,
    log_quality: Tensor | None = None,
    log_diversity: Tensor | None = None,
) -> RowLosses:
    """Weighted cross-entropy of each row of ``logits`` [N, V] with ``target`` [N] (int64).

    With ``l = log_softmax(logits)``, ``e = label_smoothing`` and ``w`` the rule's weight::

        loss = w * ((1 - e) * -l[target] - e * mean(l))

    which at w = 1 is ``torch.nn.functional.cross_entropy(..., reduction="none")`` in float32 or float64.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    counted = target != rule.ignore_index
    # Ignored rows leave the graph here: a NaN or inf in them must not reach a gradient through 0 * inf.
    x = torch.where(counted[:, None], logits.to(dtype), 0.0)
    y = torch.where(counted, target, 0)
    log_probs = x.log_softmax(dim=-1)
    log_prob = log_probs.gather(1, y[:, None]).squeeze(1)
    base = -log_prob
    if rule.label_smoothing > 0:
        base = (1 - rule.label_smoothing) * base - rule.label_smoothing * log_probs.mean(dim=-1)
    weight, clipped = _weights(log_prob, rule, sample_weight, log_quality, log_diversity)
    with torch.no_grad():
        lse = torch.where(counted, torch.logsumexp(x, dim=-1), 0.0)
        kept_log_prob = torch.where(counted, log_prob, 0.0)
        kept_weight = torch.where(counted, weight, 0.0)
    loss = torch.where(counted, weight * base, 0.0)
    return RowLosses(loss, kept_weight, kept_log_prob, lse, clipped * counted, counted)


def _weights(
    log_prob: Tensor,
    rule: WeightRule,
    sample_weight: Tensor | None,
    log_quality: Tensor | None,
    log_diversity: Tensor | None,
) -> tuple[Tensor, Tensor]:
    weight = torch.ones_like(log_prob)
    clipped = torch.zeros_like(log_prob, dtype=torch.int8)
    if rule.scheme in ("imp", "dimp"):
        assert log_quality is not None
        below = log_diversity if rule.scheme == "imp" else log_prob.detach()
        assert below is not None
        weight, clipped = clip_log_weight(log_quality.to(log_prob.dtype) - below.to(log_prob.dtype), rule)
    elif rule.scheme == "focal":
        # -expm1(log p) is 1 - p without the cancellation; the floor keeps the power's gradient finite at p = 1.
        miss = -torch.expm1(log_prob.detach() if rule.focal_detached else log_prob)
        weight = miss.clamp_min(torch.finfo(miss.dtype).tiny).pow(rule.gamma)
    if sample_weight is not None:
        weight = weight * sample_weight.to(log_prob.dtype)
    return weight, clipped


def reduce_rows(
    loss: Tensor, weight: Tensor, counted: Tensor, *, normalisation: Normalisation, reduction: Reduction
) -> Tensor:
    """Join weighted row losses [N]. ``loss`` is w l; with n counted rows and W = sum(w):

    =============  ===============  =================  ==============
    normalisation  reduction none   sum                mean
    =============  ===============  =================  ==============
    none           w l              sum(w l)           sum(w l) / n
    batch          w l n / W        sum(w l) n / W     sum(w l) / W
    self           w l / W          sum(w l) / W       sum(w l) / W
    =============  ===============  =================  ==============

    So ``mean`` without normalisation divides by the number of counted rows, as the published IMP and DIMP do,
    and never by V, by the ignored rows or by W. W is a constant to the gradient. No counted row, or W = 0,
    gives 0 with zero gradients (torch's own mean gives NaN there).
    """
    if normalisation not in ("none", "batch", "self"):
        raise ValueError(f"normalisation: expected none, batch or self, saw {normalisation!r}")
    count = counted.sum().to(loss.dtype)
    if normalisation != "none":
        total = weight.sum()
        share = torch.where(total != 0, 1 / total, 0.0)
        loss = loss * (share * count if normalisation == "batch" else share)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() if normalisation == "self" else loss.sum() / count.clamp_min(1)
    raise ValueError(f"reduction: expected none, sum or mean, saw {reduction!r}")
