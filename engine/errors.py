"""Every error that Obverse raises on purpose.

::

    ObverseError
    ├── InputError          a file, row or field is not what it must be   (also a ValueError)
    ├── RecipeError         a recipe can't be run as written              (also a ValueError)
    ├── MissingPackageError an optional package is not installed          (also an ImportError)
    ├── BackendError        a generation backend failed or is unreachable
    └── RunError            a run folder is in use, damaged or of another recipe
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["BackendError", "InputError", "MissingPackageError", "ObverseError", "RecipeError", "RunError"]


class ObverseError(Exception):
    """The root: catch this to catch all that Obverse raises on purpose."""


class InputError(ObverseError, ValueError):
    """Data that can't be used, said with file, row, field, the value seen and what was expected."""

    def __init__(
        self,
        expected: str,
        *,
        file: str | Path | None = None,
        row: int | None = None,
        field: str | None = None,
        seen: object = None,
    ) -> None:
        where = [
            str(file) if file is not None else "",
            f"row {row}" if row is not None else "",
            f"field '{field}'" if field is not None else "",
        ]
        place = ", ".join(part for part in where if part)
        shown = repr(seen)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        message = f"expected {expected}" + (f", saw {shown}" if seen is not None else "")
        super().__init__(f"{place}: {message}" if place else message)
        self.file, self.row, self.field, self.seen, self.expected = file, row, field, seen, expected


class RecipeError(ObverseError, ValueError):
    """A recipe that can't be run: every problem found, one a line, each with its place in the file."""


class MissingPackageError(ObverseError, ImportError):
    """An optional package is absent; the message carries the command that installs it."""

    def __init__(self, package: str, *, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'obverse[{extra}]'"
        )
        self.package, self.extra = package, extra


class BackendError(ObverseError):
    """A generation backend failed as a whole (a single bad row never raises this)."""


class RunError(ObverseError):
    """A run folder is in use by another process, damaged, or belongs to another recipe."""
