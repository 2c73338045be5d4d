"""Why a benchmark has no figure in a place."""

from __future__ import annotations

from labctl.errors import LabError


class NotHere(LabError):
    """The benchmark has no meaning in this place; the message says why.  No failure."""


class Unreadable(LabError):
    """The output has no such figure."""


class Failed(LabError):
    """The workload ended badly; `output` is what it said."""

    def __init__(self, message: str, output: str = "", *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.output = output
