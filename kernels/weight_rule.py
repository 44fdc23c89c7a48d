"""How a row's loss is weighted: the rule that every implementation of the cross-entropy follows.

With ``p`` the model's probability of the row's target and ``s`` its sample weight (1 where none is given):

===============  ===================================================================  ========================
scheme           weight                                                               source
===============  ===================================================================  ========================
plain            1
sample_weight    s
imp              s exp(clip(gamma (log q - log d)))                                   arXiv 2410.21526, IMP
dimp             s exp(clip(gamma (log q - sg(log p))))                               arXiv 2410.21526, DIMP
focal            s (1 - p)^gamma, or s (1 - sg(p))^gamma with ``focal_detached``      arXiv 1708.02002
===============  ===================================================================  ========================

``sg`` stops the gradient. ``clip`` bounds the log weight, so nothing overflows before it is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

__all__ = [
    "MAX_LOG_WEIGHT",
    "NUM_FIELDS",
    "RowInputs",
    "Scheme",
    "WeightRule",
    "check_inputs",
    "clip_log_weight",
    "make_rule",
]

Scheme = Literal["plain", "sample_weight", "imp", "dimp", "focal"]
SCHEMES: tuple[str, ...] = get_args(Scheme)

_NEEDED: dict[str, tuple[str, ...]] = {
    "sample_weight": ("sample_weight",),
    "imp": ("log_quality", "log_diversity"),
    "dimp": ("log_quality",),
}

# Without a clip the log weight is still held within this bound: e^64 = 6e27 leaves float32 ten decades for the
# row's loss and for the sum over rows. The published DIMP code reaches infinity once -log p passes 88.
MAX_LOG_WEIGHT = 64.0


class WeightRule(NamedTuple):
    """A checked rule; build it with `make_rule`. The two bounds are natural logarithms of weights."""

    scheme: Scheme
    gamma: float
    log_low: float
    log_high: float
    label_smoothing: float
    ignore_index: int
    focal_detached: bool
    z_loss: float = 0.0

    @property
    def code(self) -> int:
        """The scheme's number in the kernels."""
        return SCHEMES.index(self.scheme)


class RowInputs(NamedTuple):
    """What the weights are made of: one value a row each, [N], but for the class weights, [V]. None where not given."""

    sample_weight: Tensor | None = None
    log_quality: Tensor | None = None
    log_diversity: Tensor | None = None
    class_weight: Tensor | None = None


# What a kernel's forward pass leaves of each row, float32 [NUM_FIELDS, N], for the caller and the backward pass:
# loss, weight (as counted in a normalised mean), log p, lse, row maximum, log of sum (lse - maximum), a, t, w.
# csrc/include/obverse/weighted_ce.hpp defines a and t and the gradient made of them.
NUM_FIELDS = 9


def make_rule(
    scheme: Scheme = "plain",
    *,
    gamma: float = 1.0,
    weight_clip: tuple[float, float] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    focal_detached: bool = False,
    z_loss: float = 0.0,
) -> WeightRule:
    """Check the settings and put the clip into log space.

    ``weight_clip`` is (low, high) for the importance ratio of ``imp`` and ``dimp``; None leaves the ratio as
    published, within exp(+-`MAX_LOG_WEIGHT`). ``z_loss`` is the factor of lse^2. Raises ValueError for any value
    out of range.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, saw {scheme!r}")
    if not 0.0 <= gamma < math.inf:
        raise ValueError(f"gamma: expected a finite number >= 0, saw {gamma!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: expected a number from 0 to 1, saw {label_smoothing!r}")
    if not 0.0 <= z_loss < math.inf:
        raise ValueError(f"z_loss: expected a finite number >= 0, saw {z_loss!r}")
    low, high = -MAX_LOG_WEIGHT, MAX_LOG_WEIGHT
    if weight_clip is not None:
        if len(weight_clip) != 2 or not 0.0 < weight_clip[0] <= weight_clip[1] < math.inf:
            raise ValueError(f"weight_clip: expected (low, high), 0 < low <= high < inf, saw {weight_clip!r}")
        low, high = (max(-MAX_LOG_WEIGHT, min(MAX_LOG_WEIGHT, math.log(bound))) for bound in weight_clip)
    return WeightRule(
        scheme, float(gamma), low, high, float(label_smoothing), int(ignore_index), focal_detached, float(z_loss)
    )


def check_inputs(scheme: Scheme, given: Set[str]) -> None:
    """Raise ValueError if ``given`` lacks an input that ``scheme`` needs, or has one it would not use.

    A class weight goes with every scheme.
    """
    given = given - {"class_weight"}
    needed = _NEEDED.get(scheme, ())
    for name in needed:
        if name not in given:
            raise ValueError(f"{name}: scheme {scheme!r} needs it, saw None")
    for name in sorted(given):
        if name not in needed and (name != "sample_weight" or scheme == "plain"):
            raise ValueError(f"{name}: scheme {scheme!r} has no use for it; leave it out")


def clip_log_weight(log_ratio: Tensor, rule: WeightRule) -> tuple[Tensor, Tensor]:
    """exp(clip(gamma ``log_ratio``)) and int8: -1 where raised to the lower bound, 1 where lowered to the upper.

    NaN stays NaN.
    """
    log_weight = rule.gamma * log_ratio
    clipped = (log_weight > rule.log_high).to(torch.int8) - (log_weight < rule.log_low).to(torch.int8)
    return log_weight.clamp(rule.log_low, rule.log_high).exp(), clipped
