"""Settings of the train stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from obverse.engine.records.linearise import Form
from obverse.engine.records.models import DType
from obverse.engine.records.settings import StageSettings

__all__ = ["Method", "TrainSettings"]

Method = Literal["ce", "imp", "dimp"]


class TrainSettings(StageSettings):
    """What to train, and how."""

    model: str = "auto"
    """Model to start from: `auto` (the embedded default), a model folder, or a Hugging Face id."""
    methods: list[Method] = Field(default=["ce", "imp", "dimp"], min_length=1)
    """Losses, one model each: `ce` (all rows alike), `imp` (fixed weights), `dimp` (weights that follow the model)."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the rows."""
    batch_size: int = Field(default=32, ge=1)
    """Rows a step."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; none: 5e-5, and below 50 million parameters 1e-3 (extraction) or 2e-4."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from zero; then it falls to zero in a straight line."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay; norms and biases have none."""
    max_length: int = Field(default=256, ge=8)
    """Most tokens a row: longer rows are left out and counted (extraction) or their text is cut (classification)."""
    dtype: DType = "auto"
    """Type to compute in; weights and optimiser stay float32. `auto`: bfloat16 where the hardware has it."""
    form: Form = "fully_expanded"
    """Linearisation of triplet sets."""
