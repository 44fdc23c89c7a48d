"""The check stage: which generated texts are fit to learn from, and why the others are not."""

from __future__ import annotations

from obverse.engine.check.checker import Checker
from obverse.engine.check.settings import CheckSettings

__all__ = ["CheckSettings", "Checker"]
