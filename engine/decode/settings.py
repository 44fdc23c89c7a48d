"""Settings of the decode stage."""

from __future__ import annotations

from pydantic import Field

from obverse.engine.records.models import DType
from obverse.engine.records.settings import StageSettings

__all__ = ["DecodeSettings"]


class DecodeSettings(StageSettings):
    """How outputs are searched for."""

    constrained: list[bool] = Field(default=[True, False], min_length=1)
    """Whether only the catalogue's names may be written; both values: every test set is decoded in both ways."""
    num_beams: int = Field(default=1, ge=1)
    """Beams kept in the search; 1 is greedy."""
    length_penalty: float = 1.0
    """Exponent of the length that a beam's score is divided by; no effect on greedy decoding."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens of an output; of one cut here, the part after its last whole fact is dropped."""
    batch_size: int = Field(default=64, ge=1)
    """Rows decoded at a time."""
    max_triplets: int | None = Field(default=None, ge=1)
    """Most triplets of a constrained output."""
    unique: bool = False
    """Whether a constrained output may write a triplet only once."""
    only_mentioned: bool = False
    """Whether a constrained output may hold only entities whose name stands in its input as it is written."""
    dtype: DType = "auto"
    """Type to compute in. `auto`: bfloat16 where the hardware has it, else float32."""
