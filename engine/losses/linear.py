"""Weighted cross-entropy over a linear head, without the [N, V] logits ever being held."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from obverse.engine.losses.functional import Diagnostics
from obverse.engine.losses.inputs import check_hidden, check_values, per_row
from obverse.engine.losses.levels import denominator_for, sequence_rows, share_of
from obverse.engine.losses.settings import LossSettings, Plan, make_plan
from obverse.kernels.linear_cross_entropy import linear_row_losses, linear_total_loss
from obverse.kernels.reference import reduce_rows
from obverse.kernels.weight_rule import RowInputs, Scheme

__all__ = ["linear_weighted_cross_entropy", "linear_weighted_cross_entropy_with_diagnostics"]


def linear_weighted_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    sample_weight: Tensor | None = None,
    log_quality: Tensor | None = None,
    log_diversity: Tensor | None = None,
    class_weight: Tensor | None = None,
    sample_id: Tensor | None = None,
    num_items: Tensor | float | None = None,
    scheme: Scheme = "plain",
    **settings: Unpack[LossSettings],
) -> Tensor:
    """`weighted_cross_entropy` of ``hidden @ head_weight.T + bias``, a chunk of rows at a time.

    Equal to ``weighted_cross_entropy(F.linear(hidden, head_weight, bias), target, ...)`` but for memory: never more
    than a chunk's logits exist. Forward and backward take three matrix products in all (reduction sum and mean; with
    ``reduction="none"``, and for DIMP weights at sequence level, the logits are made twice: four).

    Args:
        hidden: [N, D] or [..., D], the last layer's output.
        head_weight: [V, D], as ``torch.nn.Linear(D, V).weight``; the hidden's dtype (under autocast any).
        target: [N] or [...], int64 in [0, V) or ``ignore_index``. Ignored rows of ``hidden`` may hold anything.
        bias: [V] or None.
        sample_weight, log_quality, log_diversity, class_weight, sample_id, num_items, scheme, settings: as
            `weighted_cross_entropy` has them, but for ``inplace`` and soft labels, which there are none of.

    Returns:
        float32 (float64 for float64 hidden), a scalar or, for reduction none, the target's shape.

    Raises:
        ValueError: as `weighted_cross_entropy`.
    """
    loss, _ = linear_weighted_cross_entropy_with_diagnostics(
        hidden,
        head_weight,
        target,
        bias=bias,
        sample_weight=sample_weight,
        log_quality=log_quality,
        log_diversity=log_diversity,
        class_weight=class_weight,
        sample_id=sample_id,
        num_items=num_items,
        scheme=scheme,
        **settings,
    )
    return loss


def linear_weighted_cross_entropy_with_diagnostics(
    hidden: Tensor,
    head_weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    sample_weight: Tensor | None = None,
    log_quality: Tensor | None = None,
    log_diversity: Tensor | None = None,
    class_weight: Tensor | None = None,
    sample_id: Tensor | None = None,
    num_items: Tensor | float | None = None,
    scheme: Scheme = "plain",
    **settings: Unpack[LossSettings],
) -> tuple[Tensor, Diagnostics]:
    """`linear_weighted_cross_entropy` and, from the same pass, its `Diagnostics`."""
    check_hidden(hidden, head_weight, target, bias)
    plan = make_plan(scheme, **settings)
    given = {"sample_weight": sample_weight, "log_quality": log_quality, "log_diversity": log_diversity}
    flat = {name: per_row(name, values, target, sample_id) for name, values in given.items()}
    flat["class_weight"] = class_weight
    check_values(target, head_weight.shape[0], plan.rule.ignore_index, flat, check=plan.check)
    x, y = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
    denominator = denominator_for(plan, num_items, hidden.device)
    clipped = None
    if plan.level != "token" and plan.rule.scheme == "dimp":
        plan, flat, clipped = _weighed_sequences(x, head_weight, y, bias, plan, flat, target, sample_id)
    inputs = RowInputs(**flat)
    if plan.reduction == "none":
        rows = linear_row_losses(x, head_weight, y, plan.rule, inputs, bias=bias, kernel=plan.kernel)
        loss = reduce_rows(rows.loss, rows.weight, rows.counted, normalisation=plan.normalisation, reduction="none")
        loss = loss.reshape(target.shape)
    else:
        loss, rows = linear_total_loss(
            x, head_weight, y, plan.rule, inputs, bias=bias, denominator=denominator, kernel=plan.kernel
        )
        if plan.normalisation != "none":
            loss = loss * share_of(rows.weight, rows.counted, plan).to(loss.dtype)
    kept = (rows.weight, rows.log_prob, rows.lse, rows.clipped if clipped is None else clipped, rows.counted)
    return loss, Diagnostics(*(values.reshape(target.shape) for values in kept))


def _weighed_sequences(
    hidden: Tensor,
    head_weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    plan: Plan,
    flat: dict[str, Tensor | None],
    shaped: Tensor,
    sample_id: Tensor | None,
) -> tuple[Plan, dict[str, Tensor | None], Tensor]:
    """DIMP weights of whole sequences, found by a pass without gradients, as sample weights of a second one.

    Also int8 [N], what was clipped.
    """
    plain = plan.rule._replace(scheme="plain", label_smoothing=0.0, z_loss=0.0)
    with torch.no_grad():
        tokens = linear_row_losses(hidden, head_weight, target, plain, RowInputs(), bias=bias, kernel=plan.kernel)
    rows = sequence_rows(tokens, plan, flat, shaped, sample_id)
    given = {
        "sample_weight": rows.weight,
        "log_quality": None,
        "log_diversity": None,
        "class_weight": flat["class_weight"],
    }
    return plan._replace(rule=plan.rule._replace(scheme="sample_weight")), given, rows.clipped
