"""What happens in a run, as events: the command line draws them."""

from __future__ import annotations

from labctl.events import Event
from labctl.records import dataclass


@dataclass(frozen=True)
class Planned(Event):
    """What will be measured: the tasks' keys and the places' names, in order."""

    tasks: tuple[str, ...]
    places: tuple[str, ...]
    folder: str


@dataclass(frozen=True)
class TaskBegun(Event):
    """A task began: number `place` of all, its key and title; `left` seconds are estimated for the rest."""

    key: str
    title: str
    number: int
    total: int
    left: float


@dataclass(frozen=True)
class Sampled(Event):
    """One run ended: its first figure, so many so far, and the median of these."""

    key: str
    place: str
    mark: str
    phase: str  # warm-up or measured
    value: float
    unit: str
    count: int
    median: float
    seconds: float


@dataclass(frozen=True)
class CellClosed(Event):
    """A task has no (further) figure in a place; `failed` when that is no matter of course."""

    key: str
    place: str
    reason: str
    failed: bool


@dataclass(frozen=True)
class TaskEnded(Event):
    """A task is done: why no further run was made."""

    key: str
    reason: str
