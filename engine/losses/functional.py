"""Weighted cross-entropy as a function: classification [N, V] and token logits [B, T, V] alike."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from obverse.engine.errors import InputError
from obverse.engine.losses.inputs import check_logits, check_values, per_row
from obverse.engine.losses.levels import denominator_for, sequence_rows, share_of
from obverse.engine.losses.settings import DEFAULT_CLIP, FocalGradient, Level, LossSettings, Plan, make_plan
from obverse.kernels.cross_entropy import row_losses, total_loss
from obverse.kernels.launch import Kernel
from obverse.kernels.reference import (
    Normalisation,
    Reduction,
    RowLosses,
    divided_total,
    effective_sample_size,
    reduce_rows,
)
from obverse.kernels.weight_rule import Scheme

__all__ = ["Diagnostics", "weighted_cross_entropy", "weighted_cross_entropy_with_diagnostics"]


class Diagnostics(NamedTuple):
    """What the loss knew about its rows; detached, in the target's shape, no second pass and no host sync."""

    weight: Tensor
    """Weight of each row before normalisation, class weight included; 0 at ignored rows."""
    log_prob: Tensor
    """log p(target) (of a soft target sum_j t_j log p_j); 0 at ignored rows."""
    lse: Tensor
    """Log-sum-exp of the logits; 0 at ignored rows."""
    clipped: Tensor
    """int8: -1 where the weight was raised to the lower bound, 1 where lowered to the upper, else 0."""
    counted: Tensor
    """bool: not ignored."""

    def effective_sample_size(self) -> Tensor:
        """(sum w)^2 / sum w^2, a scalar; 0 where every weight is 0."""
        return effective_sample_size(self.weight)

    def clipped_share(self) -> Tensor:
        """Share of the counted rows whose weight was clipped, a scalar; 0 for no rows."""
        return (self.clipped != 0).sum() / self.counted.sum().clamp_min(1)


def weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    sample_weight: Tensor | None = None,
    log_quality: Tensor | None = None,
    log_diversity: Tensor | None = None,
    class_weight: Tensor | None = None,
    sample_id: Tensor | None = None,
    num_items: Tensor | float | None = None,
    scheme: Scheme = "plain",
    gamma: float = 1.0,
    weight_clip: tuple[float, float] | None = DEFAULT_CLIP,
    focal_gradient: FocalGradient = "true",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    level: Level = "token",
    normalisation: Normalisation = "none",
    reduction: Reduction = "mean",
    inplace: bool = False,
    kernel: Kernel = "auto",
    check: bool | None = None,
) -> Tensor:
    """Cross-entropy in which every row carries a weight, computed beside it in one pass.

    With p the model's probability of the target, q = exp(log_quality), d = exp(log_diversity), s the sample
    weight (1 if none), c the class weights (1 if none), t the target (one-hot or soft), lse the log-sum-exp of the
    logits, sg the stop-gradient and clip to [log low, log high]::

        l(x, y) = -sum_j c_j ((1 - e) t_j + e / V) log p(j|x) + z_loss lse^2       e = label_smoothing
        plain           w = 1
        sample_weight   w = s
        imp             w = s exp(clip(gamma (log q - log d)))         IMP-Loss,  arXiv 2410.21526
        dimp            w = s exp(clip(gamma (log q - sg(log p))))     DIMP-Loss, arXiv 2410.21526
        focal           w = s (1 - p)^gamma                            Focal Loss, arXiv 1708.02002

    ``weight_clip=None`` gives the ratio as published (held within e^+-64, so an nll of 95 stays finite).
    ``focal_gradient="detached"`` stops the gradient at w, as the DIMP authors' baseline does; standard focal
    loss has gamma = 2. ``weight_clip`` acts on imp and dimp only, ``focal_gradient`` on focal only. The z-loss
    (arXiv 2204.02311) is part of l: it is weighted like the rest.

    For token logits, ``level`` says what a DIMP weight is made of. At level token each token has its own. At level
    sequence all T_b tokens of sequence b share w_b = s_b exp(clip(gamma (log q_b - sg(log p_b)))) with
    log p_b = (1 / T_b) sum_t log p(y_bt | ..); at sequence_sum log p_b is the sum. The other schemes' weights do
    not depend on p: given one a sequence, they are the same at every level.

    Args:
        logits: [N, V] or [..., V], float16, bfloat16, float32 (worked in float32) or float64. Changed only with
            ``inplace``.
        target: [N] or [...], int64 in [0, V) or ``ignore_index``; or soft labels, float in the logits' shape.
        sample_weight: like int64 targets, or one per first dimension ([B] for [B, T]). Any scheme but plain.
        log_quality: natural log of q, likewise shaped; imp and dimp need it.
        log_diversity: natural log of d, likewise shaped; imp needs it.
        class_weight: [V]; any scheme. It does not change the denominator of a mean without normalisation.
        sample_id: int64 like the targets, in [0, S): the three inputs above are then [S], one a sample, and a row
            takes its sample's (packed sequences). It also says which tokens make a sequence for ``level``.
        num_items: divide the mean by this instead of the number of counted rows (gradient accumulation: the count
            over all micro-batches). Only with reduction mean and normalisation none.
        scheme: see above.
        gamma: power of the ratio, or of (1 - p); at least 0.
        weight_clip: bounds of the ratio, 0 < low <= high.
        focal_gradient: "true" or "detached".
        label_smoothing: e above, 0 to 1.
        z_loss: factor of lse^2, at least 0 (1e-4 is common).
        ignore_index: rows with this target have no loss and no gradient.
        level: token, sequence (length-normalised) or sequence_sum; see above.
        normalisation: none; batch (weights rescaled to mean 1 over the counted rows); self (to sum 1).
        reduction: none (in the target's shape), sum, mean. With n counted rows and W = sum w, mean divides
            sum(w l) by n without normalisation and by W with either one; see `kernels.reference.reduce_rows`. With
            class weights w counts as w c_y.
        inplace: let the gradient take the logits' memory: one backward pass, and the logits must not be used again.
            Only with reduction sum or mean, level token, and logits that an operation made.
        kernel: auto | triton | cpp | reference, see `kernels.launch.choose`. Only ``reference`` gives gradients to
            the weights' inputs (auto picks it when one requires them).
        check: look at the values (True), never (False), or where that costs no device sync (None: on the CPU).

    Returns:
        float32 (float64 for float64 logits), a scalar or, for none, the rows' shape. 0 if no row counts.

    Raises:
        ValueError: a setting out of range, an input that the scheme lacks or has no use for; and as
            `InputError` a shape, dtype or device that can't work and (see ``check``) a target out of range or
            a weight that is not finite.
    """
    loss, _, _ = _loss_and_rows(
        logits,
        target,
        sample_weight=sample_weight,
        log_quality=log_quality,
        log_diversity=log_diversity,
        class_weight=class_weight,
        sample_id=sample_id,
        num_items=num_items,
        inplace=inplace,
        scheme=scheme,
        gamma=gamma,
        weight_clip=weight_clip,
        focal_gradient=focal_gradient,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        ignore_index=ignore_index,
        level=level,
        normalisation=normalisation,
        reduction=reduction,
        kernel=kernel,
        check=check,
    )
    return loss


