"""The command ``obverse``: one verb per stage, one for the whole run."""

from obverse.engine.cli.main import main

__all__ = ["main"]
