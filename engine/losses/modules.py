"""`WeightedCrossEntropy`: the function of `functional` as a module that keeps its settings."""

from __future__ import annotations

from torch import Tensor, nn

from obverse.engine.losses.functional import (
    DEFAULT_CLIP,
    Diagnostics,
    FocalGradient,
    weighted_cross_entropy_with_diagnostics,
)
from obverse.kernels.launch import Kernel
from obverse.kernels.reference import Normalisation, Reduction
from obverse.kernels.weight_rule import Scheme, make_rule

__all__ = ["WeightedCrossEntropy"]


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy in which every row carries a weight; settings as in `weighted_cross_entropy`.

    It has no parameters and no buffers. Raises ValueError at once for a setting out of range.
    """

    def __init__(
        self,
        scheme: Scheme = "plain",
        *,
        gamma: float = 1.0,
        weight_clip: tuple[float, float] | None = DEFAULT_CLIP,
        focal_gradient: FocalGradient = "true",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        normalisation: Normalisation = "none",
        reduction: Reduction = "mean",
        kernel: Kernel = "auto",
        check: bool | None = None,
    ) -> None:
        super().__init__()
        make_rule(scheme, gamma=gamma, weight_clip=weight_clip, label_smoothing=label_smoothing)
        self.scheme: Scheme = scheme
        self.gamma = gamma
        self.weight_clip = weight_clip
        self.focal_gradient: FocalGradient = focal_gradient
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.normalisation: Normalisation = normalisation
        self.reduction: Reduction = reduction
        self.kernel: Kernel = kernel
        self.check = check

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        log_quality: Tensor | None = None,
        log_diversity: Tensor | None = None,
    ) -> Tensor:
        """The loss of ``logits`` [..., V] with ``target`` [...]; weights shaped as the target or [its first]."""
        loss, _ = self.with_diagnostics(
            logits,
            target,
            sample_weight=sample_weight,
            log_quality=log_quality,
            log_diversity=log_diversity,
        )
        return loss

    def with_diagnostics(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        log_quality: Tensor | None = None,
        log_diversity: Tensor | None = None,
    ) -> tuple[Tensor, Diagnostics]:
        """`forward`'s loss and, from the same pass, its diagnostics."""
        return weighted_cross_entropy_with_diagnostics(
            logits,
            target,
            sample_weight=sample_weight,
            log_quality=log_quality,
            log_diversity=log_diversity,
            scheme=self.scheme,
            gamma=self.gamma,
            weight_clip=self.weight_clip,
            focal_gradient=self.focal_gradient,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            normalisation=self.normalisation,
            reduction=self.reduction,
            kernel=self.kernel,
            check=self.check,
        )

    def extra_repr(self) -> str:
        """The settings that print beside the module's name."""
        return (
            f"scheme={self.scheme!r}, gamma={self.gamma}, weight_clip={self.weight_clip}, "
            f"normalisation={self.normalisation!r}, reduction={self.reduction!r}"
        )
