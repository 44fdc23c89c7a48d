"""Stage: report. One self-contained HTML page from a run's ``metrics.json``.

>>> from obverse.engine.report import render_report
"""

from __future__ import annotations

from obverse.engine.report.render import render_report

__all__ = ["render_report"]
