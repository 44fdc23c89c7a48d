"""The truth of every kernel: plain torch, in float64 if given float64, differentiable any number of times."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from obverse.kernels.weight_rule import WeightRule, clip_log_weight

__all__ = [
    "Normalisation",
    "Reduction",
    "RowLosses",
    "divided_total",
    "effective_sample_size",
    "reduce_rows",
    "row_losses",
]

Normalisation = Literal["none", "batch", "self"]
Reduction = Literal["none", "sum", "mean"]


class RowLosses(NamedTuple):
    """One value a row, [N] each, float32 (float64 for float64 logits). Only ``loss`` carries gradients.

    A row whose target is ``ignore_index`` has 0 in every field.
    """

    loss: Tensor
    """The weighted loss."""
    weight: Tensor
    """The weight it carries, detached, before any normalisation over the batch: the rule's, times the class weight
    of its target (of a soft one the sum of class weight times target)."""
    log_prob: Tensor
    """log p(target), detached; of a soft target the sum of t_j log p_j."""
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


def divided_total(rows: RowLosses, denominator: Tensor | None) -> Tensor:
    """The sum of the losses over ``denominator`` (None: the number of counted rows); 0 over a denominator of 0."""
    below = (rows.counted.sum() if denominator is None else denominator.reshape(())).to(torch.float64)
    total = rows.loss.sum(dtype=torch.float64)
    return torch.where(below != 0, total / torch.where(below != 0, below, 1.0), 0.0).to(rows.loss.dtype)


def row_losses(
    logits: Tensor,
    target: Tensor,
    rule: WeightRule,
    *,
    sample_weight: Tensor | None = None,
    log_quality: Tensor | None = None,
    log_diversity: Tensor | None = None,
    class_weight: Tensor | None = None,
) -> RowLosses:
    """Weighted cross-entropy of each row of ``logits`` [N, V] with ``target``: int64 [N], or soft, float [N, V].

    With ``l = log_softmax(logits)``, t the target (one-hot or the soft row), c the class weights (1 if none),
    e = ``label_smoothing``, zl = ``z_loss`` and w the rule's weight::

        tau_j = c_j ((1 - e) t_j + e / V)
        loss  = w (-sum_j tau_j l_j + zl lse^2)

    which at w = 1 and zl = 0 is ``torch.nn.functional.cross_entropy(..., weight=c, reduction="none")`` in float32
    or float64. The p of DIMP and focal is p of the target; of a soft target exp(sum_j t_j l_j), for DIMP only.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    soft = target.is_floating_point()
    if soft:
        counted = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        x, t = logits.to(dtype), target.to(dtype)
    else:
        counted = target != rule.ignore_index
        # Ignored rows leave the graph here: a NaN or inf in them must not reach a gradient through 0 * inf.
        x = torch.where(counted[:, None], logits.to(dtype), 0.0)
        y = torch.where(counted, target, 0)
    log_probs = x.log_softmax(dim=-1)
    log_prob = _dot(t, log_probs) if soft else log_probs.gather(1, y[:, None]).squeeze(1)
    c = None if class_weight is None else class_weight.to(dtype)
    base, share = -log_prob, torch.ones_like(log_prob)
    if c is not None:
        base = -_dot(t * c, log_probs) if soft else c[y] * base
        share = (t @ c if soft else c[y]).detach()
    elif soft:
        share = t.sum(dim=1).detach()
    if rule.label_smoothing > 0:
        spread = log_probs.mean(dim=-1) if c is None else _dot(c, log_probs) / log_probs.shape[1]
        base = (1 - rule.label_smoothing) * base - rule.label_smoothing * spread
    lse = torch.logsumexp(x, dim=-1)
    if rule.z_loss > 0:
        base = base + rule.z_loss * lse.square()
    weight, clipped = _weights(log_prob, rule, sample_weight, log_quality, log_diversity)
    with torch.no_grad():
        kept_lse = torch.where(counted, lse, 0.0)
        kept_log_prob = torch.where(counted, log_prob, 0.0)
    kept_weight = torch.where(counted, weight * share, 0.0).detach()
    loss = torch.where(counted, weight * base, 0.0)
    return RowLosses(loss, kept_weight, kept_log_prob, kept_lse, clipped * counted, counted)


def _dot(factors: Tensor, log_probs: Tensor) -> Tensor:
    """Sum over the classes, in which a factor of 0 hides even -inf."""
    return torch.where(factors == 0, 0.0, factors * log_probs).sum(dim=-1)


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
