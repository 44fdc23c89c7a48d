"""Weighted cross-entropy as a function: classification [N, V] and token logits [B, T, V] alike."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from obverse.engine.errors import InputError
from obverse.engine.losses.inputs import check_logits, check_values, per_row
from obverse.kernels.cross_entropy import row_losses
from obverse.kernels.launch import Kernel
from obverse.kernels.reference import Normalisation, Reduction, effective_sample_size, reduce_rows
from obverse.kernels.weight_rule import Scheme, make_rule

__all__ = [
    "DEFAULT_CLIP",
    "Diagnostics",
    "FocalGradient",
    "weighted_cross_entropy",
    "weighted_cross_entropy_with_diagnostics",
]

FocalGradient = Literal["true", "detached"]

DEFAULT_CLIP = (0.1, 10.0)


class Diagnostics(NamedTuple):
    """What the loss knew about its rows; detached, in the target's shape, no second pass and no host sync."""

    weight: Tensor
    """Weight of each row before normalisation; 0 at ignored rows."""
    log_prob: Tensor
    """log p(target); 0 at ignored rows."""
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
    scheme: Scheme = "plain",
    gamma: float = 1.0,
    weight_clip: tuple[float, float] | None = DEFAULT_CLIP,
    focal_gradient: FocalGradient = "true",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    normalisation: Normalisation = "none",
    reduction: Reduction = "mean",
    kernel: Kernel = "auto",
    check: bool | None = None,
) -> Tensor:
    """Cross-entropy in which every row carries a weight, computed beside it in one pass.

    With p the model's probability of the target, q = exp(log_quality), d = exp(log_diversity), s the sample
    weight (1 if none), sg the stop-gradient and clip to [log low, log high]::

        l(x, y) = -(1 - e) log p(y|x) - e mean_j log p(j|x)          e = label_smoothing
        plain           w = 1
        sample_weight   w = s
        imp             w = s exp(clip(gamma (log q - log d)))         IMP-Loss,  arXiv 2410.21526
        dimp            w = s exp(clip(gamma (log q - sg(log p))))     DIMP-Loss, arXiv 2410.21526
        focal           w = s (1 - p)^gamma                            Focal Loss, arXiv 1708.02002

    ``weight_clip=None`` gives the ratio as published (held within e^+-64, so an nll of 95 stays finite).
    ``focal_gradient="detached"`` stops the gradient at w, as the DIMP authors' baseline does; standard focal
    loss has gamma = 2. ``weight_clip`` acts on imp and dimp only, ``focal_gradient`` on focal only.

    Args:
        logits: [N, V] or [..., V], float16, bfloat16, float32 (worked in float32) or float64. Never changed.
        target: [N] or [...], int64 in [0, V) or ``ignore_index``.
        sample_weight: like ``target``, or one per first dimension ([B] for [B, T]). Any scheme but plain.
        log_quality: natural log of q, likewise shaped; imp and dimp need it.
        log_diversity: natural log of d, likewise shaped; imp needs it.
        scheme: see above.
        gamma: power of the ratio, or of (1 - p); at least 0.
        weight_clip: bounds of the ratio, 0 < low <= high.
        focal_gradient: "true" or "detached".
        label_smoothing: e above, 0 to 1.
        ignore_index: rows with this target have no loss and no gradient.
        normalisation: none; batch (weights rescaled to mean 1 over the counted rows); self (to sum 1).
        reduction: none (in the target's shape), sum, mean. With n counted rows and W = sum w, mean divides
            sum(w l) by n without normalisation and by W with either one; see `kernels.reference.reduce_rows`.
        kernel: auto | triton | blocked | reference, see `kernels.launch.choose`. Only ``reference`` gives
            gradients to the weights' inputs (auto picks it when one requires them).
        check: look at the values (True), never (False), or where that costs no device sync (None: on the CPU).

    Returns:
        float32 (float64 for float64 logits), a scalar or, for none, the target's shape. 0 if no row counts.

    Raises:
        ValueError: a setting out of range, an input that the scheme lacks or has no use for; and as
            `InputError` a shape, dtype or device that can't work and (see ``check``) a target out of range or
            a weight that is not finite.
    """
    loss, _ = weighted_cross_entropy_with_diagnostics(
        logits,
        target,
        sample_weight=sample_weight,
        log_quality=log_quality,
        log_diversity=log_diversity,
        scheme=scheme,
        gamma=gamma,
        weight_clip=weight_clip,
        focal_gradient=focal_gradient,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
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
    scheme: Scheme = "plain",
    gamma: float = 1.0,
    weight_clip: tuple[float, float] | None = DEFAULT_CLIP,
    focal_gradient: FocalGradient = "true",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    normalisation: Normalisation = "none",
    reduction: Reduction = "mean",
    kernel: Kernel = "auto",
    check: bool | None = None,
) -> tuple[Tensor, Diagnostics]:
    """`weighted_cross_entropy` and, from the same pass, its `Diagnostics`."""
    check_logits(logits, target)
    if focal_gradient not in ("true", "detached"):
        raise InputError("'true' or 'detached'", field="focal_gradient", seen=focal_gradient)
    given = {"sample_weight": sample_weight, "log_quality": log_quality, "log_diversity": log_diversity}
    flat = {name: per_row(name, values, target) for name, values in given.items()}
    check_values(target, logits.shape[-1], ignore_index, flat, check=check)
    rule = make_rule(
        scheme,
        gamma=gamma,
        weight_clip=weight_clip,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        focal_detached=focal_gradient == "detached",
    )
    rows = row_losses(logits.reshape(-1, logits.shape[-1]), target.reshape(-1), rule, kernel=kernel, **flat)
    loss = reduce_rows(rows.loss, rows.weight, rows.counted, normalisation=normalisation, reduction=reduction)
    if reduction == "none":
        loss = loss.reshape(target.shape)
    kept = (rows.weight, rows.log_prob, rows.lse, rows.clipped, rows.counted)
    return loss, Diagnostics(*(values.reshape(target.shape) for values in kept))
