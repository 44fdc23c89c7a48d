"""Settings of the weigh stage."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from obverse.engine.records.settings import StageSettings

__all__ = ["WeighScheme", "WeighSettings"]

WeighScheme = Literal["imp", "quality", "diversity", "uniform"]

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class WeighSettings(StageSettings):
    """How checkers' log-probabilities become one weight a row. DIMP's weight moves with the model: see losses."""

    scheme: WeighScheme = "imp"
    """imp: quality over diversity; quality: quality alone; diversity: one over diversity; uniform: 1."""

    gamma: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Power of the ratio; 0 makes all weights equal."""

    weight_clip: tuple[_Positive, _Positive] | None = (0.1, 10.0)
    """Lowest and highest ratio, or none (``weight_clip = false`` in a recipe) for the ratio as published."""

    centre: bool = True
    """Divide the ratios by their median before the clip: two checkers trained on sets of different sizes differ in
    scale, and normalised weights don't depend on a common factor."""

    normalise: bool = True
    """Scale the weights to a mean of 1, so that learning rates keep their meaning."""

    min_effective_share: float = Field(default=0.0, ge=0, lt=1)
    """Flatten the weights until the effective sample size is at least this share of the rows; 0: leave them."""

    quality_epochs: int = Field(default=5, ge=1)
    """Passes over the real rows when the quality checker is trained."""

    diversity_epochs: int = Field(default=5, ge=1)
    """Passes over the synthetic rows when the diversity checker is trained."""

    folds: int = Field(default=2, ge=1)
    """The diversity checker judges each row by a model that was trained on the other folds; 1: by all rows."""

    @model_validator(mode="before")
    @classmethod
    def _no_clip(cls, values: object) -> object:
        # TOML has no null, so a recipe says false.
        if isinstance(values, dict) and values.get("weight_clip") is False:
            return {**values, "weight_clip": None}
        return values

    @model_validator(mode="after")
    def _ordered(self) -> WeighSettings:
        if self.weight_clip is not None and self.weight_clip[0] > self.weight_clip[1]:
            raise ValueError(f"weight_clip: expected (low, high) with low <= high, saw {self.weight_clip}")
        return self

    def log_clip(self) -> tuple[float, float]:
        """The bounds of the log ratio; infinite without a clip."""
        if self.weight_clip is None:
            return -math.inf, math.inf
        return math.log(self.weight_clip[0]), math.log(self.weight_clip[1])
