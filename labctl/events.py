"""What happened, as typed events.  The library prints nothing; the CLI and the web draw these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from time import time

from labctl.records import dataclass


@dataclass(frozen=True)
class Event:
    """Something happened.  `at` is seconds since the epoch."""

    lab: str
    at: float = field(default_factory=time, kw_only=True)


@dataclass(frozen=True)
class StepStarted(Event):
    """A resource step began.  `verb` is make, unmake, change or look; `node` may be empty."""

    verb: str
    kind: str
    name: str
    node: str = ""


@dataclass(frozen=True)
class StepDone(Event):
    """A resource step ended well after `seconds`."""

    verb: str
    kind: str
    name: str
    node: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class StepFailed(Event):
    """A resource step failed; `error` is the message a person reads."""

    verb: str
    kind: str
    name: str
    node: str = ""
    error: str = ""
    hint: str = ""


@dataclass(frozen=True)
class NodePhase(Event):
    """A node came into a phase (planned, starting, running, ready, stopped, paused, failed, skipped)."""

    node: str
    phase: str
    detail: str = ""


@dataclass(frozen=True)
class Note(Event):
    """A sentence worth telling.  `level` is info, warning or error."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Progress(Event):
    """How far a long piece of work is (an image build, a download); `total` 0 means unknown."""

    what: str
    done: float
    total: float = 0.0


Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """An Emit that drops everything."""
