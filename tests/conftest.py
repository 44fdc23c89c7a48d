"""For every test: property tests have no deadline, because a shared machine has none that it can keep."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("obverse", deadline=None)
settings.load_profile("obverse")
