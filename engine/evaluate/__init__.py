"""Stage: evaluate. Scores predictions against gold, with bootstrap intervals, and compares two models.

>>> from obverse.engine.evaluate import EvaluateSettings, evaluate, compare
"""

from __future__ import annotations

from obverse.engine.evaluate.compare import METRICS, compare
from obverse.engine.evaluate.evaluate import evaluate
from obverse.engine.evaluate.settings import EvaluateSettings, Task

__all__ = ["METRICS", "EvaluateSettings", "Task", "compare", "evaluate"]