def weighted_cross_entropy_with_diagnostics(
    logits: Tensor,
    target: Tensor,
    *,
    sample_weight: Tensor | None = None,
    log_quality: Tensor | None = None,
    log_diversity: Tensor | None = None,
    class_weight: Tensor | None = None,
    sample_id: Tensor | None = None,
    num_items: Tensor | float | None = None,
    inplace: bool = False,
    scheme: Scheme = "plain",
    **settings: Unpack[LossSettings],
) -> tuple[Tensor, Diagnostics]:
    """`weighted_cross_entropy` and, from the same pass, its `Diagnostics`."""
    loss, found, shape = _loss_and_rows(
        logits,
        target,
        sample_weight=sample_weight,
        log_quality=log_quality,
        log_diversity=log_diversity,
        class_weight=class_weight,
        sample_id=sample_id,
        num_items=num_items,
        inplace=inplace,
        scheme=scheme,
        **settings,
    )
    kept = (found.weight, found.log_prob, found.lse, found.clipped, found.counted)
    return loss, Diagnostics(*(values.reshape(shape) for values in kept))


def _loss_and_rows(
    logits: Tensor,
    target: Tensor,
    *,
    sample_weight: Tensor | None,
    log_quality: Tensor | None,
    log_diversity: Tensor | None,
    class_weight: Tensor | None,
    sample_id: Tensor | None,
    num_items: Tensor | float | None,
    inplace: bool,
    scheme: Scheme,
    **settings: Unpack[LossSettings],
) -> tuple[Tensor, RowLosses, torch.Size]:
    """The loss, its rows as one vector, and the shape that they have."""
    check_logits(logits, target)
    plan = make_plan(scheme, **settings)
    soft = target.is_floating_point()
    rows = target[..., 0] if soft else target
    given = {"sample_weight": sample_weight, "log_quality": log_quality, "log_diversity": log_diversity}
    flat = {name: per_row(name, values, rows, sample_id) for name, values in given.items()}
    flat["class_weight"] = class_weight
    check_values(target, logits.shape[-1], plan.rule.ignore_index, flat, check=plan.check)
    z = logits.reshape(-1, logits.shape[-1])
    y = target.reshape(-1, target.shape[-1]) if soft else target.reshape(-1)
    if inplace and (plan.reduction == "none" or plan.level != "token" or (logits.is_leaf and logits.requires_grad)):
        seen = f"reduction {plan.reduction}, level {plan.level}" + ", a leaf" * logits.is_leaf
        raise InputError(
            "reduction sum or mean, level token and logits that an operation made", field="inplace", seen=seen
        )
    loss, found = _reduced(z, y, plan, flat, rows, sample_id, num_items, inplace)
    return loss.reshape(rows.shape) if plan.reduction == "none" else loss, found, rows.shape


def _reduced(
    logits: Tensor,
    target: Tensor,
    plan: Plan,
    flat: dict[str, Tensor | None],
    shaped: Tensor,
    sample_id: Tensor | None,
    num_items: Tensor | float | None,
    inplace: bool,
) -> tuple[Tensor, RowLosses]:
    """The loss as its reduction says, and the rows. ``shaped`` has the rows' shape."""
    denominator = denominator_for(plan, num_items, logits.device)
    at_sequences = plan.level != "token" and plan.rule.scheme == "dimp"
    if plan.reduction == "none" or at_sequences:
        if at_sequences:
            plain = plan.rule._replace(scheme="plain")
            tokens = row_losses(logits, target, plain, class_weight=flat["class_weight"], kernel=plan.kernel)
            rows = sequence_rows(tokens, plan, flat, shaped, sample_id)
        else:
            rows = row_losses(logits, target, plan.rule, **flat, kernel=plan.kernel)
        if num_items is not None:
            return divided_total(rows, denominator), rows
        reduced = reduce_rows(
            rows.loss, rows.weight, rows.counted, normalisation=plan.normalisation, reduction=plan.reduction
        )
        return reduced, rows
    total, rows = total_loss(
        logits, target, plan.rule, **flat, denominator=denominator, inplace=inplace, kernel=plan.kernel
    )
    if plan.normalisation == "none":
        return total, rows
    return total * share_of(rows.weight, rows.counted, plan).to(total.dtype), rows
