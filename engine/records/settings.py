"""The base of every stage's settings: frozen, strict, at most ten fields each."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["StageSettings"]


class StageSettings(BaseModel):
    """Settings of one stage. Unknown keys and wrong types are errors; values never change after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)
