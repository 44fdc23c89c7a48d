"""What a weighted cross-entropy is told besides its tensors: one table of settings for every form of it."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict, get_args

from obverse.engine.errors import InputError
from obverse.kernels.launch import Kernel
from obverse.kernels.reference import Normalisation, Reduction
from obverse.kernels.weight_rule import Scheme, WeightRule, make_rule

__all__ = ["DEFAULT_CLIP", "FocalGradient", "Level", "LossSettings", "Plan", "make_plan"]

FocalGradient = Literal["true", "detached"]
Level = Literal["token", "sequence", "sequence_sum"]

DEFAULT_CLIP = (0.1, 10.0)


class LossSettings(TypedDict, total=False):
    """The keywords that functions and modules share beside ``scheme``; `weighted_cross_entropy` explains them."""

    gamma: float
    weight_clip: tuple[float, float] | None
    focal_gradient: FocalGradient
    label_smoothing: float
    z_loss: float
    ignore_index: int
    level: Level
    normalisation: Normalisation
    reduction: Reduction
    kernel: Kernel
    check: bool | None


class Plan(NamedTuple):
    """Checked settings."""

    rule: WeightRule
    level: Level
    normalisation: Normalisation
    reduction: Reduction
    kernel: Kernel
    check: bool | None


def make_plan(
    scheme: Scheme = "plain",
    *,
    gamma: float = 1.0,
    weight_clip: tuple[float, float] | None = DEFAULT_CLIP,
    focal_gradient: FocalGradient = "true",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    level: Level = "token",
    normalisation: Normalisation = "none",
    reduction: Reduction = "mean",
    kernel: Kernel = "auto",
    check: bool | None = None,
) -> Plan:
    """Check the settings. Raises ValueError, as `InputError` for a word that is not one of those allowed."""
    for name, seen, allowed in (
        ("focal_gradient", focal_gradient, get_args(FocalGradient)),
        ("level", level, get_args(Level)),
        ("normalisation", normalisation, get_args(Normalisation)),
        ("reduction", reduction, get_args(Reduction)),
        ("kernel", kernel, get_args(Kernel)),
    ):
        if seen not in allowed:
            raise InputError(f"one of {', '.join(allowed)}", field=name, seen=seen)
    rule = make_rule(
        scheme,
        gamma=gamma,
        weight_clip=weight_clip,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        focal_detached=focal_gradient == "detached",
        z_loss=z_loss,
    )
    if level != "token" and scheme == "focal":
        raise InputError("level 'token' with scheme 'focal'", field="level", seen=level)
    return Plan(rule, level, normalisation, reduction, kernel, check)
