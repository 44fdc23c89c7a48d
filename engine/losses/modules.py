"""The functions of `functional` and `linear` as modules that keep their settings."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor, nn

from obverse.engine.losses.functional import Diagnostics, weighted_cross_entropy_with_diagnostics
from obverse.engine.losses.linear import linear_weighted_cross_entropy_with_diagnostics
from obverse.engine.losses.settings import LossSettings, make_plan
from obverse.kernels.weight_rule import Scheme

__all__ = ["LinearWeightedCrossEntropy", "WeightedCrossEntropy"]


class _Loss(nn.Module):
    """Settings, checked at once; no parameters and no buffers."""

    def __init__(self, scheme: Scheme, **settings: Unpack[LossSettings]) -> None:
        super().__init__()
        make_plan(scheme, **settings)
        self.scheme: Scheme = scheme
        self.settings = settings

    def extra_repr(self) -> str:
        """The settings that print beside the module's name."""
        return ", ".join(f"{name}={value!r}" for name, value in {"scheme": self.scheme, **self.settings}.items())


class WeightedCrossEntropy(_Loss):
    """Cross-entropy in which every row carries a weight; settings as in `weighted_cross_entropy`.

    It has no parameters and no buffers. Raises ValueError at once for a setting out of range.
    """

    def __init__(self, scheme: Scheme = "plain", *, inplace: bool = False, **settings: Unpack[LossSettings]) -> None:
        super().__init__(scheme, **settings)
        self.inplace = inplace

    def forward(self, logits: Tensor, target: Tensor, **inputs: Any) -> Tensor:
        """The loss of ``logits`` [..., V] with ``target`` [...]; ``inputs`` as the function's."""
        return self.with_diagnostics(logits, target, **inputs)[0]

    def with_diagnostics(self, logits: Tensor, target: Tensor, **inputs: Any) -> tuple[Tensor, Diagnostics]:
        """`forward`'s loss and, from the same pass, its diagnostics."""
        return weighted_cross_entropy_with_diagnostics(
            logits, target, inplace=self.inplace, scheme=self.scheme, **self.settings, **inputs
        )


class LinearWeightedCrossEntropy(_Loss):
    """The same over a linear head whose logits never exist at once; see `linear_weighted_cross_entropy`.

    The head is the model's own and is given with each call. Raises ValueError at once for a setting out of range.
    """

    def __init__(self, scheme: Scheme = "plain", **settings: Unpack[LossSettings]) -> None:
        super().__init__(scheme, **settings)

    def forward(self, hidden: Tensor, head_weight: Tensor, target: Tensor, **inputs: Any) -> Tensor:
        """The loss of ``hidden`` [..., D] under ``head_weight`` [V, D]; ``inputs`` as the function's."""
        return self.with_diagnostics(hidden, head_weight, target, **inputs)[0]

    def with_diagnostics(
        self, hidden: Tensor, head_weight: Tensor, target: Tensor, **inputs: Any
    ) -> tuple[Tensor, Diagnostics]:
        """`forward`'s loss and, from the same pass, its diagnostics."""
        return linear_weighted_cross_entropy_with_diagnostics(
            hidden, head_weight, target, scheme=self.scheme, **self.settings, **inputs
        )
