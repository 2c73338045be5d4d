"""The errors a person sees: each says what is wrong, where, and what to do, and knows its exit code.

Exit codes (docs/exit-codes.md): 0 done, 1 failed, 2 bad usage or profile, 3 a check failed,
4 this host can't, 130 interrupted.  Standard library only, no imports of other rooms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from labctl.records import dataclass


@dataclass(frozen=True)
class Where:
    """A place in a file that a person wrote.  Lines and columns count from 1; 0 means unknown."""

    file: str
    line: int = 0
    column: int = 0
    field: str = ""

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f":{self.line}"
            if self.column:
                place += f":{self.column}"
        return f"{place}: {self.field}" if self.field else place


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what a person wrote, and what to write instead."""

    message: str
    where: Where | None = None
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} ({self.hint})" if self.hint else text


class LabError(Exception):
    """Something failed.  `message` names the object, `hint` says what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", where: Where | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(LabError):
    """The command line, a name or a file that a person gave can't be used.  Nothing was made."""

    exit_code = 2


class ProfileError(UsageError):
    """A profile has mistakes: all of them, not only the first.  `what` names the kind of file."""

    what: ClassVar[str] = "profile"

    def __init__(self, problems: Sequence[Problem], *, hint: str = "") -> None:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(first.message + more, hint=hint or first.hint, where=first.where)
        self.problems = tuple(problems)


class CheckFailed(LabError):
    """A check of the profile did not hold."""

    exit_code = 3


class HostCannot(LabError):
    """This host lacks something that the lab needs; `hint` is the remedy."""

    exit_code = 4


class Interrupted(LabError):
    """A person pressed Ctrl-C, or the process was told to end."""

    exit_code = 130


class Foreign(LabError):
    """An object of the name we need is there and is not ours; the message names its holder."""


class Busy(LabError):
    """Somebody else is at work on the same lab or file; the message says who."""


class TimedOut(LabError):
    """Something took longer than its bound; the message gives the bound in seconds."""


class NoRoom(LabError):
    """A disk is full; the hint says which."""


class Failures(LabError):
    """Several things failed; every one is kept."""

    def __init__(self, message: str, causes: Sequence[LabError], *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.causes = tuple(causes)
