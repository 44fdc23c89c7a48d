"""How row losses become one loss: denominators, and weights that the tokens of a sequence share."""

from __future__ import annotations

import torch
from torch import Tensor

from obverse.engine.errors import InputError
from obverse.engine.losses.settings import Plan
from obverse.kernels.reference import RowLosses
from obverse.kernels.weight_rule import check_inputs, clip_log_weight

__all__ = ["denominator_for", "sequence_rows", "share_of"]


def denominator_for(plan: Plan, num_items: Tensor | float | None, device: torch.device) -> Tensor | None:
    """What divides the sum of the losses, one float32 element; None for the number of counted rows."""
    if num_items is not None:
        if plan.reduction != "mean" or plan.normalisation != "none":
            seen = f"reduction {plan.reduction}, normalisation {plan.normalisation}"
            raise InputError("reduction mean and normalisation none", field="num_items", seen=seen)
        return torch.as_tensor(num_items, dtype=torch.float32, device=device).reshape(())
    if plan.reduction == "mean" and plan.normalisation == "none":
        return None
    return torch.ones((), device=device)


def share_of(weight: Tensor, counted: Tensor, plan: Plan) -> Tensor:
    """The factor by which a normalised sum or mean multiplies sum(w l), see `kernels.reference.reduce_rows`."""
    total = weight.sum()
    share = torch.where(total != 0, 1 / total, 0.0)
    if plan.normalisation == "batch" and plan.reduction == "sum":
        return share * counted.sum()
    return share


def sequence_rows(
    tokens: RowLosses, plan: Plan, flat: dict[str, Tensor | None], shaped: Tensor, sample_id: Tensor | None
) -> RowLosses:
    """Token losses [N] under one DIMP weight a sequence: the tokens of ``shaped``'s [B, T] row, or of a sample id.

    The weight is a constant to the gradient. Token ``t`` of sequence b has ``w_b l_bt`` and weight ``w_b c_y``.
    """
    check_inputs(plan.rule.scheme, {name for name, values in flat.items() if values is not None})
    log_quality = flat["log_quality"]
    assert log_quality is not None
    if sample_id is None and shaped.ndim < 2:
        raise InputError(
            "targets [B, T], or a sample_id", field="level", seen=f"{plan.level}, target {list(shaped.shape)}"
        )
    if sample_id is None:
        order = torch.arange(shaped.shape[0], device=shaped.device).reshape(-1, *[1] * (shaped.ndim - 1))
        index, size = order.expand(shaped.shape).reshape(-1), shaped.shape[0]
    else:
        index, size = sample_id.reshape(-1), sample_id.numel()
    log_prob = tokens.log_prob.new_zeros(size).index_add(0, index, tokens.log_prob)
    if plan.level == "sequence":
        lengths = log_prob.new_zeros(size).index_add(0, index, tokens.counted.to(log_prob.dtype))
        log_prob = log_prob / lengths.clamp_min(1)
    weight, clipped = clip_log_weight(log_quality.to(log_prob.dtype) - log_prob[index], plan.rule)
    if flat["sample_weight"] is not None:
        weight = weight * flat["sample_weight"].to(weight.dtype)
    weight = torch.where(tokens.counted, weight, 0.0)
    return tokens._replace(
        loss=weight * tokens.loss, weight=(weight * tokens.weight).detach(), clipped=clipped * tokens.counted
    )
