"""Stage: weigh. From cached log-probabilities of the two checkers to one weight a row, with diagnostics.

>>> from obverse.engine.weigh import WeighSettings, weigh_rows, diagnostics
"""

from __future__ import annotations

from obverse.engine.weigh.calibration import Calibration, expected_calibration_error
from obverse.engine.weigh.diagnostics import diagnostics
from obverse.engine.weigh.settings import WeighScheme, WeighSettings
from obverse.engine.weigh.weights import effective_sample_size, importance_weights, weigh_rows

__all__ = [
    "Calibration",
    "WeighScheme",
    "WeighSettings",
    "diagnostics",
    "effective_sample_size",
    "expected_calibration_error",
    "importance_weights",
    "weigh_rows",
]
